"""The line before a model: bounded, in arrival order, without those who left or came too late; rows may join.

The rows of waiting jobs join into one forward pass where they want the same (exit rule, importance, explanation) and
are of like length, up to `batch_texts` of them. A job that had to wait may wait `batch_wait_s` more for company; one
that finds the model idle never does, so at low load the line costs nothing.

The bound is one of time, too: who comes when those waiting need longer than `wait_s` is refused. A count alone would
let the wait grow with the cost of a text, and a late answer is worth less than a refusal at once.
"""

from __future__ import annotations

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


@dataclass(eq=False)
class Job:
    """One call's texts and what is wanted of them; `signature` instead of an inference. Times are the line's."""

    texts: Sequence[TextPair]
    rule: ExitRule | None = None
    importance: bool = False
    explain: bool = False
    signature: Signature | None = None
    expires: float | None = None
    asked: float = 0.0
    future: Future[Any] = field(default_factory=Future)
    queued: bool = False  # it found the model busy
    left: bool = False  # nobody waits for it any more

    def over(self, at: float) -> bool:
        """Whether it is in vain to go on until `at`."""
        return self.left or (self.expires is not None and at >= self.expires)

    def joins(self, other: Job) -> bool:
        """Whether both fit into one forward pass."""
        alike = (self.rule, self.importance, self.explain) == (other.rule, other.importance, other.explain)
        short, long = sorted((self._length(), other._length()))
        return alike and self.signature is other.signature is None and long <= max(2 * short, 100)

    def _length(self) -> int:
        """Characters of the longest text: what its padding is made of."""
        return max((len(text.text) + len(text.text_pair or "") for text in self.texts), default=0)


class Line:
    """Any thread may `put`; the model's thread alone takes."""

    def __init__(
        self,
        *,
        limit: int,
        wait_s: float,
        batch_texts: int,
        batch_wait_s: float,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._limit, self._wait_s, self._clock = limit, wait_s, clock
        self._batch_texts, self._batch_wait_s = batch_texts, batch_wait_s
        self._jobs: list[Job] = []
        self._changed = threading.Condition()
        self._busy = self._closed = False
        self._running = 0  # texts of the pass under way

    @property
    def waiting(self) -> int:
        return len(self._jobs)

    @property
    def texts(self) -> int:
        """Texts that wait."""
        return sum(len(job.texts) for job in self._jobs)

    @property
    def ahead(self) -> int:
        """Texts that wait or run."""
        return self.texts + self._running

    @property
    def busy(self) -> bool:
        """Whether the model is at work."""
        return self._busy

    def put(self, job: Job, *, text_s: float) -> None:
        """Stand in line, where a text is known to take `text_s`.

        Raises:
            QueueFull: the line is at one of its limits.
        """
        with self._changed:
            self.admit(text_s=text_s)
            job.queued = self._busy
            self._jobs.append(job)
            self._changed.notify()

    def admit(self, *, text_s: float) -> None:
        """Whether one more may stand in line.

        Raises:
            QueueFull: the line is at one of its limits.
        """
        wait = self.texts * text_s
        if len(self._jobs) >= self._limit or wait > self._wait_s:
            raise QueueFull(f"{len(self._jobs)} requests wait for the model already", retry_after_s=wait)

    def leave(self, job: Job) -> None:
        """Its caller is gone: out of the line, or stopped before the next layer."""
        with self._changed:
            job.left = True
            if job in self._jobs:
                self._jobs.remove(job)

    def take(self, least_s: Callable[[], float]) -> list[Job]:
        """Wait for work: the jobs of one forward pass; none once the line is closed.

        Jobs that could not reach their first exit, `least_s()` a text from now, are refused, not started. It is asked
        when there is work, since what was measured before is forgotten meanwhile.
        """
        with self._changed:
            self._busy, self._running = False, 0
            while True:
                self._changed.wait_for(lambda: self._jobs or self._closed)
                if self._closed:
                    return []
                if self._batch_wait_s and self._jobs[0].queued:
                    self._changed.wait_for(lambda: self._closed or self._full(), self._batch_wait_s)
                if taken := self._next(least_s()):
                    self._busy, self._running = True, sum(len(job.texts) for job in taken)
                    return taken

    def _full(self) -> bool:
        return self.texts >= self._batch_texts

    def _next(self, least_s: float) -> list[Job]:
        taken: list[Job] = []
        rows = 0
        for job in list(self._jobs):
            if job.over(self._clock() + least_s * len(job.texts)):
                self._jobs.remove(job)
                if job.future.set_running_or_notify_cancel():
                    job.future.set_exception(DeadlinePassed("the deadline passed before the first exit was reached"))
            elif not taken or (rows + len(job.texts) <= self._batch_texts and job.joins(taken[0])):
                self._jobs.remove(job)
                if job.future.set_running_or_notify_cancel():
                    taken.append(job)
                    rows += len(job.texts)
        return taken

    def close(self) -> None:
        """Cancel all who wait."""
        with self._changed:
            self._closed = True
            for job in self._jobs:
                job.future.cancel()
            self._jobs.clear()
            self._changed.notify()
