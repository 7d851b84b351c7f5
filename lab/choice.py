"""Choosing among settings that were measured: what no other beats, the one to run, the last within a limit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any


def front(costs: Sequence[float], gains: Sequence[float]) -> list[int]:
    """The points that no other beats: none costs less and gives as much, or costs as much and gives more.

    From the least cost up; of points that are alike in both, the first.

    >>> front([3.0, 1.0, 2.0, 2.0], [0.9, 0.5, 0.5, 0.7])
    [1, 3, 0]
    """
    out: list[int] = []
    for at in sorted(range(len(costs)), key=lambda at: (costs[at], -gains[at])):
        if not out or gains[at] > gains[out[-1]]:
            out.append(at)
    return out


def operating_point(costs: Sequence[Any], gains: Sequence[float], wanted: float) -> int:
    """The setting to run: the cheapest that gains what is wanted; where none does, the one that gains most.

    A cost is whatever can be compared. Of two that cost as much, the one that gains more; of two that fall as short,
    the cheaper. This is the one choice of `tierwise calibrate` and `tierwise plan`.

    >>> operating_point([3.0, 2.0, 1.0], [0.95, 0.91, 0.8], 0.9), operating_point([3.0, 2.0], [0.7, 0.7], 0.9)
    (1, 1)
    """
    return min(range(len(costs)), key=lambda at: (max(0.0, wanted - gains[at]), costs[at], -gains[at]))


def last_within(within: Callable[[float], bool], *, steps: int = 14) -> float:
    """The greatest threshold in [0, 1] that is `within` a limit, where all lower ones are too, to 2**-steps."""
    low, high = 0.0, 1.0
    for _ in range(steps):
        middle = (low + high) / 2
        low, high = (middle, high) if within(middle) else (low, middle)
    return low
