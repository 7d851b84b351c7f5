"""The operating point of a cascade: thresholds, ensemble weights, and how unsure a text must be to skip tiers."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from lab.choice import operating_point
from lab.fit.cascade import Cascade, Setting, threshold_for
from shared.model.ensemble import Ensemble, Weighting

SHARE_WITHIN = 0.02  # of the share that is to be sent on
SKIPS = (0.0, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 1.0)  # confidences below which the tiers between are skipped
NEARLY = 1.02  # times the fastest: as fast as makes no difference
WEIGHTINGS = (Weighting.ACCURACY, Weighting.FITTED, Weighting.LAST)


def thresholds(
    cascade: Cascade, accuracy: dict[str, float], target: float, offload_share: float | None
) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """Thresholds, then weights on those paths, then thresholds again under the weighting that fits best."""
    stop = cascade.stops(cascade.fastest(Ensemble(accuracy), Weighting.LAST, target))
    ensemble = Ensemble(accuracy, cascade.fitted_weights(stop))
    compared = {weighting: cascade.expected(stop, ensemble, weighting) for weighting in WEIGHTINGS}
    weighting = min(compared, key=lambda weighting: compared[weighting].nll)
    setting = cascade.fastest(ensemble, weighting, target)
    if offload_share is not None:
        confidences = cascade.probabilities[0].max(-1).tolist()
        setting.thresholds[cascade.tiers[0]] = threshold_for(confidences, offload_share, setting.steepness)
    stop = cascade.stops(setting)
    weights = cascade.fitted_weights(stop)
    expected = cascade.expected(stop, Ensemble(accuracy, weights), weighting)
    sent = round(1 - float(stop[0].mean()), 4)
    met = offload_share is None or abs(sent - offload_share) <= SHARE_WITHIN
    point = {
        **asdict(setting),
        "weighting": weighting.value,
        "why_this_weighting": {w.value: {"accuracy": e.accuracy, "nll": e.nll} for w, e in compared.items()},
        "expected": {"accuracy": expected.accuracy, "nll": expected.nll, "modelled_ms": expected.seconds * 1e3},
        "stops_at": {tier: round(float(row.mean()), 4) for tier, row in zip(cascade.tiers, stop, strict=True)},
        "reached_target": expected.accuracy >= target and met,
        "offload_share": {"asked": offload_share, "got": sent, "reached": met},
        "settings_tried": len(cascade.settings()),
    }
    return point, weights


def skip_below(
    cascade: Cascade,
    past: Cascade,
    accuracy: dict[str, float],
    point: dict[str, Any],
    weights: dict[str, list[float]],
    target: float,
) -> tuple[float, dict[str, list[float]]]:
    """The least `skip_below` of the first tier that is nearly the fastest; and the weights where a text skips.

    `past` is the cascade of the first and the deepest tier. What passes over the tiers between loads the deepest,
    so the least.
    """
    first = cascade.tiers[0]
    direct = past.stops(Setting({first: point["thresholds"][first]}, point["steepness"]))
    fitted = past.fitted_weights(direct)
    ensemble, weighting = Ensemble(accuracy, {**fitted, **weights}), Weighting(point["weighting"])
    whole = cascade.stops(Setting(point["thresholds"], point["steepness"]))
    ways = cascade.per_text(whole, ensemble, weighting), past.per_text(direct, ensemble, weighting)
    confidences = cascade.probabilities[0].max(-1)
    found = [np.where(confidences < skip, *ways[::-1]).mean(-1) for skip in SKIPS]
    accuracies, seconds = ([float(own[at]) for own in found] for at in (0, 2))
    fastest = seconds[operating_point(seconds, accuracies, target)]
    wanted = min(target, max(accuracies))
    at = next(n for n in range(len(SKIPS)) if seconds[n] <= NEARLY * fastest and accuracies[n] >= wanted)
    point["skips"] = [
        {"skip_below": skip, "accuracy": own, "modelled_ms": took * 1e3}
        for skip, own, took in zip(SKIPS, accuracies, seconds, strict=True)
    ]
    return SKIPS[at], {**fitted, **weights}


def shortfall(point: dict[str, Any], target: float) -> list[str]:
    """What was asked of a point and is not met."""
    share, expected, told = point["offload_share"], point["expected"]["accuracy"], []
    if not share["reached"]:
        told = [f"--offload-share {share['asked']:g} cannot be met: no threshold comes nearer than {share['got']:.1%}"]
    if expected < target:
        told.append(f"expected accuracy {expected:.4f} is below the target {target:.4f}: no setting reaches it")
    return told
