"""A mesh of node processes on this machine over simulated links, and the texts that come to a mesh's source.

Texts come open-loop: at a rate, however slow the answers are (Poisson); where the source adapts its rate, some always
wait outside. On one machine the nodes share its processors: either they sleep for a given time on recorded exits
(`slept`), or they compute and slow each other down (`computed`). The outcome says which.
"""

from __future__ import annotations

import asyncio
import os
import random
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx

from lab.data.examples import Example
from lab.live.client import LIMITS, key_of
from lab.live.stack import Process, free_ports, started, stop, wait_ready
from lab.mesh import containers
from lab.mesh.nodes import Mesh, Nodes, settings_of
from lab.mesh.outcome import DRAIN_S, Answered, Cell, Outcome, Sample
from lab.mesh.report import MOST_SAMPLES
from shared.errors import BadSetting
from shared.links.clients import AsyncClient
from shared.links.profile import Backend
from shared.mesh.source import Adapt
from shared.model.bundle import Bundle
from shared.web.parent import FLAG

SAMPLE_S, OUTSIDE_S, OUTSIDE = 0.5, 0.2, 30  # a source admits fewer than 150 texts a second


@contextmanager
def running(cell: Cell, mesh: Mesh) -> Iterator[Processes]:
    """The nodes of a cell as processes, ready; stopped on the way out.

    Raises:
        BadSetting: a node does not start.
    """
    nodes = cell.topology.nodes
    first = free_ports(len(nodes))
    urls = {name: f"http://127.0.0.1:{first + at}" for at, name in enumerate(nodes)}
    recorded = mesh.recorded.absolute() if mesh.recorded else ""
    with tempfile.TemporaryDirectory(prefix="tierwise-mesh-") as scratch:
        processes: dict[str, Process] = {}
        try:
            for at, (name, others) in enumerate(cell.topology.edges.items()):
                settings = {
                    **os.environ,
                    "TIERWISE_TIER": name,
                    "TIERWISE_BUNDLE": str(mesh.bundle.folder),
                    "TIERWISE_PORT": str(first + at),
                    "TIERWISE_UPSTREAMS": ",".join(f"{other}={urls[other]}" for other in others),
                    "TIERWISE_LINK_PROFILES": ",".join(f"{other}={cell.link}" for other in others),
                    "TIERWISE_LINKS": Backend.SIMULATED.value,
                    "TIERWISE_RECORDED": str(recorded),
                    **settings_of(cell, mesh, name),
                }
                command = ["services.node", FLAG]
                processes[name] = started(name, urls[name], command, settings, Path(scratch) / f"{name}.log")
            wait_ready(list(processes.values()))
            yield Processes(processes)
        finally:
            for process in processes.values():
                if process.child.poll() is not None and process.child.stdin:  # it was killed
                    process.child.stdin.close()
            stop([process for process in processes.values() if process.child.poll() is None])


class Processes:
    """Node processes on this machine, by name."""

    def __init__(self, processes: Mapping[str, Process]) -> None:
        self._processes = processes
        self.urls: Mapping[str, str] = {name: process.url for name, process in processes.items()}

    def kill(self, name: str) -> None:
        with suppress(ProcessLookupError):
            self._processes[name].child.kill()

    def cut(self, link: str, *, cut: bool) -> None:
        raise BadSetting(f"link {link}: only links of containers can be cut: add --compose")

    def check(self, name: str) -> None:
        self._processes[name].check()


def run(cell: Cell, mesh: Mesh, texts: Sequence[Example]) -> Outcome:
    """Run a cell on live nodes.

    Raises:
        BadSetting: a node does not start, or stops.
    """
    if not mesh.compose:
        with running(cell, mesh) as processes:
            return asyncio.run(_Load(cell, mesh.bundle, texts, processes).run())
    with containers.running(cell, mesh) as stack:
        outcome = asyncio.run(_Load(cell, mesh.bundle, texts, stack).run())
    outcome.facts["verified"] = stack.verified
    return outcome


class _Load:
    """The texts that come to the source of one run, and what came of them."""

    def __init__(self, cell: Cell, bundle: Bundle, texts: Sequence[Example], nodes: Nodes) -> None:
        self.cell, self.bundle, self.texts, self.nodes = cell, bundle, texts, nodes
        self.out, self._asks = Outcome(), set[asyncio.Task[None]]()
        self._clients: dict[str, AsyncClient] = {}
        self._admitted, self._killed = 0, False

    async def run(self) -> Outcome:
        """Offer texts for so long, sample the nodes meanwhile, then wait for what is under way."""
        key = key_of("TIERWISE_DOOR_KEY_FILE")
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        limits = httpx.Limits(max_connections=10_000, max_keepalive_connections=LIMITS.max_keepalive_connections)
        self._clients = {
            name: AsyncClient(url, headers=headers, timeout=600, limits=limits) for name, url in self.nodes.urls.items()
        }
        self._began = time.perf_counter()
        jobs = [asyncio.create_task(job) for job in (self._sample(), self._kill(), self._cut())]
        try:
            await (self._fill() if self.cell.adapt is Adapt.RATE else self._offer())
            if self._asks:
                await asyncio.wait(self._asks, timeout=DRAIN_S)
            self.out.unfinished = sum(not ask.done() for ask in self._asks)
            await jobs[0]
            await self._count()
        finally:
            for job in (*jobs, *self._asks):
                job.cancel()
            await asyncio.gather(*jobs, *self._asks, return_exceptions=True)
            await asyncio.gather(*(client.aclose() for client in self._clients.values()))
        for name in self.nodes.urls:
            if name != self._victim:
                self.nodes.check(name)
        return self.out

    @property
    def _now(self) -> float:
        return time.perf_counter() - self._began

    @property
    def _source(self) -> str:
        return self.cell.topology.sources[0]

    # -- texts ------------------------------------------------------------------------------------------------------

    async def _offer(self) -> None:
        """Poisson arrivals."""
        draw, due = random.Random(self.cell.seed), 0.0
        while (due := due + draw.expovariate(self.cell.rate)) < self.cell.seconds:
            await asyncio.sleep(max(0.0, due - self._now))
            self._ask_soon()

    async def _fill(self) -> None:
        """Texts that wait outside, at all times."""
        while self._now < self.cell.seconds:
            self._admitted = (await self._mesh(self._source))["admitted"]
            for _ in range(OUTSIDE - (self.out.offered - self._admitted)):
                self._ask_soon()
            await asyncio.sleep(OUTSIDE_S)

    def _ask_soon(self) -> None:
        self._asks.add(asyncio.create_task(self._ask(self.out.offered)))
        self.out.offered += 1

    async def _ask(self, number: int) -> None:
        at, asked_at = number % len(self.texts), self._now
        text = self.texts[at]
        inputs: Any = text.text if text.pair is None else {"text": text.text, "text_pair": text.pair}
        try:
            answer = await self._clients[self._source].post(
                "/v1/classify", json={"inputs": inputs}, headers={"x-request-id": f"{self.cell.seed}-{number}"}
            )
            told = answer.json()
        except (httpx.HTTPError, ValueError):
            self.out.lost += 1
            return
        if answer.status_code != 200:
            self.out.refused += 1
            return
        way = tuple(step["node"] for step in told["path"])
        label = self.bundle.labels.index(told["label"])
        self.out.answered.append(Answered(at, label, len(set_of(told["path"])), way, asked_at, self._now))

    # -- the nodes --------------------------------------------------------------------------------------------------

    async def _mesh(self, name: str) -> dict[str, Any]:
        try:
            return dict((await self._clients[name].get("/v1/mesh")).json())
        except httpx.HTTPError as error:
            raise BadSetting(f"node {name} does not answer: {type(error).__name__}") from error

    async def _all(self) -> dict[str, dict[str, Any]]:
        """Every node that is alive. One that is killed while it is asked is not."""
        names = [name for name in self.nodes.urls if not (self._killed and name == self._victim)]
        found = await asyncio.gather(*map(self._mesh, names), return_exceptions=True)
        for name, mesh in zip(names, found, strict=True):
            if isinstance(mesh, BaseException) and not (self._killed and name == self._victim):
                raise mesh
        return {name: mesh for name, mesh in zip(names, found, strict=True) if not isinstance(mesh, BaseException)}

    async def _sample(self) -> None:
        """Queues, gap and threshold, twice a second or as often as a picture can show."""
        every_s = max(SAMPLE_S, self.cell.seconds / MOST_SAMPLES)
        for tick in range(int(self.cell.seconds / every_s) + 1):
            await asyncio.sleep(max(0.0, tick * every_s - self._now))
            found = await self._all()
            first = found[self._source]
            queues = {name: (mesh["waiting"], mesh["leaving"]) for name, mesh in found.items()}
            self.out.samples.append(Sample(self._now, first["gap_ms"] / 1e3, first["threshold"], queues))

    async def _count(self) -> None:
        """What the nodes counted."""
        found = await self._all()
        self.out.admitted = found[self._source]["admitted"]
        self.out.again = sum(mesh["counts"]["again"] for mesh in found.values())
        counts = {name: mesh["counts"] for name, mesh in found.items()}
        ran, busy_s = (sum(count[what] for count in counts.values()) for what in ("segments", "busy_s"))
        self.out.facts["service_ms"] = round(1e3 * busy_s / max(1, ran), 3)  # measured, mean
        self.out.facts["segments"] = {name: count["segments"] for name, count in counts.items()}
        self.out.facts["delay_ms"] = {  # of a state to a neighbour, smoothed, as each node measured it
            f"{name} to {to}": neighbour["delay_ms"]
            for name, mesh in found.items()
            for to, neighbour in mesh["neighbours"].items()
        }
        self.out.facts["sent"] = {name: count["sent"] for name, count in counts.items()}

    @property
    def _victim(self) -> str | None:
        return None if self.cell.kill is None else self.cell.kill[0]

    async def _kill(self) -> None:
        if self.cell.kill is None:
            return
        name, at = self.cell.kill
        await asyncio.sleep(max(0.0, at - self._now))
        self._killed = True
        await asyncio.to_thread(self.nodes.kill, name)

    async def _cut(self) -> None:
        if self.cell.cut is None:
            return
        link, *times = self.cell.cut
        for at, cut in zip(times, (True, False), strict=True):
            await asyncio.sleep(max(0.0, at - self._now))
            await asyncio.to_thread(self.nodes.cut, link, cut=cut)
            self.out.facts.setdefault("cut_s", []).append(round(self._now, 1))  # when it was done


def set_of(path: Sequence[dict[str, Any]]) -> set[int]:
    """The segments of a way; one that was run twice counts once."""
    return {step["segment"] for step in path}
