"""Zhang et al. 2025 (arXiv 2412.12102) and the Tabi that it reproduces."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from shared.model.ensemble import Weighting
from shared.model.exits import ExitRule, Similarity
from shared.model.pruning import Pruning
from shared.policies.base import Decision, Policy, Ratio, Where
from shared.policies.dispatch import Curve, Dispatcher


class Collaborative(Policy):
    """The whole of Zhang et al. 2025: similarity exits, S-curve offloading to the next tier, pruning, ensemble."""

    name = "collaborative"

    offload_threshold: Ratio | dict[str, Ratio] = Field(
        0.9, description="confidence below which a text is always sent on; a number, or one per tier"
    )
    steepness: Annotated[float, Field(gt=0, le=1000)] = Field(10.0, description="of the S curve above it (k)")
    curve: Annotated[Curve, Field(strict=False)] = Field(
        Curve.SIGMOID, description="how the chance falls above the threshold: sigmoid, linear, step"
    )
    theta: Ratio | dict[str, Ratio] = Field(
        0.01,
        description="difference of neighbouring exits below which they agree, a number or one per tier; 0: no exit",
    )
    patience: Annotated[int, Field(ge=1, le=64)] = Field(
        2, description="agreements in a row after which a text leaves the encoder"
    )
    exit_min_confidence: Ratio | dict[str, Ratio] = Field(
        0.0, description="confidence that leaving the encoder needs besides; a number, or one per tier"
    )
    exit_when_unsure: bool = Field(
        False,
        description="whether a text below offload_threshold may leave the encoder early too; its tier then sends it on",
    )
    pruning_coefficient: Annotated[float, Field(ge=0, le=10)] = Field(
        1.0, description="words below this many times the mean importance stay behind; 0: none"
    )
    weighting: Annotated[Weighting, Field(strict=False)] = Field(
        Weighting.FITTED, description="of the ensemble: fitted, accuracy, last, surest"
    )

    def after(self, where: Where, confidence: float, draw: float) -> Decision:
        if not self.may_offload_after(where):
            return Decision(None, 0.0, "policy" if where.reachable else "no_link")
        threshold = by_tier(self.offload_threshold, where.tier)
        probability = Dispatcher(threshold, self.steepness, self.curve).probability(confidence)
        reason: Literal["confidence", "curve"] = "confidence" if confidence < threshold else "curve"
        return Decision(where.reachable[0] if draw < probability else None, probability, reason)

    def may_offload_after(self, where: Where) -> bool:
        named = not isinstance(self.offload_threshold, Mapping) or where.tier in self.offload_threshold
        return named and bool(where.reachable)

    def exit_rule(self, where: Where) -> ExitRule | None:
        theta = by_tier(self.theta, where.tier)
        if theta == 0:
            return None
        goes_on = self.exit_when_unsure and self.may_offload_after(where)
        unsure = by_tier(self.offload_threshold, where.tier) if goes_on else 0.0
        return Similarity(theta, self.patience, by_tier(self.exit_min_confidence, where.tier), unsure)

    def pruning(self, tier: str) -> Pruning:
        return Pruning(self.pruning_coefficient)

    def weighting_for(self) -> Weighting:
        return self.weighting


class Tabi(Collaborative):
    """Collaborative with theta = 0: every tier runs all its layers."""

    name = "tabi"

    theta: Literal[0] = Field(0, description="always 0: no early exit")


def by_tier(value: float | Mapping[str, float], tier: str) -> float:
    """A parameter that may differ by tier; a tier that is not named has 0 (never offload, never exit early)."""
    return value.get(tier, 0.0) if isinstance(value, Mapping) else value
