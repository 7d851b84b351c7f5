"""Exit rules that are fitted: linear gates over what the exits so far say.

    x_l = (max p, H(p), p_(1) - p_(2), H(p^2 / sum p^2),  D_l, K_l)      of exit l; logarithms in nats
    JEI-DNN    g_l = sig(w_l x_l + b_l) over the first four;   P_l = max(0, min(g_l, 1 - sum_{j<l} g_j))
               q_l = clip(P_l / prod_{j<l} (1 - q_j), 0, 1);   leave at the first q_l >= 1/2
    path       s_la = w_la x_l + b_la over all six, a gate for each action a: answer here, or send to a deeper tier;
               leave at the first exit where an s_la > 0, which is what going on scores

JEI-DNN: Regol et al. 2024 (arXiv 2310.09163, [C:networkslab/dynn]). The path's gates are ours, with two features more:
D_l, the total variation to the exit before (arXiv 2412.12102, eq. 13), and K_l, how often in a row the label was kept;
both are 0 at the first exit. Where we differ: p is calibrated. With two labels the four features of JEI-DNN are
functions of max p alone. Left out: how gates are fitted (`lab/fit/gates.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from shared.model.base import Array
from shared.model.exits import entropy

FEATURES = ("confidence", "entropy", "margin", "entropy of squares", "variation", "kept")
OF_JEI_DNN = 4  # the first of them
Gate = tuple[float, ...]  # a weight for each feature, then the bias


def features(history: Array) -> Array:
    """What gates look at, float64 [E, B, 6], from calibrated probabilities [E, B, C], oldest exit first."""
    p = np.ascontiguousarray(history, dtype=np.float64)
    second, first = np.moveaxis(np.sort(p, -1)[..., -2:], -1, 0)  # [E, B] each
    squared = p * p
    variation, kept, labels = np.zeros(first.shape), np.zeros(first.shape), p.argmax(-1)
    variation[1:] = np.abs(p[1:] - p[:-1]).sum(-1) / 2
    for exit_ in range(1, len(p)):
        kept[exit_] = (kept[exit_ - 1] + 1) * (labels[exit_] == labels[exit_ - 1])
    squares = entropy(squared / squared.sum(-1, keepdims=True))
    return np.stack([first, entropy(p), first - second, squares, variation, kept], -1)


def scores(x: Array, gates: Array) -> Array:
    """[..., A] of features [..., F] under A gates [A, F + 1]."""
    return (x[..., None, :] * gates[:, :-1]).sum(-1) + gates[:, -1]


def leaving_probability(gates: Array) -> Array:
    """JEI-DNN's q [E, B]: the chance to leave at an exit for a text that got there, from all g [E, B] in order.

    >>> leaving_probability(np.array([[0.25], [0.5], [0.9]])).round(3).ravel().tolist()  # P = .25, .5, .25
    [0.25, 0.667, 1.0]
    """
    q, stays, opened = np.zeros(gates.shape), np.ones(gates.shape[1]), np.zeros(gates.shape[1])
    for exit_, gate in enumerate(gates):
        leaves = np.maximum(0, np.minimum(gate, 1 - opened))
        q[exit_] = np.clip(leaves / np.maximum(stays, np.finfo(float).tiny), 0, 1)
        stays, opened = stays * (1 - q[exit_]), opened + gate
    return q


@dataclass(frozen=True)
class JeiDnn:
    """A gate for each exit in order, of JEI-DNN's four features; an exit without a gate is passed."""

    gates: tuple[Gate, ...] = field(repr=False)

    def __call__(self, history: Array) -> Array:
        if len(history) > len(self.gates):
            return np.zeros(history.shape[1], dtype=bool)
        return np.asarray(self.leaving(history)[-1] >= 0.5)

    def leaving(self, history: Array) -> Array:
        """q [E, B] of the exits so far; there is a gate for each."""
        gates = np.array(self.gates[: len(history)])  # [E, 5]
        a = (features(history)[..., :OF_JEI_DNN] * gates[:, None, :-1]).sum(-1) + gates[:, None, -1]
        return leaving_probability(1 / (1 + np.exp(-np.clip(a, -500, 500))))


@dataclass(frozen=True)
class Path:
    """For each exit in order a gate for each action; an exit without gates is passed."""

    gates: tuple[tuple[Gate, ...], ...] = field(repr=False)

    def __call__(self, history: Array) -> Array:
        if len(history) > len(self.gates):
            return np.zeros(history.shape[1], dtype=bool)
        return np.asarray((scores(features(history)[-1], np.array(self.gates[len(history) - 1])) > 0).any(-1))
