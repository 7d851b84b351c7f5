"""The answers of a run: the live ensemble over the tiers that ran, and what a policy that learns is told."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from lab.replay.recorder import Kernel
from lab.replay.run import Run
from lab.replay.station import Station
from shared.model.ensemble import Ensemble, Weighting
from shared.policies import Clues, Outcome, Policy, Visit, Where


def answer(out: Run, policy: Policy, stations: Sequence[Station], ensemble: Ensemble, rows: np.ndarray) -> None:
    """The ensemble over the tiers that ran, and what the last of them says alone."""
    ran = out.ran[:, rows]
    said = np.zeros((len(stations), len(rows), out.probabilities.shape[1]))
    for at, station in enumerate(stations):
        for counted in (False, True):
            own = ran[at] & (out.counted[at, rows] == counted)
            if own.any():
                numbers, layer = out.numbers[at, rows[own]], out.exit_layer[at, rows[own]]
                table = station.table(numbers, Kernel.COUNTED if counted else Kernel.PLAIN)
                said[at, own] = table.rounded[numbers, layer - 1]
    for path in {tuple(column) for column in ran.T.tolist() if any(column)}:
        own = np.flatnonzero((ran == np.array(path)[:, None]).all(0))
        visited = [at for at, did in enumerate(path) if did]
        tiers = [out.tiers[at] for at in visited]
        for group, weights in _weights(ensemble, policy, tiers, out.confidence[:, rows[own]][visited]):
            these = own[group]
            mixed = np.zeros((len(these), said.shape[2]))
            for weight, at in zip(weights, visited, strict=True):  # in the order of `combine`
                mixed = mixed + weight * said[at, these]
            out.probabilities[rows[these]] = mixed
            out.label[rows[these]] = [_label(row) for row in mixed] if len(these) < 4 else _labels(mixed)
            out.last_label[rows[these]] = said[visited[-1], these].argmax(-1)


def _weights(
    ensemble: Ensemble, policy: Policy, tiers: list[str], confidence: np.ndarray
) -> Iterator[tuple[np.ndarray, list[float]]]:
    """The ensemble's weights on one path, by groups of its texts."""
    weighting = policy.ensemble_weighting()
    if weighting is not Weighting.SUREST:
        yield np.arange(confidence.shape[1]), ensemble.weights(tiers, weighting)
        return
    every = [tuple(ensemble.weights(tiers, weighting, column)) for column in confidence.T.tolist()]
    for weights in set(every):
        yield np.flatnonzero([own == weights for own in every]), list(weights)


def outcome(out: Run, policy: Policy, stations: Sequence[Station], clues: Clues, row: int) -> Outcome:
    """What a policy that learns is told about a text, as `shared/pipeline/front.py` tells it."""
    visits, sizes = [], dict(zip(out.tiers, out.layers, strict=True))
    for at, station in enumerate(stations):
        layer = int(out.exit_layer[at, row])
        if not layer:
            continue
        confidence = float(out.confidence[at, row])
        own = (confidence,)
        if at == 0 and policy.exit_rule(Where(station.name, (), sizes)) is not None:
            kernel = Kernel.COUNTED if out.counted[at, row] else Kernel.PLAIN
            number = out.numbers[at, row]
            own = tuple(station.table(np.array([number]), kernel).rounded[number, :layer].max(-1).tolist())
        visits.append(Visit(station.name, layer, confidence, own))
    return Outcome(clues, tuple(visits))


def _label(mixed: Iterable[float]) -> int:
    """The label of one answer, as the tier finds it: the first of the greatest, after rounding."""
    rounded = [round(float(value), 6) for value in mixed]
    return rounded.index(max(rounded))


def _labels(mixed: np.ndarray) -> np.ndarray:
    """`_label` of many [n, C]; numpy rounds a little differently, so close calls are made one by one."""
    best = mixed.argmax(-1)
    top = np.sort(mixed, -1)
    for row in np.flatnonzero(top[:, -1] - top[:, -2] < 1e-5).tolist():
        best[row] = _label(mixed[row])
    return best
