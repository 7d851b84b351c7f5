"""How tiers read a text under policies that decide after inference: exits, tokens, pruning, ensemble.

Exits are those of Zhang et al. 2025 (arXiv 2412.12102), section III-D. Subclasses say where a text goes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import Field

from shared.model.bundle import FEWEST
from shared.model.ensemble import Weighting
from shared.model.exits import ExitRule, Similarity
from shared.model.pruning import Pruning
from shared.policies.base import Policy, Ratio, Where

Tokens = Annotated[int, Field(ge=FEWEST, le=100_000)]


class Reading(Policy):
    """Similarity exits, pruning and the ensemble; where a text goes is a subclass's."""

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
    pruning_coefficient: Annotated[float, Field(ge=0, le=10)] = Field(
        1.0, description="words below this many times the mean importance stay behind; 0: none"
    )
    unread_words: bool = Field(
        False, description="whether words of a long text that no further tier reads travel; without pruning"
    )
    max_tokens: Tokens | dict[str, Tokens] | None = Field(
        None,
        description="most tokens that a tier reads of a text, a number or one per tier; null: as many as the bundle "
        "says, which is never exceeded. Temperatures were fitted on that many",
    )
    weighting: Annotated[Weighting, Field(strict=False)] = Field(
        Weighting.FITTED, description="of the ensemble: fitted, accuracy, last, surest"
    )

    def exit_rule(self, where: Where) -> ExitRule | None:
        theta = by_tier(self.theta, where.tier)
        if theta == 0:
            return None
        return Similarity(theta, self.patience, by_tier(self.exit_min_confidence, where.tier), self.unsure_below(where))

    def unsure_below(self, where: Where) -> float:
        """The confidence below which a text may leave the encoder early too, since its tier sends it on; 0: none."""
        return 0.0

    def token_limit(self, tier: str) -> int | None:
        return self.max_tokens.get(tier) if isinstance(self.max_tokens, Mapping) else self.max_tokens

    def pruning(self, tier: str) -> Pruning:
        return Pruning(self.pruning_coefficient, unread_words=self.unread_words)

    def ensemble_weighting(self) -> Weighting:
        return self.weighting


def by_tier(value: float | Mapping[str, float], tier: str) -> float:
    """A parameter that may differ by tier. A tier that is not named has 0: it neither offloads nor exits early."""
    return value.get(tier, 0.0) if isinstance(value, Mapping) else value
