"""The model's worker: one thread takes calls from the queue, tokenizes their texts and runs them through the model.

The event loop is never blocked. A text may leave between two layers: at once if its caller has left, or with the
deepest exit it reached if the next layer would end after its deadline. Where a layer takes longer than that, its caller
takes the exits reached and leaves.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, count
from typing import Any

import structlog

from shared.contracts import HopTiming, TextPair
from shared.errors import BadState, UnreadableText
from shared.links.estimates import Smoothed
from shared.model.base import Array
from shared.model.classifier import Classifier
from shared.model.encoder import ExitTrace, Reached
from shared.model.exits import ExitRule
from shared.model.pools import Signature, Vector
from shared.model.shares import Shares, shares_of
from shared.model.words import Encoded
from shared.pipeline.queue import Queue, Work
from shared.pipeline.text import Answer

log = structlog.get_logger()
NICE = 5  # by how much the model's thread is nicer than the rest of the process
CLOSE_S = 5.0  # for the pass under way when the tier stops
FORGET_S = 1.0  # an older measured time refuses nobody: only a pass can tell that the model is fast again


@dataclass(frozen=True)
class Batch:
    """The answers of one call (null where a text could not be read), and what each stage took in seconds."""

    answers: list[Answer | None]
    times_s: dict[HopTiming, float]
    rule: ExitRule | None  # in force


class Worker:
    """Runs one classifier in one thread."""

    def __init__(self, classifier: Classifier, queue: Queue) -> None:
        self._classifier, self.queue, self.clock = classifier, queue, queue.clock
        self._row_layer = Smoothed(forget_s=FORGET_S, clock=self.clock)  # seconds of a row's layer
        self._tokenize = Smoothed(forget_s=FORGET_S, clock=self.clock)  # of a text
        self._thread = threading.Thread(target=self._serve, name="model", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether the model's thread runs: without it nothing is answered any more."""
        return self._thread.is_alive()

    async def run(self, work: Work) -> Batch:
        """Tokenize a call's texts and run them through the model.

        Raises:
            QueueFull: too many wait.
            DeadlinePassed: it could not be started in time.
        """
        return await self._do(work)

    async def taken_from(self, work: Work) -> Batch | None:
        """What a call that was left has reached; null where it has no exit yet."""
        await asyncio.sleep(0)  # who watches hears first of the exits that were told
        batch: Batch | None = None if work.so_far is None else work.so_far()
        return batch

    async def signatures(
        self, texts: Sequence[TextPair], kind: Signature, expires: float | None = None
    ) -> list[Vector | None]:
        """What stands for each text before any layer runs; null where it cannot be read."""
        return await self._do(Work(texts, signature=kind, expires=expires))

    async def turn(self) -> None:
        """Wait in the queue for nothing: whether the model still takes work."""
        await self._do(Work([]))

    def unread_middle(self, text: TextPair, encoded: Encoded, own: int, behind: tuple[int, int]) -> list[bool] | None:
        """Which words to send on so that tiers behind, which read so many tokens, read the same; null: all of them.

        `encoded` is the text as read here, into `own` tokens.
        """
        return self._classifier.tokens.unread_middle(text.text, text.text_pair, encoded, own, behind)

    def expected_s(self, texts: int, layers: int) -> float | None:
        """Seconds until `texts` put into the queue now have passed `layers`, as measured; null before anything was."""
        row_layer_s = self._row_layer.last_high
        return None if row_layer_s is None else self.queue.ahead_s + texts * layers * row_layer_s

    async def _do(self, work: Work) -> Any:
        work.asked = self.clock()
        self.queue.put(work)
        try:
            return await asyncio.wrap_future(work.future)
        except asyncio.CancelledError:
            self.queue.leave(work)
            raise

    def _serve(self) -> None:
        _yield_to_the_loop()
        self._classifier.engine.enter()
        while works := self.queue.take(self._first_exit_s):
            try:
                done = self._run(works)
            except BaseException as error:  # noqa: BLE001 - it belongs to those who wait, not to this thread
                for work in works:
                    work.future.set_exception(error)
            else:
                self.queue.done()
                for work, result in zip(works, done, strict=True):
                    if isinstance(result, BadState):
                        work.future.set_exception(result)
                    else:
                        work.future.set_result(result)

    def _first_exit_s(self) -> float:
        """Seconds until a text's first exit, as measured of late; 0 before any measurement."""
        return (self._row_layer.mean or 0.0) + (self._tokenize.mean or 0.0)

    def _run(self, works: list[Work]) -> Sequence[Any]:
        started = self.clock()
        encoded = [[self._encode(text, work.max_tokens) for text in work.texts] for work in works]
        if (kind := works[0].signature) is not None:
            return [[None if item is None else self._classifier.signature(item, kind) for item in encoded[0]]]
        tokenized = self.clock()
        for work, items in zip(works, encoded, strict=True):
            if not _fit(work, items):  # it belongs to other texts
                return [BadState("a state has other tokens than its text")] if len(works) == 1 else self._each(works)
        self._tokenize.add((tokenized - started) / max(1, sum(map(len, encoded))))
        traces: dict[int, ExitTrace] = {}
        rows = count()
        for work, items in zip(works, encoded, strict=True):
            placed = [(item, None if item is None else next(rows)) for item in items]
            times_s: dict[HopTiming, float] = {"tokenize": tokenized - started, "queue": started - work.asked}
            work.so_far = partial(self._batch, work.rule, placed, traces, times_s, since=tokenized)
        self._forward(works, encoded, traces)
        return [work.so_far() for work in works if work.so_far is not None]

    def _each(self, works: list[Work]) -> Sequence[Any]:
        """Each call's pass alone: one of them must not fail the others."""
        return [result for work in works for result in self._run([work])]

    def _batch(
        self,
        rule: ExitRule | None,
        placed: list[tuple[Encoded | None, int | None]],
        traces: Mapping[int, ExitTrace],
        times_s: dict[HopTiming, float],
        *,
        since: float,
    ) -> Batch | None:
        """What a call gets by the traces (by row) that are there; null where one of its texts, with its row, has none.

        Any thread may ask.
        """
        rows = [row for _, row in placed if row is not None]
        if any(row not in traces for row in rows):
            return None
        answers = [None if item is None or row is None else self._answer(item, traces[row]) for item, row in placed]
        return Batch(answers, {**times_s, "infer": self.clock() - since}, rule)

    def _forward(self, works: list[Work], encoded: list[list[Encoded | None]], traces: dict[int, ExitTrace]) -> None:
        """Fill in the traces of every readable text, call by call: where one has a deadline, after each layer."""
        places = [
            (work, at)
            for work, items in zip(works, encoded, strict=True)
            for at, item in enumerate(items)
            if item is not None
        ]
        readable = [item for item in chain.from_iterable(encoded) if item is not None]
        if not readable:
            return
        started = last = self.clock()

        def over(rows: list[int]) -> list[bool]:
            nonlocal last
            now = self.clock()
            after_the_next, last = now + (now - last), now
            return [places[row][0].over(after_the_next) for row in rows]

        work, begun = works[0], [state for each in works for state in each.begun or ()]
        ran = self._classifier.run(
            begun or readable,
            work.rule,
            importance=work.importance,
            every_exit=work.explain,
            parts=work.explain,
            over=over,
            tell=self._telling(places, readable),
            tell_every=any(each.passed is not None for each in works),
            so_far=None if all(each.expires is None for each in works) else traces,
            states=work.states,
        )
        seconds = self.clock() - started
        text_s, usual_s = seconds / len(readable), self.queue.text_s
        self.queue.text_s += (min(text_s, 8 * usual_s or text_s) - usual_s) / 8
        before = begun[0].done if begun else 0
        self._row_layer.add(seconds / max(1, sum(max(0, trace.exit_layer - before) for trace in ran)))
        traces.update(enumerate(ran))

    def _telling(self, places: list[tuple[Work, int]], encoded: Sequence[Encoded]) -> Callable[[Reached], None] | None:
        """What tells those who watch of their texts' exits; null where nobody does. `places`: a row's call and text."""
        if all(work.tell is None and work.passed is None for work, _ in places):
            return None
        layers = self._classifier.engine.layers

        def tell(reached: Reached) -> None:
            exits = self._classifier.calibrate(reached.logits[None], last=reached.exit)[0]
            for at, row in enumerate(reached.rows):
                work, text = places[row]
                if work.abandoned:
                    continue
                met, probabilities = None if reached.met is None else bool(reached.met[at]), exits[at].tolist()
                if work.passed is not None and not met and reached.exit < layers:
                    work.passed(encoded[row], reached.exit, max(probabilities))
                if work.tell is not None:
                    work.tell(text, reached.exit, probabilities, met)

        return tell

    def _answer(self, item: Encoded, trace: ExitTrace) -> Answer:
        exits = self._classifier.calibrate(trace.logits, last=trace.exit_layer)
        weights = None if trace.importance is None else trace.importance.tolist()
        shares = _shares(item, trace, exits)
        return Answer(item, trace.exit_layer, exits.tolist(), weights, shares, trace.cut, trace.state)

    def _encode(self, text: TextPair, max_tokens: int | None) -> Encoded | None:
        try:
            return self._classifier.encode(text.text, text.text_pair, max_tokens)
        except UnreadableText:
            return None

    def close(self) -> None:
        """Cancel what waits and finish what runs; a pass that takes over `CLOSE_S` more is abandoned to its thread."""
        self.queue.close()
        self._thread.join(CLOSE_S)
        if self._thread.is_alive():  # a daemon: it does not hold the end of the process
            log.error("model_still_runs", waited_s=CLOSE_S)


def _fit(work: Work, items: Sequence[Encoded | None]) -> bool:
    """Whether every text has as many tokens as the state that it goes on from, if it does."""
    lengths = [None if item is None else len(item.ids) for item in items]
    return work.begun is None or lengths == [state.tokens for state in work.begun]


def _shares(item: Encoded, trace: ExitTrace, exits: Array) -> Shares | None:
    """Each word's share in the decision for the label, as it is on the wire; null unless the text is explained."""
    if trace.parts is None:
        return None
    return shares_of(item, trace.parts, trace.logits[-1], top=int(exits[-1].round(6).argmax()))


def _yield_to_the_loop() -> None:
    """Let the event loop go first on a busy machine: a refusal takes it a millisecond, a layer takes many.

    It only ever gets nicer than it is, which nobody needs a permission for. Elsewhere than on Linux, a thread has no
    priority of its own that Python can set.
    """
    if sys.platform == "linux":
        thread = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, thread, min(19, os.getpriority(os.PRIO_PROCESS, thread) + NICE))
