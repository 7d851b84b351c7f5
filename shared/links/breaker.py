"""When to stop asking an upstream, and how often it may be asked twice.

    open     5 failures in a row, or over half of at least 20 calls within 10 s
    closed   once a probe in the background succeeded (`shared/links/replica.py`); no user's request is the probe

A retry is paid from a budget that every call adds a tenth to, so that an upstream that is down sees at most 1.1 times
its load. Anchors: Envoy's outlier detection, gRPC's retry throttling. Left out: a half-open state that lets some users
through.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

IN_A_ROW = 5
WINDOW_S, LEAST_CALLS, SHARE = 10.0, 20, 0.5


class Breaker:
    """Of one upstream. Calls that end while it is open (they were under way) change nothing."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._calls: deque[tuple[float, bool]] = deque()  # when, and whether it failed
        self._failures = self._in_a_row = 0  # among these calls; and without an answer in between
        self.open = False

    def count(self, *, failed: bool) -> None:
        """Count one call."""
        if self.open:
            return
        now = self._clock()
        self._calls.append((now, failed))
        self._failures += failed
        while self._calls[0][0] < now - WINDOW_S:
            self._failures -= self._calls.popleft()[1]
        self._in_a_row = self._in_a_row + 1 if failed else 0
        mostly = len(self._calls) >= LEAST_CALLS and self._failures > SHARE * len(self._calls)
        self.open = mostly or self._in_a_row >= IN_A_ROW

    def trip(self) -> None:
        """Open it, whatever was counted."""
        self.open = True

    def close(self) -> None:
        """The upstream is well again: start afresh."""
        self.open, self._failures, self._in_a_row = False, 0, 0
        self._calls.clear()


class RetryBudget:
    """Every call adds `share` of a retry, up to `most`; none is there at the start."""

    def __init__(self, share: float = 0.1, most: float = 10.0) -> None:
        self._share, self._most, self._saved = share, most, 0.0

    def call(self) -> None:
        self._saved = min(self._most, self._saved + self._share)

    def take(self) -> bool:
        """Whether a retry may be made now; if so it is paid."""
        if self._saved < 1 - 1e-9:  # ten tenths are a whole
            return False
        self._saved -= 1
        return True
