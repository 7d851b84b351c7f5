"""The chance control of a policy: what as many texts per tier, drawn at random, would give. Exact, as nothing is drawn.

    chance_i = sum over tiers t of share_t * x_{t,i}     share_t: of the texts that t answers; x_{t,i}: whether t alone,
                                                         at full depth, is right about text i, or its milliseconds

A policy under which one tier alone runs is compared with as many texts per exit of that tier. A policy whose choice of
texts is worth nothing gains 0 over it. Left out: tiers that a text passes on its way, which a random choice need not
ask; that the shares are themselves of these texts; texts that a drawn tier cannot read.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from lab.replay.recorder import Kernel
from lab.replay.run import NONE, Run
from lab.replay.times import Times
from lab.replay.walk import Replay
from lab.stats import paired_difference


def chance(replay: Replay, run: Run, times: Times, read: np.ndarray) -> dict[str, Any]:
    """The control's accuracy and mean milliseconds, and what the policy has more of each, with paired 95 % intervals.

    `read`: bool [N], the texts that count.
    """
    tiers = np.flatnonzero(run.ran[:, read].any(1)).tolist()
    alone = _exits(replay, run, tiers[0], read) if len(tiers) == 1 else _tiers(replay, run, read)
    read = read & np.all([one.label != NONE for one in alone.values()], axis=0)
    places = run.exit_layer[tiers[0]] if len(tiers) == 1 else run.answered_by
    right, ms = _right_and_ms(replay, run, times, read)
    shares = {place: float((places[read] == place).mean()) for place in alone}
    drawn = [(shares[place], *_right_and_ms(replay, one, times, read)) for place, one in alone.items()]
    drawn_right = sum((share * hits for share, hits, _ in drawn), np.zeros(len(right)))
    drawn_ms = sum((share * took for share, _, took in drawn), np.zeros(len(right)))
    return {
        "drawn_per": "exit" if len(tiers) == 1 else "tier",
        "shares": {str(place) if len(tiers) == 1 else run.tiers[place]: share for place, share in shares.items()},
        "n": int(read.sum()),
        "accuracy": float(drawn_right.mean()),
        "modelled_ms": float(drawn_ms.mean()),
        "accuracy_over_chance": paired_difference(right, drawn_right),
        "modelled_ms_over_chance": paired_difference(ms, drawn_ms),
    }


def _tiers(replay: Replay, run: Run, read: np.ndarray) -> dict[int, Run]:
    """Every tier that answers a text, alone on all of them, at full depth."""
    return {at: replay.alone(at, run) for at in np.unique(run.answered_by[read]).tolist()}


def _exits(replay: Replay, run: Run, at: int, read: np.ndarray) -> dict[int, Run]:
    """Every exit that a text takes at the only tier that runs, with all texts leaving there."""
    out, station = dict[int, Run](), replay.stations_of(run)[at]
    numbers, ran = run.numbers[at], run.ran[at]
    kernel = Kernel.COUNTED if run.counted[at].any() else Kernel.PLAIN
    rounded = station.table(numbers[ran], kernel).rounded
    for layer in np.unique(run.exit_layer[at, read]).tolist():
        one = out[layer] = copy.copy(run)
        one.exit_layer, one.label = run.exit_layer.copy(), run.label.copy()
        one.exit_layer[at, ran] = layer
        one.label[ran] = rounded[numbers[ran], layer - 1].argmax(-1)
    return out


def _right_and_ms(replay: Replay, run: Run, times: Times, read: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of the texts that count: whether they are right (0 or 1), and their modelled milliseconds."""
    return (run.label == replay.labels)[read].astype(float), times.of(run).seconds[read] * 1e3
