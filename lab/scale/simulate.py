"""Replicas in simulated time: texts come at random, replicas serve one after the other, an autoscaler may add some.

Everything here is simulated. Service times are drawn from measured ones (`demand.py`). A Service picks a replica at
random, as kube-proxy does for connections. A replica refuses as a tier does (`shared/pipeline/queue.py`), and its
gauge says what `tierwise_wait_seconds` says: texts that wait or run, times what a text took of late. Links, HTTP and
the processors' other work take no time.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Literal

from lab.events import Events
from lab.scale.demand import Demand
from lab.scale.hpa import Autoscaler, Spec

Signal = Literal["wait", "cpu"]
LATE = 0.2  # weight of the last text in what a text took of late


class Replica:
    """A tier's process: first come, first served."""

    def __init__(self, ready_at: float) -> None:
        self.ready_at = ready_at
        self.text_s = 0.0
        self._ahead: deque[tuple[float, float]] = deque()  # when each text that waits or runs is done, and its seconds
        self._given_s = self._seen_s = 0.0  # work so far; what of it was done at the last look
        self._free_at = 0.0

    def waits(self, now: float) -> int:
        """Texts that wait or run."""
        while self._ahead and self._ahead[0][0] <= now:
            took_s = self._ahead.popleft()[1]
            self.text_s += (LATE if self.text_s else 1.0) * (took_s - self.text_s)
        return len(self._ahead)

    def put(self, now: float, seconds: float, wait_s: float, limit: int) -> float | None:
        """When a text would be done; null where it is refused."""
        waiting = max(0, self.waits(now) - 1)
        if waiting >= limit or waiting * self.text_s > wait_s:
            return None
        self._free_at = max(self._free_at, now) + seconds
        self._given_s += seconds
        self._ahead.append((self._free_at, seconds))
        return self._free_at

    def value(self, signal: Signal, now: float, since_s: float) -> float:
        """What a scrape reads: seconds of work, or the share of the last `since_s` that it computed."""
        if signal == "wait":
            return self.waits(now) * self.text_s
        done_s = self._given_s - max(0.0, self._free_at - now)
        busy, self._seen_s = (done_s - self._seen_s) / since_s, done_s
        return busy


@dataclass(frozen=True)
class Cell:
    """One run. `phases` are (seconds, texts a second); `replicas` are those of each stop at the start."""

    demand: Demand
    phases: tuple[tuple[float, float], ...]
    replicas: tuple[int, ...]
    scaled: int | None = None  # which stop the autoscaler scales
    spec: Spec | None = None
    signal: Signal = "wait"
    scrape_s: float = 15.0
    scrapes: int = 1  # of which the mean is taken
    sync_s: float = 15.0
    start_s: float = 20.0  # from a replica's creation until it is ready
    wait_s: float = 0.1
    limit: int = 64
    seed: int = 0


@dataclass
class Outcome:
    """What became of the texts, and the replicas over time. Times are in simulated seconds."""

    answered: list[tuple[float, float]] = field(default_factory=list)  # when it came, and its latency
    degraded: int = 0  # a deeper tier refused it: the tier before answered
    refused: list[float] = field(default_factory=list)  # when it came
    replicas: list[tuple[float, int, int]] = field(default_factory=list)  # when, how many, how many ready


class Simulation:
    """One run of a cell."""

    def __init__(self, cell: Cell) -> None:
        self.cell, self.out, self.events = cell, Outcome(), Events()
        self._chance = random.Random(cell.seed)
        self._tiers = [[Replica(0.0) for _ in range(count)] for count in cell.replicas]
        self._scraped: dict[Replica, deque[float]] = {}
        self._ends_at = sum(seconds for seconds, _ in cell.phases)

    def run(self) -> Outcome:
        """Texts come until the last phase ends; then what is under way is finished."""
        began = 0.0
        for seconds, rate in self.cell.phases:
            self.events.at(began + self._chance.expovariate(rate), self._come, rate, began + seconds)
            began += seconds
        if self.cell.spec is not None:
            autoscaler = Autoscaler(self.cell.spec)
            self.events.at(self.cell.scrape_s, self._scrape)
            self.events.at(self.cell.sync_s * 1.5, self._sync, autoscaler)  # half a period behind the scrapes
            self._note()
        self.events.run()
        return self.out

    def _come(self, rate: float, until: float) -> None:
        now = self.events.now
        if now >= until:
            return
        self._serve(now, self.cell.demand.draw(self._chance), 0)
        self.events.at(now + self._chance.expovariate(rate), self._come, rate, until)

    def _serve(self, came_at: float, seconds: Sequence[float], stop: int) -> None:
        now = self.events.now
        ready = [replica for replica in self._tiers[stop] if replica.ready_at <= now] if self.cell.spec else None
        replica = self._chance.choice(ready or self._tiers[stop])
        done_at = replica.put(now, seconds[stop], self.cell.wait_s, self.cell.limit)
        if done_at is None and stop == 0:
            self.out.refused.append(came_at)
        elif done_at is None:
            self.out.degraded += 1
            self.out.answered.append((came_at, now - came_at))
        elif stop + 1 < len(seconds):
            self.events.at(done_at, self._serve, came_at, seconds, stop + 1)
        else:
            self.out.answered.append((came_at, done_at - came_at))

    # -- the autoscaler ---------------------------------------------------------------------------------------------

    def _scaled(self) -> list[Replica]:
        assert self.cell.scaled is not None
        return self._tiers[self.cell.scaled]

    def _scrape(self) -> None:
        now, cell = self.events.now, self.cell
        for replica in self._scaled():
            if replica.ready_at <= now:
                seen = self._scraped.setdefault(replica, deque(maxlen=cell.scrapes))
                seen.append(replica.value(cell.signal, now, cell.scrape_s))
        if now < self._ends_at:
            self.events.at(now + cell.scrape_s, self._scrape)

    def _sync(self, autoscaler: Autoscaler) -> None:
        now, replicas = self.events.now, self._scaled()
        values = [fmean(self._scraped[replica]) for replica in replicas if replica in self._scraped]
        wanted = autoscaler.step(now, len(replicas), values, len(replicas) - len(values))
        for _ in range(len(replicas), wanted):
            replicas.append(Replica(now + self.cell.start_s))
            self.events.at(now + self.cell.start_s, self._note)
        if wanted != len(replicas) or replicas[-1].ready_at > now:
            del replicas[wanted:]  # the youngest leave; what they hold is finished
            self._note()
        if now < self._ends_at:
            self.events.at(now + self.cell.sync_s, self._sync, autoscaler)

    def _note(self) -> None:
        now, replicas = self.events.now, self._scaled()
        self.out.replicas.append((now, len(replicas), sum(replica.ready_at <= now for replica in replicas)))


def simulate(cell: Cell) -> Outcome:
    """Run a cell."""
    return Simulation(cell).run()
