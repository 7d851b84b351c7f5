"""Early exit without offloading: one tier runs the model, and the exit rule says after which layer a text leaves.

    early-exit   C_l >= alpha on the tier that is asked, which must hold the whole model  (arXiv 2410.05338, IV-B)
    deebert      H(p_l) = -sum_c p_l(c) ln p_l(c) < S      (Xin et al. 2020, arXiv 2004.12993, [C:castorini/DeeBERT])
    pabee        the label stayed the same P times in a row (Zhou et al. 2020, arXiv 2006.04152, [C:JetRunner/PABEE])
    jei-dnn      q_l >= 1/2, from a fitted gate per exit   (Regol et al. 2024, arXiv 2310.09163, `model/gates.py`)

Where we differ: probabilities are calibrated, one entropy threshold serves every exit, and exits are trained jointly:
of JEI-DNN we take the gates, not the turns of gate and classifier training.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
from pydantic import Field, ValidationInfo, ValidatorFunctionWrapHandler, field_validator

from shared.errors import UnknownPolicy
from shared.model.exits import Confidence, Entropy, ExitRule, Patience
from shared.model.gates import OF_JEI_DNN, JeiDnn
from shared.policies.base import Clues, Decision, Policy, Ratio, Where, answer_at, digest_of, needs_all_layers


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


FourWeights = Annotated[list[float], Field(min_length=OF_JEI_DNN + 1, max_length=OF_JEI_DNN + 1)]


class JeiDnnExits(_AtTier):
    """Leaves at the first exit whose fitted gate, after those before it, is more likely open than not."""

    name = "jei-dnn"

    gates: dict[str, list[FourWeights]] = Field(
        {}, description="by tier, for each exit but the last: a weight for each of four features, then the bias"
    )

    @field_validator("gates", mode="wrap")
    @classmethod
    def _read(cls, value: Any, whole: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
        """Gates as they are, or the digest of those of this tier's card."""
        if not isinstance(value, str):
            return whole(value)
        here = whole((info.context or {}).get("gates", {}))
        if (own := digest_of(here)) != value:
            raise ValueError(f"sent on with the gates {value}; this tier's card has {own}: give all tiers one card")
        return here

    def by_digest(self, card: Mapping[str, Any]) -> dict[str, Any]:
        return {"gates": digest_of(self.gates)} if self.gates == card.get("gates") else {}

    def check(self, where: Where) -> None:
        tier = self.tier or where.tiers[-1]
        if len(self.gates.get(tier, ())) != where.layers[tier] - 1:
            raise UnknownPolicy(
                f"policy {self.name!r}: {tier} needs a gate for each of its exits but the last, "
                f"{where.layers[tier] - 1} in all; `tierwise calibrate` fits them"
            )

    def exit_rule(self, where: Where) -> JeiDnn | None:
        gates = self.gates.get(where.tier)
        return None if gates is None else JeiDnn(tuple(map(tuple, gates)))

    def scores(self, where: Where) -> list[dict[str, float]]:
        rule, seen = self.exit_rule(where), np.array(where.visits[-1].exits)[:, None]  # [E, 1, C]
        return [] if rule is None else [{"answer": q} for q in rule.leaving(seen[: len(rule.gates)])[:, 0].tolist()]
