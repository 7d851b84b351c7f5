"""The operating point of a cascade: thresholds, their steepness, what skips tiers, and the ensemble's weights."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from lab.fit.cascade import Cascade, threshold_for
from lab.replay.search import SKIPS
from shared.model.ensemble import Ensemble, Weighting

SHARE_WITHIN = 0.02  # of the share that is to be sent on
WEIGHTINGS = (Weighting.ACCURACY, Weighting.FITTED, Weighting.LAST)


def operating(
    cascade: Cascade, accuracy: dict[str, float], target: float, offload_share: float | None
) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """A setting, then weights on its paths, then a setting again under the weighting that fits best."""
    chances = cascade.chances(cascade.fastest(Ensemble(accuracy), Weighting.LAST, target))
    ensemble = Ensemble(accuracy, cascade.fitted_weights(chances))
    compared = {weighting: cascade.expected(chances, ensemble, weighting) for weighting in WEIGHTINGS}
    weighting = min(compared, key=lambda weighting: compared[weighting].nll)
    setting = cascade.fastest(ensemble, weighting, target)
    if offload_share is not None:
        confidences = cascade.probabilities[0].max(-1).tolist()
        setting.thresholds[cascade.tiers[0]] = threshold_for(confidences, offload_share, setting.steepness)
    chances = cascade.chances(setting)
    weights = cascade.fitted_weights(chances)
    past = cascade.fitted_weights(cascade.chances(replace(setting, skip_below=1.0)))
    weights = {**past, **weights}  # whoever skips tiers, or whose gates do, finds weights for that way
    fitted = Ensemble(accuracy, weights)
    expected = cascade.expected(chances, fitted, weighting)
    sent = round(1 - float(chances[0].mean()), 4)
    met = offload_share is None or abs(sent - offload_share) <= SHARE_WITHIN
    ends = {"+".join(tiers): chance for (tiers, _, _), chance in zip(cascade.ways, chances, strict=True)}
    skips = [replace(setting, skip_below=skip) for skip in SKIPS] if cascade.past is not None else []
    every = [cascade.expected(cascade.chances(other), fitted, weighting) for other in skips]
    point = {
        **asdict(setting),
        "weighting": weighting.value,
        "why_this_weighting": {w.value: {"accuracy": e.accuracy, "nll": e.nll} for w, e in compared.items()},
        "expected": {"accuracy": expected.accuracy, "nll": expected.nll, "modelled_ms": expected.seconds * 1e3},
        "ends_after": {way: round(float(chance.mean()), 4) for way, chance in ends.items()},
        "reached_target": expected.accuracy >= target and met,
        "offload_share": {"asked": offload_share, "got": sent, "reached": met},
        "settings_tried": len(cascade.settings()),
        "skips": [
            {"skip_below": other.skip_below, "accuracy": own.accuracy, "modelled_ms": own.seconds * 1e3}
            for other, own in zip(skips, every, strict=True)
        ],
    }
    return point, weights


def shortfall(point: dict[str, Any], target: float) -> list[str]:
    """What was asked of a point and is not met."""
    share, expected, told = point["offload_share"], point["expected"]["accuracy"], []
    if not share["reached"]:
        told = [f"--offload-share {share['asked']:g} cannot be met: no threshold comes nearer than {share['got']:.1%}"]
    if expected < target:
        told.append(f"expected accuracy {expected:.4f} is below the target {target:.4f}: no setting reaches it")
    return told
