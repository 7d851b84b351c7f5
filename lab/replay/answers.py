"""The answers of a run: the live ensemble over the tiers that ran, and what a policy that learns is told."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lab.replay.recorder import Kernel
from lab.replay.run import Run
from lab.replay.station import Station
from shared.model.ensemble import Ensemble, Weighting
from shared.policies import Clues, Outcome, Policy, Visit, Where
from shared.policies.mistakes import weighting


def answer(out: Run, policy: Policy, ensemble: Ensemble, rows: np.ndarray) -> None:
    """The ensemble over the tiers that ran, all texts that took the same path at once."""
    ran = out.ran[:, rows]
    for path in np.unique(ran, axis=1).T:
        visited = np.flatnonzero(path)
        if not len(visited):
            continue
        group = rows[(ran == path[:, None]).all(0)]
        hops = out.hops[visited][:, group]
        weights = _weights(ensemble, weighting(policy), [out.tiers[at] for at in visited], hops.max(-1))
        mixed = np.zeros(hops.shape[1:])
        for weight, hop in zip(weights, hops, strict=True):  # in the order of `combine`
            mixed = mixed + weight[:, None] * hop
        out.probabilities[group], out.label[group] = mixed, _labels(mixed)


def _weights(ensemble: Ensemble, how: Weighting, tiers: list[str], confidence: np.ndarray) -> np.ndarray:
    """The ensemble's weights on one path, [tiers, n] or [tiers, 1]."""
    if how is Weighting.SUREST:
        return np.transpose([ensemble.weights(tiers, how, column) for column in confidence.T.tolist()])
    return np.array(ensemble.weights(tiers, how))[:, None]


def _labels(mixed: np.ndarray) -> np.ndarray:
    """The label of each answer, as the tier finds it: the first of the greatest, after rounding.

    numpy rounds a little differently from Python, so close calls are made one by one.
    """
    best, top = mixed.argmax(-1), np.sort(mixed, -1)
    for row in np.flatnonzero(top[:, -1] - top[:, -2] < 1e-5).tolist():
        rounded = [round(value, 6) for value in mixed[row].tolist()]
        best[row] = rounded.index(max(rounded))
    return best


def visit(out: Run, stations: Sequence[Station], at: int, row: int, *, every_exit: bool) -> Visit:
    """What a tier said of a text; with `every_exit` as it knows it itself, where it evaluated exits on the way."""
    station, layer, probabilities = stations[at], int(out.exit_layer[at, row]), tuple(out.hops[at, row].tolist())
    exits: tuple[tuple[float, ...], ...] = (probabilities,)
    if every_exit:
        kernel = Kernel.COUNTED if out.counted[at, row] else Kernel.PLAIN
        rounded = station.table(out.numbers[[at], row], kernel).rounded[out.numbers[at, row], :layer]
        exits = tuple(map(tuple, rounded.tolist()))
    return Visit(station.name, layer, max(probabilities), tuple(map(max, exits)), probabilities, exits)


def outcome(out: Run, policy: Policy, stations: Sequence[Station], clues: Clues, row: int) -> Outcome:
    """What a policy that learns is told about a text, as `shared/pipeline/front.py` tells it."""
    sizes, ran = dict(zip(out.tiers, out.layers, strict=True)), np.flatnonzero(out.ran[:, row]).tolist()
    ruled = policy.exit_rule(Where(stations[0].name, (), sizes)) is not None
    return Outcome(clues, tuple(visit(out, stations, at, row, every_exit=ruled and at == 0) for at in ran))
