"""What `network-aware` needs from validation data: gains by confidence, compute times, and what an answer is worth.

    G_ij(bin) = share of the texts of a bin that tier j answers right  -  the same of tier i      bins by i's confidence

Each tier answers the whole text alone, at the exit that its rule takes. A gain cannot rise with the confidence [ours]:
neighbouring bins that say so are pooled (isotonic regression), and bins with the same gains become one. A gain stands
at its bin's mean confidence, with straight lines between: in steps, one `value_ms` may send a fifth of the texts and
the next a quarter. The ensemble is left out, which mixes both tiers' answers and is a little better than the deeper
one's alone.

The value of an answer is the one that gives the fastest replay within `within` of the deepest tier, on these links and
the same texts.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.isotonic import IsotonicRegression

from lab.choice import operating_point
from lab.replay.recorder import Kernel
from lab.replay.times import Times
from lab.replay.walk import Replay
from shared.model.base import Array
from shared.policies import Where

BINS = 50  # of as many texts each, before neighbours are pooled
VALUES_MS = tuple(round(100 * 1.15**step) for step in range(39))  # 100 ms to 21 s


def network_aware(replay: Replay, times: Times, target: float) -> tuple[dict[str, Any], dict[str, Any]]:
    """The policy's parameters and a report. Texts leave early as the card of `replay` says of `collaborative`; it knows
    the links' profiles. `target` is the accuracy wanted.
    """
    asked = {"name": "network-aware"}
    rules, sizes = replay.policy(asked), {station.name: station.layers for station in replay.stations}
    everything, confidences, right, compute = np.arange(len(replay.numbers)), [], [], {}
    for at, station in enumerate(replay.stations):
        layer = station.left(replay.numbers, rules.exit_rule(Where(station.name, (), sizes)), Kernel.PLAIN)
        exits = station.table(replay.numbers, Kernel.PLAIN).exits[replay.numbers, layer - 1]  # [N, C]
        confidences.append(exits.max(-1))
        right.append(exits.argmax(-1) == replay.labels)
        compute[station.name] = round(float(times.until_exits(at)[everything, layer - 1].mean() * 1e3), 3)
    points, gains = dict[str, list[float]](), dict[str, dict[str, list[float]]]()
    for at, tier in enumerate(replay.order[:-1]):
        differences = [own.astype(float) - right[at] for own in right[at + 1 :]]
        points[tier], found = by_confidence(confidences[at], differences)
        gains[tier] = dict(zip(replay.order[at + 1 :], found, strict=True))
    parameters = {"confidences": points, "gains": gains, "compute_ms": compute}
    tried = [_tried(replay, times, {**asked, **parameters, "value_ms": value}) for value in VALUES_MS]
    chosen = operating_point([one["modelled_ms"] for one in tried], [one["accuracy"] for one in tried], target)
    report = {"bins": BINS, "target_accuracy": target, "tried": tried}
    return {**parameters, "value_ms": VALUES_MS[chosen]}, report


def by_confidence(confidence: Array, differences: list[Array]) -> tuple[list[float], list[list[float]]]:
    """Confidences, ascending, and for each difference [N] its mean around each of them, never rising.

    >>> sure = np.arange(100) / 100
    >>> by_confidence(sure, [(sure < 0.5).astype(float)])
    ([0.245, 0.745], [[1.0, 0.0]])
    """
    cuts = np.unique(np.round(np.quantile(confidence, np.arange(1, BINS) / BINS), 4))
    place = np.searchsorted(cuts, confidence, side="right")
    counts = np.bincount(place, minlength=len(cuts) + 1)
    kept = np.flatnonzero(counts)
    fitted = []
    for difference in differences:
        mean = np.bincount(place, difference, minlength=len(counts))[kept] / counts[kept]
        fitted.append(IsotonicRegression(increasing=False).fit_transform(kept, mean, sample_weight=counts[kept]))
    columns = np.round(fitted, 4).T + 0.0  # [bins, differences]; -0.0 becomes 0.0
    starts = [at for at in range(len(columns)) if at == 0 or (columns[at] != columns[at - 1]).any()]
    sums = np.bincount(place, confidence, minlength=len(counts))[kept]
    means = np.add.reduceat(sums, starts) / np.add.reduceat(counts[kept], starts)
    return [round(float(mean), 4) for mean in means], columns[starts].T.tolist()


def _tried(replay: Replay, times: Times, spec: dict[str, Any]) -> dict[str, Any]:
    run = replay.run(replay.policy(spec))
    return {
        "value_ms": spec["value_ms"],
        "accuracy": round(float((run.label == replay.labels).mean()), 4),
        "modelled_ms": round(float(times.of(run).seconds.mean() * 1e3), 3),
        "sent": round(float((run.sent_to[0] >= 0).mean()), 4),
    }
