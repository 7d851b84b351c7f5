"""The HTTP server of a tier: uvicorn, with limits on slow and large heads, and a drain that loses nothing.

SIGTERM: the tier says `not ready` and refuses new requests with 503 for as long as accepted ones run, and half a
second at least, so that whoever sends to it notices; only then the socket closes. Exit status 0. A second Ctrl-C stops
at once.
"""

from __future__ import annotations

import asyncio
import math
import signal
import socket
import sys
import time
import uuid
from types import FrameType
from typing import Any

import h11
import structlog
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from shared.errors import Refused
from shared.guard import HEAD_BYTES
from shared.problems import document

log = structlog.get_logger()
HEAD_S = 10.0  # from the connection, or the end of the last answer's, to the end of the headers
NOTICE_S = 0.5
_TICK_S = 0.1


class Protocol(H11Protocol):
    """HTTP/1.1 that hangs up on a caller whose headers do not come to an end."""

    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_expecting()
        elif self._late is None:
            self._expect_head()

    def on_response_complete(self) -> None:
        self._stop_expecting()
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_expecting()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """What is not HTTP gets a problem document too; h11 knows the status (431: the headers are too large)."""
        error = sys.exc_info()[1]
        status = 431 if getattr(error, "error_status_hint", 400) == 431 else 400
        kind = "headers-too-large" if status == 431 else "bad-request"
        problem = Refused(status, kind, f"this is not HTTP/1.1 as a tier takes it: {error or msg}")
        answer = document(problem, uuid.uuid4().hex, {"connection": "close"})
        for event in (h11.Response(status_code=status, headers=answer.raw_headers), h11.Data(data=bytes(answer.body))):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.write(self.conn.send(h11.EndOfMessage()) or b"")
        self.transport.close()

    def _expect_head(self) -> None:
        self._late = self.loop.call_later(HEAD_S, self.transport.close)

    def _stop_expecting(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None


class Server(uvicorn.Server):
    """Serves `app` until SIGTERM or SIGINT, then drains for at most `drain_s`."""

    def __init__(self, app: FastAPI, *, drain_s: float, **options: Any) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=Protocol,
                ws="none",
                log_level="warning",
                log_config=None,  # `configure_logs` has seen to it
                timeout_keep_alive=75,  # longer than the callers' pool keeps one: they, not we, close idle connections
                timeout_graceful_shutdown=math.ceil(drain_s),
                h11_max_incomplete_event_size=HEAD_BYTES,
                server_header=False,
                **options,
            )
        )
        self._app, self._drain_s, self._since = app, drain_s, math.inf

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            log.info("ready", host=self.config.host, port=self.config.port)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The signal is not raised again afterwards, as uvicorn would: a clean stop is exit status 0."""
        if self._app.state.draining and sig == signal.SIGINT:
            self.should_exit = self.force_exit = True
        self.drain()

    def drain(self) -> None:
        """Refuse what comes, finish what runs, then stop."""
        if not self._app.state.draining:
            self._app.state.draining, self._since = True, time.monotonic()

    async def on_tick(self, counter: int) -> bool:
        if await super().on_tick(counter):
            return True
        waited = time.monotonic() - self._since
        if waited >= self._drain_s:
            self.config.timeout_graceful_shutdown = 0
            return True
        return waited >= NOTICE_S and not self.server_state.tasks
