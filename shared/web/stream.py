"""An answer that grows: server-sent events while a request runs, and the plain answer as the last one.

    exit    a text reached an exit           hop     a tier is done with a text
    final   the plain answer                 error   the problem document of what failed after the first event

A reader is never waited for: exits that it is too slow for are dropped. One that has not taken the last events in time
loses the connection. Until the first event the answer may still be a problem document with its own status. A comment in
every silent second finds out who has left.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping

import structlog
from fastapi import Request, Response
from starlette.types import Receive, Scope, Send

from shared.contracts import ExitEvent
from shared.pipeline.watch import Event, Watch
from shared.web.http11 import ABORT
from shared.web.openapi import STREAM_TYPE
from shared.web.record import Then

log = structlog.get_logger()
WAITING = 1000  # events that may wait for the reader before exits are dropped
BEAT_S = 1.0
READ_S = 30.0  # for the last events, once the answer is known
_REFUSED = re.compile(r";\s*q=0(\.0*)?\s*(;|$)")  # RFC 9110, 12.4.2: a kind of weight 0 is not acceptable
_HEADERS = {"content-type": f"{STREAM_TYPE}; charset=utf-8", "cache-control": "no-store"}


def wants_stream(request: Request) -> bool:
    """Whether the caller accepts events; HTTP/1.0 has no answer of unknown length."""
    asked = [kind for kind in request.headers.get("accept", "").lower().split(",") if not _REFUSED.search(kind)]
    return STREAM_TYPE in [kind.partition(";")[0].strip() for kind in asked] and request.scope["http_version"] != "1.0"


class Events:
    """The events of one request, on their way to its reader."""

    def __init__(self, send: Send) -> None:
        self._send, self._headers = send, dict[str, str]()
        self._waiting: deque[bytes] = deque()
        self._wake = asyncio.Event()
        self._sending: asyncio.Task[None] | None = None
        self._ended = False
        self.begun = False  # whether the head was sent

    def watch(self, headers: Mapping[str, str], clock: Callable[[], float] = time.perf_counter) -> Watch:
        """Begin, with these headers once there is an event."""
        self._headers = {**headers, **_HEADERS}
        self._sending = asyncio.create_task(self._send_all())
        return Watch(self._put, clock=clock)

    def _put(self, event: Event) -> None:
        is_exit = isinstance(event, ExitEvent)
        if not (is_exit and len(self._waiting) >= WAITING):
            self._add("exit" if is_exit else "hop", event.model_dump_json(by_alias=True).encode())

    def _add(self, kind: str, data: bytes) -> None:
        self._waiting.append(b"event: %b\ndata: %b\n\n" % (kind.encode(), data))
        self._wake.set()

    async def _send_all(self) -> None:
        await self._wake.wait()
        self.begun = True
        raw = [(name.encode(), value.encode()) for name, value in self._headers.items()]
        await self._send({"type": "http.response.start", "status": 200, "headers": raw})
        while self._waiting or not self._ended:
            self._wake.clear()
            body = b"".join(self._waiting) or b":\n\n"  # silence
            self._waiting.clear()
            await self._send({"type": "http.response.body", "body": body, "more_body": True})
            if not (self._waiting or self._ended):
                await self._woken()
        await self._send({"type": "http.response.body", "body": b""})

    async def _woken(self) -> None:
        """Return after the next event, or a second of silence."""
        try:
            async with asyncio.timeout(BEAT_S):
                await self._wake.wait()
        except TimeoutError:
            return

    async def end(self, answer: Response) -> None:
        """Send the answer as the last event."""
        assert self._sending is not None
        self._ended = True
        self._add("final" if answer.status_code == 200 else "error", bytes(answer.body))
        try:
            async with asyncio.timeout(READ_S):
                await self._sending
        except TimeoutError:
            log.warning("reader_too_slow", seconds=READ_S)
            await self._send(ABORT)

    def stop(self) -> None:
        """Send nothing more."""
        if self._sending is not None:
            self._sending.cancel()


class EventStream(Response):
    """Runs `answer`, which may tell of events, and sends these and its plain response; or that alone, if it refuses."""

    def __init__(self, answer: Callable[[Events], Awaitable[Then]]) -> None:
        super().__init__()
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        events = Events(send)
        try:
            answer = await self._answer(events)
            if answer.response.status_code == 200 or events.begun:
                try:
                    await events.end(answer.response)
                finally:
                    answer.then()
                return
        finally:
            events.stop()
        await answer(scope, receive, send)
