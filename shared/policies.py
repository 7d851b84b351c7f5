"""Policies: named, complete ways of deciding which tier answers.

A policy may decide before local inference (`before`), after it (`after`), or both; it may name any reachable tier and
say whether that tier must answer (`final`) or may decide again. It also chooses the exit rule, the pruning and the
ensemble's weights. The same objects decide live and in replay. To add one: subclass `Policy`, put it into `POLICIES`.

    collaborative   Zhang et al. 2025 (arXiv 2412.12102): early exit, S-curve offloading, pruning, ensemble
    tabi            the same without early exit (theta = 0), as that paper reproduces Tabi (Wang et al. 2023)
    random          one of the reachable tiers, each as likely (the baseline of arXiv 2410.05338, section IV-B)
    TIER-only       that tier answers every text: end-only, edge-only, cloud-only
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shared.dispatch import Curve, Dispatcher
from shared.ensemble import Weighting
from shared.errors import UnknownPolicy
from shared.exits import ExitRule, Similarity
from shared.pruning import Pruning

Ratio = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True)
class Where:
    """What a policy may know about the place it decides at."""

    tier: str
    reachable: tuple[str, ...]  # tiers that a text can go to from here, nearest first, within the request's max_tier


@dataclass(frozen=True)
class Decision:
    """`to` is a reachable tier, or null: answer here. `final`: that tier must answer itself."""

    to: str | None
    probability: float  # of leaving this tier, given what was known
    reason: Literal["policy", "confidence", "curve", "no_link"]
    final: bool = False


STAY = Decision(None, 0.0, "policy")


class Policy(BaseModel):
    """Answers where the text is, at full depth, with the last answer alone. Subclasses change what they must.

    Fields are the policy's parameters: validated, JSON-able, and settable per request.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)
    name: ClassVar[str]

    def before(self, where: Where, draw: float) -> Decision:
        """Where to go before any layer runs; `STAY` infers here."""
        return STAY

    def after(self, where: Where, confidence: float, draw: float) -> Decision:
        """Where to go once this tier has an answer with this calibrated confidence."""
        return STAY

    def may_offload_after(self, where: Where) -> bool:
        """Whether `after` can ever leave this tier."""
        return False

    def prunes_at(self, where: Where) -> bool:
        """Whether a text that leaves here is pruned: only then is importance computed."""
        return self.may_offload_after(where) and self.pruning(where.tier).coefficient > 0

    def exit_rule(self, tier: str) -> ExitRule | None:
        """Where texts may leave a tier's encoder; null runs all layers."""
        return None

    def pruning(self, tier: str) -> Pruning:
        """What is dropped from a text that leaves a tier."""
        return Pruning(coefficient=0)

    def weighting_for(self) -> Weighting:
        return Weighting.LAST


class Only(Policy):
    """One tier answers every text; asked of a deeper one, that one does."""

    tier: str
    shallower: frozenset[str]  # the tiers before it in the bundle's order

    def before(self, where: Where, draw: float) -> Decision:
        if where.tier not in self.shallower or not where.reachable:
            return STAY
        to = self.tier if self.tier in where.reachable else where.reachable[-1]  # max_tier caps the depth
        return Decision(to, 1.0, "policy", final=True)


class Random(Policy):
    """Uniform over this tier and the reachable ones, before any inference."""

    name = "random"

    def before(self, where: Where, draw: float) -> Decision:
        choices = (where.tier, *where.reachable)
        to = choices[int(draw * len(choices))]
        return Decision(None if to == where.tier else to, 1 - 1 / len(choices), "policy", final=True)

    def after(self, where: Where, confidence: float, draw: float) -> Decision:
        return Decision(None, 1 - 1 / (1 + len(where.reachable)), "policy")  # it stayed: the chance is on record


class Collaborative(Policy):
    """The whole of Zhang et al. 2025: similarity exits, S-curve offloading to the next tier, pruning, ensemble."""

    name = "collaborative"

    offload_threshold: Ratio | dict[str, Ratio] = 0.9
    steepness: Annotated[float, Field(gt=0, le=1000)] = 10.0
    curve: Annotated[Curve, Field(strict=False)] = Curve.SIGMOID
    theta: Ratio | dict[str, Ratio] = Field(0.01, description="0 never exits early")
    patience: Annotated[int, Field(ge=1, le=64)] = 2
    exit_min_confidence: Ratio = 0.0
    pruning_coefficient: Annotated[float, Field(ge=0, le=10)] = 1.0
    weighting: Annotated[Weighting, Field(strict=False)] = Weighting.FITTED

    def after(self, where: Where, confidence: float, draw: float) -> Decision:
        if not self.may_offload_after(where):
            return Decision(None, 0.0, "policy" if where.reachable else "no_link")
        threshold = _at(self.offload_threshold, where.tier)
        probability = Dispatcher(threshold, self.steepness, self.curve).probability(confidence)
        reason: Literal["confidence", "curve"] = "confidence" if confidence < threshold else "curve"
        return Decision(where.reachable[0] if draw < probability else None, probability, reason)

    def may_offload_after(self, where: Where) -> bool:
        named = not isinstance(self.offload_threshold, Mapping) or where.tier in self.offload_threshold
        return named and bool(where.reachable)

    def exit_rule(self, tier: str) -> ExitRule | None:
        theta = _at(self.theta, tier)
        return Similarity(theta, self.patience, self.exit_min_confidence) if theta > 0 else None

    def pruning(self, tier: str) -> Pruning:
        return Pruning(self.pruning_coefficient)

    def weighting_for(self) -> Weighting:
        return self.weighting


class Tabi(Collaborative):
    """Collaborative with theta = 0: every tier runs all its layers."""

    name = "tabi"

    theta: Literal[0] = 0


POLICIES: dict[str, type[Policy]] = {policy.name: policy for policy in (Collaborative, Tabi, Random)}


def _at(value: float | Mapping[str, float], tier: str) -> float:
    """A parameter that may differ by tier; a tier that is not named has 0 (never offload, never exit early)."""
    return value.get(tier, 0.0) if isinstance(value, Mapping) else value


def names(tiers: Sequence[str]) -> list[str]:
    """Every policy that a bundle with these tiers offers."""
    return [*POLICIES, *(f"{tier}-only" for tier in tiers)]


def build(spec: str | Mapping[str, Any], tiers: Sequence[str], defaults: Mapping[str, Mapping[str, Any]]) -> Policy:
    """A policy from its name or from `{name, ...parameters}`; parameters not given come from `defaults[name]`.

    Raises:
        UnknownPolicy: no such policy or tier, a parameter it does not have, or a value out of range.
    """
    given = {"name": spec} if isinstance(spec, str) else dict(spec)
    name = given.pop("name", None)
    if name not in names(tiers):
        raise UnknownPolicy(f"unknown policy {name!r}: choose one of {', '.join(names(tiers))}")
    elsewhere = [tier for value in given.values() if isinstance(value, dict) for tier in value if tier not in tiers]
    if elsewhere:
        raise UnknownPolicy(f"policy {name!r}: unknown tier {elsewhere[0]!r}: this bundle has {', '.join(tiers)}")
    try:
        if name in POLICIES:
            return POLICIES[name].model_validate({**defaults.get(name, {}), **given})
        if given:
            raise UnknownPolicy(f"policy {name!r} has no parameters; got {', '.join(sorted(given))}")
        tier = name.removesuffix("-only")
        return Only(tier=tier, shallower=frozenset(tiers[: list(tiers).index(tier)]))
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise UnknownPolicy(f"policy {name!r}: {problems}") from error


def name_of(policy: Policy) -> str:
    """One of `names`: what `build` knows this policy by."""
    return f"{policy.tier}-only" if isinstance(policy, Only) else policy.name


def spec_of(policy: Policy) -> dict[str, Any]:
    """The spec that builds this very policy on another tier: every parameter spelled out."""
    parameters = {} if isinstance(policy, Only) else policy.model_dump(mode="json")
    return {"name": name_of(policy), **parameters}
