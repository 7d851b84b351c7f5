"""Pruning: drop the words that received little attention, before a text travels.

    M_j = 1 if I_j > rho * mean(I) else 0            (Zhang et al. 2025, arXiv 2412.12102, eq. 10; strict >)

I_j is the attention token j received in the layers that ran. Special tokens and padding count neither in the mean nor
in the mask (they are attention sinks). Tokens of one word stand and fall together: a word is kept if *any* of its
tokens is (the paper's rules 1-3 for tokenizers that split differently, in one rule). Floors keep short texts whole
and long ones readable. Words that the tier did not read are kept. Left out: sentence-level pruning, learned masks.

Ours: at rho = 0 the words in the middle of a long text that no further tier reads stay behind (`without_middle`). What
the further tiers read is the same, so no answer changes.

    >>> kept_words("a fine film", [True, False, True])
    'a film'
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from shared.model.words import Encoded, spans_of


@dataclass(frozen=True)
class Pruning:
    """Coefficient rho and the floors. rho = 0 keeps every word that is read; the useful range is near 1.

    `unread_words`: whether at rho = 0 the words that no further tier reads travel all the same.
    """

    coefficient: float = 1.0
    min_keep_words: int = 8
    min_keep_ratio: float = 0.2
    whole_below_words: int = 32  # a side with this many words or fewer is never pruned
    unread_words: bool = True

    @property
    def cuts_middle(self) -> bool:
        """Whether the words that no further tier reads stay behind."""
        return self.coefficient == 0 and not self.unread_words

    def mask(self, encoded: Encoded, importance: Sequence[float]) -> list[bool]:
        """Which words to keep, over both sides of a pair; `importance` has one entry per id of `encoded`."""
        assert len(importance) == len(encoded.ids)
        sides = [(0, encoded.first_words), (encoded.first_words, len(encoded.words))]
        keep: list[bool] = []
        for first, end in sides:
            keep += self._side(encoded, importance, first, end)
        return keep

    def _side(self, encoded: Encoded, importance: Sequence[float], first: int, end: int) -> list[bool]:
        count = end - first
        if count <= self.whole_below_words or self.coefficient == 0:
            return [True] * count
        tokens = [(word - first, importance[j]) for j, word in enumerate(encoded.word_of) if first <= word < end]
        if not tokens:
            return [True] * count
        threshold = self.coefficient * sum(value for _, value in tokens) / len(tokens)
        best = [math.inf] * count  # a word with no token was not read: it outranks all that were
        for word, value in tokens:
            best[word] = value if best[word] == math.inf else max(best[word], value)
        floor = min(count, max(self.min_keep_words, math.ceil(self.min_keep_ratio * count)))
        keep = [value > threshold for value in best]
        if sum(keep) < floor:
            for word in sorted(range(count), key=lambda word: -best[word])[:floor]:
                keep[word] = True
        return keep


def without_middle(encoded: Encoded) -> list[bool]:
    """Which words to keep so that whoever reads like `encoded`, or less of each end, reads the same: all but the gap.

    >>> without_middle(Encoded([0] * 4, [0] * 4, [-1, 0, 4, -1], list("abcde"), 5, True))
    [True, False, False, False, True]
    """
    keep = [True] * len(encoded.words)
    if encoded.truncated:
        for first, end in ((0, encoded.first_words), (encoded.first_words, len(encoded.words))):
            read = [word for word in encoded.word_of if first <= word < end]
            before, after = max(pairwise(read), key=lambda pair: pair[1] - pair[0], default=(0, 0))
            keep[before + 1 : after] = [False] * max(0, after - before - 1)
    return keep


def keep_words(text: str, pair: str | None, encoded: Encoded, keep: Sequence[bool]) -> tuple[str, str | None]:
    """Both sides of a text that was encoded as `encoded`, with the kept words alone."""
    first = encoded.first_words
    return kept_words(text, keep[:first]), None if pair is None else kept_words(pair, keep[first:])


def kept_words(text: str, keep: Sequence[bool]) -> str:
    """The kept words as written, in order; one space stands for those between that are gone."""
    runs: list[list[int]] = []  # the characters at which each run of kept words starts and ends
    last = -2
    for at, ((start, end), kept) in enumerate(zip(spans_of(text), keep, strict=True)):
        if kept and last == at - 1:
            runs[-1][1] = end
        elif kept:
            runs.append([start, end])
        last = at if kept else last
    return " ".join(text[start:end] for start, end in runs)
