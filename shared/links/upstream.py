"""One link to a further tier: what a call may take, what it carried, and when the tier is not asked at all.

deadline   the callee gets the remaining time less what the link is measured to take; a late answer is dropped
answer     it names the call and the index of each text, in order, or it is not believed
replicas   the least loaded of the tier's replicas is asked (`shared/links/replicas.py`); a call that got no answer
           there, or one that says nothing of the texts (401, 429, 503 and the like), goes to another, at most
           `MOVES` times. They share one link
breaker    `shared/links/breaker.py` says when to stop; a probe in the background says when to go on: an `/v1/infer`
           without texts, which passes the key, the contract and the model's queue, and costs no inference. Both ways it
           is as long as the longest of the last requests: there are paths that lose just the long packets
"""

from __future__ import annotations

import asyncio
import math
import secrets
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial

import httpx
import structlog
from pydantic import ValidationError

from shared.contracts import CONTRACT_VERSION, DegradedReason, InferredRow, InferRequest, InferResponse, LinkUse
from shared.errors import DeadlinePassed, Draining, QueueFull, UpstreamFailure
from shared.links import connections
from shared.links.address import SEPARATOR
from shared.links.carried import Carried, with_link
from shared.links.enforced import EnforcedLink
from shared.links.estimates import Smoothed
from shared.links.http import MOST, UpstreamHttp
from shared.links.measured import Line, Measured
from shared.links.profile import Backend, on_the_wire
from shared.links.replica import Replica
from shared.links.replicas import Lookup, Replicas, addresses
from shared.links.shaped import ShapedLinks
from shared.model.state import STATES_TYPE, frame

log = structlog.get_logger()
_FORGET_S = 5.0  # a measured link time older than this is no longer held against the link
_FORGET_USUAL_S = 60.0  # nor is what a call usually takes held in the upstream's favour
_IMPATIENT_S = 1.0  # before anything is measured: a deadline shorter than this is no failure of the upstream
_NEUTRAL = {400, 413, 422, 429, 504}  # this request's fault, or an upstream that works and is busy
_LONGEST_PROBE = 65_536  # bytes
_NOT_TAKEN = {404, 405, 413, 415, 422}  # an upstream that cannot go on from states, or not from this one
_ASK_AGAIN_S = 60.0  # pause before a state is sent there again
MOVES = 2  # of a call, to another replica; where no connection came about, nothing was asked, and it does not count
_AWAY = {401, 403, Draining.status}  # it has another key, or shuts down
_MOVES_ON = {*_AWAY, QueueFull.status}  # another replica may take it
_CALL_S = 0.05  # what a call takes there, before any was measured


class Upstream(EnforcedLink):
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
        lookup: Lookup | None = None,
    ) -> None:
        super().__init__(source, target, backend, profile_name, shaped)
        self.url, self._timeout_s, self._clock, self._count_retry = url, timeout_s, clock, count_retry
        self.measured = Measured(clock)

        def new(url: str, at: str | None) -> Replica:
            http = partial(
                UpstreamHttp,
                target=target,
                url=url,
                at=at,
                link=self._simulated,
                timeout_s=timeout_s,
                key=key,
                transport=transport,
                count_retry=count_retry,
            )
            return Replica(
                source=source,
                target=target,
                address=at or url,
                http=lambda hear: http(hear=hear),
                probe=self._probe,
                probe_s=probe_s,
                clock=clock,
            )

        lookup = lookup or (addresses if transport is None else None)
        self.replicas = Replicas(url.split(SEPARATOR), new, lookup, clock)
        self._service = Smoothed(forget_s=_FORGET_USUAL_S, clock=clock)
        self._forget()
        self._states_from = -math.inf  # the time from which on it is sent states
        self.bytes_up = self.bytes_down = 0  # of bodies, in calls that were answered
        self._sizes: deque[int] = deque(maxlen=20)  # bytes of the last requests

    @property
    def is_down(self) -> bool:
        """Whether it is not asked, and only probed."""
        return self.replicas.down

    @property
    def has_another(self) -> bool:
        """Whether a second call, made now, would be another replica's."""
        return sum(not one.breaker.open for one in self.replicas.all) > 1

    @property
    def waiting_s(self) -> float | None:
        """Seconds of work that wait where the least do; null where nothing was said of it of late."""
        said = [one.waiting.seconds for one in self.replicas.all if not one.breaker.open]
        return min((seconds for seconds in said if seconds is not None), default=None)

    @property
    def under_way_s(self) -> float:
        """Seconds since the oldest call left that has no answer, where the least have passed; 0: none is under way.

        A link that hangs shows at once, not after a timeout.
        """
        return min(one.under_way_s for one in self.replicas.all)

    def _forget(self) -> None:
        """What was measured says nothing about the link from now on.

        A call that is under way adds to the estimates that it began with, which nobody asks any more.
        """
        self._link_time, self._usual = Smoothed(forget_s=_FORGET_S), Smoothed(forget_s=_FORGET_USUAL_S)
        self.measured.forget_link()

    @property
    def link_s(self) -> float:
        """What the link takes, there and back: measured, or else as its profile says."""
        measured = self._link_time.high
        return self.link[1].rtt_s if measured is None else measured

    @property
    def round_trip_s(self) -> float:
        """What the link usually takes, there and back: measured of late, or else as its profile says."""
        measured = self._link_time.mean
        return self.link[1].rtt_s if measured is None else measured

    @property
    def line(self) -> Line:
        """What a call takes on the link, by its bytes: measured of late, or else as its profile says."""
        return self.measured.line(self.link[1])

    @property
    def byte_s(self) -> float:
        """Seconds that a byte takes on its way there: measured of late, else by the link's profile."""
        return self.line.up_s

    @property
    def takes_states(self) -> bool:
        """Whether it is sent states: it has not refused one of late."""
        return self._clock() >= self._states_from

    def refuses_states(self, failure: UpstreamFailure) -> bool:
        """Whether a failure says that it does not go on from states; then it is sent none for a while."""
        refuses = failure.answered in _NOT_TAKEN
        if refuses:
            self._states_from = self._clock() + _ASK_AGAIN_S
        return refuses

    async def infer(
        self,
        request: InferRequest,
        headers: dict[str, str],
        *,
        states: Sequence[bytes] = (),
        within_s: float | None = None,
        limit_bytes: int = 1_000_000,
        check: Callable[[Sequence[InferredRow]], None] = lambda rows: None,
        sends: Callable[[int], None] = lambda size: None,
    ) -> Carried:
        """Send a batch on and wait for its hops, at most `within_s` and `limit_bytes`; `check` may refuse its rows.

        With `states`, packed, one for each text, the upstream goes on from these.
        `sends` is told how many bytes the request's body has, before it leaves.

        Raises:
            UpstreamFailure: with the reason; a late answer is dropped with its connection.
        """
        self.replicas.look()
        if self.is_down:
            for one in self.replicas.all:
                one.watch()
            raise UpstreamFailure("breaker_open", f"{self.target} failed again and again; it is being probed")
        request = request.model_copy(update={"call": secrets.token_hex(8)})
        link_time, usual = self._link_time, self._usual
        body, answer, response, seconds = await self._exchange(
            request, states, headers, within_s, limit_bytes, check, sends
        )
        self._service.add(response.total_ms / 1e3)
        link_s = max(0.0, seconds - response.total_ms / 1e3)
        usual.add(seconds)
        if not states:  # a state's time says nothing about the short messages that this is asked for
            link_time.add(link_s)
        self.measured.add(len(body), len(answer), link_s, self.link[1], cold=connections.connected())
        self.measured.answered(response.rows)
        self.bytes_up += len(body)
        self.bytes_down += len(answer)
        backend, link = self.link
        joules = None if link.radio is None else link.radio.joules(len(body), len(answer), link_s)
        use = LinkUse(
            source=self.source,
            target=self.target,
            backend=backend.value,
            profile=link.name,
            request_bytes=len(body),
            response_bytes=len(answer),
            ms=round(link_s * 1e3, 3),
            modelled_joules=joules,
        )
        rows = with_link(response.rows, request.texts, use)
        return Carried(rows, len(body), len(answer), link_s, joules, self.target)

    def _way_s(self, states: Sequence[bytes]) -> float:
        """What the link takes of a call's time, with the upload of its states."""
        return self.link_s + (on_the_wire(sum(map(len, states))) * self.byte_s if states else 0.0)

    async def _exchange(
        self,
        request: InferRequest,
        states: Sequence[bytes],
        headers: dict[str, str],
        within_s: float | None,
        limit_bytes: int,
        check: Callable[[Sequence[InferredRow]], None],
        sends: Callable[[int], None],
    ) -> tuple[bytes, bytes, InferResponse, float]:
        """What went to one replica after the other and came back from the last, as bytes; the answer as read, and the
        seconds that the last took. Each is told the time that is left."""
        started, tried, moves, left_s = self._clock(), list[Replica](), 0, within_s
        while True:
            if left_s is not None:
                if left_s <= (way_s := self._way_s(states)):
                    detail = f"{self.target}: {left_s * 1e3:.0f} ms remain, the link takes more"
                    raise UpstreamFailure("deadline", detail)
                request = request.model_copy(update={"deadline_ms": (left_s - way_s) * 1e3})
            head = request.model_dump_json().encode()
            body = frame(head, states) if states else head
            if not tried:
                self._sizes.append(len(head))
                sends(len(body))
            replica, began = self._next(tried), self._clock()
            replica.begin(request.call)
            try:
                answer = await self._post(
                    replica, body, headers, request.call, left_s, limit_bytes, of_states=bool(states)
                )
                response = self._read(answer, request)
                check(response.rows)
            except UpstreamFailure as failure:
                tried.append(replica)
                if self._blames(failure, left_s):
                    if len(self.replicas.all) > 1:  # else whoever is told knows which one it was
                        log.warning("replica_failed", to=self.target, address=replica.address, detail=str(failure))
                    replica.count(failed=True, eject=_is_away(failure) and self.replicas.others(replica))
                moves += not isinstance(failure.__cause__, httpx.ConnectError)
                left_s = None if within_s is None else within_s - (self._clock() - started)
                in_time = left_s is None or left_s > self._way_s(states)
                if moves > MOVES or not in_time or not self._may_move(failure, tried):
                    raise
                self._count_retry()
            else:
                replica.count(failed=False)
                return body, answer, response, self._clock() - began
            finally:
                replica.end(request.call)

    def _next(self, tried: Sequence[Replica]) -> Replica:
        """The replica to ask, of those that were not tried."""
        found = self.replicas.next(self._service.mean or _CALL_S, but=tried)
        if found is None:
            raise UpstreamFailure("upstream_refused", f"{self.target}: {MOST} calls are under way to each replica")
        return found

    def _may_move(self, failure: UpstreamFailure, tried: Sequence[Replica]) -> bool:
        """Whether a call that failed so may be made again at a replica that was not tried."""
        may = _unanswered(failure) or failure.answered in _MOVES_ON
        return may and any(one.is_free and one not in tried for one in self.replicas.all)

    async def _post(
        self,
        replica: Replica,
        body: bytes,
        headers: dict[str, str],
        call: str,
        within_s: float | None,
        limit_bytes: int,
        *,
        of_states: bool,
    ) -> bytes:
        """The answer's bytes, within the deadline and the timeout of an upstream."""
        limit_s = self._timeout_s if within_s is None else min(within_s, self._timeout_s)
        try:
            async with asyncio.timeout(limit_s):
                path = None
                if of_states:
                    headers, path = {**headers, "content-type": STATES_TYPE}, "continue"
                again = not self.replicas.others(replica)
                return await replica.http.post(
                    body, headers, call=call, limit_bytes=limit_bytes, path=path, again=again
                )
        except TimeoutError as error:
            late: DegradedReason = "deadline" if limit_s < self._timeout_s else "upstream_timeout"
            raise UpstreamFailure(late, f"{self.target} took over {limit_s * 1e3:.0f} ms") from error
        except UpstreamFailure as failure:
            if failure.answered != DeadlinePassed.status or within_s is None:
                raise
            detail = f"{self.target} cannot answer in time"
            raise UpstreamFailure("deadline", detail, answered=failure.answered) from failure

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

    def _blames(self, failure: UpstreamFailure, within_s: float | None) -> bool:
        """Whether a failure is the upstream's, and not that of a request or of its short deadline."""
        if failure.reason != "deadline":
            return failure.answered not in _NEUTRAL
        usual_s = _IMPATIENT_S if self._usual.high is None else self._usual.high
        return failure.answered is None and within_s is not None and within_s > usual_s

    async def _probe(self, http: UpstreamHttp) -> None:
        """Ask a replica once, without texts. Raises where it is not well."""
        probe, body = self._without_texts()
        async with asyncio.timeout(self._probe_limit_s(len(body))):
            answer = await http.probe(body, call=probe.call, limit_bytes=2 * _LONGEST_PROBE)
        self._read(answer, probe)

    def _probe_limit_s(self, size: int) -> float:
        """What a probe of so many bytes may take on the link as it is now."""
        link = self.link[1]
        sending_s = sum(8 * size / rate for rate in (link.rate_up_bps, link.rate_down_bps) if rate)
        return min(self._timeout_s, max(2.0, 3 * (link.rtt_s + sending_s)))

    def _without_texts(self) -> tuple[InferRequest, bytes]:
        """A request without texts, and its body with white space behind it."""
        call, policy = secrets.token_hex(8), {"name": "collaborative"}
        request = InferRequest(request_id="probe", call=call, seed="probe", indices=[], texts=[], policy=policy)
        longest = min(max(self._sizes, default=0), _LONGEST_PROBE)
        return request, request.model_dump_json().encode().ljust(longest)

    async def _set_way_back(self, name: str) -> None:
        for one in self.replicas.all:
            await one.http.set_way_back(self.source, name)

    async def close(self) -> None:
        await self.replicas.close()


def _is_away(failure: UpstreamFailure) -> bool:
    """Whether one failure says that other replicas had better be asked: it is gone, hangs, or takes no call of ours."""
    return _unanswered(failure) or failure.reason == "upstream_timeout" or failure.answered in _AWAY


def _unanswered(failure: UpstreamFailure) -> bool:
    """Whether nothing came back: no connection, or one that broke."""
    return failure.reason == "upstream_unavailable"
