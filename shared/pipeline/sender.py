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
    ) -> None:
        self.name, self.bundle, self.telemetry = name, bundle, telemetry
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
        groups: dict[tuple[str | None, bool], list[Text]] = {}
        for text in texts:
            groups.setdefault((text.decision.to, text.decision.final), []).append(text)
        await asyncio.gather(*(self._ask(call, group[0].decision, group, within_s) for group in groups.values()))

    async def _ask(self, call: Call, way: Decision, texts: Sequence[Text], within_s: float | None) -> None:
        """Give these texts, which go the same way, the hops of the tiers behind, or the reason why none came."""
        assert way.to is not None
        begun = texts[0].ahead
        try:
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
        for text, row in zip(texts, answered.rows, strict=True):
            text.behind = row.hops
            text.degraded = row.degraded or (None if row.hops else "upstream_refused")
            if call.watch is not None:
                for hop in row.hops:
                    call.watch.hop_from_afar(text.index, hop, cut=text.degraded == "deadline")

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
    ) -> Carried:
        """Ask one tier for the hops of these texts, sent as `onward`; with `way.final` it must answer itself.

        `via` is another link than the usual one to it.

        Raises:
            UpstreamFailure: with the reason.
        """
        assert way.to is not None
        part: dict[str, Any] = {"indices": [text.index for text in texts], "texts": list(onward)}
        if call.policy.carries_visits and not way.final:
            part["visits"] = [carried(self.bundle, text.visits(self.name)) for text in texts]
        request = call.request.model_copy(update={"visits": None, **part, "target": way.to if way.final else None})
        return await (via or self.upstream(way.to)).infer(
            request,
            dict(call.headers),
            within_s=within_s,
            limit_bytes=most_bytes(self.bundle, self.name, request),
            check=partial(check_rows, self.bundle, self.name, request),
            sends=sends,
        )
