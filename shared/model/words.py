"""Words: the only unit that tiers with different tokenizers share. A word is what `str.split()` gives."""

from __future__ import annotations

import re
from dataclasses import dataclass

_WORD = re.compile(r"\S+")  # the same white space as str.split(): tested


@dataclass(frozen=True)
class Encoded:
    """One text as a tier reads it. `word_of` holds the word index of each id, -1 for special tokens."""

    ids: list[int]
    segments: list[int]
    word_of: list[int]
    words: list[str]  # of both sides of a pair, in order
    first_words: int  # how many of them belong to the first side
    truncated: bool


def words_of(text: str) -> list[str]:
    """The words of a text, exactly as written."""
    return text.split()


def starts_of(text: str) -> list[int]:
    """The character at which each word of a text starts."""
    return [match.start() for match in _WORD.finditer(text)]
