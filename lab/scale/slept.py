"""Replicas of one tier as processes of this machine, their time slept, behind a first tier that asks them.

Each has a port of its own. A port where nobody listens is a replica that is not there: who asks finds out by itself.
"""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import aclosing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from lab.live.demo import REVIEWS
from lab.live.stack import Process, free_ports, started, stop, wait_ready
from shared.errors import BadSetting
from shared.model.bundle import load_bundle
from shared.web.parent import FLAG, LAST_S

LIMIT_S = 60.0  # for an answer
IDLE_S = 30.0  # of a connection; a tier closes it after 75
KEPT = "TIERWISE_CACHE_DIR"  # the one setting of the caller's environment that reaches these tiers
OK, REFUSED, LOST = "ok", "refused", "lost"  # what becomes of a text; anything else is why an answer is degraded


@dataclass(frozen=True)
class Plan:
    """What sleeps: a tier of a bundle as a policy's texts were measured on it, and the most replicas."""

    demand: Path
    policy: str
    tier: str
    most: int
    queue_wait_ms: float
    bundle: str = "collaborative"

    @property
    def first(self) -> str:
        """The tier that is asked.

        Raises:
            BadSetting: the scaled one is not behind it.
        """
        order = load_bundle(self.bundle).order
        if self.tier not in order[1:]:
            raise BadSetting(f"no tier {self.tier!r} behind the first one: {', '.join(order[1:])}")
        return order[0]


class Replicas:
    """The processes of one plan. `ends` are first tiers, each with so many replicas behind it."""

    def __init__(self, plan: Plan, ends: Sequence[int], logs: Path) -> None:
        self.plan, self._logs = plan, logs
        first = free_ports(plan.most + len(ends))
        self.urls = [f"http://127.0.0.1:{first + at}" for at in range(plan.most)]
        self.ends = {count: f"http://127.0.0.1:{first + plan.most + at}" for at, count in enumerate(ends)}
        self.running: dict[str, Process] = {}
        self.statuses: list[int] = []  # exit statuses of replicas that were stopped

    def start(self, url: str) -> None:
        """Start the replica at this address."""
        self._start(self.plan.tier, url, {"TIERWISE_DEMAND_POLICY": self.plan.policy})

    def start_end(self, count: int) -> None:
        """Start the first tier that asks the first `count` replicas."""
        upstream = f"{self.plan.tier}={'|'.join(self.urls[:count])}"
        asks = {
            "TIERWISE_UPSTREAMS": upstream,
            "TIERWISE_LINK_PROFILES": f"{self.plan.tier}=ideal",
            "TIERWISE_DEMAND_POLICY": f"{self.plan.first}-only",  # what it takes where the tier behind it refused
        }
        self._start(self.plan.first, self.ends[count], asks)

    def _start(self, tier: str, url: str, settings: dict[str, str]) -> None:
        plan = self.plan
        usual = {key: value for key, value in os.environ.items() if key == KEPT or not key.startswith("TIERWISE_")}
        own = {
            "TIERWISE_TIER": tier,
            "TIERWISE_BUNDLE": plan.bundle,
            "TIERWISE_PORT": url.rpartition(":")[2],
            "TIERWISE_POLICY": f"{plan.tier}-only",
            "TIERWISE_LINKS": "none",
            "TIERWISE_UPSTREAMS": "",
            "TIERWISE_QUEUE_WAIT_MS": str(plan.queue_wait_ms),
            "TIERWISE_LOG_LEVEL": "warning",
            "TIERWISE_DEMAND": str(plan.demand.absolute()),
        }
        logs = self._logs / f"{url.rpartition(':')[2]}.log"
        self.running[url] = started(tier, url, ["lab.scale.replica", FLAG], {**usual, **own, **settings}, logs)

    def wait_ready(self) -> None:
        """Return once all that were started are ready.

        Raises:
            BadSetting: one stopped, or is not ready in time.
        """
        wait_ready(list(self.running.values()))

    async def stop(self, url: str) -> None:
        """SIGTERM: the replica drains, then ends."""
        process = self.running.pop(url)
        process.child.terminate()
        try:
            self.statuses.append(await asyncio.to_thread(process.child.wait, LAST_S))
        finally:
            if process.child.stdin:
                process.child.stdin.close()

    def check(self) -> None:
        """Raises `BadSetting` if one has stopped by itself."""
        for process in list(self.running.values()):
            process.check()

    def close(self) -> None:
        """Stop all that run."""
        stop(list(self.running.values()))


@contextmanager
def replicas(plan: Plan, ends: Sequence[int], ready: int) -> Iterator[Replicas]:
    """So many replicas and first tiers, ready; stopped on the way out.

    Raises:
        BadSetting: one does not start.
    """
    with tempfile.TemporaryDirectory(prefix="tierwise-scale-") as scratch:
        found = Replicas(plan, ends, Path(scratch))
        try:
            for url in found.urls[:ready]:
                found.start(url)
            for count in ends:
                found.start_end(count)
            found.wait_ready()
            yield found
        finally:
            found.close()


class Caller:
    """Asks one tier, over connections that stay open. An HTTP library would take a third of a processor."""

    def __init__(self, url: str) -> None:
        where = urlsplit(url)
        self._host, self._port = str(where.hostname), where.port
        self._free: list[tuple[float, asyncio.StreamReader, asyncio.StreamWriter]] = []  # since when; the latest last

    async def ask(self, number: int) -> str:
        """What became of text `number`: ok, refused (by the tier or the one behind it), lost, or why it is degraded."""
        body = json.dumps({"inputs": REVIEWS[number % len(REVIEWS)], "options": {"seed": number}}).encode()
        try:
            async with asyncio.timeout(LIMIT_S):
                status, content = await self._post(body)
        except (OSError, EOFError) as error:  # a late one, too
            return f"{LOST}: {type(error).__name__}"
        if status == 429:
            return REFUSED
        if status != 200:
            return f"{LOST}: status {status}"
        (result,) = json.loads(content)["results"]
        degraded = result["degraded"]
        return OK if degraded is None else REFUSED if degraded == "upstream_refused" else str(degraded)

    async def _post(self, body: bytes) -> tuple[int, bytes]:
        """Status and body of an answer; a connection that the tier has closed, or soon will, is not used."""
        while self._free and self._free[0][0] < time.monotonic() - IDLE_S:
            self._free.pop(0)[2].close()
        while self._free and self._free[-1][1].at_eof():
            self._free.pop()[2].close()
        _, reader, writer = self._free.pop() if self._free else (0.0, *await self._open())
        try:
            head = f"POST /v1/classify HTTP/1.1\r\nhost: {self._host}\r\ncontent-type: application/json\r\n"
            writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
            lines = (await reader.readuntil(b"\r\n\r\n")).lower().split(b"\r\n")
            fields = dict(line.split(b": ", 1) for line in lines[1:] if line)
            content = await reader.readexactly(int(fields[b"content-length"]))
        except BaseException:
            writer.close()
            raise
        if fields.get(b"connection") == b"close":
            writer.close()
        else:
            self._free.append((time.monotonic(), reader, writer))
        return int(lines[0].split()[1]), content

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(self._host, self._port)

    async def aclose(self) -> None:
        """Close what is open."""
        for _, _, writer in self._free:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()


async def busy(url: str, callers: int, seconds: float) -> tuple[list[float], Counter[str]]:
    """A closed loop: the seconds at which texts were answered whole, and what became of all of them."""
    done: list[float] = []
    became: Counter[str] = Counter()
    began = time.perf_counter()

    async def call(number: int) -> None:
        while time.perf_counter() - began < seconds:
            said = await caller.ask(number)
            became[said] += 1
            if said == OK:
                done.append(time.perf_counter() - began)

    async with aclosing(Caller(url)) as caller, asyncio.TaskGroup() as group:
        for number in range(callers):
            group.create_task(call(number))
    return done, became
