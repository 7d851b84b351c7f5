"""Connections to an upstream whose answers are bounded at the socket, before a parser sees them.

    bytes    an answer may put so many on the connection, its head and chunk lengths and interim answers included
    pieces   an answer is handed on in small pieces; between two of them the event loop serves other calls
    excess   bytes behind the end of an answer belong to no call: such a connection is not used again

Left out: HTTP/2, Unix sockets.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterable
from contextvars import ContextVar
from typing import Any

import httpcore
import httpx

from shared.errors import UpstreamFailure
from shared.links.clients import trusted

_PIECE = 4096  # bytes; in chunks of one byte each, parsing it takes a few milliseconds
HEAD = 16_384  # bytes that an answer's head may have
_allowed: ContextVar[int] = ContextVar("allowed", default=HEAD)
_connected: ContextVar[bool] = ContextVar("connected", default=False)


def allow(size: int) -> None:
    """Let the next answer of this task have a body of `size` bytes."""
    _allowed.set(2 * size + HEAD)  # chunk lengths come on top
    _connected.set(False)


def connected() -> bool:
    """Whether this task's last exchange began a connection of its own, or tried to."""
    return _connected.get()


class Stream(httpcore.AsyncNetworkStream):
    """One connection. A write begins a new exchange."""

    def __init__(self, inner: httpcore.AsyncNetworkStream) -> None:
        self._inner, self._closed = inner, False
        self._read, self._body = 0, 0
        self._head: bytearray | None = bytearray()  # null once it is read

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        data = await self._inner.read(min(max_bytes, _PIECE), timeout)
        self._read += len(data)
        if self._read > _allowed.get():
            raise UpstreamFailure("upstream_invalid", f"an answer of over {_allowed.get()} bytes")
        if self._head is not None:
            self._head += data
            _, end, data_behind = self._head.partition(b"\r\n\r\n")
            if end:
                self._head, self._body = None, len(data_behind)
        else:
            self._body += len(data)
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._read, self._head, self._body = 0, bytearray(), 0
        await self._inner.write(buffer, timeout)

    def excess(self, headers: httpx.Headers) -> bool:
        """Whether bytes came behind the answer with these headers, or its length is unknown."""
        return headers.get("content-length") != str(self._body)

    async def aclose(self) -> None:
        self._closed = True
        await self._inner.aclose()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.AsyncNetworkStream:
        return Stream(await self._inner.start_tls(ssl_context, server_hostname, timeout))

    def get_extra_info(self, info: str) -> Any:
        if info == "is_readable" and self._closed:  # an idle connection that is readable is not used again
            return True
        return self._inner.get_extra_info(info)


class _Backend(httpcore.AsyncNetworkBackend):
    def __init__(self) -> None:
        self._inner = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        _connected.set(True)
        return Stream(await self._inner.connect_tcp(host, port, timeout, local_address, socket_options))


def transport(url: str, limits: httpx.Limits) -> httpx.AsyncHTTPTransport:
    """httpx's transport, over connections as above."""
    out = httpx.AsyncHTTPTransport(verify=trusted(url), limits=limits, trust_env=False)
    out._pool._network_backend = _Backend()  # httpx has no argument for it
    return out


async def drop(answer: httpx.Response, *, only_excess: bool = False) -> None:
    """Do not use the connection of this answer again; with `only_excess`, where bytes came behind the answer."""
    stream = answer.extensions.get("network_stream")
    excess = isinstance(stream, Stream) and stream.excess(answer.headers)
    if stream is not None and (excess or not only_excess):
        await stream.aclose()
