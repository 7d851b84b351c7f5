"""Run a tier's classifier over many texts, once: every exit's logits, kept on disk under the content that made them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import Tensor

from lab.console import progress
from lab.data.examples import Example
from lab.replay.recorder import Source, source_of
from shared.model.bundle import Bundle
from shared.model.classifier import Classifier, load_classifier
from shared.model.exits import ExitRule
from shared.model.weights import cache_dir
from shared.model.words import Encoded

_BATCH = 16


@dataclass(frozen=True)
class Left:
    """One text under an exit rule: its logits up to its exit [E', C], and the importance there [S]."""

    encoded: Encoded
    exit_layer: int
    logits: Tensor
    importance: list[float]


def classifier_of(bundle: Bundle, tier: str) -> Classifier:
    """A tier's network, uncalibrated (temperatures 1)."""
    model = bundle.tiers[tier]
    return load_classifier(bundle.folder / model.network, layers=model.layers, max_tokens=model.max_tokens)


def every_exit(
    bundle: Bundle, tier: str, texts: Sequence[Example], console: Console, *, max_tokens: int | None = None
) -> Tensor:
    """Logits of every exit at full depth, [N, E, C]. A tier that is the lower part of a deeper one reads its cache."""
    source = source_of(bundle, tier)
    source = replace(source, max_tokens=max_tokens or source.max_tokens)
    path = _path(source, texts)
    if not path.exists():
        classifier = load_classifier(source.folder, layers=source.layers, max_tokens=source.max_tokens)
        encoded = [classifier.encode(text.text, text.pair) for text in texts]
        logits = torch.zeros(len(texts), source.layers, len(bundle.labels))
        with progress(console) as bar:
            task = bar.add_task(f"{source.folder.name}, every exit", total=len(texts))
            for rows in by_length(encoded):
                traces = classifier.run([encoded[r] for r in rows], None, every_exit=True)
                for row, trace in zip(rows, traces, strict=True):
                    logits[row] = trace.logits
                bar.advance(task, len(rows))
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({"logits": logits}, path)
    return load_file(path)["logits"][:, : bundle.tiers[tier].layers]


def under_rule(
    classifier: Classifier, texts: Sequence[tuple[str, str | None]], rule: ExitRule | None, name: str, console: Console
) -> list[Left]:
    """Run texts as the service would: leaving by `rule`, with importance. Batches give what one by one gives."""
    encoded = [classifier.encode(text, pair) for text, pair in texts]
    out: list[Left | None] = [None] * len(encoded)
    with progress(console) as bar:
        task = bar.add_task(name, total=len(encoded))
        for rows in by_length(encoded):
            traces = classifier.run([encoded[r] for r in rows], rule, importance=True)
            for row, trace in zip(rows, traces, strict=True):
                assert trace.importance is not None
                out[row] = Left(encoded[row], trace.exit_layer, trace.logits, trace.importance.tolist())
            bar.advance(task, len(rows))
    return [item for item in out if item is not None]


def by_length(encoded: Sequence[Encoded]) -> list[list[int]]:
    """Rows in batches of like length."""
    order = sorted(range(len(encoded)), key=lambda row: len(encoded[row].ids))
    return [order[start : start + _BATCH] for start in range(0, len(order), _BATCH)]


def _path(source: Source, texts: Sequence[Example]) -> Path:
    key = hashlib.sha256((source.folder / "adapters.safetensors").read_bytes())
    key.update(f"{source.layers} {source.max_tokens}".encode())
    for text in texts:
        key.update(f"{text.text}\x00{text.pair}\x01".encode())
    return cache_dir() / "exits" / f"{key.hexdigest()}.safetensors"
