"""Intervals: Wilson's for a share, and paired bootstrap for the difference of two policies on the same texts."""

from __future__ import annotations

import math

import numpy as np

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


def difference_of_means(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """95 % interval of mean(a) - mean(b), independent samples (Welch, normal approximation)."""
    centre = float(a.mean() - b.mean())
    half = Z * math.sqrt(a.var(ddof=1) / len(a) + b.var(ddof=1) / len(b))
    return centre - half, centre + half
