"""The dispatcher: the chance that an answer is not good enough here, and the draw that decides.

    eq. 7   p(C) = 1     if C < threshold,   else S(C)
    eq. 8   S(C) = [sig(-k(u - 1/2)) - sig(-k/2)] / [sig(k/2) - sig(-k/2)],   u = (C - threshold) / (1 - threshold)

Zhang et al. 2025 (arXiv 2412.12102, section III-A) describe the curve in words; eq. 8 is our reconstruction: S-shaped,
1 at the threshold, 0 at full confidence, one steepness k. `linear` and `step` are the shapes it is compared with.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from enum import StrEnum

FLATTEST = 1e-3  # below it the sigmoid is its limit, the straight line, and the quotient of eq. 8 is rounding errors


class Curve(StrEnum):
    """How the offload probability falls from 1 at the threshold to 0 at full confidence."""

    SIGMOID = "sigmoid"
    LINEAR = "linear"
    STEP = "step"  # 0 at once: a hard threshold


@dataclass(frozen=True)
class Dispatcher:
    """Eq. 7-8. `offload_threshold` in [0, 1]; `steepness` k > 0, used by the sigmoid only."""

    offload_threshold: float
    steepness: float = 10.0
    curve: Curve = Curve.SIGMOID

    def probability(self, confidence: float) -> float:
        """The offload probability of an answer with this calibrated confidence."""
        if confidence < self.offload_threshold:
            return 1.0
        if self.curve is Curve.STEP or self.offload_threshold >= 1:
            return 0.0
        u = (confidence - self.offload_threshold) / (1 - self.offload_threshold)
        if self.curve is Curve.LINEAR or self.steepness < FLATTEST:
            return 1 - u
        low, high = _sigmoid(-self.steepness / 2), _sigmoid(self.steepness / 2)
        return min(1.0, max(0.0, (_sigmoid(-self.steepness * (u - 0.5)) - low) / (high - low)))


def _sigmoid(a: float) -> float:
    return 1 / (1 + math.exp(-a))


def draw(seed: str, index: int, tier: str) -> float:
    """A number in [0, 1) that the same seed, index and tier always give: a request replays exactly."""
    digest = hashlib.sha256(f"{seed}:{index}:{tier}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
