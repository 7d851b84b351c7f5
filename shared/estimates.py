"""How long something usually takes, from how long it took: a mean and a mean deviation, smoothed as TCP smooths its
round-trip time (RFC 6298, alpha 1/8, beta 1/4). `high` is the mean plus two deviations."""

from __future__ import annotations

import math
import time
from collections.abc import Callable


class Smoothed:
    """Seconds. A value older than `forget_s` is forgotten: a link that was slow must be tried again one day."""

    def __init__(self, *, forget_s: float = math.inf, clock: Callable[[], float] = time.monotonic) -> None:
        self._forget_s, self._clock = forget_s, clock
        self._mean, self._deviation, self._at = 0.0, 0.0, -math.inf

    def add(self, seconds: float) -> None:
        if self.mean is None:
            self._mean, self._deviation = seconds, seconds / 2
        else:
            self._deviation += (abs(seconds - self._mean) - self._deviation) / 4
            self._mean += (seconds - self._mean) / 8
        self._at = self._clock()

    @property
    def mean(self) -> float | None:
        """Null before the first value, and once it is forgotten."""
        known = self._at > -math.inf and self._clock() - self._at <= self._forget_s
        return self._mean if known else None

    @property
    def high(self) -> float | None:
        """What it hardly ever takes longer than."""
        return None if self.mean is None else self._mean + 2 * self._deviation
