"""Expected accuracy and latency of a cascade on validation data, exactly over the offload draws.

A text that tier k answers with calibrated confidence C_k leaves it with probability p_k(C_k) (eq. 7-8), so it stops at
tier j with probability p_1 ... p_{j-1} (1 - p_j). No draw is simulated: accuracy, NLL and latency are expectations over
every path. What each tier says, and how long an answer by it takes, are the replay's (`lab/replay/times.py`).

`tierwise plan` judges its settings by one draw a text instead: it compares policies that have no such closed form, and
bounds accuracy, p95 and bytes by what single texts did. Here there are texts enough for neither the draws' noise nor a
second set, and the ensemble's weights are fitted on the chances of the paths.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np

from lab.choice import last_within, operating_point
from lab.replay.recorder import Kernel
from lab.replay.run import NONE, Run
from lab.replay.times import Times
from lab.replay.walk import Replay
from shared.model.base import Array
from shared.model.ensemble import Ensemble, Weighting
from shared.policies.collaborative import Curve, offload_probability

THRESHOLDS = (0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.92, 0.94, 0.96, 0.98, 0.99)
STEEPNESS = (10.0, 30.0)


@dataclass(frozen=True)
class Setting:
    """What decides who answers: a threshold for every tier but the last, and one steepness."""

    thresholds: dict[str, float]
    steepness: float


@dataclass(frozen=True)
class Expected:
    """Accuracy, NLL (nats) and latency over all paths."""

    accuracy: float
    nll: float
    seconds: float


@dataclass(frozen=True)
class Cascade:
    """Every validation text at every tier, as it would get there (pruned by the tiers before): T tiers, N texts."""

    tiers: tuple[str, ...]
    labels: Array  # [N]
    probabilities: Array  # [T, N, C], calibrated, at the exit under the exit rule
    exit_layer: Array  # [T, N]; 0 where a text does not get there
    seconds: Array  # [T, N], modelled: the whole answer, had the text stopped at this tier

    def stops(self, setting: Setting) -> Array:
        """Probability that each text stops at each tier, [T, N]; columns sum to 1."""
        reach, stop = np.ones(len(self.labels)), []
        for tier, probabilities in zip(self.tiers[:-1], self.probabilities, strict=False):
            threshold, confidences = setting.thresholds[tier], probabilities.max(-1).tolist()
            leave = np.array([offload_probability(c, threshold, setting.steepness) for c in confidences])
            stop.append(reach * (1 - leave))
            reach = reach * leave
        return np.stack([*stop, reach])

    def per_text(self, stop: Array, ensemble: Ensemble, weighting: Weighting) -> Array:
        """What each text that stops with these probabilities [T, N] gives and takes: accuracy, NLL, seconds, [3, N]."""
        accuracy, nll = np.zeros((2, len(self.labels)))
        everything = np.arange(len(self.labels))
        for depth, chance in enumerate(stop, start=1):
            weights = np.array(ensemble.weights(self.tiers[:depth], weighting))
            mixed = (weights[:, None, None] * self.probabilities[:depth]).sum(0)  # [N, C]
            accuracy += chance * (mixed.argmax(-1) == self.labels)
            nll -= chance * np.log(np.maximum(mixed[everything, self.labels], 1e-9))
        return np.stack([accuracy, nll, (stop * self.seconds).sum(0)])

    def expected(self, stop: Array, ensemble: Ensemble, weighting: Weighting) -> Expected:
        """The means over all texts."""
        return Expected(*map(float, self.per_text(stop, ensemble, weighting).mean(-1)))

    def settings(self) -> list[Setting]:
        """Every combination of a threshold per tier and a steepness."""
        tiers = self.tiers[:-1]
        return [
            Setting(dict(zip(tiers, thresholds, strict=True)), steepness)
            for steepness in STEEPNESS
            for thresholds in itertools.product(THRESHOLDS, repeat=len(tiers))
        ]

    def fastest(self, ensemble: Ensemble, weighting: Weighting, accuracy: float) -> Setting:
        """The setting with the least expected latency at this accuracy; if none reaches it, the most accurate."""
        settings = self.settings()
        found = [self.expected(self.stops(setting), ensemble, weighting) for setting in settings]
        return settings[operating_point([own.seconds for own in found], [own.accuracy for own in found], accuracy)]

    def fitted_weights(self, stop: Array) -> dict[str, list[float]]:
        """Ensemble weights with the least NLL for each set of visited tiers, texts weighted by their chance of it.

        Expectation-maximisation of mixture weights: each round can only lower the NLL. Paths that no text takes are
        left out; the deepest tier then answers alone.
        """
        out: dict[str, list[float]] = {}
        of_label = self.probabilities[:, np.arange(len(self.labels)), self.labels]
        right = np.maximum(of_label, 1e-9)  # [T, N]: what the true label gets
        for depth, on_path in enumerate(stop, start=1):
            if on_path.sum() < 1:  # less than one text is expected to end here: nothing to fit on
                continue
            chance = on_path / on_path.sum()
            weights = np.full(depth, 1 / depth)
            for _ in range(300):
                share = weights[:, None] * right[:depth]
                weights = (chance * share / share.sum(0)).sum(1)
            out["+".join(self.tiers[:depth])] = [round(weight, 4) for weight in (weights / weights.sum()).tolist()]
        return out


def cascade_of(
    replay: Replay, times: Times, parameters: Mapping[str, Any], *, tiers: Sequence[str] | None = None
) -> Cascade:
    """A run of `collaborative` in which every text is sent on; `parameters` are its exit rule and its pruning.

    It goes through these `tiers`, the first and the deepest; null: through all of them.

    A text of confidence 1 is never sent on, under any threshold: the tiers behind have no weight in its expectation.
    """
    spec = {
        "name": "collaborative",
        **parameters,
        "offload_threshold": 1.0,
        "skip_below": 0.0 if tiers is None else 1.0,
    }
    run = replay.run(replay.policy(spec))
    way = [at for at, tier in enumerate(run.tiers) if tiers is None or tier in tiers]
    probabilities = np.zeros((len(run.tiers), *run.probabilities.shape))
    for at, station in enumerate(replay.stations):
        for kernel in Kernel:
            rows = np.flatnonzero(run.ran[at] & (run.counted[at] == (kernel is Kernel.COUNTED)))
            numbers = run.numbers[at, rows]
            exits = station.table(numbers, kernel).exits
            probabilities[at, rows] = exits[numbers, run.exit_layer[at, rows] - 1]
    return Cascade(
        tuple(run.tiers[at] for at in way),
        replay.labels,
        probabilities[way],
        run.exit_layer[way],
        np.stack([times.of(_stopped(run, at)).seconds for at in way]),
    )


def _stopped(run: Run, last: int) -> Run:
    """The run, had every text stopped at this tier."""
    out = copy(run)
    out.exit_layer, out.sent_to = run.exit_layer.copy(), run.sent_to.copy()
    out.exit_layer[last + 1 :], out.sent_to[last:] = 0, NONE
    out.carried = {link: numbers for link, numbers in run.carried.items() if link[1] <= last}
    return out


def sent_share(confidences: Sequence[float], threshold: float, steepness: float, curve: Curve) -> float:
    """The share of texts that leave a tier, as is expected over the draws."""
    expected = sum(offload_probability(c, threshold, steepness, curve) for c in confidences)
    return expected / max(1, len(confidences))


def threshold_for(confidences: Sequence[float], share: float, steepness: float, curve: Curve = Curve.SIGMOID) -> float:
    """The threshold at which this share of texts leaves a tier: the share grows with it."""

    def fewer(threshold: float) -> bool:
        return sent_share(confidences, threshold, steepness, curve) < share

    return round(last_within(fewer, steps=30), 4)
