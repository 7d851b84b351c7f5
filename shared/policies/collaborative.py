"""Zhang et al. 2025 (arXiv 2412.12102) and the Tabi that it reproduces: an answer that is not good enough here goes on.

    eq. 7   p(C) = 1     if C < threshold,   else S(C)                  a text goes on if its draw is below p(C)
    eq. 8   S(C) = [sig(-k(u - 1/2)) - sig(-k/2)] / [sig(k/2) - sig(-k/2)],   u = (C - threshold) / (1 - threshold)

Section III-A describes the curve in words; eq. 8 is our reconstruction: S-shaped, 1 at the threshold, 0 at full
confidence, one steepness k. `linear` and `step` are the shapes it is compared with.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field

from shared.contracts import Rule
from shared.policies.base import STAY, Decision, Ratio, Where
from shared.policies.reading import Reading, by_tier

FLATTEST = 1e-3  # below it the sigmoid is its limit, the straight line, and the quotient of eq. 8 is rounding errors


class Curve(StrEnum):
    """How the offload probability falls from 1 at the threshold to 0 at full confidence."""

    SIGMOID = "sigmoid"
    LINEAR = "linear"
    STEP = "step"  # 0 at once: a hard threshold


def offload_probability(
    confidence: float, threshold: float, steepness: float = 10.0, curve: Curve = Curve.SIGMOID
) -> float:
    """Eq. 7-8 for a calibrated confidence. `threshold` in [0, 1]; `steepness` k > 0, used by the sigmoid only."""
    if confidence < threshold:
        return 1.0
    if curve is Curve.STEP or threshold >= 1:
        return 0.0
    u = (confidence - threshold) / (1 - threshold)
    if curve is Curve.LINEAR or steepness < FLATTEST:
        return 1 - u
    low, high = _sigmoid(-steepness / 2), _sigmoid(steepness / 2)
    return min(1.0, max(0.0, (_sigmoid(-steepness * (u - 0.5)) - low) / (high - low)))


def _sigmoid(a: float) -> float:
    return 1 / (1 + math.exp(-a))


class Collaborative(Reading):
    """The whole of Zhang et al. 2025: similarity exits, S-curve offloading to the next tier, pruning, ensemble."""

    name = "collaborative"

    offload_threshold: Ratio | dict[str, Ratio] = Field(
        0.9, description="confidence below which a text is always sent on; a number, or one per tier"
    )
    skip_below: Ratio | dict[str, Ratio] = Field(
        0.0,
        description="confidence below which a text that is sent on goes to the deepest tier, past those between; "
        "a number, or one per tier",
    )
    steepness: Annotated[float, Field(gt=0, le=1000)] = Field(10.0, description="of the S curve above it (k)")
    curve: Annotated[Curve, Field(strict=False)] = Field(
        Curve.SIGMOID, description="how the chance falls above the threshold: sigmoid, linear, step"
    )
    exit_when_unsure: bool = Field(
        False,
        description="whether a text below offload_threshold may leave the encoder early too; its tier then sends it on",
    )
    speculate_below: Ratio | dict[str, Ratio] = Field(
        0.0,
        description="confidence of an exit below which a text is sent on ahead of its tier's answer, if it would be "
        "sent on with that confidence; a number, or one per tier; 0: never; without pruning",
    )
    speculate_from: Annotated[int, Field(ge=1, le=64)] = Field(
        3, description="layer whose exit is the first that speculate_below looks at"
    )

    def after(self, where: Where, confidence: float, draw: float) -> Decision:
        if not self.may_offload_after(where):
            return Decision(None, 0.0, "policy" if where.reachable else "no_link")
        threshold = self.threshold(where)
        probability = offload_probability(confidence, threshold, self.steepness, self.curve)
        reason: Literal["confidence", "curve"] = "confidence" if confidence < threshold else "curve"
        to = where.reachable[-1 if self._skips(where, confidence) else 0]
        return Decision(to if draw < probability else None, probability, reason)

    def threshold(self, where: Where) -> float:
        """The confidence below which a tier always sends a text on."""
        return by_tier(self.offload_threshold, where.tier)

    def speculate(self, where: Where, layer: int, confidence: float, draw: float) -> Decision:
        if layer < self.speculate_from or confidence >= by_tier(self.speculate_below, where.tier):
            return STAY
        return self.after(where, confidence, draw)

    def speculates_at(self, where: Where) -> bool:
        return by_tier(self.speculate_below, where.tier) > 0 and self.may_offload_after(where)

    def _skips(self, where: Where, confidence: float) -> bool:
        """Whether a text that is sent on passes over the tiers between: not to a tier that is known to be down."""
        if confidence >= by_tier(self.skip_below, where.tier):
            return False
        link = where.sight.link(where.reachable[-1])
        return link is None or not link.is_down

    def may_offload_after(self, where: Where) -> bool:
        named = not isinstance(self.offload_threshold, Mapping) or where.tier in self.offload_threshold
        return named and bool(where.reachable)

    def offload_rule(self, where: Where) -> Rule | None:
        if not self.may_offload_after(where):
            return None
        threshold = self.threshold(where)
        skips: dict[str, int | float | str] = (
            {"skip_below": skip} if (skip := by_tier(self.skip_below, where.tier)) else {}
        )
        parameters = {"threshold": threshold, "steepness": self.steepness, **skips}
        return Rule(name=self.curve.value, parameters=parameters)

    def unsure_below(self, where: Where) -> float:
        goes_on = self.exit_when_unsure and self.may_offload_after(where)
        return by_tier(self.offload_threshold, where.tier) if goes_on else 0.0


class Tabi(Collaborative):
    """Collaborative with theta = 0: every tier runs all its layers."""

    name = "tabi"

    theta: Literal[0] = Field(0, description="always 0: no early exit")
