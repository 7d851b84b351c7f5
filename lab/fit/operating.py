"""Expected accuracy and latency of a cascade on validation data, exactly over the offload draws.

A text that tier k answers with calibrated confidence C_k leaves it with probability p_k(C_k) (eq. 7-8), so it stops at
tier j with probability p_1 ... p_{j-1} (1 - p_j). No draw is simulated: accuracy, NLL and latency are expectations over
every path. Latency is *modelled*: measured compute per tier, plus RTT and size / rate of each link.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lab.choice import last_within, operating_point
from shared.model.ensemble import Ensemble, Weighting
from shared.policies.dispatch import Curve, Dispatcher

THRESHOLDS = (0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.92, 0.94, 0.96, 0.98, 0.99)
STEEPNESS = (10.0, 30.0)


@dataclass(frozen=True)
class Stage:
    """One tier on every validation text, as it would get it (pruned by the tiers before)."""

    tier: str
    probabilities: Tensor  # [N, C], calibrated, at the exit under the exit rule
    seconds: Tensor  # [N], modelled: the link that leads here and this tier's compute


@dataclass(frozen=True)
class Point:
    """A setting and what it gives."""

    thresholds: dict[str, float]
    steepness: float
    accuracy: float
    nll: float
    seconds: float
    stops: dict[str, float]  # share of texts whose last tier is this one


def paths(stages: Sequence[Stage], thresholds: Mapping[str, float], steepness: float) -> Tensor:
    """Probability that each text stops at each tier, [tiers, N]; columns sum to 1."""
    reach, stop = torch.ones(len(stages[0].seconds)), []
    for stage in stages[:-1]:
        dispatcher = Dispatcher(thresholds[stage.tier], steepness)
        leave = torch.tensor([dispatcher.probability(c) for c in stage.probabilities.max(-1).values.tolist()])
        stop.append(reach * (1 - leave))
        reach = reach * leave
    return torch.stack([*stop, reach])


def expectation(
    stages: Sequence[Stage], labels: Tensor, stop: Tensor, ensemble: Ensemble, weighting: Weighting
) -> tuple[float, float, float]:
    """Expected accuracy, NLL (nats) and latency (seconds) over all paths."""
    accuracy = nll = seconds = 0.0
    for depth in range(1, len(stages) + 1):
        weights = ensemble.weights([stage.tier for stage in stages[:depth]], weighting)
        mixed = sum(w * stage.probabilities for w, stage in zip(weights, stages[:depth], strict=True))
        assert isinstance(mixed, Tensor)
        chance = stop[depth - 1]
        accuracy += (chance * (mixed.argmax(-1) == labels)).mean().item()
        nll -= (chance * mixed.gather(1, labels[:, None])[:, 0].clamp_min(1e-9).log()).mean().item()
        seconds += (chance * torch.stack([stage.seconds for stage in stages[:depth]]).sum(0)).mean().item()
    return accuracy, nll, seconds


def sweep(stages: Sequence[Stage], labels: Tensor, ensemble: Ensemble, weighting: Weighting) -> Iterator[Point]:
    """Every combination of a threshold per tier and a steepness."""
    tiers = [stage.tier for stage in stages[:-1]]
    for steepness in STEEPNESS:
        for combination in itertools.product(THRESHOLDS, repeat=len(tiers)):
            thresholds = dict(zip(tiers, combination, strict=True))
            stop = paths(stages, thresholds, steepness)
            accuracy, nll, seconds = expectation(stages, labels, stop, ensemble, weighting)
            shares = {stage.tier: row.mean().item() for stage, row in zip(stages, stop, strict=True)}
            yield Point(thresholds, steepness, accuracy, nll, seconds, shares)


def fastest(points: Sequence[Point], accuracy: float) -> Point:
    """The least latency that reaches this accuracy; if none does, the most accurate."""
    return points[operating_point([p.seconds for p in points], [p.accuracy for p in points], accuracy)]


def fitted(stages: Sequence[Stage], labels: Tensor, stop: Tensor) -> dict[str, list[float]]:
    """Ensemble weights with the least NLL for each set of visited tiers, texts weighted by their chance of that path.

    Expectation-maximisation of mixture weights: each round can only lower the NLL. Paths that no text takes are left
    out; the deepest tier then answers alone.
    """
    out: dict[str, list[float]] = {}
    for depth in range(1, len(stages) + 1):
        right = torch.stack([stage.probabilities.gather(1, labels[:, None])[:, 0] for stage in stages[:depth]])
        right = right.clamp_min(1e-9)  # [tiers, N]: what each tier gives the true label
        if stop[depth - 1].sum() < 1:  # less than one text is expected to end here: nothing to fit on
            continue
        chance = stop[depth - 1] / stop[depth - 1].sum()
        weights = torch.full((depth,), 1 / depth)
        for _ in range(300):
            share = weights[:, None] * right
            weights = (chance * share / share.sum(0)).sum(1)
        out["+".join(stage.tier for stage in stages[:depth])] = [
            round(w, 4) for w in (weights / weights.sum()).tolist()
        ]
    return out


def sent_share(dispatcher: Dispatcher, confidences: Sequence[float]) -> float:
    """The share of texts that leave a tier, as is expected over the draws."""
    return sum(map(dispatcher.probability, confidences)) / max(1, len(confidences))


def threshold_for(confidences: Sequence[float], share: float, steepness: float, curve: Curve = Curve.SIGMOID) -> float:
    """The threshold at which this share of texts leaves a tier: the share grows with it."""

    def fewer(threshold: float) -> bool:
        return sent_share(Dispatcher(threshold, steepness, curve), confidences) < share

    return round(last_within(fewer, steps=30), 4)
