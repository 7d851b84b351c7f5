"""A caller who reads nothing of its answer loses the connection: else the answer would stay for as long as it likes."""

from __future__ import annotations

import asyncio
import fcntl
import sys
import termios

import structlog

log = structlog.get_logger()
READ_S = 30.0  # in which a caller takes something of what waits for it


class Unread:
    """What was written to one connection and waits for its caller."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._timer: asyncio.TimerHandle | None = None
        self._written = self._taken = 0  # bytes: in all, and confirmed by the caller's side at the last look

    def add(self, size: int) -> None:
        """So many bytes were written."""
        self._written += size
        if self._timer is None and self._transport.get_write_buffer_size():
            self._look_again()

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _look_again(self) -> None:
        self._taken = self._confirmed()
        self._timer = asyncio.get_running_loop().call_later(READ_S, self._look)

    def _look(self) -> None:
        self._timer = None
        if not self._transport.get_write_buffer_size():
            return
        if self._confirmed() > self._taken:
            self._look_again()
        else:
            log.warning("reader_too_slow", seconds=READ_S)
            self._transport.abort()

    def _confirmed(self) -> int:
        """Bytes that the caller's side has confirmed; elsewhere than on Linux, those that the kernel took.

        The kernel holds megabytes, and takes more only once a third of them is gone: over a slow link, minutes.
        """
        waiting = self._transport.get_write_buffer_size()
        if sys.platform == "linux":
            answer = fcntl.ioctl(self._transport.get_extra_info("socket"), termios.TIOCOUTQ, bytes(4))
            waiting += int.from_bytes(answer, sys.byteorder)
        return self._written - waiting
