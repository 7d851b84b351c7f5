"""What it is worth to train on pruned texts: two networks trained alike but for that, asked about the same texts.

The first tier prunes each text by what its last exit saw, as it would before sending it on; each network then reads
what is left, and its last exit answers. Both are of the small kind and trained on few texts, since two more of the
large kind are a day of training on a CPU: `tierwise train --n 5000`, with and without `--pruned-share 0.25`.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from lab.replay.recorder import Kernel, source_of
from lab.replay.station import Numbers
from lab.replay.trial import Trial
from lab.stats import accuracy_of, mcnemar, paired_difference, paired_shares
from shared.model.pruning import Pruning

COEFFICIENTS = (0.0, 0.5, 0.75, 0.9, 1.0, 1.25)


def trained(trial: Trial) -> dict[str, Any]:
    """Per coefficient: words kept, and the accuracy of both networks on the same pruned texts, paired."""
    folders = {"trained_on_whole": "minilm-6-whole", "trained_on_pruned_too": "minilm-6-pruned"}
    networks = {name: trial.bundle.folder / folder for name, folder in folders.items()}
    first, words, numbers = trial.replay.stations[0], trial.replay.corpus.words, trial.replay.numbers[trial.read]
    unpruned, rows = None, []
    for coefficient in COEFFICIENTS:
        layers = np.full(len(numbers), first.layers)
        pruned = first.pruned(numbers, layers, Pruning(coefficient)) if coefficient else numbers
        right = {name: _right(trial, pruned, folder) for name, folder in networks.items()}
        on_whole, on_pruned = right.values()
        gain = on_pruned.astype(float) - on_whole
        unpruned = gain if unpruned is None else unpruned
        rows.append(
            {
                "pruning_coefficient": coefficient,
                "words_kept": float(trial.replay.corpus.words[pruned].sum() / words[numbers].sum()),
                **{name: accuracy_of(answers) for name, answers in right.items()},
                "paired": {"accuracy": paired_shares(on_pruned, on_whole), "mcnemar_p": mcnemar(on_pruned, on_whole)},
                "gain_over_unpruned": paired_difference(gain, unpruned),
            }
        )
    return {"rows": rows, "networks": {name: _trained(folder) for name, folder in networks.items()}}


def _right(trial: Trial, numbers: Numbers, folder: Path) -> np.ndarray:
    """Bool [N]: whether the last exit of a network is right about each text."""
    bundle = trial.bundle
    source = replace(source_of(bundle, bundle.order[0]), folder=folder)
    recorder = trial.conditions.recorders.of(source, len(bundle.labels))
    last = [int(record.logits[-1].argmax()) for record in recorder.records(numbers.tolist(), Kernel.PLAIN)]
    return np.array(last) == trial.truth


def _trained(folder: Path) -> dict[str, Any]:
    """On how many texts, and which share of them pruned."""
    meta = json.loads((folder / "network.json").read_text())
    return {"examples": meta["training"]["examples"], "pruned_share": meta["recipe"]["pruned_share"]}
