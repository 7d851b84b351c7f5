"""Admission at the source: open loop, one text every mu seconds, or as they come.

    fixed        a text is admitted when it comes
    rate         algorithm 3: texts wait outside, and mu follows the source's queues at a fixed threshold
    threshold    algorithm 4: a text is admitted when it comes, and T_e follows the source's queues

A text takes the T_e of its admission with it, so other nodes need not know what the source does (ours).
"""

from __future__ import annotations

from enum import StrEnum

from shared.mesh.algorithms import adapted_gap, adapted_threshold
from shared.mesh.node import Node


class Adapt(StrEnum):
    """What the source adapts."""

    FIXED = "fixed"
    RATE = "rate"
    THRESHOLD = "threshold"


class Source:
    """When the source's node admits texts. Times are the driver's clock."""

    def __init__(
        self, node: Node, adapt: Adapt = Adapt.FIXED, *, threshold: float, gap_s: float = 0.1, now: float = 0.0
    ) -> None:
        self.node, self.kind, self.threshold, self.gap_s = node, adapt, threshold, gap_s
        self.admitted = 0
        self._next_at = now
        self.adapts_at = now + node.constants.period_s

    def due_at(self, now: float) -> float:
        """When the next text that waits outside may be admitted."""
        return max(now, self._next_at) if self.kind is Adapt.RATE else now

    def admit(self, now: float) -> float:
        """A text is admitted: the threshold that it gets. A pause is not made good for."""
        self.admitted += 1
        self._next_at = max(self._next_at + self.gap_s, now)
        return self.threshold

    def adapt(self, now: float) -> None:
        """Adapt, if it is time."""
        if now < self.adapts_at:
            return
        node = self.node
        self.adapts_at = max(self.adapts_at + node.constants.period_s, now)
        if self.kind is Adapt.RATE:
            self.gap_s = adapted_gap(self.gap_s, node.queued, node.constants)
        elif self.kind is Adapt.THRESHOLD:
            self.threshold = adapted_threshold(self.threshold, node.queued, node.constants)
