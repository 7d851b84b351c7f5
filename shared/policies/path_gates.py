"""Path gates: at every exit of every tier, answer here, send the text to one of the deeper tiers, or go on.

    s_la = w_la x_l + b_la     of exit l, for a in {answer here} and {send to u: u deeper}; going on scores 0
    leave the encoder at the first exit where one of them is above 0; at the last exit in any case
    then do what scores most

JEI-DNN (arXiv 2310.09163) generalised from one encoder to a path over tiers [ours]; features and rule are in
`shared/model/gates.py`. Gates are fitted for the links of a profile, since they weigh milliseconds against accuracy
(`lab/fit/gates.py`). The tier that is asked picks those of its links once. Where they are its card's, only their links
and a digest travel: a tier whose card has others refuses the call. Gates that a request gave travel whole. Tiers that
cannot be reached, or whose link is down, are no choice. Nothing is drawn: the same text always takes the same path.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationInfo,
    field_validator,
    model_validator,
)

from shared.errors import UnknownPolicy
from shared.model.ensemble import Weighting
from shared.model.exits import ExitRule
from shared.model.gates import FEATURES, Path, features, scores
from shared.model.pruning import Pruning
from shared.policies.base import Decision, Policy, Where, digest_of

ANSWER = "answer"  # what an action is called that sends a text nowhere
Weights = Annotated[list[float], Field(min_length=len(FEATURES) + 1, max_length=len(FEATURES) + 1)]


class LinkGates(BaseModel):
    """Gates for the links of a profile, ACCESS/BACKBONE. By tier, exit and action: six weights, then the bias.

    The first action is to answer; the others, to send the text to each deeper tier, nearest first. The deepest tier
    has gates at every exit but the last, each other tier at every exit.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    links: str
    tiers: dict[str, list[list[Weights]]]

    @model_validator(mode="wrap")
    @classmethod
    def _read(cls, value: Any, whole: ModelWrapValidatorHandler[LinkGates], info: ValidationInfo) -> LinkGates:
        """Gates as they are, or LINKS@DIGEST for those of this tier's card."""
        if not isinstance(value, str):
            return whole(value)
        links, _, digest = value.partition("@")
        here = [whole(own) for own in (info.context or {}).get("profiles", ()) if own["links"] == links]
        if digest not in (own.digest for own in here):
            has = f"has others ({here[0].digest})" if here else "has none"
            raise ValueError(f"sent on with the gates {value}; this tier's card {has}: give all tiers one card")
        return here[0]

    @property
    def digest(self) -> str:
        """Names these gates."""
        return digest_of(self.tiers)

    def fits(self, where: Where) -> bool:
        """Whether all links that are seen from here are of this profile."""
        access, _, backbone = self.links.partition("/")
        here, links = where.tiers.index(where.tier), where.links.values()
        hops = [(link, range(here, where.tiers.index(link.to))) for link in links]
        return bool(hops) and all(
            link.profile == "+".join(backbone if at else access for at in way) for link, way in hops
        )

    def fault(self, where: Where) -> str | None:
        """What is wrong with them: there must be gates for every exit and action of this bundle's tiers alone."""
        last = len(where.tiers) - 1
        if elsewhere := [tier for tier in self.tiers if tier not in where.tiers]:
            return f"unknown tier {elsewhere[0]!r}: this bundle has {', '.join(where.tiers)}"
        for at, (tier, layers) in enumerate(where.layers.items()):
            exits, wanted = self.tiers.get(tier, []), layers - (at == last)
            if len(exits) != wanted:
                return f"{tier} has gates at {len(exits)} exits, not at {wanted}"
            for exit_, gates in enumerate(exits, 1):
                if len(gates) != 1 + last - at:
                    actions = ", ".join((ANSWER, *where.tiers[at + 1 :]))
                    return f"{tier}, exit {exit_}: {len(gates)} gates, not one for each of {actions}"
        return None


class PathGates(Policy):
    """Fitted gates choose at every exit: answer here, send to any deeper tier, or go on."""

    name = "path-gates"
    gated = True

    profiles: list[LinkGates] = Field(
        [], description="gates by links (ACCESS/BACKBONE); of the first profile where the links are of none of them"
    )
    unread_words: bool = Field(False, description="whether words of a long text that no further tier reads travel")
    weighting: Annotated[Weighting, Field(strict=False)] = Field(
        Weighting.FITTED, description="of the ensemble: fitted, accuracy, last, surest"
    )

    @field_validator("profiles")
    @classmethod
    def _once(cls, profiles: list[LinkGates]) -> list[LinkGates]:
        links = [profile.links for profile in profiles]
        if twice := [name for name in links if links.count(name) > 1]:
            raise ValueError(f"{twice[0]} has gates twice")
        return profiles

    def settled(self, where: Where) -> Policy:
        fit = [profile for profile in self.profiles if profile.fits(where)]
        return self.model_copy(update={"profiles": (fit or self.profiles)[:1]})

    def by_digest(self, card: Mapping[str, Any]) -> dict[str, Any]:
        if not all(profile.model_dump() in card.get("profiles", ()) for profile in self.profiles):
            return {}
        return {"profiles": [f"{profile.links}@{profile.digest}" for profile in self.profiles]}

    def check(self, where: Where) -> None:
        if not self.profiles:
            raise UnknownPolicy(f"policy {self.name!r} needs gates; `tierwise calibrate` fits them")
        for profile in self.profiles:
            if fault := profile.fault(where):
                raise UnknownPolicy(f"policy {self.name!r}, gates of {profile.links}: {fault}")

    def exit_rule(self, where: Where) -> ExitRule | None:
        exits, at = self._exits(where), [action for action, _ in self._actions(where)]
        return Path(
            tuple(tuple(tuple(gates[action]) for action in at) for gates in exits[: where.layers[where.tier] - 1])
        )

    def after(self, where: Where, confidence: float, draw: float) -> Decision:
        actions, visit = self._actions(where), where.visits[-1]
        if len(actions) == 1:
            return Decision(None, 0.0, "policy" if where.reachable else "no_link")
        gates = np.array([self._exits(where)[visit.exit_layer - 1][action] for action, _ in actions])
        best = scores(features(np.array(visit.exits)[:, None])[-1, 0], gates).argmax()
        _, to = actions[best]
        return Decision(to, float(to is not None), "policy")

    def scores(self, where: Where) -> list[dict[str, float]]:
        actions, exits = self._actions(where), self._exits(where)
        seen = features(np.array(where.visits[-1].exits)[:, None])[:, 0]  # [E, 6]
        return [
            {to or ANSWER: float(scores(x, np.array([gates[action]]))[0]) for action, to in actions}
            for x, gates in zip(seen, exits, strict=False)  # the deepest tier has none at its last exit
        ]

    def may_offload_after(self, where: Where) -> bool:
        return bool(where.reachable)

    def pruning(self, tier: str) -> Pruning:
        return Pruning(coefficient=0, unread_words=self.unread_words)

    def ensemble_weighting(self) -> Weighting:
        return self.weighting

    def _exits(self, where: Where) -> list[list[Weights]]:
        return self.profiles[0].tiers[where.tier]

    def _actions(self, where: Where) -> list[tuple[int, str | None]]:
        """What can be done here: the action's place among an exit's gates, and the tier to send to."""
        deeper = where.tiers[where.tiers.index(where.tier) + 1 :]
        links = {tier: where.sight.link(tier) for tier in where.reachable}
        able = [tier for tier, link in links.items() if link is None or not link.is_down]
        return [(0, None), *((1 + deeper.index(tier), tier) for tier in able)]
