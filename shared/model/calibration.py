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

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

T_MIN, T_MAX = 0.05, 20.0


@dataclass(frozen=True)
class Quality:
    """How good probabilities are: accuracy, mean NLL (nats), expected calibration error (15 bins), Brier score."""

    accuracy: float
    nll: float
    ece: float
    brier: float


def calibrated(logits: Tensor, temperatures: Tensor | Sequence[float] | float) -> Tensor:
    """softmax(z / T): probabilities from logits [E, ..., C] and a temperature for each of E exits, or one for all."""
    of_exit = torch.as_tensor(temperatures, device=logits.device)
    return (logits / of_exit.view(-1, *[1] * (logits.dim() - 1))).softmax(-1)


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature with the least NLL, from logits [N, C] and labels [N]; golden-section search on log T.

    NLL is convex in 1/T, hence has one minimum in log T.
    """
    shrink = (math.sqrt(5) - 1) / 2
    low, high = math.log(T_MIN), math.log(T_MAX)

    def nll(log_t: float) -> float:
        return cross_entropy(logits.double() / math.exp(log_t), labels).item()

    while high - low > 1e-4:
        left, right = high - shrink * (high - low), low + shrink * (high - low)
        low, high = (low, right) if nll(left) < nll(right) else (left, high)
    return math.exp((low + high) / 2)


def quality(probabilities: Tensor, labels: Tensor) -> Quality:
    """All four figures of probabilities [N, C] against labels [N]."""
    assert probabilities.shape == (len(labels), probabilities.shape[-1])
    truth = one_hot(labels, probabilities.shape[1])
    return Quality(
        accuracy=(probabilities.argmax(-1) == labels).double().mean().item(),
        nll=-probabilities.gather(1, labels[:, None]).clamp_min(1e-12).log().mean().item(),
        ece=expected_calibration_error(probabilities, labels),
        brier=((probabilities - truth) ** 2).sum(-1).mean().item(),
    )


def expected_calibration_error(probabilities: Tensor, labels: Tensor, bins: int = 15) -> float:
    """Mean gap between confidence and accuracy over equal-width confidence bins, weighted by their counts."""
    confidence, label = probabilities.max(-1)
    right = (label == labels).double()
    which = (confidence * bins).long().clamp(max=bins - 1)
    gap = 0.0
    for b in range(bins):
        inside = which == b
        if bool(inside.any()):
            gap += abs(confidence[inside].double().mean().item() - right[inside].mean().item()) * inside.sum().item()
    return gap / len(labels)
