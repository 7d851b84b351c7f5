"""How long something usually takes, from how long it took: a mean and a mean deviation, smoothed as TCP smooths its
round-trip time (RFC 6298, alpha 1/8, beta 1/4). `high` is the mean plus two deviations.

An estimate that refuses work is fed only by the work that it lets through, so one value must not lock it: a value far
above `high` counts as `OUTLIER` times `high` (a process that was stopped for a while says nothing about the model),
and a value that is too old is forgotten. Left out: which work the time was of; short and long texts share one estimate.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

OUTLIER, LEAST_S = 4.0, 0.01  # so often `high`, and at least so many seconds


class Smoothed:
    """Seconds. After `forget_s` without a new value nothing is known: what was slow must be tried again one day."""

    def __init__(self, *, forget_s: float = math.inf, clock: Callable[[], float] = time.monotonic) -> None:
        self._forget_s, self._clock = forget_s, clock
        self._mean, self._deviation, self._at = 0.0, 0.0, -math.inf

    def add(self, seconds: float) -> None:
        """Take in one measured time."""
        if self.last_high is not None:
            seconds = min(seconds, OUTLIER * max(self.last_high, LEAST_S))
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
        """What it hardly ever takes longer than; null where `mean` is."""
        return None if self.mean is None else self.last_high

    @property
    def last_high(self) -> float | None:
        """The same, however old; null only before the first value."""
        return None if self._at == -math.inf else self._mean + 2 * self._deviation
