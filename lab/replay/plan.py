"""The planner: the problem that Zhang et al. state and never solve (arXiv 2412.12102, eq. 4).

    min  E[T]   (or the 95th percentile)     over policies and their parameters
    s.t. accuracy >= target                  and, where asked, p95 <= P ms and bytes per request <= B

Without an accuracy target, accuracy is what is maximised under the others. Targets are confidence bounds, not means:

    search     on a third of the validation texts settings are replayed, first of a coarse grid, then around the front
               (`lab/replay/search.py`); the front is what no other setting beats in both accuracy and the objective,
               among those that meet the other targets there by their bounds (if none does, by their figures)
    confirm    on the rest a path is walked: the safe setting (the last tier alone; without an accuracy target the
               first), then the most accurate setting of each band of costs, from the dearest, those that miss a
               target where they were searched at the end; without an accuracy target the front, from the cheapest.
               Each setting is tested against every target at level 5 %; the walk ends at the first that fails
    choose     of those that passed, what is best on all validation texts: the fastest, or the most accurate

Walking in an order that other texts fixed needs no correction for many tests (fixed-sequence testing; Angelopoulos et
al. 2021, Learn then Test, arXiv 2110.01052): a setting that misses its target passes, and so is chosen, in at most 5 %
of plans. That speaks of texts like the validation ones: an easier or harder split is another matter.
An accuracy may also be asked for as at most so much below the deepest tier alone, on the same texts (`within`): that
takes far fewer texts to prove, since both are right on most of them.
Bounds are one-sided 95 %: Clopper and Pearson's for accuracy, Tango's for what is lost against the deepest tier,
binomial order statistics for p95; for bytes the share of texts that are sent times the mean size of those, each at its
bound (Wilson's, normal). `path-gates` is judged by gates that have not seen the text (`lab/replay/gated.py`); but those
that judge the rows to search on were fitted on the others, so its place on the path is not wholly fixed by other texts.
Left out: temperatures, ensemble weights and the gates of `jei-dnn`, which were fitted on the same validation texts;
queues; and in p95 what varies between two requests alike, since modelled times are expected ones: jitter, and the
machine.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from lab.choice import front as beaten_by_none
from lab.choice import operating_point
from lab.replay.gated import gated
from lab.replay.search import Search, Seen, Spec
from lab.replay.trial import Outcomes, Trial
from lab.stats import Z_ONE_SIDED, lost_at_most, share_above, wilson

BAND = 0.92  # costs that are walked differ by this factor: the most accurate setting of each band


@dataclass(frozen=True)
class Targets:
    """What must hold; at least one is given. `objective` is mean or p95.

    `within`: the most accuracy that may be lost against the deepest tier alone.
    """

    accuracy: float | None = None
    p95_ms: float | None = None
    bytes: float | None = None
    objective: str = "mean"
    within: float | None = None

    @property
    def accurate(self) -> bool:
        """Whether an accuracy is asked for, alone or beside the deepest tier's."""
        return self.accuracy is not None or self.within is not None

    @property
    def cost(self) -> str:
        """The figure of `Measured` on the front's other axis: the objective; without an accuracy, what is limited."""
        if not self.accurate:
            return "bytes" if self.p95_ms is None else "p95_ms"
        return "p95_ms" if self.objective == "p95" else "mean_ms"

    @property
    def others(self) -> Targets:
        """Less what the front trades against: these must hold for whatever is on it."""
        traded: dict[str, Any] = {"accuracy": None, "within": None} if self.accurate else {self.cost: None}
        return replace(self, **traded)


@dataclass(frozen=True)
class Measured:
    """One setting on some texts; where it was confirmed, with one-sided 95 % bounds: accuracy from below, what is lost
    against the deepest tier, p95 (infinite where the texts are too few to bound it) and bytes from above.
    """

    accuracy: float
    mean_ms: float
    p95_ms: float
    bytes: float
    accuracy_low: float = 0.0
    p95_high: float = math.inf
    bytes_high: float = math.inf
    lost: float = 0.0  # less accurate than the deepest tier alone by this much
    lost_high: float = math.inf

    def cost(self, targets: Targets) -> float:
        """What is traded against accuracy."""
        return float(getattr(self, targets.cost))

    def worth(self, targets: Targets) -> tuple[float, float, float]:
        """Less is better: the cost; without an accuracy target less accuracy, then the cost. Ties go to the faster."""
        cost = self.cost(targets)
        pair = (cost, -self.accuracy) if targets.accurate else (-self.accuracy, cost)
        return (*pair, self.mean_ms)

    def meets(self, targets: Targets, *, bounds: bool) -> bool:
        """Whether every target holds: for the figures themselves, or for their bounds."""
        return not self.misses(targets, bounds=bounds)

    def misses(self, targets: Targets, *, bounds: bool) -> dict[str, float]:
        """By how much each missed target is missed, as a share of it; `within`, in accuracy."""
        accuracy = self.accuracy_low if bounds else self.accuracy
        lost = self.lost_high if bounds else self.lost
        p95, sent = (self.p95_high, self.bytes_high) if bounds else (self.p95_ms, self.bytes)
        gaps = {
            "accuracy": None if targets.accuracy is None else (targets.accuracy - accuracy) / (targets.accuracy or 1),
            "p95_ms": None if targets.p95_ms is None else (p95 - targets.p95_ms) / (targets.p95_ms or 1),
            "bytes": None if targets.bytes is None else (sent - targets.bytes) / (targets.bytes or 1),
            "within": None if targets.within is None else lost - targets.within,
        }
        return {name: gap for name, gap in gaps.items() if gap is not None and gap > 0}


@dataclass(frozen=True)
class Plan:
    """The path, as indices into `specs` from its safe end, each with what both parts of the texts gave; the choice.

    The path begins with the `pinned` setting; some of it may be beaten by others.
    """

    specs: list[Spec]
    every: Sequence[Seen | Outcomes]  # each on the texts to search on
    path: list[int]
    pinned: int | None
    searched: dict[int, Measured]
    confirmed: dict[int, Measured]
    chosen: int | None
    nearest: int  # the chosen one, or what comes nearest to the targets where it was confirmed


def measure(outcomes: Seen | Outcomes, rows: np.ndarray, deepest: np.ndarray | None = None) -> Measured:
    """A setting on some of the texts, without bounds. `deepest`: whether the deepest tier alone is right, [N]."""
    ms, right = outcomes.ms[rows], outcomes.right[rows]
    return Measured(
        accuracy=float(right.mean()),
        mean_ms=float(ms.mean()),
        p95_ms=float(np.percentile(ms, 95)),
        bytes=float(outcomes.sent[rows].mean()),
        lost=0.0 if deepest is None else float(deepest[rows].mean() - right.mean()),
    )


def confirm(outcomes: Seen | Outcomes, rows: np.ndarray, deepest: np.ndarray | None = None) -> Measured:
    """The same with bounds."""
    right, sent, n = outcomes.right[rows], outcomes.sent[rows], len(rows)
    rank = rank_above(n)
    return replace(
        measure(outcomes, rows, deepest),
        accuracy_low=share_above(int(right.sum()), n),
        p95_high=float(np.sort(outcomes.ms[rows])[rank]) if rank < n else math.inf,
        bytes_high=bytes_below(sent),
        lost_high=math.inf if deepest is None else lost_at_most(right, deepest[rows]),
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


def plan(trial: Trial, targets: Targets, *, coefficients: Sequence[float], tokens: Mapping[str, Sequence[int]]) -> Plan:
    """Search on every third row, confirm on the others."""
    search, rest = parts(len(trial.truth))
    deepest = deepest_of(trial)
    found = Search(trial, search, coefficients=coefficients, tokens=tokens)
    for full, outcomes in gated(trial):
        found.add(full, outcomes)
    found.run(lambda every: searched(every, targets, search, deepest)[1])
    safe = {"name": f"{trial.replay.order[-1 if targets.accurate else 0]}-only"}
    pinned = found.specs.index(safe) if safe in found.specs else None
    whole = partial(whole_of, trial, found.specs)
    return choose(found.specs, found.every, targets, search, rest, pinned=pinned, whole=whole, deepest=deepest)


def deepest_of(trial: Trial) -> np.ndarray:
    """Whether the deepest tier alone is right, for every text of a trial."""
    return trial.of(f"{trial.replay.order[-1]}-only").right


def whole_of(trial: Trial, specs: Sequence[Spec], at: int) -> Outcomes:
    """A setting on every text of a trial."""
    return trial.of(specs[at])


def parts(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows to search on, and rows to confirm on: a bound needs more texts than an order does."""
    rows = np.arange(n)
    return rows[::3], rows[rows % 3 > 0]


def searched(
    every: Sequence[Seen | Outcomes], targets: Targets, search: np.ndarray, deepest: np.ndarray | None
) -> tuple[dict[int, Measured], list[int]]:
    """Each setting on the rows to search on, and those to walk, from the safe end.

    Those that miss a target already here come last: a band may hold nothing good.
    """
    figures = {at: measure(outcomes, search, deepest) for at, outcomes in enumerate(every)}
    able = list(figures)
    if targets.others != Targets(objective=targets.objective):
        meet = [at for at in able if figures[at].meets(targets.others, bounds=False)]
        bound = [at for at in meet if confirm(every[at], search, deepest).meets(targets.others, bounds=True)]
        able = bound or meet or able
    own = {at: figures[at] for at in able}
    if not targets.accurate:
        return figures, front(own, targets)[::-1]  # from the cheapest
    return figures, sorted(bands(own, targets), key=lambda at: not own[at].meets(targets, bounds=False))


def choose(
    specs: list[Spec],
    every: Sequence[Seen | Outcomes],
    targets: Targets,
    search: np.ndarray,
    rest: np.ndarray,
    *,
    pinned: int | None = None,
    whole: Callable[[int], Seen | Outcomes] | None = None,
    deepest: np.ndarray | None = None,
) -> Plan:
    """What the rows to search on say is to be walked, walked on the rest; first the `pinned` setting if it keeps the
    other limits.

    `every` may know the rows to search alone; `whole` then gives a setting on all of them.
    """
    whole = whole or every.__getitem__
    figures, path = searched(every, targets, search, deepest)
    if pinned is not None and figures[pinned].meets(targets.others, bounds=False):
        most = figures[pinned].cost(targets) if targets.accurate else math.inf
        path = [pinned, *(at for at in path if at != pinned and figures[at].cost(targets) < most)]
    confirmed = {at: confirm(whole(at), rest, deepest) for at in path}
    passed = list(itertools.takewhile(lambda at: confirmed[at].meets(targets, bounds=True), path))
    both = np.concatenate([search, rest])
    judged = {at: measure(whole(at), both, deepest) for at in passed} or confirmed
    costs, missed = [own.worth(targets) for own in judged.values()], [_missed(confirmed[at], targets) for at in judged]
    nearest = list(judged)[operating_point(costs, [-gap for gap in missed], 0.0)]
    return Plan(specs, every, path, pinned, figures, confirmed, nearest if passed else None, nearest)


def bands(measured: Mapping[int, Measured], targets: Targets) -> list[int]:
    """The most accurate setting of each band of costs, from the dearest.

    The front alone would be a poor path: among thousands of settings one that is cheap looks most accurate by chance,
    all that is dearer and no more accurate on these few texts is beaten by it, and the walk ends at once.
    """
    best: dict[int, int] = {}
    for at in sorted(measured, key=lambda at: measured[at].worth(targets)):
        band = math.floor(math.log(max(measured[at].cost(targets), 1e-9)) / math.log(BAND))
        if band not in best or measured[at].accuracy > measured[best[band]].accuracy:
            best[band] = at
    return [best[band] for band in sorted(best)]


def _missed(measured: Measured, targets: Targets) -> float:
    """How far from the targets in all, to what a bound can tell."""
    return round(sum(measured.misses(targets, bounds=True).values()), 6)


def front(measured: dict[int, Measured], targets: Targets) -> list[int]:
    """The settings that no other beats in both accuracy and cost, the most accurate first."""
    every = sorted(measured, key=lambda at: measured[at].mean_ms)  # of two that are alike, the faster
    costs, gains = [measured[at].cost(targets) for at in every], [measured[at].accuracy for at in every]
    return [every[at] for at in beaten_by_none(costs, gains)][::-1]
