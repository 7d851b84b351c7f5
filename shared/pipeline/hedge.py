"""Hedged sending: a call that takes longer than nearly all like it is made a second time, another way.

    late        longer than the 95th percentile of the last 100 calls of its kind: to the same tier, with as many texts
    other way   past the tier to a deeper one that this tier has a link to, unless that very tier must answer; else
                through a tier between, which passes it on, where no tier but the one that was chosen could answer
    budget      at most a share of any 100 calls that could be hedged; 0: none is

The first answer counts, and the other call is cancelled: no text is answered twice. If one call fails, the other is
waited for. A first call that is cancelled stands among its kind with the time that it had taken by then. Where the
second call goes past a tier, a deeper one answers. Dean & Barroso, "The Tail at Scale", CACM 2013. Left out: calls that
began ahead of their tier's answer.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from shared.contracts import Hedge, TextPair
from shared.links.carried import Carried
from shared.links.upstream import Upstream
from shared.pipeline.speculation import WINDOW, Budget
from shared.pipeline.text import Call, Text
from shared.policies import Decision

if TYPE_CHECKING:
    from shared.pipeline.sender import Sender

LEAST_CALLS, LATE = 20, 0.95
Kind = tuple[str | None, bool, int]  # the tier, whether it must answer, how many texts


class Usual:
    """How long calls of each kind took: the last `WINDOW` of them."""

    def __init__(self) -> None:
        self._seconds: dict[Kind, deque[float]] = {}

    def add(self, kind: Kind, seconds: float) -> None:
        self._seconds.setdefault(kind, deque(maxlen=WINDOW)).append(seconds)

    def late_s(self, kind: Kind) -> float | None:
        """The 95th percentile; null before `LEAST_CALLS`.

        >>> usual = Usual()
        >>> for ms in range(1, 21):
        ...     usual.add(("edge", False, 1), ms / 1e3)
        >>> usual.late_s(("edge", False, 1)), usual.late_s(("edge", False, 2))
        (0.019, None)
        """
        known = sorted(self._seconds.get(kind, ()))
        return known[math.ceil(LATE * len(known)) - 1] if len(known) >= LEAST_CALLS else None


@dataclass(frozen=True)
class _Leg:
    """One of two calls: the link that it takes, when it began, and its body's bytes once it leaves."""

    upstream: Upstream
    began: float
    task: asyncio.Task[Carried]
    sizes: list[int]

    @property
    def answered(self) -> bool:
        return self.task.done() and not self.task.cancelled() and self.task.exception() is None


class Hedger:
    """Carries a tier's calls. `clock` gives seconds."""

    def __init__(self, sender: Sender, budget: Budget, clock: Callable[[], float]) -> None:
        self._sender, self._budget, self._clock = sender, budget, clock
        self._usual = Usual()

    async def carry(
        self, call: Call, way: Decision, texts: Sequence[Text], onward: Sequence[TextPair], within_s: float | None
    ) -> Carried:
        """Ask a tier as `Sender.carry` does, and another way too if it is late.

        Raises:
            UpstreamFailure: with the reason; of two calls that fail, the first one's.
        """
        if not self._budget.any:
            return await self._sender.carry(call, way, texts, onward, within_s)
        kind, began = (way.to, way.final, len(texts)), self._clock()
        late_s, other = self._usual.late_s(kind), self._other(call, way)

        def leg(way: Decision, upstream: Upstream) -> _Leg:
            now, sizes = self._clock(), list[int]()
            left_s = None if within_s is None else within_s - (now - began)
            work = self._sender.carry(call, way, texts, onward, left_s, sends=sizes.append, via=upstream)
            task = asyncio.get_running_loop().create_task(work)
            task.add_done_callback(lambda done: done.cancelled() or done.exception())  # nobody else may ask
            return _Leg(upstream, now, task, sizes)

        legs, begun = [leg(way, self._sender.upstream(str(way.to)))], False
        try:
            if late_s is not None and other is not None:
                await asyncio.wait([legs[0].task], timeout=late_s)
                if begun := not legs[0].task.done() and self._budget.begin():
                    legs.append(leg(*other))
            answer = await self._first_of(legs)
        finally:
            for one in legs:
                one.task.cancel()
            if late_s is not None and other is not None:
                self._budget.end(begun=begun, wasted=begun)
        self._usual.add(kind, self._clock() - began)
        return answer

    def _other(self, call: Call, way: Decision) -> tuple[Decision, Upstream] | None:
        """Another way to an answer, and its link; null where there is none."""
        sender, to = self._sender, str(way.to)
        taken, order = sender.upstream(to), sender.route.order
        links = [link for link in sender.upstreams.values() if link is not taken and not link.is_down]
        past = [link for link in links if order.index(link.target) > order.index(to)]
        past = [] if way.final else [link for link in past if link.target in call.where.reachable]
        if past:
            return replace(way, to=past[0].target), past[0]
        through = [link for link in links if order.index(link.target) < order.index(to)]
        if through and (way.final or to == call.where.reachable[-1]):
            return replace(way, final=True), through[-1]
        return None

    async def _first_of(self, legs: Sequence[_Leg]) -> Carried:
        """The first answer; where two calls were made, with the other one on record."""
        waited = [leg.task for leg in legs]
        while waited and not any(leg.answered for leg in legs):
            await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
            waited = [task for task in waited if not task.done()]
        won = next((leg for leg in legs if leg.answered), legs[0])
        if len(legs) == 1:
            return await won.task
        lost = legs[won is legs[0]]
        self._count(legs, won, lost)
        return self._on_record(await won.task, legs, lost)

    def _count(self, legs: Sequence[_Leg], won: _Leg, lost: _Leg) -> None:
        """Count a hedge, and what the call that is given up put on its link; one that failed counts as any other."""
        name, telemetry = self._sender.name, self._sender.telemetry
        first, second = (leg.upstream.target for leg in legs)
        outcome = "failed" if not won.answered else "lost" if won is legs[0] else "won"
        telemetry.hedges.labels(name, first, second, outcome).inc()
        if not won.answered:
            return
        for counter in (telemetry.link_bytes, telemetry.hedge_wasted_bytes):
            counter.labels(f"{name}-{lost.upstream.target}", "up").inc(sum(lost.sizes))
        telemetry.joules.labels(f"{name}-{lost.upstream.target}").inc(self._joules(lost) or 0.0)

    def _on_record(self, answer: Carried, legs: Sequence[_Leg], lost: _Leg) -> Carried:
        """The answer, whose hops say that another call was made, and what it cost."""
        first, second = legs
        joules, texts = self._joules(lost), max(1, len(answer.rows))
        hedge = Hedge(
            first=first.upstream.target,
            second=second.upstream.target,
            after_ms=round((second.began - first.began) * 1e3, 3),
            won=lost is first,
            request_bytes=sum(lost.sizes) // texts,
            modelled_joules=None if joules is None else round(joules / texts, 6),
        )
        rows = [
            row.model_copy(update={"hops": [row.hops[0].model_copy(update={"hedge": hedge}), *row.hops[1:]]})
            if row.hops
            else row
            for row in answer.rows
        ]
        return replace(answer, rows=rows)

    def _joules(self, lost: _Leg) -> float | None:
        radio = lost.upstream.link[1].radio
        return None if radio is None else radio.joules(sum(lost.sizes), 0, self._clock() - lost.began)
