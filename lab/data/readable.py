"""Texts that no tier answers: one rule for every command. They are named, left out and counted.

A text is left out if it is blank or no text by the contract, if a tokenizer that must read it knows none of its words,
or if a live tier refuses it for what it is (413, 422). `n` and `data_sha256` of a report name the texts that were asked
for; `left_out` says how many of them its figures do not speak of, and which.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import ValidationError
from rich.console import Console

from lab.data.examples import Example
from shared.contracts import TextPair
from shared.errors import BadSetting, UnreadableText, plain
from shared.model.base import load_tokenizer
from shared.model.bundle import Bundle
from shared.model.classifier import read_trained
from shared.model.tokens import SpecialTokens

SHOWN = 5


@dataclass(frozen=True)
class Reader:
    """A tokenizer and how many tokens it gives: what one classifier reads."""

    tokens: SpecialTokens
    max_tokens: int

    def why_not(self, example: Example) -> str | None:
        """Why it cannot read a text."""
        try:
            self.tokens.encode(example.text, example.pair, self.max_tokens)
        except UnreadableText as error:
            return str(error)
        return None


@dataclass(frozen=True)
class LeftOut:
    """Texts that nothing answers, each with the reason."""

    texts: Sequence[tuple[Example, str]] = ()

    def report(self) -> dict[str, Any]:
        """For a report: how many, and the first few."""
        return {"n": len(self.texts), "first": [f"{example}: {why}" for example, why in self.texts[:SHOWN]]}

    def tell(self, console: Console) -> None:
        """Say it, if there is something to say."""
        if not self.texts:
            return
        console.print(f"left out, as no tier reads them: {len(self.texts)} texts", style="yellow")
        for example, why in self.texts[:SHOWN]:
            console.print(f"  {example}: {why}", style="yellow", soft_wrap=True)
        if len(self.texts) > SHOWN:
            console.print(f"  and {len(self.texts) - SHOWN} more", style="yellow")


def no_text(example: Example) -> str | None:
    """Why the contract takes an example for no text."""
    try:
        TextPair(text=example.text, text_pair=example.pair)
    except ValidationError as error:
        return plain(error.errors()[0]["msg"])
    return None


def too_long(example: Example, limit: float) -> str | None:
    """Why a tier that takes bodies of at most `limit` bytes does not take this text."""
    size = sum(len(side.encode()) for side in (example.text, example.pair or ""))
    return None if size < limit else f"its {size} bytes are over the {limit:.0f} that a request may have"


def left_out_of(examples: Sequence[Example], read: Sequence[bool] | np.ndarray) -> LeftOut:
    """What a replay left out, which has tried every tokenizer."""
    unread = (example for example, was_read in zip(examples, read, strict=True) if not was_read)
    return LeftOut([(example, no_text(example) or "no word that the tokenizer knows") for example in unread])


def readers_of(bundle: Bundle) -> list[Reader]:
    """What reads a text in each tier of a bundle.

    Raises:
        WrongWeights: a classifier or its tokenizer cannot be read.
    """
    models = {(model.network, model.max_tokens) for model in bundle.tiers.values()}
    return [
        Reader(SpecialTokens(load_tokenizer(read_trained(bundle.folder / classifier).base)), tokens)
        for classifier, tokens in sorted(models)
    ]


def readable(examples: Iterable[Example], readers: Sequence[Reader]) -> tuple[list[Example], LeftOut]:
    """The texts that every reader can read, in order, and the others.

    Raises:
        BadSetting: none is left.
    """
    kept: list[Example] = []
    refused: list[tuple[Example, str]] = []
    for example in examples:
        if why := no_text(example) or next(filter(None, (reader.why_not(example) for reader in readers)), None):
            refused.append((example, why))
        else:
            kept.append(example)
    if refused and not kept:
        raise BadSetting(f"none of the {len(refused)} texts can be read; the first is {refused[0][0]}: {refused[0][1]}")
    return kept, LeftOut(refused)
