"""Intervals: Wilson's for a share, bootstrap for paired differences and other metrics; McNemar's test."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from shared.model.bundle import Metric

Z = 1.959964  # two-sided 95 %
Z_ONE_SIDED = 1.644854  # one-sided 95 %


def front(costs: Sequence[float], gains: Sequence[float]) -> list[int]:
    """The points that no other beats: none costs less and gives as much, or costs as much and gives more.

    From the least cost up; of points that are alike in both, the first.

    >>> front([3.0, 1.0, 2.0, 2.0], [0.9, 0.5, 0.5, 0.7])
    [1, 3, 0]
    """
    out: list[int] = []
    for at in sorted(range(len(costs)), key=lambda at: (costs[at], -gains[at])):
        if not out or gains[at] > gains[out[-1]]:
            out.append(at)
    return out


def wilson(right: int, n: int, z: float = Z) -> tuple[float, float]:
    """Interval of a share (Wilson 1927), 95 % unless `z` says otherwise; `n` >= 1."""
    p, z2 = right / n, z * z
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = z / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean with its 95 % t interval; of one value, that value alone.

    >>> [round(bound, 2) for bound in mean_interval([1.0, 2.0, 3.0])]
    [2.0, -0.48, 4.48]
    """
    from scipy.special import stdtrit

    mean, n = float(np.mean(values)), len(values)
    half = float(stdtrit(n - 1, 0.975) * np.std(values, ddof=1) / math.sqrt(n)) if n > 1 else 0.0
    return mean, mean - half, mean + half


def share_above(right: int, n: int) -> float:
    """Lower bound of a share, one-sided 95 %, exact (Clopper and Pearson 1934).

    >>> round(share_above(59, 59), 3), share_above(0, 10)
    (0.95, 0.0)
    """
    from scipy.special import betaincinv

    return float(betaincinv(right, n - right + 1, 0.05)) if right else 0.0


def unseen_share(n: int, level: float = 0.025) -> float:
    """The largest share of events that n texts without one leave open (exact; about 3.7 / n).

    >>> round(unseen_share(1000), 4)
    0.0037
    """
    return 1.0 - float(level ** (1 / n))


def mcnemar(a: np.ndarray, b: np.ndarray) -> float:
    """p value of "both are right equally often", over the same texts: the exact two-sided test (McNemar 1947)."""
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    n = only_a + only_b
    tail = sum(math.comb(n, k) for k in range(min(only_a, only_b) + 1))
    return min(1.0, 2 * tail / 2**n)


def paired_difference(a: np.ndarray, b: np.ndarray, *, draws: int = 2000, seed: int = 0) -> tuple[float, float, float]:
    """Mean of `a - b` over the same texts, with its 95 % percentile bootstrap interval."""
    assert a.shape == b.shape
    difference = np.asarray(a, float) - np.asarray(b, float)
    rows = np.random.default_rng(seed).integers(0, len(difference), (draws, len(difference)))
    low, high = np.percentile(difference[rows].mean(1), [2.5, 97.5])
    return float(difference.mean()), float(low), float(high)


def paired_shares(a: np.ndarray, b: np.ndarray) -> tuple[float, float, float]:
    """`paired_difference` of shares; where no text differs, resampling knows no doubt, and `unseen_share` bounds it."""
    if (a == b).all():
        return 0.0, -unseen_share(len(a)), unseen_share(len(a))
    return paired_difference(a, b)


def difference_of_medians(a: np.ndarray, b: np.ndarray, *, draws: int = 2000) -> tuple[float, float]:
    """95 % percentile bootstrap interval of median(a) - median(b), independent samples."""
    random = np.random.default_rng(0)
    drawn = [np.median(random.choice(x, (draws, len(x))), axis=1) for x in (a, b)]
    low, high = np.percentile(drawn[0] - drawn[1], [2.5, 97.5])
    return float(low), float(high)


def paired_saving(a: np.ndarray, b: np.ndarray, *, draws: int = 2000, seed: int = 0) -> tuple[float, float, float]:
    """1 - mean(a) / mean(b) over the same texts, with its 95 % percentile bootstrap interval."""
    assert a.shape == b.shape
    rows = np.random.default_rng(seed).integers(0, len(a), (draws, len(a)))
    low, high = np.percentile(1 - a[rows].mean(1) / b[rows].mean(1), [2.5, 97.5])
    return float(1 - a.mean() / b.mean()), float(low), float(high)


def paired_score_difference(
    metric: Metric, a: np.ndarray, b: np.ndarray, truth: np.ndarray
) -> tuple[float, float, float]:
    """`paired_difference` of a metric, from the labels that two policies gave."""
    if metric is Metric.ACCURACY:
        return paired_difference(a == truth, b == truth)
    rows = np.random.default_rng(0).integers(0, len(a), (1000, len(a)))
    drawn = [score(metric, a[row], truth[row]) - score(metric, b[row], truth[row]) for row in rows]
    low, high = np.percentile(drawn, [2.5, 97.5])
    return score(metric, a, truth) - score(metric, b, truth), float(low), float(high)


def score(metric: Metric, said: np.ndarray, truth: np.ndarray) -> float:
    """Accuracy, Matthews' correlation (0 where it is undefined), or F1 of label 1."""
    if metric is Metric.ACCURACY:
        return float((said == truth).mean())
    if metric is Metric.F1:
        hit = int(((said == 1) & (truth == 1)).sum())
        return 2 * hit / max(1, int((said == 1).sum() + (truth == 1).sum()))
    labels = range(int(max(said.max(), truth.max())) + 1)
    s, t = (np.stack([which == label for label in labels]).astype(float) for which in (said, truth))  # [C, N]
    s, t = s - s.mean(1, keepdims=True), t - t.mean(1, keepdims=True)
    spread = math.sqrt((s * s).sum() * (t * t).sum())
    return float((s * t).sum() / spread) if spread else 0.0


def judged(metric: Metric, said: np.ndarray, truth: np.ndarray, *, draws: int = 1000) -> dict[str, Any]:
    """A metric with its 95 % percentile bootstrap interval, as a card holds it; nothing for accuracy, which it has."""
    if metric is Metric.ACCURACY:
        return {}
    rows = np.random.default_rng(0).integers(0, len(said), (draws, len(said)))
    low, high = np.percentile([score(metric, said[row], truth[row]) for row in rows], [2.5, 97.5])
    value = round(score(metric, said, truth), 4)
    return {metric.value: value, f"{metric.value}_ci95": [round(float(low), 4), round(float(high), 4)]}
