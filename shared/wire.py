"""HTTP to one upstream: warm connections, at most one retry, and every failure mapped to a `degraded` reason.

A request is sent a second time, on a connection of its own, only where no byte of an answer came:
    - a warm connection turned out to be dead: the upstream closed it while the request was on its way. Not a failure of
      the upstream as it is now, so it costs no budget; there are no more of these than connections
    - the upstream could not be connected to, or hung up: where the retry budget allows it
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import httpx

from shared.breaker import RetryBudget
from shared.contracts import DegradedReason
from shared.errors import UpstreamFailure
from shared.http import AsyncClient
from shared.link import SimulatedLink

_REFUSALS = {400, 401, 403, 404, 405, 408, 413, 415, 422, 429, 503, 504}
MAX_ANSWER = 16_000_000  # bytes: as many words as `explain` may list need less, three tiers together
_NO_ANSWER = (httpx.ConnectError, httpx.ReadError, httpx.WriteError, httpx.CloseError, httpx.RemoteProtocolError)


class Wire:
    """Requests to the tier `target` at `url`; `count_retry` is told of each retry."""

    def __init__(
        self,
        *,
        target: str,
        url: str,
        link: SimulatedLink | None,
        timeout_s: float,
        key: str | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
        count_retry: Callable[[], None] = lambda: None,
    ) -> None:
        self._target, self._link, self._budget, self._count_retry = target, link, RetryBudget(), count_retry
        limits = httpx.Limits(max_connections=64, max_keepalive_connections=64, keepalive_expiry=60)
        self._warm = AsyncClient(url, transport=transport, limits=limits, timeout=timeout_s)
        single = httpx.Limits(max_connections=64, max_keepalive_connections=0)
        self._fresh = AsyncClient(url, transport=transport, limits=single, timeout=timeout_s)
        for client in (self._warm, self._fresh):  # as few header bytes as travel without a loss
            for needless in ("accept", "accept-encoding", "connection"):
                del client.headers[needless]
            client.headers.update({"user-agent": "tierwise", "content-type": "application/json"})
            if key is not None:
                client.headers["authorization"] = f"Bearer {key}"

    async def post(self, body: bytes, headers: dict[str, str]) -> bytes:
        """The body of the answer.

        Raises:
            UpstreamFailure: with the reason.
            TimeoutError: over the client's own limit; the caller sets the limit that counts.
        """
        self._budget.call()
        connected: list[str] = []

        async def trace(event: str, _: dict[str, Any]) -> None:
            if event == "connection.connect_tcp.started":
                connected.append(event)

        try:
            try:
                return await self._once(self._warm, body, headers, {"trace": trace})
            except _Hungup as error:
                reused = not connected and not isinstance(error.cause, httpx.ConnectError)
                if not (reused or self._budget.take()):
                    raise
            self._count_retry()
            return await self._once(self._fresh, body, headers, {})
        except _Hungup as error:
            raise self._unavailable(error.cause) from error.cause

    async def probe(self, body: bytes) -> bytes:
        """The same on a connection of its own, never retried."""
        try:
            return await self._once(self._fresh, body, {}, {})
        except _Hungup as error:
            raise self._unavailable(error.cause) from error.cause

    async def _once(
        self, client: AsyncClient, body: bytes, headers: dict[str, str], extensions: dict[str, Any]
    ) -> bytes:
        if self._link:
            await self._link.carry(len(body), "up")
        answered = False
        try:
            async with client.stream(
                "POST", "/v1/infer", content=body, headers=headers, extensions=extensions
            ) as answer:
                answered = True
                content = bytearray()
                async for chunk in answer.aiter_bytes():
                    content += chunk
                    if len(content) > MAX_ANSWER:
                        raise UpstreamFailure("upstream_invalid", f"{self._target} sent over {MAX_ANSWER} bytes")
        except httpx.TimeoutException as error:
            raise TimeoutError from error
        except httpx.HTTPError as error:
            if not answered and isinstance(error, _NO_ANSWER):
                raise _Hungup(error) from error
            raise self._unavailable(error) from error
        if self._link:
            await self._link.carry(len(content), "down")
        if answer.status_code == 200:
            return bytes(content)
        reason: DegradedReason = "upstream_refused" if answer.status_code in _REFUSALS else "upstream_invalid"
        raise UpstreamFailure(reason, f"{self._target} answered {answer.status_code}", status=answer.status_code)

    def _unavailable(self, error: httpx.HTTPError) -> UpstreamFailure:
        return UpstreamFailure("upstream_unavailable", f"{self._target}: {type(error).__name__} {error}")

    async def close(self) -> None:
        await asyncio.gather(self._warm.aclose(), self._fresh.aclose())


class _Hungup(Exception):
    """No byte of an answer came."""

    def __init__(self, cause: httpx.HTTPError) -> None:
        super().__init__(str(cause))
        self.cause = cause
