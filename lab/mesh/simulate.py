"""A mesh in simulated time: the nodes and sources of `shared/mesh`, driven by a heap of events.

Every figure is simulated. Service times are given, exits are those of real texts, links take what their profiles say:
size over rate, one text after the other, half the round trip, and jitter. Where the live mesh differs: a report that
is older than `report_s` is read anew when a decision needs it (live: asked for, and under way for a round trip), and
neither HTTP nor a busy processor costs time.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from lab.mesh.outcome import DRAIN_S, Answered, Cell, Exits, Outcome, Sample
from shared.links.profile import profile
from shared.mesh.algorithms import Constants, Next
from shared.mesh.node import Node, Task
from shared.mesh.source import Adapt, Source

SAMPLE_S = 0.5


@dataclass(eq=False)
class Text:
    """A text on one node: `giver` and `given` are the node that sent it and the task that was sent, null at a source.

    A text that goes on to another node becomes another one there, and this one waits for it.
    """

    number: int
    asked_at: float
    giver: str | None = None
    given: Task | None = None
    way: tuple[str, ...] = ()
    holder: str | None = None  # who has it now, where it was sent on


@dataclass(eq=False)
class Host:
    """A node, whether it runs a segment, and what it sent away."""

    node: Node
    source: Source | None
    busy: bool = False
    dead: bool = False
    away: dict[Task, None] = field(default_factory=dict)  # in the order in which they were sent
    asks_at: float = math.inf  # when it looks at its output queue again


class Simulation:
    """One run of a cell over recorded exits."""

    def __init__(self, cell: Cell, exits: Exits) -> None:
        assert cell.service_s is not None
        self.cell, self.exits, self.out = cell, exits, Outcome()
        self._service_s, self._random = cell.service_s, random.Random(cell.seed)
        link = profile(cell.link)
        self._link, constants = link, Constants.of(exits.probabilities.shape[2], cell.report_s)
        self.hosts: dict[str, Host] = {}
        for name, others in cell.topology.edges.items():
            draw = random.Random(f"{cell.seed} {name}").random
            node = Node(
                name,
                segments=exits.segments,
                held=cell.held.get(name),
                neighbours=dict.fromkeys(others, link),
                constants=constants,
                draw=draw,
            )
            source = None
            if name in cell.topology.sources:
                source = Source(node, cell.adapt, threshold=cell.threshold, gap_s=1 / cell.rate)
            self.hosts[name] = Host(node, source)
        if cell.held:
            for host in self.hosts.values():
                for name in host.node.neighbours:
                    host.node.heard(name, self.hosts[name].node.report(), 0.0)
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._order, self._texts = itertools.count(), itertools.count()
        self.now = 0.0

    def run(self) -> Outcome:
        """Texts come for `seconds`; then what is under way is finished."""
        began = time.perf_counter()
        for host in self.hosts.values():
            if host.source is not None:
                self._at(0.0, self._come, host)
                self._at(host.source.adapts_at, self._adapt, host)
        self._at(0.0, self._sample)
        if self.cell.kill is not None:
            self._at(self.cell.kill[1], self._kill, self.hosts[self.cell.kill[0]])
        events, heap = 0, self._events
        while heap and heap[0][0] < self.cell.seconds + DRAIN_S:
            self.now, _, happens, arguments = heapq.heappop(heap)
            happens(*arguments)
            events += 1
        took_s = time.perf_counter() - began
        missing = self.out.admitted - len(self.out.answered)
        self.out.lost, self.out.unfinished = (0, missing) if heap else (missing, 0)
        self.out.facts = {"events": events, "events_per_s": round(events / took_s), "took_s": round(took_s, 3)}
        return self.out

    def _at(self, when: float, happens: Callable[..., None], *arguments: object) -> None:
        heapq.heappush(self._events, (when, next(self._order), happens, arguments))

    # -- the source -------------------------------------------------------------------------------------------------

    def _come(self, host: Host) -> None:
        """The next text is admitted. At a rate that adapts, texts never run out."""
        source, cell = host.source, self.cell
        assert source is not None
        if self.now >= cell.seconds or host.dead:
            return
        if (due := source.due_at(self.now)) > self.now:  # the gap has grown meanwhile
            self._at(due, self._come, host)
            return
        number = next(self._texts) % len(self.exits.labels)
        self.out.offered += 1
        self.out.admitted += 1
        self._begin(host, Task("", 0, source.admit(self.now), load=Text(number, self.now)))
        gap_s = 0.0 if cell.adapt is Adapt.RATE else self._random.expovariate(cell.rate)
        self._at(source.due_at(self.now) + gap_s, self._come, host)

    def _adapt(self, host: Host) -> None:
        assert host.source is not None
        host.source.adapt(self.now)
        if self.now < self.cell.seconds:
            self._at(host.source.adapts_at, self._adapt, host)

    def _sample(self) -> None:
        first = self.hosts[self.cell.topology.sources[0]].source
        assert first is not None
        shown = self.cell.topology.nodes[:8]
        queues = {name: (len(self.hosts[name].node.waiting), len(self.hosts[name].node.leaving)) for name in shown}
        self.out.samples.append(Sample(self.now, first.gap_s, first.threshold, queues))
        if self.now < self.cell.seconds:
            self._at(self.now + SAMPLE_S, self._sample)

    # -- a node -----------------------------------------------------------------------------------------------------

    def _begin(self, host: Host, task: Task) -> None:
        host.node.put(task)
        self._start(host)

    def _start(self, host: Host) -> None:
        """Run the next segment, if none runs."""
        while not host.busy and not host.dead and (task := host.node.next()) is not None:
            if not self._wanted(task):
                continue
            host.busy = True
            self._at(self.now + self._service_s, self._ran, host, task)

    def _wanted(self, task: Task) -> bool:
        """Whether the nodes that wait for it are all alive."""
        text: Text = task.load
        while text.giver is not None and text.given is not None:
            giver = self.hosts[text.giver]
            if giver.dead or text.given not in giver.away:
                return False
            text = text.given.load
        return True

    def _ran(self, host: Host, task: Task) -> None:
        host.busy = False
        if host.dead:
            return
        text: Text = task.load
        said = self.exits.probabilities[text.number, task.segment]
        task.size = int(self.exits.state_bytes[text.number])
        text.way += (host.node.name,)
        if host.node.ran(task, float(said.max()), self._service_s) is Next.ANSWER:
            self._answer(host, task, int(said.argmax()), text.way)
        self._offload(host)  # before the next segment takes the head of the queue, as live nodes do
        self._start(host)

    def _offload(self, host: Host) -> None:
        """Send what algorithm 2 lets go; ask again in `report_s` where something stays."""
        node = host.node
        if host.dead or not node.leaving:
            return
        for name, neighbour in node.neighbours.items():
            if self.now - neighbour.heard_at > node.constants.report_s and not self.hosts[name].dead:
                node.heard(name, self.hosts[name].node.report(), self.now)
        while (sent := node.offload(self.now)) is not None:
            task, to = sent
            host.away[task] = None
            task.load.holder = to
            arrives_at = node.neighbours[to].free_at + self._delay_s()
            self._at(arrives_at, self._arrive, self.hosts[to], host, task, arrives_at - self.now)
        again = node.busy_until(self.now) or self.now + node.constants.report_s
        if node.leaving and again < host.asks_at:
            host.asks_at = again
            self._at(again, self._wake, host, again)

    def _wake(self, host: Host, due: float) -> None:
        if due == host.asks_at:  # else it was to look earlier
            host.asks_at = math.inf
            self._offload(host)

    def _delay_s(self) -> float:
        """Half a round trip, with the link's jitter, cut off as the simulated link cuts it."""
        link = self._link
        return min(max(0.0, self._random.gauss(link.rtt_s / 2, link.jitter_s)), link.rtt_s)

    def _arrive(self, host: Host, giver: Host, task: Task, took_s: float) -> None:
        if host.dead or giver.dead or task not in giver.away:
            return
        text: Text = task.load
        new = Text(text.number, text.asked_at, giver.node.name, task, text.way)
        giver.node.neighbours[host.node.name].delay_s = self._smoothed(giver, host, took_s)
        self._begin(host, Task("", task.segment, task.threshold, task.size, new))

    def _smoothed(self, giver: Host, host: Host, took_s: float) -> float:
        neighbour = giver.node.neighbours[host.node.name]
        return took_s if neighbour.delay_s is None else neighbour.delay_s + 0.2 * (took_s - neighbour.delay_s)

    # -- answers and losses -----------------------------------------------------------------------------------------

    def _answer(self, host: Host, task: Task, label: int, way: tuple[str, ...]) -> None:
        """An answer goes back the way that its text came, with each node's report."""
        text: Text = task.load
        if text.giver is None:
            self.out.answered.append(Answered(text.number, label, len(way), way, text.asked_at, self.now))
            return
        report, giver = host.node.report(), self.hosts[text.giver]
        self._at(self.now + self._delay_s(), self._hear, giver, host.node.name, report, text.given, label, way)

    def _hear(self, host: Host, name: str, report: object, task: Task, label: int, way: tuple[str, ...]) -> None:
        if host.dead or task not in host.away:
            return
        del host.away[task]
        host.node.heard(name, report, self.now)  # type: ignore[arg-type]
        self._answer(host, task, label, way)
        self._offload(host)

    def _kill(self, victim: Host) -> None:
        """A node dies; its neighbours find its connections closed, and run again what it held."""
        victim.dead = True
        for host in self.hosts.values():
            if host.dead or victim.node.name not in host.node.neighbours:
                continue
            host.node.lose(victim.node.name)
            for task in [task for task in host.away if task.load.holder == victim.node.name]:
                del host.away[task]
                host.node.again(task)
                self.out.again += 1
            self._start(host)
            self._offload(host)


def simulate(cell: Cell, exits: Exits) -> Outcome:
    """Run a cell in simulated time."""
    return Simulation(cell, exits).run()
