"""What it is worth to train on pruned texts: two networks trained alike but for that, asked about the same texts.

The first tier prunes each text by what its last exit saw, as it would before sending it on; each network then reads
what is left, and its last exit answers. Both are the small network, since one more of the large kind is hours of
training on a CPU: `tierwise train --pruned-share 0.25`, every other setting and the data being those of the first tier.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from services.lab.replay.recorder import Kernel, source_of
from services.lab.replay.station import Numbers
from services.lab.stats import mcnemar, paired_difference, wilson
from services.lab.tables.trial import Trial
from shared.bundle import Bundle
from shared.pruning import Pruning

COEFFICIENTS = (0.0, 0.5, 0.75, 0.9, 1.0, 1.25)


def trained_on_pruned(bundle: Bundle) -> Path:
    """The network that is like the first tier's, but for a share of pruned texts in training."""
    folder = bundle.folder / bundle.tiers[bundle.order[0]].network
    return folder.with_name(f"{folder.name}-pruned")


def trained(trial: Trial) -> dict[str, Any]:
    """Per coefficient: words kept, and the accuracy of both networks on the same pruned texts, paired."""
    first, rows = trial.replay.stations[0], []
    numbers = trial.replay.numbers[trial.read]
    whole_words = trial.replay.corpus.words[numbers].sum()
    for coefficient in COEFFICIENTS:
        layers = np.full(len(numbers), first.layers)
        pruned = first.pruned(numbers, layers, Pruning(coefficient)) if coefficient else numbers
        on_whole, on_pruned = (_right(trial, pruned, pruned_too=too) for too in (False, True))
        rows.append(
            {
                "pruning_coefficient": coefficient,
                "words_kept": float(trial.replay.corpus.words[pruned].sum() / whole_words),
                "trained_on_whole": _accuracy(on_whole),
                "trained_on_pruned_too": _accuracy(on_pruned),
                "paired": {
                    "accuracy": paired_difference(on_pruned, on_whole),
                    "mcnemar_p": mcnemar(on_pruned, on_whole),
                },
            }
        )
    return {"rows": rows}


def _right(trial: Trial, numbers: Numbers, *, pruned_too: bool) -> np.ndarray:
    """Bool [N]: whether the last exit is right about each text."""
    bundle = trial.bundle
    source = source_of(bundle, bundle.order[0])
    if pruned_too:
        source = type(source)(trained_on_pruned(bundle), source.layers, source.max_tokens)
    recorder = trial.conditions.recorders.of(source, len(bundle.labels))
    records = recorder.records(numbers.tolist(), Kernel.PLAIN)
    return np.array([int(record.logits[-1].argmax()) for record in records]) == trial.truth


def _accuracy(right: np.ndarray) -> dict[str, Any]:
    return {"accuracy": float(right.mean()), "accuracy_ci95": wilson(int(right.sum()), len(right))}
