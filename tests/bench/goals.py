"""What `make bench` checks: each goal is a limit; it is missed where the whole 95 % interval lies beyond it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

FULL_DEPTH, OVER_ONNXRUNTIME, RULE, IMPORTANCE = 1.15, 0.75, 0.7, 1.2  # ratios
ASKED_MS, HOP_MS = 2.0, 1.5


class Goal(NamedTuple):
    """A goal at one place, and what was measured there: a value and the ends of its interval."""

    goal: str
    at: str
    limit: float
    measured: list[float]

    @property
    def verdict(self) -> str:
        """`met` and `missed` are shown; `open` is neither.

        >>> [Goal("", "", 2.0, [1.9, *ends]).verdict for ends in ([1.8, 2.0], [1.8, 2.1], [2.1, 2.2])]
        ['met', 'open', 'missed']
        """
        _, low, high = self.measured
        return "met" if high <= self.limit else "missed" if low > self.limit else "open"

    def report(self) -> dict[str, Any]:
        return {**self._asdict(), "verdict": self.verdict}


def goals(figures: dict[str, Any]) -> Iterator[Goal]:
    """Every goal, from what was measured."""
    shapes = figures["shapes"]
    for row in shapes:
        yield Goal("full depth over the best rival", _place(row), FULL_DEPTH, row["ours_over_best"])
    for row in shapes:
        yield Goal("full depth over onnxruntime int8", _place(row), OVER_ONNXRUNTIME, row["ours_over_onnxruntime"])
    for row in figures["rules"]:
        yield Goal("the card's rule over the best rival", _place(row), RULE, row["rule_over_best"])
    for row in (row for row in shapes if row["tokens"] == 256):
        yield Goal("importance over none", _place(row), IMPORTANCE, row["importance_over_ours"])
    for row in figures["tiers"]:
        yield Goal("a tier adds, ms", row["tier"], ASKED_MS, [row["client_ms"], *row["client_ms_ci95"]])
    yield Goal("a further hop adds, ms", figures["hop"]["through"], HOP_MS, figures["hop"]["hop_ms"])


def _place(row: dict[str, Any]) -> str:
    return f"{row['classifier']}, {row['tokens']} tokens, batch {row.get('batch', 1)}"
