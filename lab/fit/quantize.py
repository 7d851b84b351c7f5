"""Find a classifier's quantization table: run texts through the fp32 reference and watch what each map is given.

Ranges cover everything that the texts gave. A table is one classifier's at full depth: all tiers that run it read it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from lab.console import progress
from lab.data.examples import Example
from shared.model.base import NAMES, Array
from shared.model.bundle import Bundle
from shared.model.classifier import load_classifier
from shared.model.quantization import INPUTS, Input, LayerTable, save_table, smoothing
from shared.model.torch_engine import MultiExitEncoder, TorchEngine

TEXTS = 300  # more change the ranges little


class _Seen:
    """What one input was given: the least and the greatest value of each channel, [D]."""

    def __init__(self) -> None:
        self.low: Array | None = None
        self.high: Array | None = None

    def __call__(self, _map: torch.nn.Module, inputs: tuple[torch.Tensor]) -> None:
        values = inputs[0].reshape(-1, inputs[0].shape[-1])
        low, high = values.amin(0).numpy(), values.amax(0).numpy()
        self.low = low if self.low is None else np.minimum(self.low, low)
        self.high = high if self.high is None else np.maximum(self.high, high)

    def input(self, weights: Sequence[Array]) -> Input:
        """How it is to be rounded, for the maps that read it."""
        assert self.low is not None
        assert self.high is not None
        smooth = smoothing(np.maximum(-self.low, self.high), weights)
        return Input(min(0.0, float((self.low / smooth).min())), float((self.high / smooth).max()), smooth)


def quantize_all(
    bundle: Bundle, folders: Sequence[Path], texts: Sequence[Example], console: Console, *, threads: int
) -> None:
    """Write the tables of these classifiers of a bundle, each for the most tokens that a tier reads with it."""
    for folder in folders:
        own = [model for model in bundle.tiers.values() if bundle.folder / model.network == folder]
        layers = int(json.loads((folder / "network.json").read_text())["layers"])
        console.print(f"quantizing {folder.name} on {min(TEXTS, len(texts))} texts, for int8")
        quantize(folder, layers, max(model.max_tokens for model in own), texts, console, threads=threads)


def quantize(
    folder: Path, layers: int, max_tokens: int, texts: Sequence[Example], console: Console, *, threads: int
) -> None:
    """Write the table of the classifier in `folder`, from the first `TEXTS` of these texts."""
    classifier = load_classifier(folder, layers=layers, max_tokens=max_tokens, engine="torch", device="cpu")
    assert isinstance(classifier.engine, TorchEngine)
    encoder = classifier.engine.encoder
    torch.set_num_threads(threads)
    seen, hooks = [], []
    for n in range(layers):
        maps = {name: _map(encoder, n, parts[0]) for name, parts in INPUTS.items()}
        seen.append({name: _Seen() for name in maps})
        hooks += [linear.register_forward_pre_hook(seen[n][name]) for name, linear in maps.items()]
    with progress(console) as bar:
        for text in bar.track(texts[:TEXTS], description=f"{folder.name}, quantization"):
            classifier.run([classifier.encode(text.text, text.pair)], None)
    for hook in hooks:
        hook.remove()
    save_table(folder, [_table(encoder, n, inputs) for n, inputs in enumerate(seen)])


def _table(encoder: MultiExitEncoder, n: int, inputs: dict[str, _Seen]) -> LayerTable:
    return {
        name: given.input([_map(encoder, n, part).weight.detach().numpy() for part in INPUTS[name]])
        for name, given in inputs.items()
    }


def _map(encoder: MultiExitEncoder, n: int, part: str) -> torch.nn.Linear:
    return encoder.layers[n].get_submodule(NAMES[encoder.family][part])  # type: ignore[return-value]
