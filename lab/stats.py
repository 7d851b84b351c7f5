"""Intervals and tests, most of them scipy's: shares, means, paired differences, and the metrics of a bundle.

scipy is imported where it is used: the command line starts without it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from shared.model.bundle import Metric

Z_ONE_SIDED = 1.644854  # one-sided 95 %


def wilson(right: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Two-sided interval of a share (Wilson 1927); `n` >= 1."""
    from scipy.stats import binomtest

    found = binomtest(right, n).proportion_ci(confidence, "wilson")
    return float(found.low), float(found.high)


def accuracy_of(right: np.ndarray) -> dict[str, Any]:
    """The share of texts that are answered rightly, with its interval, as every report holds it."""
    return {"accuracy": float(right.mean()), "accuracy_ci95": list(wilson(int(right.sum()), len(right)))}


def spread_of(ms: np.ndarray) -> dict[str, float]:
    """Mean and percentiles of times, as every report holds them."""
    return {"mean": float(ms.mean()), **{f"p{q}": float(np.percentile(ms, q)) for q in (50, 95, 99)}}


def mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean with its 95 % t interval; of one value, that value alone.

    >>> [round(bound, 2) for bound in mean_interval([1.0, 2.0, 3.0])]
    [2.0, -0.48, 4.48]
    """
    from scipy.stats import sem, t

    mean, n = float(np.mean(values)), len(values)
    half = float(t.ppf(0.975, n - 1) * sem(values)) if n > 1 else 0.0
    return mean, mean - half, mean + half


def share_above(right: int, n: int) -> float:
    """Lower bound of a share, one-sided 95 %, exact (Clopper and Pearson 1934).

    >>> round(share_above(59, 59), 3), share_above(0, 10)
    (0.95, 0.0)
    """
    from scipy.stats import binomtest

    return float(binomtest(right, n, alternative="greater").proportion_ci().low)


def lost_at_most(right: np.ndarray, reference: np.ndarray) -> float:
    """Upper bound of the accuracy that is lost against a reference on the same texts, one-sided 95 %.

    Tango 1998, https://doi.org/10.1002/(SICI)1097-0258(19980430)17:8<891::AID-SIM780>3.0.CO;2-B, the score interval
    of a difference of paired shares: the loss at which its statistic is -z, by bisection.

    >>> both = np.ones(1000, dtype=bool)
    >>> round(lost_at_most(both, both), 4)
    0.0027
    """
    n = len(right)
    lost, gained = int((reference & ~right).sum()), int((right & ~reference).sum())
    low, high = (lost - gained) / n, 1.0
    for _ in range(40):
        loss = (low + high) / 2
        b, c = (2 * n - lost + gained) * loss - lost - gained, -gained * loss * (1 - loss)
        gaining = (math.sqrt(b * b - 8 * n * c) - b) / (4 * n)  # its most likely share, were this the loss
        spread = math.sqrt(max(n * (2 * gaining + loss * (1 - loss)), 1e-12))
        low, high = (loss, high) if (lost - gained - n * loss) / spread > -Z_ONE_SIDED else (low, loss)
    return high


def unseen_share(n: int, level: float = 0.025) -> float:
    """The largest share of events that n texts without one leave open (exact; about 3.7 / n).

    >>> round(unseen_share(1000), 4)
    0.0037
    """
    return 1.0 - float(level ** (1 / n))


def mcnemar(a: np.ndarray, b: np.ndarray) -> float:
    """p value of "both are right equally often", over the same texts: the exact two-sided test (McNemar 1947)."""
    from scipy.stats import binomtest

    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    return float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0


def resampled(
    statistic: Callable[..., Any], *samples: np.ndarray, paired: bool = False, draws: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """95 % percentile bootstrap interval of a statistic of samples; of one text, its value twice.

    A `statistic` that takes an `axis` is asked for all draws at once, any other for one draw after the other.
    """
    from scipy.stats import bootstrap

    if min(map(len, samples)) == 1:
        low = high = statistic(*samples)
    else:
        low, high = bootstrap(
            samples, statistic, n_resamples=draws, method="percentile", paired=paired, rng=np.random.default_rng(seed)
        ).confidence_interval
    return float(low), float(high)


def paired_difference(a: np.ndarray, b: np.ndarray) -> tuple[float, float, float]:
    """Mean of `a - b` over the same texts, with its 95 % percentile bootstrap interval."""
    assert a.shape == b.shape
    difference = np.asarray(a, float) - np.asarray(b, float)
    return float(difference.mean()), *resampled(np.mean, difference)


def paired_shares(a: np.ndarray, b: np.ndarray) -> tuple[float, float, float]:
    """`paired_difference` of shares; where no text differs, resampling knows no doubt, and `unseen_share` bounds it."""
    if (a == b).all():
        return 0.0, -unseen_share(len(a)), unseen_share(len(a))
    return paired_difference(a, b)


def difference_of_medians(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """95 % percentile bootstrap interval of median(a) - median(b), independent samples."""
    return resampled(lambda a, b, axis=-1: np.median(a, axis) - np.median(b, axis), a, b)


def paired_percentile(a: np.ndarray, b: np.ndarray, q: float) -> tuple[float, float, float]:
    """The `q`th percentile of `a` less that of `b` over the same texts, with its 95 % percentile bootstrap interval.

    >>> paired_percentile(np.arange(100.0) + 7, np.arange(100.0), 95)[0]
    7.0
    """
    assert a.shape == b.shape

    def difference(a: np.ndarray, b: np.ndarray, axis: int = -1) -> Any:
        return np.percentile(a, q, axis) - np.percentile(b, q, axis)

    return float(difference(a, b)), *resampled(difference, a, b, paired=True)


def paired_p95(a: np.ndarray, b: np.ndarray) -> tuple[float, float, float]:
    """The same of the 95th percentile."""
    return paired_percentile(a, b, 95)


def paired_saving(a: np.ndarray, b: np.ndarray, *, draws: int = 2000) -> tuple[float, float, float]:
    """1 - mean(a) / mean(b) over the same texts, with its 95 % percentile bootstrap interval."""
    assert a.shape == b.shape

    def saving(a: np.ndarray, b: np.ndarray, axis: int = -1) -> Any:
        return 1 - a.mean(axis) / b.mean(axis)

    return float(saving(a, b)), *resampled(saving, a, b, paired=True, draws=draws)


def paired_score_difference(
    metric: Metric, a: np.ndarray, b: np.ndarray, truth: np.ndarray
) -> tuple[float, float, float]:
    """`paired_shares` of a metric, or `paired_difference`, from the labels that two policies gave."""
    if metric is Metric.ACCURACY:
        return paired_shares(a == truth, b == truth)

    def difference(a: np.ndarray, b: np.ndarray, truth: np.ndarray) -> float:
        return score(metric, a, truth) - score(metric, b, truth)

    return difference(a, b, truth), *resampled(difference, a, b, truth, paired=True, draws=1000)


def score(metric: Metric, said: np.ndarray, truth: np.ndarray) -> float:
    """Accuracy, Matthews' correlation (0 where it is undefined), or F1 of label 1."""
    # By hand, as an interval asks for 1,000 scores or 2,000, and scikit-learn takes 60 to 120 times as long for each
    # (1,000 texts: 12 ms, not 0.1 or 0.2). A test holds these equal to scikit-learn's.
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


def judged(metric: Metric, said: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
    """A metric with its 95 % percentile bootstrap interval, as a card holds it; nothing for accuracy, which it has."""
    if metric is Metric.ACCURACY:
        return {}
    ends = resampled(lambda said, truth: score(metric, said, truth), said, truth, paired=True, draws=1000)
    value = round(score(metric, said, truth), 4)
    return {metric.value: value, f"{metric.value}_ci95": [round(end, 4) for end in ends]}
