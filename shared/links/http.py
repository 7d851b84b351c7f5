"""HTTP to one upstream: warm connections, at most one retry, and every failure mapped to a `degraded` reason.

A request is sent a second time, on a connection of its own, only where no byte of an answer came:
    - a warm connection turned out to be dead: the upstream closed it while the request was on its way. That costs no
      budget, but the next `WARY` calls get connections of their own, so an upstream that breaks every warm connection
      sees at most 1 / `WARY` more calls
    - the upstream could not be connected to, or hung up: where the caller and the retry budget allow it

An answer is believed only if it names the call: a connection may carry what belongs to nobody (a proxy that sends
twice). Such a connection is dropped, and so is one with bytes behind its answer.

It uses httpx's transports without its client, whose cookies, redirects and merged addresses cost time at every call.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import httpx

from shared.contracts import WAITING, DegradedReason
from shared.errors import UpstreamFailure
from shared.links import connections
from shared.links.breaker import RetryBudget
from shared.links.clients import address
from shared.links.simulated import SimulatedLink

_REFUSALS = {400, 401, 403, 404, 405, 408, 413, 415, 422, 429, 503, 504}
_NO_ANSWER = (httpx.ConnectError, httpx.ReadError, httpx.WriteError, httpx.CloseError, httpx.RemoteProtocolError)
WARY = 20  # calls
MOST = 64  # connections to one upstream, each with one call at a time


class UpstreamHttp:
    """Requests to the tier `target` at `url`; `count_retry` is told of each retry.

    `at` is the address to connect to; null: what the URL's name stands for. Certificates must hold for the name.

    `most`: connections, of which each carries one request at a time. `hear` is told what waits at the target.
    """

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
        hear: Callable[[str | None], None] = lambda said: None,
        most: int = MOST,
        at: str | None = None,
    ) -> None:
        self._target, self._link, self._budget, self._count_retry = target, link, RetryBudget(), count_retry
        self._hear = hear
        self._wary = 0  # calls that still get a connection of their own
        warm = httpx.Limits(max_connections=most, max_keepalive_connections=most, keepalive_expiry=60)
        single = httpx.Limits(max_connections=most, max_keepalive_connections=0)
        self._warm, self._fresh = (transport or connections.transport(url, limits) for limits in (warm, single))
        base = address(url)
        self._headers = {"user-agent": "tierwise", "content-type": "application/json"}  # as few bytes as do
        self._extensions: dict[str, Any] = {"timeout": httpx.Timeout(timeout_s).as_dict()}
        if at is not None:
            self._headers["host"], self._extensions["sni_hostname"] = base.netloc.decode(), base.host
            base = base.copy_with(host=at)
        self._base = base.copy_with(raw_path=base.raw_path.rstrip(b"/") + b"/v1/")
        self._url = self._under("infer")
        if key is not None:
            self._headers["authorization"] = f"Bearer {key}"

    async def post(
        self,
        body: bytes,
        headers: dict[str, str],
        *,
        call: str,
        limit_bytes: int,
        path: str | None = None,
        again: bool = True,
    ) -> bytes:
        """The body of the answer to `call`, at most `limit_bytes`; `path` is another than the usual one.

        Without `again`, an upstream that could not be connected to or hung up is not asked a second time.

        Raises:
            UpstreamFailure: with the reason.
            TimeoutError: over the client's own limit; the caller sets the limit that counts.
        """
        self._budget.call()
        first, self._wary = self._fresh if self._wary else self._warm, max(0, self._wary - 1)
        try:
            return await self._once(first, body, headers, call, limit_bytes, path)
        except _Hungup as error:
            connected = connections.connected() or isinstance(error.__cause__, httpx.ConnectError)
            reused = first is self._warm and not connected
            if not (reused or (again and self._budget.take())):
                raise
        self._wary = WARY if reused else self._wary
        self._count_retry()
        return await self._once(self._fresh, body, headers, call, limit_bytes, path)

    async def probe(self, body: bytes, *, call: str, limit_bytes: int) -> bytes:
        """The same on a fresh connection, never retried."""
        return await self._once(self._fresh, body, {}, call, limit_bytes)

    async def set_way_back(self, source: str, profile: str) -> None:
        """Have the upstream shape its own end of the link from `source`.

        Raises:
            UpstreamFailure: it did not, and why.
        """
        url, body = self._under(f"links/{quote(source, safe='')}"), json.dumps({"profile": profile})
        request = httpx.Request("PUT", url, headers=self._headers, content=body, extensions=self._extensions)
        connections.allow(0)
        try:
            answer = await self._fresh.handle_async_request(request)
            await answer.aclose()
        except httpx.HTTPError as error:
            raise UpstreamFailure("upstream_unavailable", f"{self._target}: {type(error).__name__} {error}") from error
        if answer.status_code != 204:
            raise UpstreamFailure("upstream_refused", f"{self._target} answered {answer.status_code}")

    def _under(self, path: str) -> httpx.URL:
        return self._base.copy_with(raw_path=self._base.raw_path + path.encode())

    async def _once(
        self,
        transport: httpx.AsyncBaseTransport,
        body: bytes,
        headers: dict[str, str],
        call: str,
        limit_bytes: int,
        path: str | None = None,
    ) -> bytes:
        if self._link:
            await self._link.carry(len(body), "up")
        connections.allow(limit_bytes)
        url = self._url if path is None else self._under(path)
        headers = {**self._headers, **headers}
        request = httpx.Request("POST", url, headers=headers, content=body, extensions=self._extensions)
        answered = False
        try:
            answer = await transport.handle_async_request(request)
            answered = True
            try:
                content = await self._content(answer, call, limit_bytes)
            finally:
                await answer.aclose()
        except httpx.TimeoutException as error:
            raise TimeoutError from error
        except httpx.HTTPError as error:
            kind = _Hungup if not answered and isinstance(error, _NO_ANSWER) else UpstreamFailure
            raise kind("upstream_unavailable", f"{self._target}: {type(error).__name__} {error}") from error
        if self._link:
            await self._link.carry(len(content), "down")
        self._hear(answer.headers.get(WAITING))
        if answer.status_code == 200:
            return content
        reason: DegradedReason = "upstream_refused" if answer.status_code in _REFUSALS else "upstream_invalid"
        raise UpstreamFailure(reason, f"{self._target} answered {answer.status_code}", answered=answer.status_code)

    async def _content(self, answer: httpx.Response, call: str, limit_bytes: int) -> bytes:
        """The answer's bytes, as they came: nobody asked for a content encoding."""
        if (coding := answer.headers.get("content-encoding", "identity")) != "identity":
            raise UpstreamFailure("upstream_invalid", f"{self._target} answered with content encoding {coding[:40]}")
        content = bytearray()
        assert isinstance(answer.stream, httpx.AsyncByteStream)
        async for chunk in answer.stream:
            content += chunk
            if len(content) > limit_bytes:
                if answer.status_code != 200:  # its status is enough; the connection is closed with the rest unread
                    return b""
                raise UpstreamFailure("upstream_invalid", f"{self._target} sent over {limit_bytes} bytes")
        if answer.status_code == 200 and call.encode() not in content:
            await connections.drop(answer)
            raise UpstreamFailure("upstream_invalid", f"{self._target} sent an answer to something else")
        await connections.drop(answer, only_excess=True)
        return bytes(content)

    async def close(self) -> None:
        await asyncio.gather(self._warm.aclose(), self._fresh.aclose())


class _Hungup(UpstreamFailure):
    """No byte of an answer came, so the request may be sent again."""
