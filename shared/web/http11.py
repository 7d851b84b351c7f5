"""HTTP/1.1 on one connection: uvicorn's httptools protocol, bounded in every direction that a caller can push.

    head       its bytes and its time; one target, one host, one length (what may hide a second request is refused)
    body       its pieces and its framing: a body in pieces of a byte would cost the event loop 8 us for each byte
    pipeline   requests that wait for the answer to an earlier one
    closing    a caller who still sends gets its refusal: for a while the rest of its body is read and dropped
    leaving    a caller who closed its sending half is answered; one who left altogether is told from it by a probe

What is not HTTP gets a problem document too. Left out: WebSockets, upgrades, TLS.
"""

from __future__ import annotations

import asyncio
import select
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlsplit

import httptools
import structlog
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from shared.errors import HeadersTooLarge, Refused, TooLarge
from shared.web.door import Door
from shared.web.guard import HEAD_BYTES
from shared.web.problems import document

log = structlog.get_logger()
_PIECES, _PIECE_BYTES = 1000, 100  # a body may come in so many pieces, and one more for each so many bytes
_PIPELINED = 32
_LINGER_S, _LINGER_BYTES = 10.0, 64_000_000  # how long, and how much of a body is dropped after a refusal
_QUIET_S = 2.0  # of which the caller may say nothing
_LAST_S = 1.0  # for the rest of a head, or of a body that is dropped, once the server stops
_PROBE_S, _LOOK_S = 0.04, 0.01


@dataclass(frozen=True)
class Terms:
    """What holds for every connection of a server."""

    door: Door
    draining: Callable[[], bool]
    head_s: float  # from the connection, or the end of the last answer's, to the end of the headers


class Cycle(RequestResponseCycle):
    """One request and its answer. `cut`: the rest of its body will never come, or is not read."""

    cut = False
    draining: Callable[[], bool]

    async def send(self, message: Any) -> None:
        if not self.response_started and (self.more_body or self.draining()):
            self.keep_alive = False
        await super().send(message)

    async def receive(self) -> Any:
        message = None if self.cut else await super().receive()
        return {"type": "http.disconnect"} if self.cut else message

    def cut_off(self, why: Refused) -> None:
        """Let whoever reads the body refuse it."""
        self.scope["state"].setdefault("cut", why)
        self.cut, self.keep_alive, self.waiting_for_100_continue = True, False, False
        self.message_event.set()


class Http11(HttpToolsProtocol):
    """One connection."""

    cycle: Cycle

    def __init__(self, config: Config, state: ServerState, app_state: dict[str, Any], terms: Terms) -> None:
        super().__init__(config, state, app_state)
        self._terms = terms
        self._late: asyncio.TimerHandle | None = None  # hangs up on a head without end, or at the end of lingering
        self._watch: asyncio.TimerHandle | None = None
        self._in_head = self._in_body = False
        self._head = self._pieces = self._body = self._raw = 0  # of the message that is read
        self._refusal: Refused | None = None  # of what is no request; answered once those before it are
        self._deaf = self._lingering = self._eof = False
        self._dropped, self._end = 0, 0.0  # bytes so far, and when that ends

    # -- the connection ----------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._terms.door.waits(self)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._terms.door.left(self)
        self._stop_expecting()
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
        """Whether it never asked anything."""
        return self.cycle is None and self._refusal is None

    def shutdown(self) -> None:
        """Close, unless something is being answered or has arrived and will be."""
        if self._lingering:
            self._hang_up_in(_LAST_S)
        elif not self._busy:
            if self._unread():
                self._hang_up_in(_LAST_S)
            else:
                self.transport.close()

    def _unread(self) -> bool:
        """Whether bytes of a request lie in the socket."""
        said = select.poll()
        said.register(self.transport.get_extra_info("socket"), select.POLLIN)
        return self._in_head or bool(said.poll(0))

    # -- what comes in -----------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        if self._deaf:
            self._drop(len(data))
            return
        if self._in_body:
            self._raw += len(data)
            self._piece()
        try:
            if self._refusal is None:
                self.parser.feed_data(data)
            self._bound_framing()
        except httptools.HttpParserUpgrade:
            self._deaf = True  # we answer in HTTP/1.1 and close
        except httptools.HttpParserError as error:
            self._refuse(error)
        if self._refusal is not None:
            self._deaf = True
            self._answer_refusal()
        elif self._busy:
            self._stop_expecting()
        elif self._late is None:
            self._expect_head()

    def _piece(self) -> None:
        self._pieces += 1
        if self._pieces > _PIECES + self._body // _PIECE_BYTES and self._refusal is None:
            self._refusal = TooLarge(f"the body comes in over {self._pieces - 1} pieces: send larger ones")

    def _bound_framing(self) -> None:
        """Chunk extensions and trailers, and a head that comes in parts."""
        if self._in_body and self._raw - self._body > HEAD_BYTES + self._body // 4 and self._refusal is None:
            self._refusal = TooLarge("the chunks of the body hold more framing than content")

    def _refuse(self, error: Exception) -> None:
        if self._refusal is None:
            self._refusal = Refused(f"this is not HTTP/1.1 as a tier takes it: {error}")

    def _answer_refusal(self) -> None:
        assert self._refusal is not None
        if self._in_body:  # of a request that runs, or waits to: its own answer says it
            self.cycle.cut_off(self._refusal)
        elif not self._busy and not self.transport.is_closing() and not self._lingering:
            self._say(self._refusal)

    def _say(self, problem: Refused) -> None:
        log.info("refused", status=problem.status, detail=str(problem))
        answer = document(problem, uuid.uuid4().hex, {"connection": "close"})
        headers = [*self.server_state.default_headers, *answer.raw_headers]
        lines = b"".join(b"%b: %b\r\n" % header for header in headers)
        self.transport.write(STATUS_LINE[problem.status] + lines + b"\r\n" + bytes(answer.body))
        self._linger()

    def _stop(self, problem: Refused) -> None:
        """Out of a callback of the parser, which an exception ends."""
        self._refusal = problem
        raise ValueError(problem)

    # -- callbacks of the parser -------------------------------------------------------------------------------------

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
            self._stop(HeadersTooLarge(f"the request's line and headers are over {HEAD_BYTES} bytes"))

    def on_headers_complete(self) -> None:
        version = self.parser.get_http_version()
        self.scope["http_version"] = version
        self.scope["method"] = self.parser.get_method().decode("ascii")
        if problem := _wrong_head(version, self.headers) or self._aim():
            self._stop(problem)
        if len(self.pipeline) >= _PIPELINED:
            self._stop(Refused(f"over {_PIPELINED} requests wait for an answer: send fewer at once"))
        before, self.cycle = self.cycle, self._new_cycle(version)
        self._in_head, self._in_body = False, True
        if before is None or before.response_complete:
            self._start_asgi_task(self.cycle, self.app)
            self._terms.door.waits(self)
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((self.cycle, self.app))

    def _new_cycle(self, version: str) -> Cycle:
        keeps = version != "1.0" and self.parser.should_keep_alive() and not self.parser.should_upgrade()
        cycle = Cycle(
            scope=self.scope,
            transport=self,  # type: ignore[arg-type]  # it writes, and closes after lingering
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=self.access_log,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=self.expect_100_continue,
            keep_alive=keeps,
            on_response=self.on_response_complete,
        )
        cycle.draining = self._terms.draining
        return cycle

    def _aim(self) -> Refused | None:
        """Put the request's target into the scope: a path, or a whole URL (RFC 9112, 3.2)."""
        target = self.url.decode("latin-1")
        if not target.startswith("/"):
            try:
                parts = urlsplit(target)
            except ValueError:
                parts = urlsplit("")
            if parts.scheme not in ("http", "https") or not parts.netloc:
                return Refused("the request's target is neither a path nor an http(s) URL")
            target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        if not target.isascii():
            return Refused("the request's target is not ASCII: percent-encode it")
        path, _, query = target.partition("?")
        self.scope["path"] = unquote(path)
        self.scope["raw_path"], self.scope["query_string"] = path.encode(), query.encode()
        return None

    def on_chunk_header(self) -> None:
        self._piece()
        if self._refusal is not None:
            raise ValueError(self._refusal)

    def on_body(self, body: bytes) -> None:
        self._body += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._in_body = False
        super().on_message_complete()
        if not self.pipeline:
            self._terms.door.works(self)

    # -- what goes out: the cycle's transport -------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        self.transport.write(data)

    def is_closing(self) -> bool:
        return self.transport.is_closing() or self._lingering

    def close(self) -> None:
        """After an answer that is the last."""
        if self.cycle.more_body or self._deaf or self.pipeline or self._in_head:
            self._linger()
        else:
            self.transport.close()

    def on_response_complete(self) -> None:
        if self.is_closing():
            self.server_state.total_requests += 1
            return
        self._stop_expecting()
        super().on_response_complete()
        if not self.pipeline and not self._busy:
            self._terms.door.waits(self)
            if self._refusal is not None:
                self._say(self._refusal)
            elif self._eof:
                self.transport.close()
            elif self._in_head:
                self._expect_head()

    # -- closing -----------------------------------------------------------------------------------------------------

    def _linger(self) -> None:
        """A caller that still sends reads nothing yet, and closing on it now would take the answer away from it."""
        if self._lingering or self.transport.is_closing():
            return
        self._lingering = self._deaf = True
        self.pipeline.clear()
        self._terms.door.waits(self)
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

    def _expect_head(self) -> None:
        self._hang_up_in(self._terms.head_s)

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
            self.cycle.cut_off(Refused("the body ended before its length"))
        self.cycle.keep_alive = False
        self._watch = self.loop.call_later(_PROBE_S, self._probe)
        return True

    def _probe(self) -> None:
        """An interim answer, which HTTP/1.1 lets a client ignore: the kernel of one who left resets the connection."""
        waits = self._busy and not self.pipeline and not self.cycle.response_started
        if waits and self.cycle.scope["http_version"] == "1.1":
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._look()

    def _look(self) -> None:
        """asyncio no longer reads here, so nobody else notices the reset."""
        if self.transport.is_closing():
            return
        state = select.poll()
        state.register(self.transport.get_extra_info("socket"), 0)  # errors and hang-ups alone
        if state.poll(0):
            self.transport.abort()
        else:
            self._watch = self.loop.call_later(_LOOK_S, self._look)


def _wrong_head(version: str, headers: list[tuple[bytes, bytes]]) -> Refused | None:
    names = [name for name, _ in headers]
    if version not in ("1.0", "1.1"):
        return Refused(f"HTTP/{version}: a tier speaks HTTP/1.1")
    if names.count(b"host") > 1 or (version == "1.1" and b"host" not in names):
        return Refused("a request names one host")
    if version == "1.0" and b"transfer-encoding" in names:
        return Refused("HTTP/1.0 has no transfer-encoding: send content-length")
    return None
