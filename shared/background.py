"""A thread beside the requests, for work that something outside may slow down, block or fail.

The log, the ledger, the learned states and the spans are written this way. `put` never blocks and never raises; once
as many jobs wait as may wait, it refuses. `close` waits for a bounded time and then lets go: a daemon thread that hangs
in a write (a pipe whose reader stopped, a disk that went away) does not hold the end of the process. Threads of
`concurrent.futures` and `asyncio.to_thread` would: the interpreter joins them when it ends. Left out: results.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue

import structlog

log = structlog.get_logger()


class Background:
    """Runs jobs one after the other. `limit` bounds the sum of their sizes while they wait."""

    def __init__(self, name: str, *, limit: int) -> None:
        self._name, self._limit = name, limit
        self._jobs: SimpleQueue[tuple[Callable[[], None], int] | None] = SimpleQueue()
        self._lock = threading.RLock()  # reentrant: a signal or a finalizer may log in the middle of `put`
        self._waiting = 0
        self._thread: threading.Thread | None = None
        self.closing = threading.Event()  # a job that pauses ends its pause when this is set

    def put(self, job: Callable[[], None], *, size: int = 1) -> bool:
        """Have `job` done soon. False: too much waits, or it is closed; the job is not done."""
        with self._lock:
            if self.closing.is_set() or self._waiting + size > self._limit:
                return False
            self._waiting += size
            self._jobs.put((job, size))
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name=self._name, daemon=True)
                self._thread.start()
        return True

    def close(self, timeout_s: float) -> bool:
        """Refuse further jobs and wait for those that were put. False: some are not done by now."""
        with self._lock:
            self.closing.set()
            self._jobs.put(None)
        if self._thread is not None:
            self._thread.join(timeout_s)
        return self._thread is None or not self._thread.is_alive()

    def _work(self) -> None:
        while (put := self._jobs.get()) is not None:
            job, size = put
            try:
                job()
            except Exception:  # this thread's outermost edge: the next job is not to blame
                log.exception("job_failed", thread=self._name)
            with self._lock:
                self._waiting -= size
