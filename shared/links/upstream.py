"""One link to a further tier: what a call may take, what it carried, and when the tier is not asked at all.

deadline   the callee gets the remaining time less what the link is measured to take; a late answer is dropped
answer     it names the call and the index of each text, in order, or it is not believed
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

import httpx
import structlog
from pydantic import ValidationError

from shared.contracts import CONTRACT_VERSION, DegradedReason, InferredRow, InferRequest, InferResponse, LinkUse
from shared.errors import BadSetting, DeadlinePassed, UpstreamFailure
from shared.links import connections
from shared.links.breaker import Breaker
from shared.links.carried import Carried, with_link
from shared.links.estimates import Smoothed
from shared.links.http import UpstreamHttp
from shared.links.measured import Line, Measured
from shared.links.profile import UNSHAPED, Backend, Profile, on_the_wire, profile
from shared.links.shaped import ShapedLinks, ask_shaper
from shared.links.simulated import SimulatedLink
from shared.links.trace import known_trace
from shared.model.state import STATES_TYPE, frame

log = structlog.get_logger()
_FORGET_S = 5.0  # a measured link time older than this is no longer held against the link
_FORGET_USUAL_S = 60.0  # nor is what a call usually takes held in the upstream's favour
_IMPATIENT_S = 1.0  # before anything is measured: a deadline shorter than this is no failure of the upstream
_NEUTRAL = {400, 413, 422, 429, 504}  # this request's fault, or an upstream that works and is busy
_LONGEST_PROBE = 65_536  # bytes
_NOT_TAKEN = {404, 405, 413, 415, 422}  # an upstream that cannot go on from states, or not from this one
_ASK_AGAIN_S = 60.0  # pause before a state is sent there again


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
        self.source, self.target, self.url, self._name = source, target, url, f"{source}-{target}"
        self._backend, self._profile, self._shaped = backend, profile(profile_name), shaped
        self._timeout_s, self._probe_s = timeout_s, probe_s
        self._simulated = SimulatedLink(self._profile) if backend is Backend.SIMULATED else None
        self.measured = Measured(clock)
        self._http = UpstreamHttp(
            target=target,
            url=url,
            link=self._simulated,
            timeout_s=timeout_s,
            key=key,
            transport=transport,
            count_retry=count_retry,
            hear=self.measured.hear,
        )
        self.breaker = Breaker()
        self._forget()
        self._states_from = -math.inf  # the time from which on it is sent states
        self.bytes_up = self.bytes_down = 0  # of bodies, in calls that were answered
        self._sizes: deque[int] = deque(maxlen=20)  # bytes of the last requests
        self._probing: asyncio.Task[None] | None = None

    @property
    def link(self) -> tuple[Backend, Profile]:
        """Who enforces what on this link now; a link that should be shaped and is not says `none`, `unshaped`."""
        if self._backend is not Backend.NETEM or self._shaped is None:
            return self._backend, self._profile
        shaped = self._shaped.in_force(self._name)
        return (Backend.NETEM, shaped) if shaped else (Backend.NONE, UNSHAPED)

    @property
    def is_cut(self) -> bool:
        """Whether an operator has cut this link."""
        if self._shaped is not None:
            return self._shaped.is_cut(self._name)
        return self._simulated is not None and self._simulated.is_cut

    @property
    def trace(self) -> str | None:
        """The trace that the link follows; null: none."""
        if self._shaped is not None:
            return self._shaped.trace(self._name)
        return None if self._simulated is None else self._simulated.trace

    async def set_profile(self, name: str) -> None:
        """Make it another link from now on; it ends a cut.

        Raises:
            BadSetting: no such profile, or nobody enforces this link.
            UpstreamFailure: the way out is changed, and the tier at the other end did not change the way back.
        """
        wanted = profile(name)
        try:
            if self._simulated is not None:
                self._profile = wanted
                self._simulated.set(wanted)
            else:
                await self._ask_shaper(do="set", profile=name)
                if wanted.loss_ratio < 1:  # else nothing would come back that says so; a way out that is lost is enough
                    await self._http.set_way_back(self.source, name)
        finally:
            self._forget()

    def play(self, name: str) -> None:
        """Follow a trace of `deploy/netem/traces` over the link's profile, from its start; it ends a cut.

        Raises:
            BadSetting: no such trace, or this tier does not simulate the link.
        """
        trace = known_trace(name)
        if self._simulated is None:
            raise BadSetting("only a simulated link plays a trace here; for a shaped one: tierwise link trace")
        self._simulated.play(trace)
        self._forget()

    async def cut(self, *, cut: bool) -> None:
        """Cut the link, or heal it. Raises BadSetting where nobody enforces it.

        The shaper cuts the way out alone: then no call arrives, and none is answered.
        """
        if self._simulated is None:
            await self._ask_shaper(do="cut" if cut else "heal")
        elif cut:
            self._simulated.cut()
        else:
            self._simulated.heal()
        self._forget()

    async def _ask_shaper(self, **command: str) -> None:
        if self._shaped is None:
            raise BadSetting(f"TIERWISE_LINKS={self._backend}: nobody enforces this link, so nobody can change it")
        await ask_shaper(self._shaped.folder, link=self._name, **command)

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
        if self.breaker.open:
            self._watch()
            raise UpstreamFailure("breaker_open", f"{self.target} failed again and again; it is being probed")
        upload_s = on_the_wire(sum(map(len, states))) * self.byte_s if states else 0.0
        if within_s is not None:
            if within_s <= self.link_s + upload_s:
                raise UpstreamFailure("deadline", f"{self.target}: {within_s * 1e3:.0f} ms remain, the link takes more")
            request = request.model_copy(update={"deadline_ms": (within_s - self.link_s - upload_s) * 1e3})
        request = request.model_copy(update={"call": secrets.token_hex(8)})
        head, started = request.model_dump_json().encode(), self._clock()
        body = frame(head, states) if states else head
        link_time, usual = self._link_time, self._usual
        self._sizes.append(len(head))
        sends(len(body))
        self.measured.begin(request.call)
        try:
            answer = await self._post(body, headers, request.call, within_s, limit_bytes, of_states=bool(states))
            response = self._read(answer, request)
            check(response.rows)
        except UpstreamFailure as failure:
            if self._blames(failure, within_s):
                self._count(failed=True)
            raise
        finally:
            self.measured.end(request.call)
        seconds = self._clock() - started
        self._count(failed=False)
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

    async def _post(
        self,
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
                return await self._http.post(body, headers, call=call, limit_bytes=limit_bytes, path=path)
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

    def _count(self, *, failed: bool) -> None:
        was_open = self.breaker.open
        self.breaker.count(failed=failed)
        if self.breaker.open and not was_open:
            log.warning("breaker_open", tier=self.source, to=self.target)
            self._watch()

    def _watch(self) -> None:
        """Probe in the background until the upstream is well."""
        if self._probing is None or self._probing.done():
            self._probing = asyncio.get_running_loop().create_task(self._probe_until_well())

    async def _probe_until_well(self) -> None:
        pause, probe, body = self._probe_s, *self._probe()
        began = time.monotonic()
        while self.breaker.open:
            await asyncio.sleep(max(0.0, began + pause - time.monotonic()))
            began = time.monotonic()
            try:
                async with asyncio.timeout(self._probe_limit_s(len(body))):
                    answer = await self._http.probe(body, call=probe.call, limit_bytes=2 * _LONGEST_PROBE)
                    self._read(answer, probe)
            except (UpstreamFailure, TimeoutError):
                pause = min(2 * pause, 4 * self._probe_s)  # from one probe's start to the next one's
            else:
                self.breaker.close()
                log.info("breaker_closed", tier=self.source, to=self.target)

    def _probe_limit_s(self, size: int) -> float:
        """What a probe of so many bytes may take on the link as it is now."""
        link = self.link[1]
        sending_s = sum(8 * size / rate for rate in (link.rate_up_bps, link.rate_down_bps) if rate)
        return min(self._timeout_s, max(2.0, 3 * (link.rtt_s + sending_s)))

    def _probe(self) -> tuple[InferRequest, bytes]:
        """A request without texts, and its body with white space behind it."""
        call, policy = secrets.token_hex(8), {"name": "collaborative"}
        request = InferRequest(request_id="probe", call=call, seed="probe", indices=[], texts=[], policy=policy)
        longest = min(max(self._sizes, default=0), _LONGEST_PROBE)
        return request, request.model_dump_json().encode().ljust(longest)

    async def close(self) -> None:
        if self._probing is not None:
            self._probing.cancel()
        await self._http.close()
