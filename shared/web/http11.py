"""HTTP/1.1 on one connection: uvicorn's httptools protocol, bounded in every direction that a caller can push.

    head       its bytes and its time; one target, one host, one length (what may hide a second request is refused)
    body       its pieces and its framing: a body in pieces of a byte would cost the event loop 8 us for each byte
    pipeline   requests that wait for the answer to an earlier one
    closing    a caller who still sends gets its refusal: for a while the rest of its body is read and dropped
    reading    a caller who takes nothing of its answer for a while loses the connection
    leaving    a caller who closed its sending half is answered; a probe tells one who is gone altogether

What is not HTTP gets a problem document too. uvicorn bounds none of these with httptools: its limits are the time
between two requests and the bytes that wait in a buffer. Left out: WebSockets, upgrades, TLS.
"""

from __future__ import annotations

import asyncio
import select
import uuid
from collections.abc import Callable
from typing import Any

import httptools
import structlog
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from shared.errors import HeadersTooLarge, Refused, TooLarge
from shared.web.door import Door
from shared.web.problems import as_bytes, document
from shared.web.unread import Unread

log = structlog.get_logger()
HEAD_BYTES = 16_384  # of a request's line and headers
HEAD_S = 10.0  # from the connection, or the end of the last answer, to the end of the headers
_PIECES, _PIECE_BYTES = 1000, 100  # a body may come in so many pieces, and one more for each so many bytes
_PIPELINED = 32
_LINGER_S, _LINGER_BYTES = 10.0, 64_000_000  # how long, and how much of a body is dropped after a refusal
_QUIET_S = 2.0  # of which the caller may say nothing
_LAST_S = 1.0  # for the rest of a head, or of a body that is dropped, once the server stops
ABORT = {"type": "tierwise.abort"}  # a message of an app that gives its answer up: the connection ends at once
_PROBE_S, _LOOK_S = 0.04, 0.01


class Cycle(RequestResponseCycle):
    """One request and its answer; the connection is its transport, so that it may linger."""

    transport: Http11  # type: ignore[assignment]
    begun = False  # whether its head is ready

    async def send(self, message: Any) -> None:
        if message == ABORT:
            self.disconnected = True  # so that uvicorn does not take the missing end for a mistake
            self.transport.make_room()
            return
        if not self.response_started and (self.more_body or self.transport.draining()):
            self.keep_alive = False
        await super().send(message)


class Http11(HttpToolsProtocol):
    """One connection of a server whose door is `door`; `draining` tells whether the server stops."""

    cycle: Cycle

    def __init__(
        self, config: Config, state: ServerState, app_state: dict[str, Any], door: Door, draining: Callable[[], bool]
    ) -> None:
        super().__init__(config, state, app_state)
        self._door, self.draining = door, draining
        self._late: asyncio.TimerHandle | None = None  # hangs up on a head without end, or at the end of lingering
        self._watch: asyncio.TimerHandle | None = None
        self._in_head = self._in_body = False
        self._head = self._pieces = self._body = self._raw = 0  # of the message that is read
        self._refusal: Refused | None = None  # of what is no request; answered once those before it are
        self._deaf = self._lingering = self._eof = False
        self._answer_head = b""
        self._dropped, self._end = 0, 0.0  # bytes so far, and when that ends

    # -- the connection ----------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._unread = Unread(transport)
        self._door.waits(self)
        self._hang_up_in(HEAD_S)

    def connection_lost(self, exc: Exception | None) -> None:
        self._door.leaves(self)
        self._stop_expecting()
        self._unread.stop()
        if self._watch is not None:
            self._watch.cancel()
        super().connection_lost(exc)
        self._unset_keepalive_if_required()

    def make_room(self) -> None:
        self.transport.abort()

    @property
    def _busy(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    @property
    def fresh(self) -> bool:
        """Whether no request came over it yet."""
        return self.cycle is None and self._refusal is None

    def shutdown(self) -> None:
        """Close, unless something is being answered or has arrived and will be."""
        if self._lingering:
            self._hang_up_in(_LAST_S)
        elif not self._busy:
            if self._in_head or self._reports(select.POLLIN):  # bytes of a request lie in the socket
                self._hang_up_in(_LAST_S)
            else:
                self.transport.close()

    def _reports(self, events: int) -> bool:
        """Whether the kernel reports one of these events on the socket, an error or a hang-up."""
        poll = select.poll()
        poll.register(self.transport.get_extra_info("socket"), events)
        return bool(poll.poll(0))

    # -- what comes in -----------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        if self._deaf:
            self._drop(len(data))
            return
        try:
            if self._in_body:
                self._raw += len(data)
                self._bound_pieces()
            self.parser.feed_data(data)
            if self._in_body and self._raw - self._body > HEAD_BYTES + self._body // 4:  # chunk extensions, trailers
                raise TooLarge("the chunks of the body hold more framing than content")
        except httptools.HttpParserUpgrade:
            self._deaf = True  # we answer in HTTP/1.1 and close
        except (httptools.HttpParserError, Refused) as error:
            cause = error.__context__ if isinstance(error, httptools.HttpParserCallbackError) else error
            not_http = Refused(f"this is not HTTP/1.1 as a tier takes it: {error}")
            self._refusal, self._deaf = cause if isinstance(cause, Refused) else not_http, True
            if self._in_body:
                self._cut_off(self._refusal)
            elif not self._busy and not self.is_closing():
                self._refuse(self._refusal)
            return
        if self._busy:
            self._stop_expecting()
        elif self._late is None:
            self._hang_up_in(HEAD_S)

    def _bound_pieces(self) -> None:
        self._pieces += 1
        if self._pieces > _PIECES + self._body // _PIECE_BYTES:
            raise TooLarge(f"the body comes in over {self._pieces - 1} pieces: send larger ones")

    def _cut_off(self, problem: Refused) -> None:
        """End the body of a request that runs, or waits to: whoever reads the body refuses it with `problem`."""
        self.cycle.scope["state"].setdefault("cut", problem)
        self.cycle.more_body = self.cycle.keep_alive = self.cycle.waiting_for_100_continue = False
        self.cycle.message_event.set()

    def _refuse(self, problem: Refused) -> None:
        """Answer what never became a request."""
        log.info("refused", status=problem.status, detail=str(problem))
        answer = document(problem, uuid.uuid4().hex, {"connection": "close"})
        self._put(as_bytes(answer, self.server_state.default_headers))
        self._linger()

    # -- callbacks of the parser: what they raise ends it, and reaches `data_received` ---------------------------------

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head, self._in_body = True, False
        self._head = self._pieces = self._body = self._raw = 0

    def on_url(self, url: bytes) -> None:
        self._bound_head(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._bound_head(len(name) + len(value) + 4)
        if self._in_head:  # else a trailer: counted, and dropped
            super().on_header(name, value)

    def _bound_head(self, size: int) -> None:
        self._head += size
        if self._head > HEAD_BYTES:
            raise HeadersTooLarge(f"the request's line and headers are over {HEAD_BYTES} bytes")

    def on_headers_complete(self) -> None:
        _check_head(self.parser.get_http_version(), self.headers)
        self.url = _path(self.url)
        if len(self.pipeline) >= _PIPELINED:
            raise Refused(f"over {_PIPELINED} requests wait for an answer: send fewer at once")
        super().on_headers_complete()
        self.cycle.__class__ = Cycle  # uvicorn has no argument for it
        self.cycle.transport = self
        if self.parser.should_upgrade():
            self.cycle.keep_alive = False
        self._in_head, self._in_body = False, True
        if not self.pipeline:  # it runs
            self._door.waits(self)

    def on_chunk_header(self) -> None:
        self._bound_pieces()

    def on_body(self, body: bytes) -> None:
        self._body += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._in_body = False
        super().on_message_complete()
        if not self.pipeline:
            self._door.works(self)

    # -- what goes out: the cycle's transport -------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """An answer's head waits for the first piece of its body: one write, and one wake-up of the caller."""
        if self.cycle.response_started and not self.cycle.begun:
            self.cycle.begun, self._answer_head = True, data
        else:
            self._put(self._answer_head + data)
            self._answer_head = b""

    def _put(self, data: bytes) -> None:
        self.transport.write(data)
        self._unread.add(len(data))

    def pause_writing(self) -> None:
        """Much of an answer is unread: it is the caller's turn."""
        super().pause_writing()
        self._door.waits(self)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._busy:
            self._door.works(self)

    def _send_head(self) -> None:
        if self._answer_head:
            self.write(b"")

    def is_closing(self) -> bool:
        return self.transport.is_closing() or self._lingering

    def close(self) -> None:
        """After an answer that is the last."""
        self._send_head()
        if self.cycle.more_body or self._deaf or self.pipeline or self._in_head:
            self._linger()
        else:
            self._door.waits(self)  # until it has read the answer
            self.transport.close()

    def on_response_complete(self) -> None:
        self._send_head()
        if self.is_closing():
            self.server_state.total_requests += 1
            return
        self._stop_expecting()
        super().on_response_complete()
        if not self.pipeline and not self._busy:
            self._door.waits(self)
            if self._refusal is not None:
                self._refuse(self._refusal)
            elif self._eof:
                self.transport.close()
            elif self._in_head:
                self._hang_up_in(HEAD_S)

    # -- closing -----------------------------------------------------------------------------------------------------

    def _linger(self) -> None:
        """A caller that still sends reads nothing yet, and closing on it now would take the answer away from it."""
        if self._lingering or self.transport.is_closing():
            return
        self._lingering = self._deaf = True
        self.pipeline.clear()
        self._door.waits(self)
        if self._eof:
            self.transport.close()
            return
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.flow.resume_reading()
        self._end = self.loop.time() + _LINGER_S
        self._hang_up_in(_QUIET_S)

    def _drop(self, size: int) -> None:
        self._dropped += size
        if self._dropped > _LINGER_BYTES:
            self.transport.abort()
        elif self._lingering:
            self._hang_up_in(min(_QUIET_S, self._end - self.loop.time()))
        elif self._dropped > HEAD_BYTES:  # not our turn to close yet
            self.flow.pause_reading()

    def _hang_up_in(self, seconds: float) -> None:
        self._stop_expecting()
        self._late = self.loop.call_later(max(0.0, seconds), self.transport.close)

    def _stop_expecting(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    # -- leaving -----------------------------------------------------------------------------------------------------

    def eof_received(self) -> bool:  # type: ignore[override]  # asyncio asks whether to keep the sending half
        """The caller sends no more: it may still read, or be gone altogether, and TCP says the same of both."""
        self._eof = True
        if not self._busy or self._lingering:
            return False
        if self._in_body:
            self._cut_off(Refused("the body ended before its length"))
        self.cycle.keep_alive = False
        self._watch = self.loop.call_later(_PROBE_S, self._probe)
        return True

    def _probe(self) -> None:
        """An interim answer, which HTTP/1.1 lets a client ignore: the kernel of one who left resets the connection."""
        waits = self._busy and not self.pipeline and not self.cycle.response_started
        if waits and self.cycle.scope["http_version"] == "1.1":
            self._put(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._look()

    def _look(self) -> None:
        """asyncio no longer reads here, so nobody else notices the reset."""
        if self.transport.is_closing():
            return
        if self._reports(0):
            self.transport.abort()
        else:
            self._watch = self.loop.call_later(_LOOK_S, self._look)


def _check_head(version: str, headers: list[tuple[bytes, bytes]]) -> None:
    """Raises:
    Refused: another version, another number of hosts than one, or chunks in HTTP/1.0.
    """
    names = [name for name, _ in headers]
    if version not in ("1.0", "1.1"):
        raise Refused(f"HTTP/{version}: a tier speaks HTTP/1.1")
    if names.count(b"host") > 1 or (version == "1.1" and b"host" not in names):
        raise Refused("a request names one host")
    if version == "1.0" and b"transfer-encoding" in names:
        raise Refused("HTTP/1.0 has no transfer-encoding: send content-length")


def _path(target: bytes) -> bytes:
    """The path and query of a request's target: a path, or a whole URL (RFC 9112, 3.2).

    Raises:
        Refused: it is neither.
    """
    try:
        url = httptools.parse_url(target)
    except httptools.HttpParserInvalidURLError:
        url = None
    if url is None or not (target.startswith(b"/") or (url.schema or b"").lower() in (b"http", b"https")):
        raise Refused("the request's target is neither a path nor an http(s) URL in ASCII: percent-encode the rest")
    return (url.path or b"/") + (b"?" + url.query if url.query else b"")
