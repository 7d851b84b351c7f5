"""The autoscaler over real replicas of one tier, slept: processes that it starts, and drains with SIGTERM.

Texts come open-loop, as at random (Poisson), at a rate that steps up. The controller is the one of the simulation
(`hpa.py`); it reads what each replica's `/metrics` says:

    wait   `tierwise_wait_seconds`
    cpu    the share of the time since the last scrape in which its model ran (the sum of the stage `infer`). Layers
           that sleep use no processor; were they computed by one thread, they would use one for just so long

A replica is ready once `/readyz` says so. Nobody tells the first tier: it asks all ports where replicas may be.
"""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections import Counter, deque
from collections.abc import Sequence
from contextlib import ExitStack, aclosing
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import httpx
import numpy as np
import psutil

from lab.scale.hpa import Autoscaler, Spec
from lab.scale.simulate import Outcome
from lab.scale.slept import LOST, OK, REFUSED, Caller, Plan, Replicas, replicas
from lab.scale.step import CPU_TARGET, READS, Read, reaction, summary
from shared.links.clients import AsyncClient

SYNC_S, READY_S, SCRAPE_LIMIT_S, SLICE_S = 15.0, 0.5, 3.0, 15.0
LIVE_READS = (READS[1], READS[3])  # as the manifests read: the mean of 30 s
_METRICS = {
    "wait": re.compile(r"^tierwise_wait_seconds\{[^}]*\} (\S+)$", re.MULTILINE),
    "cpu": re.compile(r'^tierwise_stage_duration_seconds_sum\{[^}]*stage="infer"[^}]*\} (\S+)$', re.MULTILINE),
}


@dataclass
class Seen:
    """One replica as the controller sees it."""

    url: str
    client: AsyncClient
    values: deque[float]  # the last scrapes
    ready: bool = False
    total: tuple[float, float] | None = None  # when the model's seconds were read last, and how many


@dataclass
class Told:
    """What a run adds to its outcome."""

    became: Counter[str] = field(default_factory=Counter)
    late_s: list[float] = field(default_factory=list)  # by how much each text left after it was due


class Live:
    """One run: texts, scrapes and the controller, on one event loop."""

    def __init__(self, running: Replicas, read: Read, spec: Spec, phases: Sequence[tuple[float, float]]) -> None:
        self._running, self.read, self._phases = running, read, phases
        target = CPU_TARGET if read.signal == "cpu" else None
        self._scaler = Autoscaler(spec.within(1, running.plan.most, target))
        self._seen: list[Seen] = []
        self._free = list(running.urls)
        self._stops: set[asyncio.Task[None]] = set()
        self.out, self.told = Outcome(), Told()

    async def run(self, seed: int) -> None:
        """Send every phase's texts while the controller works; then wait for what is under way."""
        (url,) = self._running.ends.values()
        self._add()  # it runs already
        self._began = time.monotonic()
        jobs = [asyncio.create_task(job) for job in (self._watch(), self._scrapes(), self._syncs())]
        try:
            async with aclosing(Caller(url)) as caller, asyncio.TaskGroup() as texts:
                began, number, draw = 0.0, 0, random.Random(seed)
                for seconds, rate in self._phases:
                    due = began
                    while (due := due + draw.expovariate(rate)) < began + seconds:
                        await self._until(due)
                        self._check(jobs)
                        texts.create_task(self._ask(caller, number, due))
                        number += 1
                    began += seconds
                await self._until(began)
        finally:
            for job in jobs:
                job.cancel()
            await asyncio.gather(*jobs, return_exceptions=True)
        self._check(jobs)
        await asyncio.gather(*self._stops)
        await asyncio.gather(*(one.client.aclose() for one in self._seen))

    @property
    def drained(self) -> list[int]:
        """The exit statuses of the replicas that were drained."""
        return self._running.statuses

    @property
    def _now(self) -> float:
        return time.monotonic() - self._began

    async def _until(self, due: float) -> None:
        await asyncio.sleep(max(0.0, due - self._now))

    def _check(self, jobs: Sequence[asyncio.Task[None]]) -> None:
        """Raise what a job of the controller raised."""
        for job in jobs:
            if job.done() and not job.cancelled():
                job.result()

    async def _ask(self, caller: Caller, number: int, due: float) -> None:
        self.told.late_s.append(self._now - due)
        said = await caller.ask(number)
        self.told.became[said] += 1
        if said == OK:
            self.out.answered.append((due, self._now - due))
        elif said == REFUSED:
            self.out.refused.append(due)
        else:
            self.out.degraded += 1

    # -- the autoscaler ---------------------------------------------------------------------------------------------

    def _add(self) -> None:
        url = self._free.pop(0)
        if url not in self._running.running:
            self._running.start(url)
        client = AsyncClient(url, timeout=SCRAPE_LIMIT_S)
        self._seen.append(Seen(url, client, deque(maxlen=self.read.scrapes)))

    def _remove(self) -> None:
        """The youngest leaves: it drains, and what it holds is finished."""
        gone = self._seen.pop()

        async def leave() -> None:
            await gone.client.aclose()
            await self._running.stop(gone.url)
            self._free.insert(0, gone.url)

        self._stops.add(asyncio.create_task(leave()))

    async def _watch(self) -> None:
        """See which replicas are ready, and that none has stopped by itself."""
        self._note()
        while True:
            for one in [one for one in self._seen if not one.ready]:
                try:
                    one.ready = (await one.client.get("/readyz")).status_code == 200
                except httpx.HTTPError:
                    continue
                self._note()
            self._running.check()
            await asyncio.sleep(READY_S)

    async def _scrapes(self) -> None:
        due = 0.0
        while True:
            await self._until(due := due + self.read.scrape_s)
            await asyncio.gather(*(self._scrape(one) for one in self._seen if one.ready))

    async def _scrape(self, one: Seen) -> None:
        """Read one replica; one that does not answer keeps its older values, as a gap in Prometheus leaves them."""
        try:
            page = (await one.client.get("/metrics")).text
        except (httpx.HTTPError, RuntimeError):  # it leaves meanwhile
            return
        now, value = time.monotonic(), float(_METRICS[self.read.signal].findall(page)[0])
        if self.read.signal == "wait":
            one.values.append(value)
            return
        if one.total is not None:
            one.values.append((value - one.total[1]) / (now - one.total[0]))
        one.total = (now, value)

    async def _syncs(self) -> None:
        due = SYNC_S / 2  # half a period behind the scrapes
        while True:
            await self._until(due := due + SYNC_S)
            values = [fmean(one.values) for one in self._seen if one.values]
            current = len(self._seen)
            wanted = self._scaler.step(self._now, current, values, current - len(values))
            for _ in range(current, wanted):
                while not self._free:  # the port of one that still drains
                    await asyncio.wait(self._stops, return_when=asyncio.FIRST_COMPLETED)
                self._add()
            for _ in range(wanted, current):
                self._remove()
            if wanted != current:
                self._note()

    def _note(self) -> None:
        self.out.replicas.append((self._now, len(self._seen), sum(one.ready for one in self._seen)))


@dataclass(frozen=True)
class Step:
    """Rest at `rate` texts a second, then `times` as much; seconds."""

    rate: float
    times: float
    rest_s: float
    step_s: float

    @property
    def phases(self) -> tuple[tuple[float, float], ...]:
        return (self.rest_s, self.rate), (self.step_s, self.times * self.rate)


def react(plan: Plan, spec: Spec, step: Step, *, seed: int = 0) -> dict[str, Any]:
    """A row for each signal, as the simulation's are. All run at once: they meet the same texts, and the same machine.

    Raises:
        BadSetting: a replica does not start, or stops by itself.
    """
    with ExitStack() as stack:
        lives = [
            Live(stack.enter_context(replicas(plan, [plan.most], 1)), read, spec, step.phases) for read in LIVE_READS
        ]
        psutil.cpu_percent()
        asyncio.run(_all(lives, seed))
        return {"processors_busy": psutil.cpu_percent() / 100, "signals": [_row(live, step) for live in lives]}


async def _all(lives: Sequence[Live], seed: int) -> None:
    async with asyncio.TaskGroup() as group:
        for live in lives:
            group.create_task(live.run(seed))


def _row(live: Live, step: Step) -> dict[str, Any]:
    told, drained = live.told, live.drained
    return {
        **summary(live.read, [reaction(live.out, step.rest_s, step.step_s)]),
        "became": dict(sorted(told.became.items())),
        "lost": sum(n for what, n in told.became.items() if what.startswith(LOST)),
        "drained": drained.count(0),
        "ended_otherwise": len(drained) - drained.count(0),
        "late_p99_ms": float(np.percentile(told.late_s, 99)) * 1e3,
        "over_time": slices(live.out, -step.rest_s, step.step_s),
    }


def slices(out: Outcome, begins: float, ends: float) -> dict[str, list[float | None]]:
    """Of the texts that came in each `SLICE_S`, seconds from the step on: p99 of their latency, share of the refused.

    A slice without an answer has no latency.
    """
    edges = np.arange(0.0, ends - begins + SLICE_S / 2, SLICE_S)
    came, latency_s = np.array(out.answered).T
    refused, answered = np.histogram(out.refused, edges)[0], np.histogram(came, edges)[0]
    where = np.searchsorted(edges, came, side="right") - 1
    p99 = [float(np.percentile(latency_s[where == at], 99)) * 1e3 if n else None for at, n in enumerate(answered)]
    shares = (refused / np.maximum(1, refused + answered)).tolist()
    return {"at_s": (edges[:-1] + begins).tolist(), "p99_ms": p99, "refused": shares}
