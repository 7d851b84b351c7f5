"""A request on record: counted when it begins, counted and logged once its answer has been sent.

The log line has the request id, the trace id and what happened, never a text or a key. The caller does not wait for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import structlog
from fastapi import Response
from starlette.types import Receive, Scope, Send

from shared.errors import Failed
from shared.telemetry import NO_POLICY, Telemetry
from shared.web.tracing import Span

log = structlog.get_logger()


class Record:
    """One request to `path`, a route. Its span's `facts` say how it ended; until they do, it is an error."""

    def __init__(self, telemetry: Telemetry, path: str, span: Span, request_id: str) -> None:
        self._telemetry, self._path, self._span, self._started = telemetry, path, span, time.perf_counter()
        span.facts.update(tier=telemetry.tier, policy=NO_POLICY, outcome="error", status=Failed.status)
        span.facts["request_id"] = request_id
        self._inflight = telemetry.inflight.labels(telemetry.tier)
        self._inflight.inc()

    def end(self) -> None:
        """Count and log it."""
        seconds, facts = time.perf_counter() - self._started, self._span.facts
        self._inflight.dec()
        trace_id = self._span.trace_id if self._span.sampled else None
        self._telemetry.request(facts["outcome"], facts["policy"], seconds, trace_id)
        log.info("request", trace_id=self._span.trace_id, path=self._path, ms=round(seconds * 1e3, 3), **facts)


class Then(Response):
    """A response, and what is done once it has been sent."""

    def __init__(self, response: Response, then: Callable[[], None]) -> None:
        self.response, self.then, self.background = response, then, None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self.response(scope, receive, send)
        finally:
            self.then()
