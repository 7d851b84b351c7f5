"""Calibration: make a confidence mean what it says.

    p = softmax(z / T),   T = argmin over [0.05, 20] of the mean negative log-likelihood on validation data
    (Guo et al. 2017, arXiv 1706.04599; eq. 5-6 of Zhang et al. 2025, which fits one T per model; we fit one per exit
    too, since an exit after layer 4 is calibrated differently from one after layer 12)

T does not change the label. Left out: isotonic and vector scaling.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from shared.model.base import Array

T_MIN, T_MAX = 0.05, 20.0


@dataclass(frozen=True)
class Quality:
    """How good probabilities are: accuracy, mean NLL (nats), expected calibration error (15 bins), Brier score."""

    accuracy: float
    nll: float
    ece: float
    brier: float


def calibrated(logits: Array, temperatures: Array | Sequence[float] | float) -> Array:
    """softmax(z / T): probabilities from logits [E, ..., C] and a temperature for each of E exits, or one for all."""
    of_exit = np.asarray(temperatures, dtype=logits.dtype)
    scaled = logits / of_exit.reshape(-1, *[1] * (logits.ndim - 1))
    powers = np.exp(scaled - scaled.max(-1, keepdims=True))
    return np.asarray(powers / powers.sum(-1, keepdims=True))


def fit_temperature(logits: Array, labels: Array) -> float:
    """The temperature with the least NLL, from logits [N, C] and labels [N]; golden-section search on log T.

    NLL is convex in 1/T, hence has one minimum in log T.
    """
    shrink = (math.sqrt(5) - 1) / 2
    low, high = math.log(T_MIN), math.log(T_MAX)
    exact = logits.astype(np.float64)

    def nll(log_t: float) -> float:
        scaled = exact / math.exp(log_t)
        most = scaled.max(-1, keepdims=True)
        total = most[:, 0] + np.log(np.exp(scaled - most).sum(-1))
        return float((total - scaled[np.arange(len(labels)), labels]).mean())

    while high - low > 1e-4:
        left, right = high - shrink * (high - low), low + shrink * (high - low)
        low, high = (low, right) if nll(left) < nll(right) else (left, high)
    return math.exp((low + high) / 2)


def quality(probabilities: Array, labels: Array) -> Quality:
    """All four figures of probabilities [N, C] against labels [N]."""
    assert probabilities.shape == (len(labels), probabilities.shape[-1])
    truth = np.eye(probabilities.shape[1])[labels]
    of_label = probabilities[np.arange(len(labels)), labels]
    return Quality(
        accuracy=float((probabilities.argmax(-1) == labels).mean()),
        nll=float(-np.log(np.maximum(of_label, 1e-12)).mean()),
        ece=expected_calibration_error(probabilities, labels),
        brier=float(((probabilities - truth) ** 2).sum(-1).mean()),
    )


def expected_calibration_error(probabilities: Array, labels: Array, bins: int = 15) -> float:
    """Mean gap between confidence and accuracy over equal-width confidence bins, weighted by their counts."""
    confidence = probabilities.max(-1).astype(np.float64)
    right = (probabilities.argmax(-1) == labels).astype(np.float64)
    which = np.minimum((confidence * bins).astype(np.int64), bins - 1)
    sums = [np.bincount(which, weights=values, minlength=bins) for values in (confidence, right)]
    return float(np.abs(sums[0] - sums[1]).sum() / len(labels))
