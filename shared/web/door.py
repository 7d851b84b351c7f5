"""The door of a tier's server: it accepts as many connections as there are file descriptors, and never more.

asyncio accepts until descriptors run out, and then logs a traceback for each of the hundreds it tries at once. Here a
full house makes room: of the connections that wait for their caller (idle, or with half a request), the one that has
waited longest is closed. Where every connection is being answered, the newest gets a 503 at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import resource
import socket
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Protocol

import structlog

from shared.errors import ConnectionsFull
from shared.web.problems import as_bytes, document

log = structlog.get_logger()
BACKLOG = 2048
_MOST_FILES, _MOST = 65_536, 8_192  # more connections would take more memory than a tier has use for
_AT_ONCE = 8  # accepted before others have their turn; their descriptors are not counted yet
_PAUSE_S, _WARN_S = 0.05, 10.0
_SPENT = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
_FULL = ConnectionsFull("every connection of this tier is being answered: try again soon")
_TURNED_AWAY = as_bytes(document(_FULL, "none", {}))


class Guest(Protocol):
    """A connection, as far as the door knows it."""

    def make_room(self) -> None:
        """Close at once: another connection needs the place."""


def most_connections() -> int:
    """Raise the limit of open files as far as allowed; how many connections that leaves room for.

    A quarter is kept for files, the model, and the connections to deeper tiers.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):  # a sandbox may forbid it: then the old one holds
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    files = min(resource.getrlimit(resource.RLIMIT_NOFILE)[0], _MOST_FILES)
    room = files - _open_files() - max(2 * _AT_ONCE, min(files // 4, 512))
    return min(_MOST, max(2 * _AT_ONCE, room))


def _open_files() -> int:
    try:
        return len(os.listdir("/dev/fd"))
    except OSError:
        return 64


class Door:
    """Accepts connections for `protocol`, at most `most` at a time."""

    def __init__(self, protocol: Callable[[], asyncio.BaseProtocol], most: int) -> None:
        self._protocol, self._most = protocol, most
        self._inside = 0
        self._waiting: OrderedDict[Guest, None] = OrderedDict()  # for their caller, longest first
        self._entering: set[asyncio.Task[object]] = set()
        self._sockets: list[socket.socket] = []
        self._turned_away = self._closed = 0
        self._warned_s = -_WARN_S

    # -- whose turn it is --------------------------------------------------------------------------------------------

    def waits(self, guest: Guest) -> None:
        """From now on it is the caller's turn."""
        self._waiting[guest] = None
        self._waiting.move_to_end(guest)

    def works(self, guest: Guest) -> None:
        """From now on it is the tier's: it is not closed to make room."""
        self._waiting.pop(guest, None)

    def leaves(self, guest: Guest) -> None:
        self._inside -= 1
        self._waiting.pop(guest, None)

    # -- letting in --------------------------------------------------------------------------------------------------

    def open(self, sockets: Sequence[socket.socket]) -> None:
        self._sockets = list(sockets)
        for listener in self._sockets:
            listener.setblocking(False)
            asyncio.get_running_loop().add_reader(listener, self._accept, listener)

    async def close(self) -> None:
        """Accept the connections that wait already, then no more."""
        for listener in self._sockets:
            asyncio.get_running_loop().remove_reader(listener)
            while self._accept(listener):
                pass
            listener.close()
        self._sockets = []
        if self._entering:
            await asyncio.wait(self._entering)

    def _accept(self, listener: socket.socket) -> bool:
        """Accept some; tell whether more may wait."""
        for _ in range(_AT_ONCE):
            try:
                connection, _ = listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return False
            except OSError as error:
                if error.errno not in _SPENT:
                    raise
                self._make_room()
                self._rest(listener)
                return False
            connection.setblocking(False)
            # asyncio does this for its own listeners alone; without it, every answer waits a round trip for its body
            with contextlib.suppress(OSError):  # it may be gone already
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._inside >= self._most and not self._make_room():
                self._turn_away(connection)
                continue
            self._inside += 1
            loop = asyncio.get_running_loop()
            entering = loop.create_task(loop.connect_accepted_socket(self._protocol, connection))
            self._entering.add(entering)
            entering.add_done_callback(self._entered)
        return True

    def _entered(self, entering: asyncio.Task[object]) -> None:
        self._entering.discard(entering)
        if entering.cancelled() or entering.exception() is not None:
            self._inside -= 1

    def _make_room(self) -> bool:
        if not self._waiting:
            return False
        guest, _ = self._waiting.popitem(last=False)
        guest.make_room()
        self._closed += 1
        self._warn()
        return True

    def _turn_away(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            connection.send(_TURNED_AWAY)
        connection.close()
        self._turned_away += 1
        self._warn()

    def _rest(self, listener: socket.socket) -> None:
        """Descriptors ran out elsewhere: try again soon, not in a loop."""
        loop = asyncio.get_running_loop()
        loop.remove_reader(listener)
        loop.call_later(
            _PAUSE_S, lambda: listener in self._sockets and loop.add_reader(listener, self._accept, listener)
        )

    def _warn(self) -> None:
        if (now := time.monotonic()) - self._warned_s >= _WARN_S:
            log.warning("connections_full", most=self._most, closed=self._closed, turned_away=self._turned_away)
            self._warned_s, self._closed, self._turned_away = now, 0, 0
