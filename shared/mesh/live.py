"""A node in real time: it runs segments in a thread of its own, sends texts on, and answers for what it took.

A text that goes on is a call that its sender keeps open until the text is answered, so the answer comes back by the way
that the text went. Where a call ends without one, the sender still has the text: it runs it again from its last
segment. So a text may be run twice, and its source answers it once.

    killed neighbour, refused or broken call    the text again at once; the neighbour is away until it reports
    silent neighbour (1 s: a cut link)          its calls are given up, their texts again
    nobody in the set holds what comes next     its text waits here until one is back, or the caller leaves
    no neighbour holds what comes next          refused, and so is its text wherever it came from
    caller that left                            its text is dropped here, and given up where it was sent
    the same text twice                         both callers get the one answer
"""

from __future__ import annotations

import asyncio
import math
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

import structlog

from shared.errors import BadState, NotHeld, QueueFull, UpstreamFailure
from shared.mesh.algorithms import Next
from shared.mesh.node import Node, Report, Task
from shared.mesh.runs import Item, Runs, key_of
from shared.mesh.source import Source
from shared.mesh.topology import written
from shared.mesh.way import Way
from shared.mesh.wire import Going, Step

log = structlog.get_logger()
_BUSY = {413, 429, 503, NotHeld.status}  # a neighbour that is well and takes no more, or gets no further


@dataclass(frozen=True)
class Answer:
    """What an exit said of a text: probabilities [C], after which layer, and by which way it came there."""

    probabilities: Sequence[float]
    exit_layer: int
    path: tuple[Step, ...]


@dataclass(eq=False)
class Work:
    """What a task is to this node: the text so far, who waits for its answer, and the call that holds it elsewhere."""

    item: Item
    path: list[Step]
    future: asyncio.Future[Answer]
    waiters: int = 0
    call: asyncio.Task[None] | None = None


@dataclass
class Counts:
    """What happened so far."""

    answered: int = 0  # texts of this source
    segments: int = 0
    busy_s: float = 0.0  # in which segments ran
    sent: int = 0  # texts to neighbours
    taken: int = 0  # texts from neighbours
    again: int = 0  # texts whose holder was lost, or did not take them
    joined: int = 0  # texts that came twice
    silences: int = 0


class Live:
    """A node, its source and its ways, in the running loop. `most`: texts that it holds, and that wait outside."""

    def __init__(
        self,
        node: Node,
        source: Source,
        runs: Runs,
        ways: Mapping[str, Way],
        *,
        most: int = 1000,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.node, self.source, self.runs, self.ways, self.counts = node, source, runs, ways, Counts()
        self._most, self._clock = most, clock
        self._model = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._under_way: dict[tuple[str, int], Task] = {}
        self._calls: dict[str, set[asyncio.Task[None]]] = {name: set() for name in ways}
        self._wake, self._door = asyncio.Event(), asyncio.Lock()
        self._outside = 0
        self._jobs: list[asyncio.Task[None]] = []
        self._later: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin to serve, listen and adapt. A neighbour joins with its first report: it tells what it holds."""
        for neighbour in self.node.neighbours.values():
            neighbour.away, neighbour.heard_at = True, -math.inf
        jobs = [self._serve(), self._adapt(), self._watch(), *(self._listen(name) for name in self.ways)]
        self._jobs = [asyncio.create_task(job) for job in jobs]
        for job in self._jobs:
            job.add_done_callback(_told)

    async def close(self) -> None:
        """Stop; whoever still waits is let go."""
        calls = [call for held in self._calls.values() for call in held]
        for job in (*self._jobs, *calls):
            job.cancel()
        await asyncio.gather(*self._jobs, *calls, return_exceptions=True)
        for task in self._under_way.values():
            task.load.future.cancel()
        self._model.shutdown(wait=False, cancel_futures=True)
        await asyncio.gather(*(way.close() for way in self.ways.values()))

    # -- texts that come --------------------------------------------------------------------------------------------

    async def classify(self, text: str, pair: str | None, request_id: str) -> Answer:
        """Answer a text of this source, once it has been admitted.

        Raises:
            NotHeld: the first segment is not held here, or nobody holds a further one.
            QueueFull: too many wait outside.
            UnreadableText: no word of it is known.
        """
        if 0 not in self.node.held:
            raise NotHeld(f"{self.node.name} holds segments {written(self.node.held)}; ask a node that holds segment 1")
        if (known := self._under_way.get((request_id, 0))) is not None:
            self.counts.joined += 1
            return await self._answer(known)
        if self._outside >= self._most or self.node.queued >= self._most:
            raise QueueFull(f"{max(self._outside, self.node.queued)} texts wait already")
        item = self.runs.begin(text, pair, key_of(text, pair))
        self._outside += 1
        try:
            async with self._door:  # first come, first served
                while (wait_s := self.source.due_at(now := self._clock()) - now) > 0:
                    await asyncio.sleep(min(wait_s, self.node.constants.period_s))  # it may shrink
                threshold = self.source.admit(now)
        finally:
            self._outside -= 1
        answer = await self._take(request_id, 0, threshold, item)
        self.counts.answered += 1
        return answer

    async def go_on(self, going: Going, item: Item) -> Answer:
        """Answer a neighbour's text from its next segment on.

        Raises:
            BadState: its next segment is not held here.
            NotHeld: nobody holds a further one.
            QueueFull: too many are here.
        """
        if going.segment not in self.node.held:
            raise BadState(f"segment {going.segment + 1}: segments {written(self.node.held)} are held here")
        if (known := self._under_way.get((going.id, going.segment))) is not None:
            self.counts.joined += 1
            return await self._answer(known)
        if self.node.queued >= self._most:
            raise QueueFull(f"{self.node.queued} texts wait already")
        self.counts.taken += 1
        return await self._take(going.id, going.segment, going.threshold, item)

    async def _take(self, text_id: str, segment: int, threshold: float, item: Item) -> Answer:
        work = Work(item, [], asyncio.get_running_loop().create_future())
        task = Task(text_id, segment, threshold, load=work)
        key = text_id, segment
        self._under_way[key] = task
        work.future.add_done_callback(lambda _: self._under_way.pop(key, None))
        self.node.put(task)
        self._wake.set()
        return await self._answer(task)

    async def _answer(self, task: Task) -> Answer:
        """Wait for a text's answer; when the last who waits has left, it is dropped."""
        work: Work = task.load
        work.waiters += 1
        try:
            return await asyncio.shield(work.future)
        finally:
            work.waiters -= 1
            if not work.waiters and not work.future.done():
                work.future.cancel()
                self.node.drop(task)
                if work.call is not None:
                    work.call.cancel()

    def report(self) -> Report:
        """What neighbours may know."""
        return self.node.report()

    # -- the model --------------------------------------------------------------------------------------------------

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            task = self.node.next()
            if task is None:
                self._offload()  # a text that came back may wait, and cannot run here
                self._wake.clear()
                await self._wake.wait()
                continue
            work: Work = task.load
            if work.future.done():
                continue
            began, segment = self._clock(), task.segment
            try:
                said, work.item = await loop.run_in_executor(self._model, self.runs.run, work.item, segment)
            except Exception as error:  # noqa: BLE001 - it belongs to who waits
                _fail(work.future, error)
                continue
            seconds = self._clock() - began
            self.counts.segments += 1
            self.counts.busy_s += seconds
            work.path.append(Step(node=self.node.name, segment=segment + 1, ms=round(seconds * 1e3, 3)))
            if work.future.done():
                continue
            task.size = self.runs.size(work.item)
            if self.node.ran(task, float(said.max()), seconds) is Next.ANSWER:
                work.future.set_result(Answer(said.tolist(), self.runs.ends[segment], tuple(work.path)))
            self._offload()

    # -- neighbours -------------------------------------------------------------------------------------------------

    def _offload(self) -> None:
        """Send what algorithm 2 lets go; look again when the next link is free."""
        now = self._clock()
        for task in self.node.stranded():
            self.node.drop(task)
            _fail(task.load.future, _not_held(task))
        while (sent := self.node.offload(now)) is not None:
            task, name = sent
            work: Work = task.load
            if work.future.done():
                continue
            self.counts.sent += 1
            work.call = asyncio.create_task(self._send(task, name))
            self._calls[name].add(work.call)
            work.call.add_done_callback(self._calls[name].discard)
            work.call.add_done_callback(_told)
        if self._later is not None:
            self._later.cancel()
        if (free_at := self.node.busy_until(now)) is not None:
            self._later = asyncio.get_running_loop().call_later(free_at - now, self._offload)

    async def _send(self, task: Task, name: str) -> None:
        """Have a neighbour answer a text; if it does not, run it again here."""
        work: Work = task.load
        going = Going(
            call=secrets.token_hex(8),
            id=task.id,
            text_sha256=work.item.key,
            segment=task.segment,
            threshold=task.threshold,
            sender=self.node.name,
        )
        try:
            answered, delay_s = await self.ways[name].go_on(going, self.runs.packed(work.item))
        except UpstreamFailure as failure:
            log.warning("text_again", node=self.node.name, neighbour=name, why=str(failure))
            if failure.answered == NotHeld.status and task.segment not in self.node.held:
                _fail(work.future, _not_held(task, f", nor one after {name}"))
            elif failure.answered in _BUSY:
                self.node.refused(name, self._clock())
            elif not self.node.neighbours[name].away:
                self._lost(name)
            self._again(task)
        except asyncio.CancelledError:  # its neighbour is silent, or nobody waits for it
            self._again(task)
            raise
        else:
            self.node.heard(name, answered.reported.report, self._clock(), delay_s)
            if not work.future.done():
                path = (*work.path, *answered.path)
                work.future.set_result(Answer(answered.probabilities, answered.exit_layer, path))
            self._offload()

    def _again(self, task: Task) -> None:
        task.load.call = None
        if not task.load.future.done():
            self.counts.again += 1
            self.node.again(task)
            self._wake.set()

    def _lost(self, name: str) -> None:
        """A neighbour leaves the set, with all that it held."""
        log.warning("neighbour_lost", node=self.node.name, neighbour=name, held=len(self._calls[name]))
        self.counts.silences += 1
        self.node.lose(name)
        current = asyncio.current_task()
        for call in list(self._calls[name]):
            if call is not current:
                call.cancel()

    async def _listen(self, name: str) -> None:
        """Ask a neighbour that says nothing."""
        report_s = self.node.constants.report_s
        while True:
            neighbour = self.node.neighbours[name]
            wait_s = neighbour.heard_at + report_s - self._clock()
            if wait_s > 0:
                await asyncio.sleep(wait_s)
                if self._clock() - neighbour.heard_at < report_s:
                    continue
            with suppress(UpstreamFailure, TimeoutError):
                report = await self.ways[name].ask()
                self.node.heard(name, report, self._clock())
                self._offload()
                continue
            await asyncio.sleep(report_s)

    async def _watch(self) -> None:
        """Find silent neighbours. Time in which this process itself stood still is not held against them."""
        last, report_s = self._clock(), self.node.constants.report_s
        while True:
            await asyncio.sleep(report_s)
            stood_s, last = self._clock() - last - report_s, self._clock()
            if stood_s > report_s:
                for neighbour in self.node.neighbours.values():
                    neighbour.heard_at += stood_s
            for name in self.node.silent(self._clock()):
                self._lost(name)

    async def _adapt(self) -> None:
        while True:
            await asyncio.sleep(max(0.0, self.source.adapts_at - self._clock()))
            self.source.adapt(self._clock())


def _told(job: asyncio.Task[None]) -> None:
    """A job that ends by itself is a fault of ours: it is logged, not lost."""
    if not job.cancelled() and (error := job.exception()) is not None:
        log.error("node_failed", exc_info=error)


def _not_held(task: Task, further: str = "") -> NotHeld:
    return NotHeld(f"segment {task.segment + 1}: no node that this text can go to holds it{further}")


def _fail(future: asyncio.Future[Answer], error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)
