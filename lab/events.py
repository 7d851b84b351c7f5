"""Simulated time: what happens, in the order of when; at one time, in the order in which it was put."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable


class Events:
    """A heap of calls; `now` is the time, in seconds, of the one that happens."""

    def __init__(self) -> None:
        self.now = 0.0
        self._heap: list[tuple[float, int, Callable[..., None], tuple[object, ...]]] = []
        self._order = itertools.count()

    def at(self, when: float, happens: Callable[..., None], *arguments: object) -> None:
        """Let something happen at a time that is not past."""
        heapq.heappush(self._heap, (when, next(self._order), happens, arguments))

    def run(self, until: float = math.inf) -> None:
        """Let happen what happens before `until`."""
        while self._heap and self._heap[0][0] < until:
            self.now, _, happens, arguments = heapq.heappop(self._heap)
            happens(*arguments)
