"""Early exit without offloading: one tier runs the model, and the exit rule says after which layer a text leaves.

    early-exit   C_l >= alpha on the tier that is asked, which must hold the whole model  (arXiv 2410.05338, IV-B)
    deebert      H(p_l) = -sum_c p_l(c) ln p_l(c) < S      (Xin et al. 2020, arXiv 2004.12993, [C:castorini/DeeBERT])
    pabee        the label stayed the same P times in a row (Zhou et al. 2020, arXiv 2006.04152, [C:JetRunner/PABEE])

Where we differ: probabilities are calibrated, one entropy threshold serves every exit, and exits are trained jointly.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from shared.model.exits import Confidence, Entropy, ExitRule, Patience
from shared.policies.base import Clues, Decision, Policy, Ratio, Where, answer_at, needs_all_layers


class EarlyExit(Policy):
    """The whole model on the first tier; a text leaves at the first exit that is confident enough."""

    name = "early-exit"

    exit_threshold: Ratio = Field(0.9, description="confidence at which a text leaves (alpha)")

    def check(self, where: Where) -> None:
        needs_all_layers(self.name, where)

    def exit_rule(self, where: Where) -> ExitRule | None:
        return Confidence(self.exit_threshold)


class _AtTier(Policy):
    """Every text is answered by one tier, early where the rule says so."""

    tier: str | None = Field(None, description="which tier answers; null: the deepest")

    def before(self, where: Where, clues: Clues, draw: float) -> Decision:
        return answer_at(where, self.tier or where.tiers[-1])


class DeeBert(_AtTier):
    """Leaves at the first exit of little entropy."""

    name = "deebert"

    entropy_threshold: Annotated[float, Field(ge=0, le=10)] = Field(0.3, description="nats; 0 never exits early")

    def exit_rule(self, where: Where) -> ExitRule | None:
        return Entropy(self.entropy_threshold)


class Pabee(_AtTier):
    """Leaves once neighbouring exits agreed on the label often enough."""

    name = "pabee"

    patience: Annotated[int, Field(ge=1, le=64)] = Field(
        4, description="times in a row that an exit keeps the label of the one before (P)"
    )

    def exit_rule(self, where: Where) -> ExitRule | None:
        return Patience(self.patience)
