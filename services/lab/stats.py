"""Intervals: Wilson's for a share, and bootstrap for paired differences and for metrics that are no share."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from shared.bundle import Metric

Z = 1.959964  # two-sided 95 %


def wilson(right: int, n: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927); `n` >= 1."""
    p, z2 = right / n, Z * Z
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    return centre - half, centre + half


def paired_difference(a: np.ndarray, b: np.ndarray, *, draws: int = 2000, seed: int = 0) -> tuple[float, float, float]:
    """Mean of `a - b` over the same texts, with its 95 % percentile bootstrap interval."""
    assert a.shape == b.shape
    difference = np.asarray(a, float) - np.asarray(b, float)
    rows = np.random.default_rng(seed).integers(0, len(difference), (draws, len(difference)))
    low, high = np.percentile(difference[rows].mean(1), [2.5, 97.5])
    return float(difference.mean()), float(low), float(high)


def difference_of_medians(a: np.ndarray, b: np.ndarray, *, draws: int = 2000) -> tuple[float, float]:
    """95 % percentile bootstrap interval of median(a) - median(b), independent samples."""
    random = np.random.default_rng(0)
    drawn = [np.median(random.choice(x, (draws, len(x))), axis=1) for x in (a, b)]
    low, high = np.percentile(drawn[0] - drawn[1], [2.5, 97.5])
    return float(low), float(high)


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
