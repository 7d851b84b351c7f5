"""One link to a further tier: what a call may take, what it carried, and when the tier is not asked at all.

deadline   the callee gets what is left less what the link is measured to take; a late answer is dropped
answer     it names the call and the index of each text, in order, or it is not believed
breaker    `shared/links/breaker.py` says when to stop; a probe in the background says when to go on: an `/v1/infer`
           without texts, which passes the key, the contract and the model's queue, and costs no inference. Both ways it
           is as long as the longest of the last requests: there are paths that lose just the long packets
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import httpx
import structlog
from pydantic import ValidationError

from shared.contracts import (
    CONTRACT_VERSION,
    DegradedReason,
    Hop,
    InferredRow,
    InferRequest,
    InferResponse,
    LinkUse,
    TextPair,
)
from shared.errors import DeadlinePassed, UpstreamFailure
from shared.links.breaker import Breaker
from shared.links.estimates import Smoothed
from shared.links.http import UpstreamHttp
from shared.links.profile import UNSHAPED, Backend, Profile, profile
from shared.links.shaped import ShapedLinks
from shared.links.simulated import SimulatedLink

log = structlog.get_logger()
_FORGET_S = 5.0  # a measured link time older than this is no longer held against the link
_FORGET_USUAL_S = 60.0  # nor is what a call usually takes held in the upstream's favour
_IMPATIENT_S = 1.0  # before anything is measured: a deadline shorter than this is no failure of the upstream
_NEUTRAL = {400, 413, 422, 429, 504}  # this request's fault, or an upstream that works and is busy
_LONGEST_PROBE = 65_536  # bytes


@dataclass(frozen=True)
class Carried:
    """One call's answer, what it put on the link, and the seconds it spent there (the callee's own time taken off)."""

    response: InferResponse
    request_bytes: int
    response_bytes: int
    link_s: float


class Upstream:
    """One directed link to a further tier."""

    def __init__(
        self,
        *,
        source: str,
        target: str,
        url: str,
        backend: Backend,
        profile_name: str,
        timeout_s: float,
        shaped: ShapedLinks | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
        key: str | None = None,
        probe_s: float = 2.0,
        count_retry: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._clock = clock
        self.source, self.target, self.url = source, target, url
        self._backend, self._profile, self._shaped = backend, profile(profile_name), shaped
        self._timeout_s, self._probe_s = timeout_s, probe_s
        link = SimulatedLink(self._profile) if backend is Backend.SIMULATED else None
        self._http = UpstreamHttp(
            target=target,
            url=url,
            link=link,
            timeout_s=timeout_s,
            key=key,
            transport=transport,
            count_retry=count_retry,
        )
        self.breaker = Breaker()
        self._link_time, self._usual = Smoothed(forget_s=_FORGET_S), Smoothed(forget_s=_FORGET_USUAL_S)
        self._sizes: deque[int] = deque(maxlen=20)  # bytes of the last requests
        self._probing: asyncio.Task[None] | None = None

    @property
    def link(self) -> tuple[Backend, Profile]:
        """Who enforces what on this link now; a link that should be shaped and is not says `none`, `unshaped`."""
        if self._backend is not Backend.NETEM or self._shaped is None:
            return self._backend, self._profile
        shaped = self._shaped.in_force(f"{self.source}-{self.target}")
        return (Backend.NETEM, shaped) if shaped else (Backend.NONE, UNSHAPED)

    @property
    def link_s(self) -> float:
        """What the link takes, there and back: measured, or else as its profile says."""
        measured = self._link_time.high
        return self.link[1].rtt_s if measured is None else measured

    async def infer(
        self,
        request: InferRequest,
        headers: dict[str, str],
        *,
        left_s: float | None = None,
        limit: int = 1_000_000,
        sound: Callable[[int, Sequence[Hop]], bool] = lambda at, hops: True,
    ) -> Carried:
        """Send a batch on and wait for its hops, at most `left_s` and `limit` bytes; each row's must be `sound`.

        Raises:
            UpstreamFailure: with the reason; a late answer is dropped with its connection.
        """
        if self.breaker.open:
            self._watch()
            raise UpstreamFailure("breaker_open", f"{self.target} failed again and again; it is being probed")
        if left_s is not None:
            if left_s <= self.link_s:
                raise UpstreamFailure("deadline", f"{self.target}: {left_s * 1e3:.0f} ms are left, the link takes more")
            request = request.model_copy(update={"deadline_ms": (left_s - self.link_s) * 1e3})
        request = request.model_copy(update={"call": _new_call()})
        body, started = request.model_dump_json().encode(), self._clock()
        self._sizes.append(len(body))
        try:
            answer = await self._in_time(body, headers, left_s, request.call, limit)
            response = self._read(answer, request)
            if not all(sound(at, row.hops) for at, row in enumerate(response.rows)):
                raise UpstreamFailure("upstream_invalid", f"{self.target} answers what no tier of this bundle can")
        except UpstreamFailure as failure:
            if self._blames(failure, left_s):
                self._tell(failed=True)
            raise
        seconds = self._clock() - started
        self._tell(failed=False)
        link_s = max(0.0, seconds - response.total_ms / 1e3)
        self._usual.add(seconds)
        self._link_time.add(link_s)
        return Carried(response, len(body), len(answer), link_s)

    async def _in_time(
        self, body: bytes, headers: dict[str, str], left_s: float | None, call: str, limit: int
    ) -> bytes:
        late: DegradedReason = "upstream_timeout"
        limit_s = self._timeout_s
        if left_s is not None and left_s < limit_s:
            limit_s, late = left_s, "deadline"
        try:
            async with asyncio.timeout(limit_s):
                return await self._http.post(body, headers, call=call, limit=limit)
        except TimeoutError as error:
            raise UpstreamFailure(late, f"{self.target} took over {limit_s * 1e3:.0f} ms") from error
        except UpstreamFailure as failure:
            if failure.answered == DeadlinePassed.status and left_s is not None:
                raise UpstreamFailure(
                    "deadline", f"{self.target} cannot answer in time", answered=failure.answered
                ) from failure
            raise

    def _read(self, answer: bytes, request: InferRequest) -> InferResponse:
        try:
            response = InferResponse.model_validate_json(answer)
        except ValidationError as error:
            raise UpstreamFailure("upstream_invalid", f"{self.target} sent {error.error_count()} errors") from error
        if response.version != CONTRACT_VERSION:
            raise UpstreamFailure("upstream_invalid", f"{self.target} speaks contract {response.version}")
        if response.call != request.call or [row.index for row in response.rows] != request.indices:
            raise UpstreamFailure("upstream_invalid", f"{self.target} sent an answer to something else")
        return response

    def _blames(self, failure: UpstreamFailure, left_s: float | None) -> bool:
        """Whether a failure is the upstream's, and not that of a request or of its short deadline."""
        if failure.reason != "deadline":
            return failure.answered not in _NEUTRAL
        usual = self._usual.high
        return failure.answered is None and left_s is not None and left_s > (_IMPATIENT_S if usual is None else usual)

    def _tell(self, *, failed: bool) -> None:
        was_open = self.breaker.open
        self.breaker.tell(failed=failed)
        if self.breaker.open and not was_open:
            log.warning("breaker_open", tier=self.source, to=self.target)
            self._watch()

    def _watch(self) -> None:
        """Probe in the background until the upstream is well."""
        if self._probing is None or self._probing.done():
            self._probing = asyncio.get_running_loop().create_task(self._probe_until_well())

    async def _probe_until_well(self) -> None:
        pause, probe, body = self._probe_s, *self._probe()
        limit_s = min(self._timeout_s, max(2.0, 3 * self.link_takes(len(body))))
        began = time.monotonic()
        while self.breaker.open:
            await asyncio.sleep(max(0.0, began + pause - time.monotonic()))
            began = time.monotonic()
            try:
                async with asyncio.timeout(limit_s):
                    answer = await self._http.probe(body, call=probe.call, limit=2 * _LONGEST_PROBE)
                    self._read(answer, probe)
            except (UpstreamFailure, TimeoutError):
                pause = min(2 * pause, 4 * self._probe_s)  # from one probe's start to the next one's
            else:
                self.breaker.close()
                log.info("breaker_closed", tier=self.source, to=self.target)

    def _probe(self) -> tuple[InferRequest, bytes]:
        """A request without texts, and its body with white space behind it."""
        request = InferRequest(
            request_id="probe", call=_new_call(), seed="probe", indices=[], texts=[], policy={"name": "collaborative"}
        )
        longest = min(max(self._sizes, default=0), _LONGEST_PROBE)
        return request, request.model_dump_json().encode().ljust(longest)

    def link_takes(self, size: int) -> float:
        """Seconds that so many bytes take there and back, as the profile says."""
        on_link = self.link[1]
        rates = (on_link.rate_up_bps, on_link.rate_down_bps)
        return on_link.rtt_s + sum(8 * size / rate for rate in rates if rate)

    def with_link(self, carried: Carried, texts: Sequence[TextPair]) -> list[InferredRow]:
        """The callee's rows, each first hop with this link on record and the row's own share of the bytes."""
        up = _shares(carried.request_bytes, [len(text.text) + len(text.text_pair or "") for text in texts])
        down = _shares(carried.response_bytes, [1] * len(texts))
        backend, on_link = self.link
        rows = []
        for row, up_bytes, down_bytes in zip(carried.response.rows, up, down, strict=True):
            if row.hops and row.hops[0].link is None:
                link = LinkUse(
                    source=self.source,
                    target=self.target,
                    backend=backend.value,
                    profile=on_link.name,
                    request_bytes=up_bytes,
                    response_bytes=down_bytes,
                    ms=round(carried.link_s * 1e3, 3),
                )
                row = row.model_copy(update={"hops": [row.hops[0].model_copy(update={"link": link}), *row.hops[1:]]})
            rows.append(row)
        return rows

    async def close(self) -> None:
        if self._probing is not None:
            self._probing.cancel()
        await self._http.close()


def _new_call() -> str:
    return secrets.token_hex(8)


def _shares(total: int, sizes: Sequence[int]) -> list[int]:
    """Divide `total` in proportion to `sizes`, in whole bytes that add up to it."""
    whole, given, out = max(1, sum(sizes)), 0, []
    for end in range(1, len(sizes) + 1):
        upto = total * sum(sizes[:end]) // whole if end < len(sizes) else total
        out.append(upto - given)
        given = upto
    return out
