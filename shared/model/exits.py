"""Exit rules: which exit of the encoder a text leaves by.

A rule looks at the probabilities of every exit reached so far and says, row by row, whether to leave now. It is a
pure function of that history, so the live encoder and a replay over recorded exits share it to the letter.

    similarity   D_l = 1/2 * sum_c |p_l(c) - p_{l-1}(c)|;  leave once D < theta held `patience` times in a row
                 (Zhang et al. 2025, arXiv 2412.12102, eq. 13-14; theta = 0 never leaves because the test is strict)
                 ours: only the sure, and those too unsure to be kept, if the policy says so
    confidence   leave once max_c p_l(c) >= threshold            (BranchyNet-style; DIMEE's rule, arXiv 2410.05338)
    entropy      leave once -sum_c p ln p < threshold            (DeeBERT, Xin et al. 2020)
    patience     leave once the label stayed the same `patience` times in a row   (PABEE, Zhou et al. 2020)
    at layer     leave after that layer                          (the split layer of SplitEE, Bajpai et al. 2024)

Where we differ: the history holds *calibrated* probabilities (a temperature per exit), not raw softmax outputs, so
that one theta or threshold means the same at every depth. Left out: rules that learn online (they come as policies),
and fitted gates (`gates.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from shared.model.base import Array

_TINY = np.finfo(np.float32).tiny


class ExitRule(Protocol):
    """Accepts or refuses the newest exit. `history` is [E, B, C], oldest exit first; the answer is bool [B]."""

    def __call__(self, history: Array) -> Array: ...


def exit_taken(history: Array, rule: ExitRule | None) -> Array:
    """The 1-based exit [B] that each row takes, from all its exits [E, B, C]: the rule asked after every layer."""
    E, B, _ = history.shape
    layer = np.full(B, E)
    if rule is not None:
        for depth in range(E - 1, 0, -1):
            layer[rule(history[:depth])] = depth
    return layer


def entropy(probabilities: Array) -> Array:
    """In nats, of the last axis; p = 0 adds nothing to it."""
    return -(probabilities * np.log(np.maximum(probabilities, _TINY))).sum(-1)


@dataclass(frozen=True)
class Similarity:
    """Neighbouring exits agree: total variation below `theta`, `patience` times in a row (eq. 13-14).

    `min_confidence` guards against neighbours that agree on an unsure answer; 0 is the paper's rule. A text below
    `unsure` may leave the encoder too: its tier sends it on. Its deeper layers might have kept it on this tier.
    """

    theta: float
    patience: int = 2
    min_confidence: float = 0.0
    unsure: float = 0.0

    def __call__(self, history: Array) -> Array:
        if history.shape[0] <= self.patience:
            return np.zeros(history.shape[1], dtype=bool)
        recent = history[-self.patience - 1 :]
        difference = np.abs(recent[1:] - recent[:-1]).sum(-1) / 2  # [patience, B]
        confidence = history[-1].max(-1)
        return (difference < self.theta).all(0) & ((confidence >= self.min_confidence) | (confidence < self.unsure))


@dataclass(frozen=True)
class Confidence:
    """The exit's own calibrated confidence reaches `threshold`."""

    threshold: float

    def __call__(self, history: Array) -> Array:
        return history[-1].max(-1) >= self.threshold


@dataclass(frozen=True)
class Entropy:
    """The exit's entropy in nats falls below `threshold`."""

    threshold: float

    def __call__(self, history: Array) -> Array:
        return entropy(history[-1]) < self.threshold


@dataclass(frozen=True)
class Patience:
    """The label of neighbouring exits stays the same `patience` times in a row."""

    patience: int

    def __call__(self, history: Array) -> Array:
        if history.shape[0] <= self.patience:
            return np.zeros(history.shape[1], dtype=bool)
        labels = history[-self.patience - 1 :].argmax(-1)
        return (labels[1:] == labels[:-1]).all(0)


@dataclass(frozen=True)
class AtLayer:
    """Everybody leaves after this layer (1-based)."""

    layer: int

    def __call__(self, history: Array) -> Array:
        return np.full(history.shape[1], history.shape[0] >= self.layer)
