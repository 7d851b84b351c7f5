"""The way from a tier to the further ones: one call per destination, whose hops come behind the tier's."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import structlog

from shared.contracts import TextPair
from shared.errors import UpstreamFailure
from shared.links.carried import Carried
from shared.links.upstream import Upstream
from shared.model.bundle import Bundle
from shared.pipeline.carry import States
from shared.pipeline.hedge import Hedger
from shared.pipeline.hops import carried, check_rows, most_bytes
from shared.pipeline.route import Route
from shared.pipeline.speculation import Budget
from shared.pipeline.text import Call, Text
from shared.policies import Decision
from shared.telemetry import Telemetry

log = structlog.get_logger()
MERGE_S = 0.005  # kept back of every deadline for putting an answer together


class Sender:
    """Sends texts on from the tier `name`. `upstreams` are its links, nearest first."""

    def __init__(
        self,
        *,
        name: str,
        bundle: Bundle,
        upstreams: Sequence[Upstream],
        telemetry: Telemetry,
        hedges: Budget,
        clock: Callable[[], float],
        states: States | None = None,
    ) -> None:
        self.name, self.bundle, self.telemetry, self.states = name, bundle, telemetry, states
        self.upstreams = {upstream.target: upstream for upstream in upstreams}
        self.route = Route(bundle.order, name, tuple(self.upstreams))
        self._hedger = Hedger(self, hedges, clock)

    def upstream(self, to: str) -> Upstream:
        """The link to take to a tier."""
        return self.upstreams[self.route.toward(to)]

    def within_s(self, call: Call, *, reserve_s: float = 0.0) -> float | None:
        """Seconds that a call to another tier may take now; null: without a deadline."""
        remaining_s = call.remaining_s()
        return None if remaining_s is None else remaining_s - reserve_s - MERGE_S

    async def send(self, call: Call, texts: Sequence[Text], *, reserve_s: float = 0.0) -> None:
        """Send texts on, one call per destination. Each text then has the further hops, or the reason why none came.

        `reserve_s` of the deadline are kept back, so that this tier can answer if no other does.
        """
        within_s = self.within_s(call, reserve_s=reserve_s)
        groups: dict[tuple[str | None, bool, int], list[Text]] = {}
        for text in texts:
            after = text.way.layer if text.way is not None and text.by_state else 0
            groups.setdefault((text.decision.to, text.decision.final, after), []).append(text)
        calls = [
            (part[0].decision, part, after > 0)
            for (_, _, after), group in groups.items()
            for part in (self.states.parts(group) if self.states and after else [group])
        ]
        await asyncio.gather(*(self._ask(call, way, part, within_s, by_state) for way, part, by_state in calls))

    async def _ask(
        self, call: Call, way: Decision, texts: Sequence[Text], within_s: float | None, by_state: bool
    ) -> None:
        """Give these texts, which go the same way, the hops of the tiers behind, or the reason why none came."""
        assert way.to is not None
        begun = texts[0].ahead
        try:
            if by_state and self.states is not None:
                answered = await self._by_state(call, way, texts, within_s, self.states)
            else:
                onward = [text.onward for text in texts]
                answered = await (self._hedger.carry(call, way, texts, onward, within_s) if begun is None else begun)
        except UpstreamFailure as failure:
            if failure.reason != "breaker_open":  # it was logged once, when the breaker opened
                log.warning("upstream_failed", tier=self.name, to=way.to, reason=failure.reason, detail=str(failure))
            for text in texts:
                text.degraded = failure.reason
            return
        self.telemetry.stage("link", answered.link_s)
        link = f"{self.name}-{answered.target}"
        for direction, size in (("up", answered.request_bytes), ("down", answered.response_bytes)):
            self.telemetry.link_bytes.labels(link, direction).inc(size)
        self.telemetry.joules.labels(link).inc(answered.joules or 0.0)
        if self.states is not None:
            self.states.learn(way.to, texts, answered.rows, by_state=by_state and texts[0].by_state)
        for text, row in zip(texts, answered.rows, strict=True):
            text.behind = row.hops
            text.degraded = row.degraded or (None if row.hops else "upstream_refused")
            if call.watch is not None:
                for hop in row.hops:
                    call.watch.hop_from_afar(text.index, hop, cut=text.degraded == "deadline")

    async def _by_state(
        self, call: Call, way: Decision, texts: Sequence[Text], within_s: float | None, states: States
    ) -> Carried:
        """Send texts on with their states. A tier that refuses these gets the texts alone, whole.

        Raises:
            UpstreamFailure: with the reason.
        """
        assert way.to is not None
        onward, packed = [text.onward for text in texts], [states.packed(text) for text in texts]
        began, upstream = call.clock(), self.upstream(way.to)
        try:
            return await self.carry(call, way, texts, onward, within_s, states=packed)
        except UpstreamFailure as failure:
            if not upstream.refuses_states(failure):
                raise
            log.warning("states_refused", tier=self.name, to=way.to, detail=str(failure))
        for text in texts:
            text.go_by_text()
        remaining_s = None if within_s is None else within_s - (call.clock() - began)
        return await self.carry(call, way, texts, onward, remaining_s)

    async def carry(
        self,
        call: Call,
        way: Decision,
        texts: Sequence[Text],
        onward: Sequence[TextPair],
        within_s: float | None,
        *,
        sends: Callable[[int], None] = lambda size: None,
        via: Upstream | None = None,
        states: Sequence[bytes] = (),
    ) -> Carried:
        """Ask one tier for the hops of these texts, sent as `onward`; with `way.final` it must answer itself.

        `via` is another link than the usual one to it. With `states`, packed, it goes on from these, and gets the way
        of each text so far.

        Raises:
            UpstreamFailure: with the reason.
        """
        assert way.to is not None
        part: dict[str, Any] = {"indices": [text.index for text in texts], "texts": list(onward)}
        if (call.policy.carries_visits and not way.final) or states:
            part["visits"] = [carried(self.bundle, text.visits(self.name)) for text in texts]
        request = call.request.model_copy(update={"visits": None, **part, "target": way.to if way.final else None})
        return await (via or self.upstream(way.to)).infer(
            request,
            dict(call.headers),
            states=states,
            within_s=within_s,
            limit_bytes=most_bytes(self.bundle, self.name, request),
            check=partial(check_rows, self.bundle, self.name, request),
            sends=sends,
        )
