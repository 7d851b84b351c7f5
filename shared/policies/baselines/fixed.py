"""Policies that look at no text, or at its length alone: what every other one is compared with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

from pydantic import Field, NonNegativeInt

from shared.errors import UnknownPolicy
from shared.model.exits import Confidence, ExitRule
from shared.policies.base import STAY, Clues, Decision, Policy, Ratio, Where, answer_at


class Only(Policy):
    """One tier answers every text, at full depth; asked of a deeper one, that one does (`end-only`, ...)."""

    tier: str

    def before(self, where: Where, clues: Clues, draw: float) -> Decision:
        return answer_at(where, self.tier)


class Random(Policy):
    """Before inference, any reachable tier, each as likely (arXiv 2410.05338, section IV-B)."""

    name = "random"

    def before(self, where: Where, clues: Clues, draw: float) -> Decision:
        choices = (where.tier, *where.reachable)
        to = choices[int(draw * len(choices))]
        return Decision(None if to == where.tier else to, 1 - 1 / len(choices), "policy", final=True)

    def after(self, where: Where, confidence: float, draw: float) -> Decision:
        return Decision(None, 1 - 1 / (1 + len(where.reachable)), "policy")  # it stayed: the chance is on record


class Pooled(Policy):
    """A pool per tier, chosen before any layer runs; that tier answers, the last one with all its layers."""

    exit_threshold: Ratio = Field(0.9, description="confidence at which a tier but the last is left early (alpha)")

    def pool(self, clues: Clues) -> int | None:
        """Which pool a text belongs to, 0 the easiest; null where that cannot be told."""
        raise NotImplementedError

    def before(self, where: Where, clues: Clues, draw: float) -> Decision:
        pool = self.pool(clues)
        return STAY if pool is None else answer_at(where, where.tiers[min(pool, len(where.tiers) - 1)])

    def exit_rule(self, where: Where) -> ExitRule | None:
        return None if where.is_last else Confidence(self.exit_threshold)


class LengthQuantile(Pooled):
    """Short texts stay, long ones go to the last tier: bins as large as DIMEE's pools. What DIMEE must beat."""

    name = "length-quantile"

    edges: list[NonNegativeInt] = Field(
        [], description="words up to which a text belongs to each tier but the last, ascending"
    )

    def check(self, where: Where) -> None:
        if len(self.edges) != len(where.tiers) - 1 or self.edges != sorted(self.edges):
            raise UnknownPolicy(
                f"policy {self.name!r}: edges must be {len(where.tiers) - 1} ascending numbers of words, one for each "
                "tier but the last; `tierwise calibrate` chooses them where its texts have pools"
            )

    def pool(self, clues: Clues) -> int | None:
        return sum(clues.words > edge for edge in self.edges)


class Oracle(Policy):
    """The shallowest tier that is right, else the cheapest: an upper bound that knows the labels. Replay only."""

    name = "oracle"

    def check(self, where: Where) -> NoReturn:
        raise UnknownPolicy("policy 'oracle' knows the labels, so it only runs on recorded texts: `tierwise replay`")

    @staticmethod
    def pick(right: Sequence[bool]) -> int:
        """The index of the tier that answers, given which tiers are right, shallowest first.

        >>> Oracle.pick([False, True, True]), Oracle.pick([False, False, False])
        (1, 0)
        """
        return next((index for index, is_right in enumerate(right) if is_right), 0)
