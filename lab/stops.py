"""Ctrl-C, TERM and HUP that wait for a good moment."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def deferred() -> Iterator[Callable[[], int | None]]:
    """Hold back the first stop signal: what is yielded says which one came. The next one acts at once.

    Whoever asks raises it again (`signal.raise_signal`) once all is saved.
    """
    came: list[int] = []
    before = {number: signal.getsignal(number) for number in STOPS}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def note(number: int, _frame: FrameType | None) -> None:
        came.append(number)
        restore()

    for number in STOPS:
        signal.signal(number, note)
    try:
        yield lambda: came[0] if came else None
    finally:
        restore()
