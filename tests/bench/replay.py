"""A sweep of 1,000 settings over 2,000 texts from a full cache: at most 60 s on two cores.

    python -m tests.bench.replay [--texts 2000] [--settings 1000]

The recordings are SYNTHETIC: random logits and importance of the right shapes for the tiers of `collaborative`, so that
the cache fills in seconds; no classifier runs. They are written once, then read from disk by the sweep that is timed.
"""

from __future__ import annotations

import itertools
import os
import random
import tempfile
import time
from collections.abc import Iterator
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console

from lab.data.examples import Example
from lab.live.bench_report import cpu
from lab.replay.profile import Http, Table
from lab.replay.recorder import Kernel, Record, Recorder, Recorders
from lab.replay.times import Modelled, Times
from lab.replay.walk import Replay
from shared.links.profile import profile
from shared.model.bundle import load_bundle

COEFFICIENTS = (0.0, 0.75, 0.9, 1.0, 1.25)
THETAS = (0.0, 0.01, 0.02, 0.1)
STEEPNESS = (5.0, 10.0, 20.0, 30.0, 50.0)
console = Console(width=120)


class Synthetic(Recorder):
    """Records what no classifier said: exits grow surer with depth, every word is one token."""

    def _run(self, numbers: list[int], kernel: Kernel) -> Iterator[tuple[int, Record]]:
        for number in numbers:
            text, _ = self.corpus.texts[number]
            noise = np.random.default_rng(int(self.corpus.keys[number][:8], 16))
            S, E = min(len(text.split()) + 2, self.source.max_tokens), self.source.layers
            grown = 0.5 * noise.standard_normal(E).cumsum() + np.linspace(0.2, 1.5, E) * (1 - 2 * (number % 2))
            margin = grown.astype(np.float32)
            word_of = np.array([-1, *range(S - 2), -1], dtype=np.int32)
            counted = noise.random((E, S), np.float32).cumsum(0) if kernel is Kernel.COUNTED else None
            yield number, Record(word_of, len(text.split()), False, np.stack([margin, -margin], 1), counted)


def settings(count: int) -> list[dict[str, Any]]:
    """Different parameters of `collaborative`."""
    thresholds = [round(0.5 + 0.49 * at / 9, 3) for at in range(10)]
    every = itertools.product(COEFFICIENTS, THETAS, STEEPNESS, thresholds)
    return [
        {"name": "collaborative", "pruning_coefficient": c, "theta": t, "steepness": s, "offload_threshold": o}
        for c, t, s, o in itertools.islice(every, count)
    ]


def invented(replay: Replay) -> Times:
    """Times whose tables nobody measured: this is about the speed of the sweep alone."""
    links = {("end", "edge"): "5g-nsa", ("edge", "cloud"): "metro", ("end", "cloud"): "5g-nsa+metro"}
    tables = {
        (station.recorder.digest, 1): Table(
            lengths=[8, 256],
            infer={kernel: [[1e-3, 1e-2]] * station.recorder.source.layers for kernel in Kernel},
            whole={kernel: [1e-3, 1e-2] for kernel in Kernel},
            words=[8, 512],
            tokenize=[1e-4, 1e-3],
            prune=[1e-4, 1e-3],
            spread=1.0,
        )
        for station in replay.stations
    }
    of = {pair: profile(name) for pair, name in links.items()}
    return Times(replay, dict.fromkeys(replay.order, 1), of, console, tables=tables, http=Http(client=3e-3, hop=2e-3))


def sweep(texts: int, count: int) -> tuple[float, int, list[Modelled]]:
    """Seconds from an empty process' point of view, texts that were not in the cache, and the figures."""
    pick = random.Random(1)
    words = [f"word{n}" for n in range(4000)]
    made = [" ".join(pick.choices(words, k=min(900, int(pick.lognormvariate(5.2, 0.6)) + 12))) for _ in range(texts)]
    examples = [Example(text, None, row % 2) for row, text in enumerate(made)]
    started = time.perf_counter()
    recorders = Recorders(console, kind=Synthetic)
    replay = Replay(load_bundle("collaborative"), examples, recorders)
    times = invented(replay)
    out = [times.of(replay.run(replay.policy(spec))) for spec in settings(count)]
    seconds = time.perf_counter() - started
    recorders.save()
    return seconds, recorders.ran, out


def main(
    texts: Annotated[int, typer.Option(min=1)] = 2000, count: Annotated[int, typer.Option("--settings", min=1)] = 1000
) -> None:
    """Fill the cache, then measure."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TIERWISE_CACHE_DIR"] = folder
        filling, ran, _ = sweep(texts, count)
        console.print(f"synthetic recordings of {ran} texts and prunings: {filling:.0f} s with the sweep itself")
        seconds, missing, out = sweep(texts, count)
    assert missing == 0, f"{missing} texts were not in the cache"
    console.print(
        f"{len(out)} settings of collaborative ({len(COEFFICIENTS)} pruning coefficients), {texts} texts, cache full: "
        f"{seconds:.1f} s, one process; {cpu()}, {os.cpu_count()} cores; SYNTHETIC recordings"
    )
    console.print(f"{len({modelled.seconds.tobytes() for modelled in out})} different outcomes")


if __name__ == "__main__":
    typer.run(main)
