"""One node of a mesh as a machine without input and output: two queues, what it knows of its neighbours, its decisions.

Whoever drives it says what happened and does what it answers: `live.py` in real time over HTTP, the simulator
(`lab/mesh/simulate.py`) in simulated time. So both decide alike. The rules themselves are in `algorithms.py`.

Ours, where the reconstruction leaves a choice open:
    - a node whose input queue is empty runs the head of its output queue: it never waits beside work
    - one text at a time is on its way to a neighbour; what was sent there counts as waiting there until it reports
    - a text whose holder was lost goes to the front of the input queue and is run again from its last segment
    - a node may hold a range of the segments alone. What it does not hold leaves first, to the nearest neighbour that
      holds it, and waits in the output queue while none of these is in the set
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from shared.links.profile import Profile, on_the_wire
from shared.mesh.algorithms import USUAL, Constants, Next, Own, Seen, after_segment, nearest, send_chance

EWMA = 0.2  # the weight of a new service time or delay


@dataclass(eq=False)
class Task:
    """A text, the segment that it needs next (from 0), and the exit threshold T_e that its source gave it.

    `size`: bytes of what would travel; `load`: its driver's.
    """

    id: str
    segment: int
    threshold: float
    size: int = 0
    load: Any = None


@dataclass(frozen=True)
class Report:
    """What a node tells its neighbours: I, O, the seconds of work that wait in I (I Gamma, segment by segment), and the
    segments that it holds (from 0; null: not told yet, taken for all)."""

    waiting: int = 0
    leaving: int = 0
    work_s: float = 0.0
    held: range | None = None


@dataclass
class Neighbour:
    """What is known of a neighbour. Times are the driver's clock."""

    profile: Profile
    heard_at: float
    report: Report = field(default_factory=Report)
    delay_s: float | None = None  # measured one-way, smoothed
    sent: int = 0  # texts that its report cannot hold yet
    sent_s: float = 0.0
    free_at: float = 0.0  # when the last text will have left
    away: bool = False  # silent for too long, or dead

    def holds(self, task: Task) -> bool:
        """Whether it can run what a task needs next."""
        return self.report.held is None or task.segment in self.report.held

    def takes_s(self, size: int) -> float:
        """What so many bytes need at the link's rate."""
        rate = self.profile.rate_up_bps
        return 8 * on_the_wire(size) / rate if rate else 0.0

    def seen(self, name: str, size: int) -> Seen:
        """The neighbour as algorithm 2 sees it, for a text of so many bytes."""
        delay_s = self.profile.rtt_s / 2 + self.takes_s(size) if self.delay_s is None else self.delay_s
        return Seen(name, self.report.waiting + self.sent, self.report.work_s + self.sent_s, delay_s)


class Node:
    """The queues and decisions of node `name`, whose network has so many segments; `held`: those here, null: all."""

    def __init__(
        self,
        name: str,
        *,
        segments: int,
        held: range | None = None,
        neighbours: Mapping[str, Profile] | None = None,
        constants: Constants = USUAL,
        draw: Callable[[], float] | None = None,
        now: float = 0.0,
    ) -> None:
        self.name, self.segments, self.constants = name, segments, constants
        self.held = range(segments) if held is None else held
        self.waiting: deque[Task] = deque()  # I
        self.leaving: deque[Task] = deque()  # O
        self.service_s: list[float | None] = [None] * segments  # Gamma
        self.neighbours = {name: Neighbour(link, now) for name, link in (neighbours or {}).items()}
        self._waiting = [0] * segments  # texts in I by the segment that they need
        self._draw = draw or random.Random(name).random

    # -- what it is and knows ---------------------------------------------------------------------------------------

    @property
    def queued(self) -> int:
        """Q = I + O."""
        return len(self.waiting) + len(self.leaving)

    def expects_s(self, segment: int) -> float:
        """What a segment takes here: measured, else as the others, else 0."""
        measured = self.service_s[segment]
        if measured is not None:
            return measured
        known = [seconds for seconds in self.service_s if seconds is not None]
        return sum(known) / len(known) if known else 0.0

    def report(self) -> Report:
        """What its neighbours may know."""
        work_s = sum(count * self.expects_s(segment) for segment, count in enumerate(self._waiting) if count)
        return Report(len(self.waiting), len(self.leaving), work_s, self.held)

    # -- its own work -----------------------------------------------------------------------------------------------

    def put(self, task: Task) -> None:
        """A text from the source or from a neighbour: to the input queue."""
        self.waiting.append(task)
        self._waiting[task.segment] += 1

    def next(self) -> Task | None:
        """The task to run now: the head of the input queue, else the first of the output queue that can run here."""
        if self.waiting:
            self._waiting[self.waiting[0].segment] -= 1
            return self.waiting.popleft()
        task = next((task for task in self.leaving if task.segment in self.held), None)
        if task is not None:
            self.leaving.remove(task)
        return task

    def ran(self, task: Task, confidence: float, seconds: float) -> Next:
        """Algorithm 1, after a task's segment took so long, with its exit's confidence. One that goes on is queued.

        The driver sets `size` and `load` of the task before it calls.
        """
        before = self.service_s[task.segment]
        self.service_s[task.segment] = seconds if before is None else before + EWMA * (seconds - before)
        task.segment += 1
        goes = after_segment(
            confidence,
            task.threshold,
            last=task.segment == self.segments,
            waiting=len(self.waiting),
            leaving=len(self.leaving),
            most_leaving=self.constants.most_leaving,
            held=task.segment in self.held,
        )
        if goes is Next.STAY:
            self.put(task)
        elif goes is Next.LEAVE:
            self.leaving.append(task)
        return goes

    def drop(self, task: Task) -> None:
        """Forget a task that nobody waits for any more, if it is queued."""
        if task in self.waiting:
            self.waiting.remove(task)
            self._waiting[task.segment] -= 1
        elif task in self.leaving:
            self.leaving.remove(task)

    # -- its neighbours ---------------------------------------------------------------------------------------------

    def offload(self, now: float) -> tuple[Task, str] | None:
        """Algorithm 2: the head of the output queue and who gets it now; null where it stays.

        The head is the first text that a free neighbour holds the segment of, those before others that cannot run here.

        To be asked whenever the output queue or a neighbour's report has changed, and at `busy_until`.
        """
        free = {name: each for name, each in self.neighbours.items() if not each.away and each.free_at <= now}
        if not self.leaving or not free:
            return None
        able = (task for task in (*self._stuck(), *self.leaving) if any(each.holds(task) for each in free.values()))
        head = next(able, None)
        if head is None:
            return None
        to = nearest(each.seen(name, head.size) for name, each in free.items() if each.holds(head))
        assert to is not None
        own = self.report()
        chance = send_chance(Own(own.waiting, own.leaving, own.work_s), to, held=head.segment in self.held)
        if self._draw() >= chance:
            return None
        self.leaving.remove(head)
        chosen = self.neighbours[to.name]
        chosen.sent += 1
        chosen.sent_s += self.expects_s(head.segment)
        chosen.free_at = now + chosen.takes_s(head.size)
        return head, to.name

    def busy_until(self, now: float) -> float | None:
        """When the first busy link is free, where texts wait to leave and no link is free, or one cannot run here."""
        ends = [neighbour.free_at for neighbour in self.neighbours.values() if not neighbour.away]
        busy = [end for end in ends if end > now]
        waits = self.leaving and busy and (len(busy) == len(ends) or self._stuck())
        return min(busy) if waits else None

    def _stuck(self) -> list[Task]:
        """Texts in the output queue that cannot run here, in order."""
        if len(self.held) == self.segments:
            return []
        return [task for task in self.leaving if task.segment not in self.held]

    def stranded(self) -> list[Task]:
        """Texts that neither this node nor a neighbour, away or not, can run: the driver refuses and drops them."""
        return [task for task in self._stuck() if not any(each.holds(task) for each in self.neighbours.values())]

    def refused(self, name: str, now: float) -> None:
        """A neighbour that is well took no text: it is sent none for `report_s`."""
        neighbour = self.neighbours[name]
        neighbour.free_at = max(neighbour.free_at, now + self.constants.report_s)

    def heard(self, name: str, report: Report, now: float, delay_s: float | None = None) -> None:
        """A neighbour's report, and the one-way time of the text that it answers, if it answers one."""
        neighbour = self.neighbours[name]
        on_the_way = neighbour.free_at > now
        neighbour.report, neighbour.heard_at, neighbour.away = report, now, False
        neighbour.sent_s = neighbour.sent_s / neighbour.sent if on_the_way and neighbour.sent else 0.0
        neighbour.sent = int(on_the_way)
        if delay_s is not None:
            before = neighbour.delay_s
            neighbour.delay_s = delay_s if before is None else before + EWMA * (delay_s - before)

    def silent(self, now: float) -> list[str]:
        """Neighbours that have just left the set. What they held is lost: the driver hands it to `again`."""
        gone = [
            name
            for name, neighbour in self.neighbours.items()
            if not neighbour.away and now - neighbour.heard_at > self.constants.silent_s
        ]
        for name in gone:
            self.lose(name)
        return gone

    def lose(self, name: str) -> None:
        """A neighbour is gone until it is heard again."""
        neighbour = self.neighbours[name]
        neighbour.away, neighbour.sent, neighbour.sent_s, neighbour.delay_s = True, 0, 0.0, None

    def again(self, task: Task) -> None:
        """A task whose holder was lost, or did not take it: run again here before all others, or first to leave."""
        if task.segment not in self.held:
            self.leaving.appendleft(task)
            return
        self.waiting.appendleft(task)
        self._waiting[task.segment] += 1
