"""The queue before a model: bounded, first in first out. It drops calls whose client left or whose deadline passed.

Several calls may share one forward pass. Their texts must want the same (exit rule, importance, explanation) and be of
like length, and a pass takes `batch_texts` of them. A call that had to wait may wait `batch_wait_s` more for company.
One that finds the model idle never does, so at low load the queue costs nothing.

The queue is bounded in time, too: a call is refused when those before it need longer than `wait_s`. A count alone would
let the wait grow with the cost of a text, and a late answer is worth less than a refusal at once.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from shared.contracts import TextPair
from shared.errors import DeadlinePassed, QueueFull
from shared.model.exits import ExitRule
from shared.model.pools import Signature
from shared.model.state import State
from shared.model.words import Encoded

Tell = Callable[[int, int, list[float], bool | None], None]  # text of the call, exit, its probabilities, rule met
Passed = Callable[[Encoded, int, float], None]  # an exit that the text did not leave by: its layer and confidence


@dataclass(eq=False)
class Work:
    """One call's texts and what is wanted of them: an inference, or a `signature`. Times are by the queue's clock."""

    texts: Sequence[TextPair]
    rule: ExitRule | None = None
    importance: bool = False
    explain: bool = False
    signature: Signature | None = None
    max_tokens: int | None = None  # that are read of each text; null: as many as the classifier reads
    expires: float | None = None
    tell: Tell | None = None
    passed: Passed | None = None  # of a call with one text
    begun: Sequence[State] | None = None  # one for each text, all after the same layer: it goes on from there
    states: bool = False  # whether others may go on from the answers
    asked: float = 0.0
    future: Future[Any] = field(default_factory=Future)
    queued: bool = False  # it found the model busy
    abandoned: bool = False  # its caller has left
    so_far: Callable[[], Any] | None = None  # while it runs: what it would give now; null before an exit was reached

    def over(self, at: float) -> bool:
        """Whether nobody wants a result at the time `at`."""
        return self.abandoned or (self.expires is not None and at >= self.expires)

    def joins(self, other: Work) -> bool:
        """Whether both fit into one forward pass."""
        alike = self._wanted() == other._wanted()
        short, long = sorted((self._length(), other._length()))
        return alike and self.signature is other.signature is None and long <= max(2 * short, 100)

    def _wanted(self) -> tuple[Any, ...]:
        return self.rule, self.importance, self.explain, self.states, self.begun[0].done if self.begun else 0

    def _length(self) -> int:
        """Characters of the longest text, to which the others are padded."""
        return max((len(text.text) + len(text.text_pair or "") for text in self.texts), default=0)


class Queue:
    """Any thread may put work in; the model's thread alone takes it, and sets `text_s` to what a text takes.

    At most `limit` calls wait, and no more than take `wait_s`. Deadlines go by `clock`, in seconds.
    """

    def __init__(
        self,
        *,
        limit: int,
        wait_s: float = math.inf,
        batch_texts: int = 1,
        batch_wait_s: float = 0.0,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._limit, self._wait_s, self.clock = limit, wait_s, clock
        self._batch_texts, self._batch_wait_s = batch_texts, batch_wait_s
        self._waiting: list[Work] = []
        self._changed = threading.Condition()
        self.busy = self._closed = False
        self._running = 0  # texts of the pass under way
        self.text_s = 0.0  # what a text takes in its pass; it grows from 0, so a slow first pass refuses nobody

    @property
    def waiting(self) -> int:
        """Calls that wait."""
        return len(self._waiting)

    @property
    def texts(self) -> int:
        """Texts that wait."""
        return sum(len(work.texts) for work in self._waiting)

    @property
    def ahead_s(self) -> float:
        """Seconds until what waits or runs now is done."""
        return (self.texts + self._running) * self.text_s

    def put(self, work: Work) -> None:
        """Add a call's work; raise QueueFull where it may not wait."""
        with self._changed:
            self.admit()
            work.queued = self.busy
            self._waiting.append(work)
            self._changed.notify()

    def admit(self) -> None:
        """Raise QueueFull where no further call may wait."""
        wait_s = self.texts * self.text_s
        if self.waiting >= self._limit or wait_s > self._wait_s:
            raise QueueFull(f"{self.waiting} requests wait for the model already", retry_after_s=wait_s)

    def leave(self, work: Work) -> None:
        """Drop the work of a caller who has left, or stop it before the next layer."""
        with self._changed:
            work.abandoned = True
            if work in self._waiting:
                self._waiting.remove(work)

    def take(self, least_s: Callable[[], float]) -> list[Work]:
        """Wait for the work of one forward pass; empty once the queue is closed.

        Work that cannot reach its first exit in time, `least_s()` a text from now, is refused. `least_s` is asked when
        there is work, since older measurements are forgotten meanwhile.
        """
        with self._changed:
            self.busy, self._running = False, 0
            while True:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if self._closed:
                    return []
                if self._batch_wait_s and self._waiting[0].queued:
                    self._changed.wait_for(lambda: self._closed or self.texts >= self._batch_texts, self._batch_wait_s)
                if taken := self._next(least_s()):
                    self.busy, self._running = True, sum(len(work.texts) for work in taken)
                    return taken

    def _next(self, least_s: float) -> list[Work]:
        taken: list[Work] = []
        rows = 0
        for work in list(self._waiting):
            if work.over(self.clock() + least_s * len(work.texts)):
                self._waiting.remove(work)
                if work.future.set_running_or_notify_cancel():
                    work.future.set_exception(DeadlinePassed("the deadline passed before the first exit was reached"))
            elif not taken or (rows + len(work.texts) <= self._batch_texts and work.joins(taken[0])):
                self._waiting.remove(work)
                if work.future.set_running_or_notify_cancel():
                    taken.append(work)
                    rows += len(work.texts)
        return taken

    def close(self) -> None:
        """Cancel all work that waits."""
        with self._changed:
            self._closed = True
            for work in self._waiting:
                work.future.cancel()
            self._waiting.clear()
            self._changed.notify()
