"""The ensemble: every tier that answered has a say, weighted by how good it is.

    p = sum_i w_i p_i,   sum_i w_i = 1,   label = argmax p     (Zhang et al. 2025, arXiv 2412.12102, eq. 11-12)

    accuracy   w_i = a_i / sum a_j over the visited tiers (the paper's); a_i is validation accuracy
    fitted     the simplex weights with the least NLL on validation texts that took this very path
    last       the deepest tier alone: no ensemble
    surest     the most confident tier alone, the deeper one if two are (AdaEE's rule, [C:UCBEE])

Where we differ: texts reach a deeper tier because a shallower one was unsure, so weights near 1/3 let two weak tiers
outvote a strong one. `fitted` is learned per set of visited tiers; calibration picks the default and records why.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum


class Weighting(StrEnum):
    """Where the weights come from."""

    ACCURACY = "accuracy"
    FITTED = "fitted"
    LAST = "last"
    SUREST = "surest"


@dataclass(frozen=True)
class Ensemble:
    """Weights for any set of visited tiers. `fitted` is keyed by the visited tiers joined by `+`."""

    accuracy: Mapping[str, float] = field(default_factory=dict)
    fitted: Mapping[str, Sequence[float]] = field(default_factory=dict)

    def weights(self, visited: Sequence[str], weighting: Weighting, confidences: Sequence[float] = ()) -> list[float]:
        """One weight per visited tier, summing to 1; `surest` needs each tier's confidence.

        A path that calibration never saw has no fitted weights; its deepest tier then answers alone.
        """
        last = [0.0] * (len(visited) - 1) + [1.0]
        if weighting is Weighting.FITTED:
            found = self.fitted.get("+".join(visited), last)
            return [weight / sum(found) for weight in found]  # a card's are rounded, and no share may pass 1
        if weighting is Weighting.ACCURACY and all(tier in self.accuracy for tier in visited):
            total = sum(self.accuracy[tier] for tier in visited)
            return [self.accuracy[tier] / total for tier in visited]
        if weighting is Weighting.SUREST and confidences:
            surest = max(range(len(visited)), key=lambda i: (confidences[i], i))
            return [float(i == surest) for i in range(len(visited))]
        return last


def combine(probabilities: Sequence[Mapping[str, float]], weights: Sequence[float]) -> dict[str, float]:
    """The weighted mean of probabilities by label.

    >>> combine([{"negative": 0.6, "positive": 0.4}, {"negative": 0.1, "positive": 0.9}], [0.5, 0.5])
    {'negative': 0.35, 'positive': 0.65}
    """
    assert len(probabilities) == len(weights) > 0
    return {
        label: sum(weight * answer[label] for answer, weight in zip(probabilities, weights, strict=True))
        for label in probabilities[0]
    }
