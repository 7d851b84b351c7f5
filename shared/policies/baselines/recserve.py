"""RecServe (arXiv 2505.16502, [C:wuzhiyuan2000/RecServe]): each tier sends on its least sure texts, a share beta.

    t = percentile(H, 100 * beta), linear; H: the last 10,000 confidences of this tier, this text's C among them
    C < t, and H has more than one value:  the next tier is asked as well; the deepest answer counts

With n confidences before this one, C < t says the same as: C is below the ceil(beta * n)-th smallest of them. Each tier
thus needs one number, which travels, and the tier that was asked keeps every tier's history.

Where we differ: C is calibrated (the paper's is not). With two labels that changes no decision, since one temperature
keeps the order. C has the 6 digits that travel. A history holds the texts that one tier was asked, not those of others
that share the deeper tiers; the texts of one request are judged alike; and one whose next tier failed is not in it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

import numpy as np
from pydantic import Field

from shared.model.pools import Pools
from shared.policies.base import STAY, Decision, Policy, Ratio, Where
from shared.policies.learner import Learner, Outcome, State


def cut(before: Sequence[float], beta: float) -> float | None:
    """The confidence below which the next text goes on, from those before it; null where none does.

    >>> cut([0.9, 0.6, 0.8], beta=0.3), cut([0.9, 0.6, 0.8], beta=0.5), cut([], beta=0.3)
    (0.6, 0.8, None)
    """
    rank = math.ceil(beta * len(before) - 1e-9)  # 0.1 * 30 may be a little more than 3
    return float(np.partition(before, rank - 1)[rank - 1]) if rank else None


def newer(seen: Sequence[float], start: Sequence[float], *, full: bool) -> Sequence[float]:
    """What a history holds beyond the one that it began with; `full`: it may have lost its oldest values since.

    >>> newer([0.2, 0.3, 0.5], [0.1, 0.2, 0.3], full=True)
    [0.5]
    """
    least = 0 if full else len(start)
    for kept in range(min(len(seen), len(start)), least - 1, -1):
        if list(seen[:kept]) == list(start[len(start) - kept :]):
            return seen[kept:]
    raise ValueError(f"a history of {len(seen)} confidences did not begin with the {len(start)} of the start")


class RecServe(Learner):
    """The least sure texts of each tier go on. State: each tier's latest confidences, oldest first."""

    name = "recserve"

    beta: Ratio = Field(0.3, description="share of its texts that each tier sends on")
    window: Annotated[int, Field(ge=2, le=10_000)] = Field(
        10_000, description="latest confidences of a tier that count, this text's among them"
    )
    thresholds: dict[str, Ratio] | None = Field(
        None, description="by tier, fixes the confidence below which a text goes on; null: learned"
    )

    @property
    def learns(self) -> bool:
        return self.thresholds is None

    def initial_state(self, where: Where, pools: Pools | None) -> State | None:
        if not self.learns:
            return None
        from_here = where.tiers[where.tiers.index(where.tier) :]
        return {tier: [] for tier in from_here[:-1]}

    def check_state(self, state: State, fresh: State) -> None:
        if any(len(seen) >= self.window or not all(0 <= c <= 1 for c in seen) for seen in state.values()):
            raise ValueError(f"a history holds fewer than {self.window} confidences")

    def bound(self, state: State) -> Policy:
        cuts = {tier: cut(seen, self.beta) for tier, seen in state.items()}
        return self.model_copy(update={"thresholds": {tier: c for tier, c in cuts.items() if c is not None}})

    def after(self, where: Where, confidence: float, draw: float) -> Decision:
        threshold = (self.thresholds or {}).get(where.tier)
        if threshold is None or not where.reachable or round(confidence, 6) >= threshold:
            return STAY
        return Decision(where.reachable[0], 1.0, "confidence")

    def may_offload_after(self, where: Where) -> bool:
        return bool(where.reachable)

    def learn(self, state: State, bound: Policy, outcome: Outcome) -> State:
        new = {visit.tier: visit.confidence for visit in outcome.visits}
        return {tier: [*seen, new[tier]][-self.window + 1 :] if tier in new else seen for tier, seen in state.items()}

    def merge(self, states: Sequence[State], start: State) -> State:
        """What each history added, as if they had grown at the same time, evenly; the oldest beyond the window go."""
        most, merged = self.window - 1, {}
        for tier, before in start.items():
            new = [newer(state[tier], before, full=len(state[tier]) >= most) for state in states]
            placed = sorted(((at + 0.5) / len(some), c) for some in new for at, c in enumerate(some))
            merged[tier] = [*before, *(c for _, c in placed)][-most:]
        return merged

    def described(self, state: State) -> State:
        return {tier: {"texts": len(seen), "threshold": cut(seen, self.beta)} for tier, seen in state.items()}
