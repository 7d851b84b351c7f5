"""The texts that a further tier's classifier learns from: those that are sent to it, a share of them pruned.

`prune_with` reads each text as the tier before would. A base encoder knows no labels and gives importance alone. A
trained classifier is the tier before itself: it runs on the engine that serves, what it says is kept with the
recordings of `replay`, and it can tell which texts it would send on (`unsure`).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from lab.console import progress
from lab.data.examples import Example
from lab.fit.checks import is_trained
from lab.fit.recipe import Recipe
from lab.fit.teacher import Teacher
from lab.replay.recorder import Kernel, Record
from shared.errors import BadSetting
from shared.model.base import Array
from shared.model.encoder import Encoder
from shared.model.pruning import Pruning, keep_words
from shared.model.tokens import SpecialTokens
from shared.model.torch_engine import MultiExitEncoder, TorchEngine, load_base
from shared.model.words import Encoded

TOKENS = 256  # that is read by what prunes
Texts = list[tuple[str, str | None]]


def unsure(recipe: Recipe, examples: Sequence[Example], console: Console, *, threads: int) -> list[Example]:
    """The examples whose last exit under `prune_with` gives no label `recipe.unsure`; all where that is 0.

    Raises:
        BadSetting: there is none.
    """
    if not recipe.unsure:
        return list(examples)
    records = _records(recipe.prune_with, [(e.text, e.pair) for e in examples], console, threads)
    chosen = [one for one, record in zip(examples, records, strict=True) if surest(record) < recipe.unsure]
    if not chosen:
        raise BadSetting(f"--unsure {recipe.unsure:g}: {recipe.prune_with} is as sure of all {len(examples)} texts")
    return chosen


def surest(record: Record) -> float:
    """The last exit's probability of its label, before any temperature."""
    return float(torch.softmax(torch.from_numpy(record.logits[-1]).float(), -1).max())


def augment(recipe: Recipe, examples: Sequence[Example], scratch: Path, console: Console, *, threads: int = 1) -> Texts:
    """The texts to train on: a seeded share of them pruned. They are kept in `scratch`, and read again from there."""
    texts: Texts = [(example.text, example.pair) for example in examples]
    if not recipe.pruned_share:
        return texts
    cache = scratch / "pruned.pt"
    if not cache.exists():
        torch.save(_pruned(recipe, texts, console, threads), cache)
    for row, pruned in torch.load(cache, weights_only=True).items():
        texts[row] = tuple(pruned)
    return texts


def _pruned(recipe: Recipe, texts: Texts, console: Console, threads: int) -> dict[int, list[str | None]]:
    chooser = random.Random(recipe.seed)
    rows = chooser.sample(range(len(texts)), round(recipe.pruned_share * len(texts)))
    seen = (_by_trained if is_trained(recipe.prune_with) else _by_base)(
        recipe.prune_with, [texts[row] for row in rows], console, threads
    )
    out: dict[int, list[str | None]] = {}
    for row, (encoded, importance) in zip(rows, seen, strict=True):
        keep = Pruning(chooser.choice(recipe.prune_coefficients)).mask(encoded, importance.tolist())
        out[row] = list(keep_words(*texts[row], encoded, keep))
    return out


def _by_trained(folder: str, texts: Texts, console: Console, threads: int) -> list[tuple[Encoded, Array]]:
    """Each text as a trained classifier read it, and the attention that its tokens received, [S]."""
    out = []
    for text, record in zip(texts, _records(folder, texts, console, threads), strict=True):
        assert record.importance is not None
        out.append((record.encoded(*text), record.importance[-1]))
    return out


def _by_base(name: str, texts: Texts, console: Console, threads: int) -> list[tuple[Encoded, Array]]:
    """The same of a base without labels."""
    base, tokenizer = load_base(name)
    encoder = MultiExitEncoder(base, layers=base.config.num_hidden_layers, classes=2).eval()
    tokens = SpecialTokens(tokenizer)
    run = Encoder(engine=TorchEngine(encoder, tokens.pad_id), temperatures=np.ones(len(encoder.layers))).run
    out = []
    with progress(console) as bar:
        for text in bar.track(texts, description="pruning a share"):
            encoded = tokens.encode(*text, TOKENS)
            trace = run([encoded], None, importance=True)[0]
            assert trace.importance is not None
            out.append((encoded, trace.importance))
    return out


def _records(folder: str, texts: Texts, console: Console, threads: int) -> list[Record]:
    return Teacher(Path(folder), TOKENS, console, threads=threads).records(texts, Kernel.COUNTED)
