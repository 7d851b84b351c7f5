"""The planner: the problem that Zhang et al. state and never solve (arXiv 2412.12102, eq. 4).

    min  E[T]   (or the 95th percentile)     over policies and their parameters
    s.t. accuracy >= target                  and, where asked, p95 <= P ms and bytes per request <= B

Without an accuracy target, accuracy is what is maximised under the others. Targets are confidence bounds, not means:

    search     on a third of the validation texts every setting of the grid is replayed; the front is what no other
               setting beats in both accuracy and the objective, among those that meet the other targets there by their
               bounds (if none does, by their figures)
    confirm    on the rest a path is walked: the safe setting (the last tier alone; without an accuracy target the
               first), then the front from its safe end (most accurate, or cheapest). Each setting is tested against
               every target at level 5 %; the walk ends at the first that fails
    choose     of those that passed, what is best on all validation texts: the fastest, or the most accurate

Walking in an order that other texts fixed needs no correction for many tests (fixed-sequence testing; Angelopoulos et
al. 2021, Learn then Test, arXiv 2110.01052): a setting that misses its target passes, and so is chosen, in at most 5 %
of plans. That speaks of texts like the validation ones: an easier or harder split is another matter.
Bounds are one-sided 95 %: Clopper and Pearson's for accuracy, binomial order statistics for p95; for bytes the share of
texts that are sent times the mean size of those, each at its bound (Wilson's, normal). Left out:
temperatures and ensemble weights, which were fitted on the same validation texts; queues; and in p95 what varies
between two requests alike, since modelled times are expected ones: jitter, and the machine.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lab.choice import front as beaten_by_none
from lab.choice import operating_point
from lab.replay.trial import Outcomes, Trial
from lab.stats import Z_ONE_SIDED, share_above, wilson
from shared.errors import UnknownPolicy
from shared.policies import Where

Spec = dict[str, Any]
THRESHOLDS = (0.5, 0.7, 0.8, 0.9, 0.95)
STEEPNESS = (10.0, 30.0)
THETAS = (0.0, 0.02, 0.1, 0.5)
LEAST = ((0.0, False), (0.9, False), (0.9, True), (0.95, True))  # confidence that leaving needs; or the unsure too
ALPHAS = (0.8, 0.9, 0.95, 0.98)


@dataclass(frozen=True)
class Targets:
    """What must hold; at least one is given. `objective` is mean or p95."""

    accuracy: float | None = None
    p95_ms: float | None = None
    bytes: float | None = None
    objective: str = "mean"

    @property
    def cost(self) -> str:
        """The figure of `Measured` on the front's other axis: the objective; without an accuracy, what is limited."""
        if self.accuracy is None:
            return "bytes" if self.p95_ms is None else "p95_ms"
        return "p95_ms" if self.objective == "p95" else "mean_ms"

    @property
    def traded(self) -> str:
        """The target that the front trades against: the others must hold for whatever is on it."""
        return "accuracy" if self.accuracy is not None else self.cost


@dataclass(frozen=True)
class Measured:
    """One setting on some texts; where it was confirmed, with one-sided 95 % bounds: accuracy from below, p95 (infinite
    where the texts are too few to bound it) and bytes from above.
    """

    accuracy: float
    mean_ms: float
    p95_ms: float
    bytes: float
    accuracy_low: float = 0.0
    p95_high: float = math.inf
    bytes_high: float = math.inf

    def cost(self, targets: Targets) -> float:
        """What is traded against accuracy."""
        return float(getattr(self, targets.cost))

    def worth(self, targets: Targets) -> tuple[float, float, float]:
        """Less is better: the cost; without an accuracy target less accuracy, then the cost. Ties go to the faster."""
        cost = self.cost(targets)
        pair = (cost, -self.accuracy) if targets.accuracy is not None else (-self.accuracy, cost)
        return (*pair, self.mean_ms)

    def meets(self, targets: Targets, *, bounds: bool) -> bool:
        """Whether every target holds: for the figures themselves, or for their bounds."""
        return not self.misses(targets, bounds=bounds)

    def misses(self, targets: Targets, *, bounds: bool) -> dict[str, float]:
        """By how much each missed target is missed, as a share of it."""
        accuracy = self.accuracy_low if bounds else self.accuracy
        p95, sent = (self.p95_high, self.bytes_high) if bounds else (self.p95_ms, self.bytes)
        gaps = {
            "accuracy": None if targets.accuracy is None else (targets.accuracy - accuracy) / (targets.accuracy or 1),
            "p95_ms": None if targets.p95_ms is None else (p95 - targets.p95_ms) / (targets.p95_ms or 1),
            "bytes": None if targets.bytes is None else (sent - targets.bytes) / (targets.bytes or 1),
        }
        return {name: gap for name, gap in gaps.items() if gap is not None and gap > 0}


@dataclass(frozen=True)
class Plan:
    """The path, as indices into `specs` from its safe end, each with what both parts of the texts gave; the choice.

    The path is the front, after the `pinned` setting, which may be beaten by another.
    """

    specs: list[Spec]
    front: list[int]
    pinned: int | None
    searched: dict[int, Measured]
    confirmed: dict[int, Measured]
    chosen: int | None
    nearest: int  # the chosen one, or what comes nearest to the targets where it was confirmed


def measure(outcomes: Outcomes, rows: np.ndarray) -> Measured:
    """A setting on some of the texts, without bounds."""
    ms = outcomes.ms[rows]
    return Measured(
        accuracy=float(outcomes.right[rows].mean()),
        mean_ms=float(ms.mean()),
        p95_ms=float(np.percentile(ms, 95)),
        bytes=float(outcomes.sent[rows].mean()),
    )


def confirm(outcomes: Outcomes, rows: np.ndarray) -> Measured:
    """A setting on some of the texts, with bounds."""
    right, sent, n = outcomes.right[rows], outcomes.sent[rows], len(rows)
    rank = rank_above(n)
    return replace(
        measure(outcomes, rows),
        accuracy_low=share_above(int(right.sum()), n),
        p95_high=float(np.sort(outcomes.ms[rows])[rank]) if rank < n else math.inf,
        bytes_high=bytes_below(sent),
    )


def bytes_below(sent: np.ndarray) -> float:
    """A bound on the mean of what is sent, from texts most of which may not be sent at all."""
    own = sent[sent > 0]
    if not len(own):
        return 0.0
    share = wilson(len(own), len(sent), 0.9)[1]
    return share * float(own.mean() + Z_ONE_SIDED * own.std() / math.sqrt(len(own)))


def rank_above(n: int, quantile: float = 0.95, level: float = 0.95) -> int:
    """The 0-based rank of the order statistic that is above a quantile with this probability; n where none is.

    >>> rank_above(59), rank_above(58)
    (58, 58)
    """
    from scipy.stats import binom

    return int(binom.ppf(level, n, quantile))


def plan(trial: Trial, specs: Sequence[Spec], targets: Targets) -> Plan:
    """Search on every third row, confirm on the others."""
    safe = {"name": f"{trial.replay.order[0 if targets.accuracy is None else -1]}-only"}
    pinned = specs.index(safe) if safe in specs else None
    return choose(list(specs), [trial.of(spec) for spec in specs], targets, *parts(len(trial.truth)), pinned=pinned)


def parts(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows to search on, and rows to confirm on: a bound needs more texts than an order does."""
    rows = np.arange(n)
    return rows[::3], rows[rows % 3 > 0]


def choose(
    specs: list[Spec],
    every: Sequence[Outcomes],
    targets: Targets,
    search: np.ndarray,
    rest: np.ndarray,
    *,
    pinned: int | None = None,
) -> Plan:
    """The front on the rows to search, walked on the rest, after the `pinned` setting if it keeps the other limits."""
    searched = {at: measure(outcomes, search) for at, outcomes in enumerate(every)}
    untraded: dict[str, Any] = {targets.traded: None}
    limits, able = replace(targets, **untraded), list(searched)
    if limits != Targets(objective=targets.objective):
        figures = [at for at in able if searched[at].meets(limits, bounds=False)]
        able = [at for at in figures if confirm(every[at], search).meets(limits, bounds=True)] or figures or able
    path = front({at: searched[at] for at in able}, targets)
    if targets.accuracy is None:
        path.reverse()  # from the cheapest
    if pinned in able:
        path = [pinned, *(at for at in path if at != pinned)]
    confirmed = {at: confirm(every[at], rest) for at in path}
    passed = list(itertools.takewhile(lambda at: confirmed[at].meets(targets, bounds=True), path))
    judged = {at: measure(every[at], np.concatenate([search, rest])) for at in passed} or confirmed
    costs, missed = [own.worth(targets) for own in judged.values()], [_missed(confirmed[at], targets) for at in judged]
    nearest = list(judged)[operating_point(costs, [-gap for gap in missed], 0.0)]
    return Plan(specs, path, pinned, searched, confirmed, nearest if passed else None, nearest)


def _missed(measured: Measured, targets: Targets) -> float:
    """How far from the targets in all, to what a bound can tell."""
    return round(sum(measured.misses(targets, bounds=True).values()), 6)


def front(measured: dict[int, Measured], targets: Targets) -> list[int]:
    """The settings that no other beats in both accuracy and cost, the most accurate first."""
    every = sorted(measured, key=lambda at: measured[at].mean_ms)  # of two that are alike, the faster
    costs, gains = [measured[at].cost(targets) for at in every], [measured[at].accuracy for at in every]
    return [every[at] for at in beaten_by_none(costs, gains)][::-1]


# -- what there is to choose from -------------------------------------------------------------------------------------


def grid(trial: Trial, coefficients: Sequence[float]) -> list[Spec]:
    """Every setting that this bundle can run live."""
    order, sizes = trial.replay.order, {tier: model.layers for tier, model in trial.bundle.tiers.items()}
    out = []
    for spec in (*_collaborative(order, coefficients), *_others(order, max(sizes.values()))):
        try:
            policy = trial.replay.policy(spec)
            policy.check(Where(order[0], order[1:], sizes))
            trial.of(spec)
        except UnknownPolicy:  # this bundle lacks what it needs
            continue
        out.append(spec)
    return out


def _collaborative(order: tuple[str, ...], coefficients: Sequence[float]) -> Iterator[Spec]:
    for thresholds in itertools.product(THRESHOLDS, repeat=len(order) - 1):
        per_tier = dict(zip(order, thresholds, strict=False))
        for steepness, coefficient, (theta, patience, (least, unsure)) in itertools.product(
            STEEPNESS, coefficients, [(0.0, 2, LEAST[0]), *itertools.product(THETAS[1:], (1, 2), LEAST)]
        ):
            yield {
                "name": "collaborative",
                "offload_threshold": per_tier,
                "steepness": steepness,
                "theta": theta,
                "patience": patience,
                "exit_min_confidence": least,
                "exit_when_unsure": unsure,
                "pruning_coefficient": coefficient,
            }


def _others(order: tuple[str, ...], layers: int) -> Iterator[Spec]:
    for name, alpha in itertools.product(("dimee", "length-quantile", "early-exit"), ALPHAS):
        yield {"name": name, "exit_threshold": alpha}
    for tier in order:
        yield from ({"name": "pabee", "tier": tier, "patience": p} for p in range(2, layers, 2))
        yield {"name": f"{tier}-only"}
