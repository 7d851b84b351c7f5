"""The HTTP server of a tier: uvicorn behind a door (`door.py`), and a drain that loses nothing.

SIGTERM: the tier says `not ready` and refuses new requests with 503 for as long as accepted ones run, and half a
second at least, so that whoever sends to it notices; only then the socket closes. Every answer says `connection:
close` meanwhile, and a request that has arrived is answered before its connection closes. Exit status 0. A second
Ctrl-C stops at once.
"""

from __future__ import annotations

import asyncio
import math
import signal
import socket
import sys
import time
from types import FrameType
from typing import Any

import structlog
import uvicorn
from fastapi import FastAPI
from uvicorn.config import STARTUP_FAILURE

from shared.web.door import BACKLOG, Door, most_connections
from shared.web.http11 import Http11

log = structlog.get_logger()
NOTICE_S = 0.5


class Server(uvicorn.Server):
    """Serves `app` until SIGTERM or SIGINT, then drains for at most `drain_s`."""

    def __init__(self, app: FastAPI, *, drain_s: float, **options: Any) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=Http11,
                ws="none",
                log_level="warning",
                log_config=None,  # `configure_logs` has seen to it
                timeout_keep_alive=75,  # longer than the callers' pool keeps one: they, not we, close idle connections
                timeout_graceful_shutdown=math.ceil(drain_s),
                server_header=False,
                proxy_headers=False,  # nobody asks for the caller's address
                **options,
            )
        )
        self._app, self._drain_s, self._since = app, drain_s, math.inf
        self._reload = False
        self.servers: list[asyncio.base_events.Server] = []  # uvicorn's, not used

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await self.lifespan.startup()
        if self.lifespan.should_exit:
            sys.exit(STARTUP_FAILURE)
        self._door = Door(self._connection, most_connections())
        try:
            self._door.open(sockets or await _bind(self.config.host, self.config.port))
        except OSError as error:
            log.error(
                "cannot_listen", host=self.config.host, port=self.config.port, problem=error.strerror or str(error)
            )
            await self.lifespan.shutdown()
            sys.exit(STARTUP_FAILURE)
        self.started = True
        log.info("ready", host=self.config.host, port=self.config.port)

    def _connection(self) -> Http11:
        return Http11(self.config, self.server_state, self.lifespan.state, self._door, lambda: self._app.state.draining)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The signal is not raised again afterwards, as uvicorn would: a clean stop is exit status 0."""
        if self._app.state.draining and sig == signal.SIGINT:
            self.should_exit = self.force_exit = True
        self.drain()

    def drain(self) -> None:
        """Refuse what comes, finish what runs, then stop."""
        if not self._app.state.draining:
            self._app.state.draining, self._since = True, time.monotonic()

    def reload(self) -> None:
        """Load the policy again, soon: on the loop, where no request is between two of its steps."""
        self._reload = True

    async def on_tick(self, counter: int) -> bool:
        if await super().on_tick(counter):
            return True
        if self._reload:
            self._reload = False
            self._app.state.reload()
        waited = time.monotonic() - self._since
        if waited >= self._drain_s:
            self.config.timeout_graceful_shutdown = 0
            return True
        return waited >= NOTICE_S and not self.server_state.tasks

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close the door. The last callers that came through it get time to ask, and an answer."""
        self._app.state.draining = True
        await self._door.close()
        until = time.monotonic() + (0.0 if self.force_exit else min(NOTICE_S, self._drain_s))
        while time.monotonic() < until and any(
            isinstance(connection, Http11) and connection.fresh for connection in self.server_state.connections
        ):
            await asyncio.sleep(0.01)
        await super().shutdown()


async def _bind(host: str, port: int) -> list[socket.socket]:
    """A listening socket for each address of the host."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    return [
        socket.create_server(address, family=family, backlog=BACKLOG)
        for family, address in dict.fromkeys((family, address) for family, _, _, _, address in found)
    ]
