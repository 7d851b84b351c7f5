"""Shares: how much of an exit's decision each word has, exactly.

    margin = z_top - z_second = sum_j a_j (w . h_j) + b,   a = softmax(h . query),   w = w_top - w_second

An exit is linear over its pooled token states, so the margin between the label and the next likely one is a sum over
tokens, plus the bias. A word has the sum of its tokens; positive speaks for the label. Left out: how earlier layers
mixed the words into the states.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from shared.model.base import Array
from shared.model.words import Encoded


@dataclass(frozen=True)
class Shares:
    """Signed shares of one decision; absolute values add up to 1. A word that was not read has null."""

    words: list[float | None]
    special: float  # of special tokens
    bias: float


def shares_of(text: Encoded, parts: Array, logits: Array, top: int) -> Shares:
    """The shares in the decision for class `top`: `parts` [S, C] is what each token adds to the `logits` [C]."""
    second = int(np.argmax(np.where(np.arange(len(logits)) == top, -np.inf, logits)))
    added = parts[:, top] - parts[:, second]  # [S]
    owner = np.array(text.word_of)
    words = np.zeros(len(text.words))
    np.add.at(words, owner[owner >= 0], added[owner >= 0])
    special = float(added[owner < 0].sum())
    bias = float(logits[top] - logits[second] - added.sum())
    total = float(np.abs(words).sum()) + abs(special) + abs(bias) or 1.0
    read = set(text.word_of)
    return Shares(
        [float(share) / total if word in read else None for word, share in enumerate(words)],
        special / total,
        bias / total,
    )
