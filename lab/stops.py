"""Ctrl-C, TERM and HUP: those that wait for a good moment, and a HUP that asks for the policies to be read again."""

from __future__ import annotations

import os
import signal
import sys
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


@contextmanager
def hang_ups() -> Iterator[Callable[[], bool]]:
    """HUP stops nothing in here: what is yielded says whether one came since it was last asked.

    If it came since our terminal was closed, it does stop us: nobody could press Ctrl-C any more.
    """
    came: list[int] = []
    had_terminal = os.isatty(0)

    def note(number: int, _frame: FrameType | None) -> None:
        if had_terminal and not os.isatty(0):
            sys.exit(128 + number)
        came.append(number)

    def asked() -> bool:
        said = bool(came)
        came.clear()
        return said

    before = signal.signal(signal.SIGHUP, note)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGHUP, before)
