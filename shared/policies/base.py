"""What every policy is: the questions that a tier asks it about a text.

    before    where a text goes before any layer runs, from its clues
    after     where it goes once this tier has an answer
    speculate where it will probably go, told from an exit before that answer

A policy never changes. One that learns from its answers is a `Learner` (`shared/policies/learner.py`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from shared.contracts import Rule
from shared.errors import UnknownPolicy
from shared.model.ensemble import Weighting
from shared.model.exits import ExitRule
from shared.model.pools import Signature, Vector
from shared.model.pruning import Pruning

Ratio = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True)
class Clues:
    """What is known about a text before any layer runs. `signature` is null unless the policy asks for one."""

    words: int
    signature: Vector | None = None


@dataclass(frozen=True)
class Visit:
    """One tier's part in an answer. Everything is calibrated and rounded to 6 digits, as the hop on the wire."""

    tier: str
    exit_layer: int
    confidence: float  # at that exit
    confidences: tuple[float, ...]  # of every exit evaluated up to there, oldest first; of another tier only the last
    probabilities: tuple[float, ...] = ()  # at that exit, in the order of the bundle's labels
    exits: tuple[tuple[float, ...], ...] = ()  # the same of every exit in `confidences`


@dataclass(frozen=True)
class Link:
    """The link that a text takes toward a tier. A rate of 0 is unlimited."""

    to: str  # the tier at its other end, which may have to pass the text on
    profile: str
    rate_up_bps: float
    rate_down_bps: float
    round_trip_s: float  # as measured of late; before any measurement, and in a replay, as the profile says
    bytes_up: int = 0  # of bodies, since the tier started; in a replay 0
    bytes_down: int = 0
    is_down: bool = False  # calls failed again and again, and none is made now; in a replay never
    fixed_s: float = 0.0  # of a call without bodies, as measured of late; after 5 s without a call as the profile says
    byte_s: float = 0.0  # of each byte of its bodies, both ways together; the same
    waiting_s: float | None = None  # of work at the tier `to`, as it said in the last 2 s; null: it said nothing
    compute_s: float | None = None  # of a text at the tier that is asked, as measured; null, and in a replay: unknown
    under_way_s: float = 0.0  # since the oldest call left that has no answer; 0: none is under way
    joules: Callable[[float, float, float], float] | None = field(  # of bytes up and down, and seconds: modelled
        default=None, repr=False, compare=False
    )  # null: the profile has no power model

    def takes_s(self, size: float) -> float:
        """Seconds that a call with bodies of `size` bytes in all is on the link."""
        return self.fixed_s + size * self.byte_s


class Sight:
    """What can be seen from a place besides its name: each is found out when a policy looks, and never before.

    Tiers and replays see what they know; here nothing is known.
    """

    __slots__ = ()

    def clues(self) -> Clues | None:
        return None

    def visits(self) -> tuple[Visit, ...]:
        return ()

    def link(self, to: str) -> Link | None:
        return None

    def remaining_s(self) -> float | None:
        return None

    def waiting_s(self) -> float:
        return 0.0

    def steady(self, name: str, value: float, band: float) -> float:
        """A value that does not flap: the one of before, unless `value` is further from it than the share `band`.

        Tiers remember one value by name, for all policies together; here, and in a replay, it is `value` itself.
        """
        return value


@dataclass(frozen=True)
class Where:
    """What a policy may know about the place it decides at, and about the text that it decides on."""

    tier: str
    reachable: tuple[str, ...]  # tiers that a text can go to from here, nearest first, within the request's max_tier
    layers: Mapping[str, int]  # that every tier of the bundle holds, shallowest tier first
    sight: Sight = field(default=Sight(), repr=False, compare=False)

    @property
    def tiers(self) -> tuple[str, ...]:
        """Every tier of the bundle, shallowest first."""
        return tuple(self.layers)

    @property
    def is_last(self) -> bool:
        """Whether no tier of the bundle is deeper."""
        return self.tier == self.tiers[-1]

    @property
    def clues(self) -> Clues | None:
        """Of the text; null where no single text is decided on (`exit_rule`)."""
        return self.sight.clues()

    @property
    def visits(self) -> tuple[Visit, ...]:
        """The tiers that ran for the text, in order; in `after`, this one is the last.

        Those of other tiers are known where `carries_visits` is set.
        """
        return self.sight.visits()

    @property
    def links(self) -> dict[str, Link]:
        """By tier that can be reached, the link to take."""
        seen = {tier: self.sight.link(tier) for tier in self.reachable}
        return {tier: link for tier, link in seen.items() if link is not None}

    @property
    def remaining_s(self) -> float | None:
        """Seconds until the request's deadline; null where there is none, and in a replay."""
        return self.sight.remaining_s()

    @property
    def waiting_s(self) -> float:
        """Seconds of work before this tier's model, as measured; in a replay 0."""
        return self.sight.waiting_s()


@dataclass(frozen=True)
class Decision:
    """`to` is a reachable tier, or null: answer here. `final`: that tier must answer itself."""

    to: str | None
    probability: float  # of leaving this tier, given what was known
    reason: Literal["policy", "confidence", "curve", "no_link"]
    final: bool = False


STAY = Decision(None, 0.0, "policy")


def draw(seed: str, index: int, tier: str) -> float:
    """A number in [0, 1) that the same seed, index and tier always give: a request replays exactly."""
    digest = hashlib.sha256(f"{seed}:{index}:{tier}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


class Policy(BaseModel):
    """Answers where the text is, at full depth, with the last answer alone. Subclasses change what they must.

    Fields are the policy's parameters: validated, JSON-able, and settable per request.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)
    name: ClassVar[str]
    sha256: ClassVar[str | None] = None  # of its file, in short; null: it comes with Tierwise
    like: ClassVar[str | None] = None  # the policy whose parameters on a card hold here too, where both have them
    carries_visits: ClassVar[bool] = False  # whether what each tier said travels on with a text, for `Where.visits`
    gated: ClassVar[bool] = False  # whether `after` decides by gates, whatever the confidence
    weighs_time: ClassVar[bool] = False  # whether `after` weighs what going on gains against the time it takes

    def settled(self, where: Where) -> Policy:
        """What the tier that is asked decides by and sends on: choose here what depends on the links from there."""
        return self

    def by_digest(self, card: Mapping[str, Any]) -> dict[str, Any]:
        """Those parameters that are the card's, each by a digest in its place: they need not travel to other tiers.

        `card`: the parameters of this policy in the bundle's card. Validators take the digest back (`digest_of`).
        """
        return {}

    def check(self, where: Where) -> None:
        """Raise UnknownPolicy where the policy cannot run live on this tier: it lacks layers, or the card is silent."""

    def signature(self, tier: str) -> Signature | None:
        """Which signature `before` wants to see at a tier."""
        return None

    def before(self, where: Where, clues: Clues, draw: float) -> Decision:
        """Where to go before any layer runs; `STAY` infers here."""
        return STAY

    def after(self, where: Where, confidence: float, draw: float) -> Decision:
        """Where to go once this tier has an answer with this calibrated confidence."""
        return STAY

    def speculate(self, where: Where, layer: int, confidence: float, draw: float) -> Decision:
        """Where `after` will probably send the text, told from the exit after `layer`: the call there starts at once.

        It is cancelled if `after` decides otherwise. `STAY` starts none yet.
        """
        return STAY

    def speculates_at(self, where: Where) -> bool:
        """Whether `speculate` can ever send a text on: only then is it asked."""
        return False

    def may_offload_after(self, where: Where) -> bool:
        """Whether `after` can ever leave this tier."""
        return False

    def offload_rule(self, where: Where) -> Rule | None:
        """What `after` decides by, for whoever asks for an explanation; null where it sends nothing on."""
        return Rule(name=self.name, parameters={}) if self.may_offload_after(where) else None

    def scores(self, where: Where) -> list[dict[str, float]]:
        """What every action scored at each exit that the text reached here, in order, for whoever asks for an
        explanation; nothing where no gates decide.
        """
        return []

    def prunes_at(self, where: Where) -> bool:
        """Whether a text that leaves here is pruned: only then is importance computed."""
        return self.may_offload_after(where) and self.pruning(where.tier).coefficient > 0

    def exit_rule(self, where: Where) -> ExitRule | None:
        """Where texts may leave a tier's encoder; null runs all layers. Nothing is reachable from a tier that must
        answer itself, or whose next tier is known to be down.
        """
        return None

    def token_limit(self, tier: str) -> int | None:
        """The most tokens that a tier reads of a text; null, and at most: as many as the bundle says."""
        return None

    def pruning(self, tier: str) -> Pruning:
        """What is dropped from a text that leaves a tier."""
        return Pruning(coefficient=0)

    def ensemble_weighting(self) -> Weighting:
        return Weighting.LAST


def digest_of(value: Any) -> str:
    """Names a parameter's value: 12 hexadecimal digits of the sha256 over its JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def answer_at(where: Where, tier: str) -> Decision:
    """Have `tier` answer itself, or the deepest that may; one that is not deeper than here means here.

    >>> layers = {"end": 3, "edge": 6, "cloud": 12}
    >>> answer_at(Where("end", ("edge", "cloud"), layers), "cloud").to
    'cloud'
    >>> answer_at(Where("end", ("edge",), layers), "cloud").to
    'edge'
    """
    if where.tiers.index(tier) <= where.tiers.index(where.tier) or not where.reachable:
        return STAY
    return Decision(tier if tier in where.reachable else where.reachable[-1], 1.0, "policy", final=True)


def may_speculate(policy: Policy, where: Where) -> bool:
    """Whether texts may leave a tier ahead of its answer: nothing of it may then travel with them, nor choose words."""
    return policy.speculates_at(where) and not (policy.carries_visits or policy.prunes_at(where))


def needs_all_layers(name: str, where: Where) -> None:
    """Refuse a method that runs the whole model on the tier that is asked, where that one holds a part of it."""
    held, deepest = where.layers[where.tier], max(where.layers.values())
    if held < deepest:
        raise UnknownPolicy(
            f"policy {name!r} runs the whole model on {where.tier}, which holds {held} of its {deepest} layers: "
            "serve a bundle that gives it all of them (device-imdb does), or use `tierwise replay`"
        )
