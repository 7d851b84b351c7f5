"""Expected accuracy and latency of a cascade on validation data, exactly over the offload draws.

A text that tier k answers with calibrated confidence C_k leaves it with probability p_k(C_k) (eq. 7-8), so it stops at
tier j with probability p_1 ... p_{j-1} (1 - p_j). If C_1 is below `skip_below`, it goes from the first tier to the
deepest. No draw is simulated: accuracy, NLL and latency are expectations over every path. What each tier says, and how
long an answer by it takes, are the replay's (`lab/replay/times.py`).

The settings are all combinations of the planner's values (`lab/replay/search.py`): what a path gives hangs on none of
them, so that ten thousand take seconds. `tierwise plan` judges by one draw a text instead: it compares policies that
have no such closed form, and bounds accuracy, p95 and bytes by what single texts did. Here there are texts enough for
neither the draws' noise nor a second set, and the ensemble's weights are fitted on the chances of the paths.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lab.choice import last_within, operating_point
from lab.replay.recorder import Kernel
from lab.replay.run import NONE, Run
from lab.replay.search import SKIPS, STEEPNESS, THRESHOLDS
from lab.replay.times import Times
from lab.replay.walk import Replay
from shared.model.base import Array
from shared.model.ensemble import Ensemble, Weighting
from shared.policies.collaborative import Curve, offload_probability

NEARLY = 1.02  # times the fastest: as fast as makes no difference


@dataclass(frozen=True)
class Setting:
    """What decides who answers: a threshold for every tier but the last, one steepness, and what skips to the last."""

    thresholds: dict[str, float]
    steepness: float
    skip_below: float = 0.0  # of the first tier


@dataclass(frozen=True)
class Expected:
    """Accuracy, NLL (nats) and latency over all paths."""

    accuracy: float
    nll: float
    seconds: float


@dataclass(frozen=True)
class Past:
    """Every text at the deepest tier, past those between."""

    probabilities: Array  # [N, C]
    seconds: Array  # [N]


@dataclass(frozen=True)
class Cascade:
    """Every validation text at every tier, as it would get there (pruned by the tiers before): T tiers, N texts.

    A text ends on one of W ways: at each tier, all before it having run; and, where there is a tier to skip, `past` it.
    """

    tiers: tuple[str, ...]
    labels: Array  # [N]
    probabilities: Array  # [T, N, C], calibrated, at the exit under the exit rule
    exit_layer: Array  # [T, N]; 0 where a text does not get there
    seconds: Array  # [T, N], modelled: the whole answer, had the text stopped at this tier
    past: Past | None = None
    _known: dict[tuple[int, float, float], Array] = field(default_factory=dict, compare=False)

    @property
    def ways(self) -> list[tuple[tuple[str, ...], Array, Array]]:
        """For each way the tiers that run, what they say [tiers, N, C], and the seconds [N]."""
        depths = range(1, len(self.tiers) + 1)
        out = [(self.tiers[:depth], self.probabilities[:depth], self.seconds[depth - 1]) for depth in depths]
        if self.past is not None:
            both = np.stack([self.probabilities[0], self.past.probabilities])
            out.append(((self.tiers[0], self.tiers[-1]), both, self.past.seconds))
        return out

    def chances(self, setting: Setting) -> Array:
        """Probability of each way for each text, [W, N]; columns sum to 1."""
        reach, out, past = np.ones(len(self.labels)), [], np.zeros(len(self.labels))
        for at, tier in enumerate(self.tiers[:-1]):
            leave = self._leaving(at, setting.thresholds[tier], setting.steepness)
            out.append(reach * (1 - leave))
            reach = reach * leave
            if at == 0 and self.past is not None:
                past = reach * (self.probabilities[0].max(-1) < setting.skip_below)
                reach = reach - past
        return np.stack([*out, reach, *([] if self.past is None else [past])])

    def _leaving(self, at: int, threshold: float, steepness: float) -> Array:
        key = (at, threshold, steepness)
        if key not in self._known:
            confidences = self.probabilities[at].max(-1).tolist()
            self._known[key] = np.array([offload_probability(c, threshold, steepness) for c in confidences])
        return self._known[key]

    def gives(self, ensemble: Ensemble, weighting: Weighting) -> Array:
        """What each way gives and takes for each text: accuracy, NLL, seconds, [3, W, N]."""
        texts, out = np.arange(len(self.labels)), []
        for tiers, said, seconds in self.ways:
            weights = np.array(ensemble.weights(tiers, weighting))
            mixed = (weights[:, None, None] * said).sum(0)  # [N, C]
            nll = -np.log(np.maximum(mixed[texts, self.labels], 1e-9))
            out.append([mixed.argmax(-1) == self.labels, nll, seconds])
        return np.array(out, dtype=float).swapaxes(0, 1)

    def expected(self, chances: Array, ensemble: Ensemble, weighting: Weighting) -> Expected:
        """The means over all texts and their ways."""
        return Expected(*_means(chances, self.gives(ensemble, weighting)))

    def settings(self) -> list[Setting]:
        """Every combination of a threshold per tier, a steepness, and what skips."""
        tiers, skips = self.tiers[:-1], SKIPS if self.past is not None else SKIPS[:1]
        every = [threshold for threshold in THRESHOLDS if threshold is not None]
        return [
            Setting(dict(zip(tiers, thresholds, strict=True)), steepness, skip)
            for skip, steepness in itertools.product(skips, STEEPNESS)
            for thresholds in itertools.product(every, repeat=len(tiers))
        ]

    def fastest(self, ensemble: Ensemble, weighting: Weighting, accuracy: float) -> Setting:
        """The setting with the least expected latency at this accuracy; if none reaches it, the most accurate.

        Of those that are as fast as makes no difference, the one that skips least, then the most accurate: what passes
        over the tiers between loads the deepest.
        """
        settings, gives = self.settings(), self.gives(ensemble, weighting)
        accuracies, _, seconds = zip(*(_means(self.chances(setting), gives) for setting in settings), strict=True)
        best = operating_point(seconds, accuracies, accuracy)
        wanted = min(accuracy, accuracies[best])
        near = [
            at
            for at, (gain, took) in enumerate(zip(accuracies, seconds, strict=True))
            if gain >= wanted and took <= NEARLY * seconds[best]
        ]
        return settings[min(near, key=lambda at: (settings[at].skip_below, -accuracies[at]))]

    def fitted_weights(self, chances: Array) -> dict[str, list[float]]:
        """Ensemble weights with the least NLL for each set of visited tiers, texts weighted by their chance of it.

        Expectation-maximisation of mixture weights: each round can only lower the NLL. Ways that no text takes are
        left out; the deepest tier then answers alone.
        """
        out: dict[str, list[float]] = {}
        for on_way, (tiers, said, _) in zip(chances, self.ways, strict=True):
            if on_way.sum() < 1:  # less than one text is expected to end here: nothing to fit on
                continue
            right = np.maximum(said[:, np.arange(len(self.labels)), self.labels], 1e-9)  # what the true label gets
            chance, weights = on_way / on_way.sum(), np.full(len(tiers), 1 / len(tiers))
            for _ in range(300):
                share = weights[:, None] * right
                weights = (chance * share / share.sum(0)).sum(1)
            out["+".join(tiers)] = [round(weight, 4) for weight in (weights / weights.sum()).tolist()]
        return out


def _means(chances: Array, gives: Array) -> tuple[float, float, float]:
    """Accuracy, NLL and seconds from chances [W, N] and what each way gives [3, W, N]."""
    accuracy, nll, seconds = (np.vdot(chances, own) / chances.shape[1] for own in gives)
    return float(accuracy), float(nll), float(seconds)


def cascade_of(replay: Replay, times: Times, parameters: Mapping[str, Any]) -> Cascade:
    """Runs of `collaborative` in which every text is sent on; `parameters` are its exit rule and its pruning.

    A text of confidence 1 is never sent on, under any threshold: the tiers behind have no weight in its expectation.
    """
    spec = {"name": "collaborative", **parameters, "offload_threshold": 1.0, "skip_below": 0.0}
    run, probabilities = _answers(replay, spec)
    seconds = np.stack([times.of(_stopped(run, at)).seconds for at in range(len(run.tiers))])
    past = None
    if len(run.tiers) > 2:
        skipped, answers = _answers(replay, {**spec, "skip_below": 1.0})
        past = Past(answers[-1], times.of(skipped).seconds)
    return Cascade(tuple(run.tiers), replay.labels, probabilities, run.exit_layer, seconds, past)


def _answers(replay: Replay, spec: Mapping[str, Any]) -> tuple[Run, Array]:
    """A run, and what every tier says of every text that gets there, [T, N, C]."""
    run = replay.run(replay.policy(spec))
    probabilities = np.zeros((len(run.tiers), *run.probabilities.shape))
    for at, station in enumerate(replay.stations):
        for kernel in Kernel:
            rows = np.flatnonzero(run.ran[at] & (run.counted[at] == (kernel is Kernel.COUNTED)))
            numbers = run.numbers[at, rows]
            exits = station.table(numbers, kernel).exits
            probabilities[at, rows] = exits[numbers, run.exit_layer[at, rows] - 1]
    return run, probabilities


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
