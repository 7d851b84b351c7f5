"""The model's worker: one thread, a bounded queue, and what a batch of texts gives.

torch keeps its thread count per thread, so it is set where the model runs. Rows wait in arrival order; the event loop
is never blocked. Left out: joining the rows of different requests into one batch.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import torch

from shared.contracts import TextPair
from shared.errors import QueueFull, UnreadableText
from shared.exits import ExitRule
from shared.network import Network
from shared.pools import Signature, Vector
from shared.words import Encoded

T = TypeVar("T")


@dataclass(frozen=True)
class Answer:
    """What this tier's model says about one text. `exits` are calibrated, oldest first."""

    encoded: Encoded
    exit_layer: int
    exits: list[list[float]]
    importance: list[float] | None

    @property
    def probabilities(self) -> list[float]:
        return self.exits[-1]


@dataclass(frozen=True)
class Batch:
    """The answers of one call (null where a text could not be read) and its times in seconds."""

    answers: list[Answer | None]
    tokenize: float
    queue: float
    infer: float


class Worker:
    """Runs one network in one thread. `limit` calls may wait; one more raises `QueueFull`."""

    def __init__(self, network: Network, *, threads: int, limit: int) -> None:
        self._network = network
        self._limit = limit
        self.waiting = 0
        self._pool = ThreadPoolExecutor(1, "model", initializer=torch.set_num_threads, initargs=(threads,))

    async def run(self, texts: Sequence[TextPair], rule: ExitRule | None, *, importance: bool, explain: bool) -> Batch:
        """Tokenize and run a batch of texts."""
        asked = time.perf_counter()
        return await self._next(lambda: self._infer(texts, rule, importance=importance, explain=explain, asked=asked))

    async def signatures(self, texts: Sequence[TextPair], kind: Signature) -> list[Vector | None]:
        """What stands for each text before any layer runs; null where it cannot be read."""

        def work() -> list[Vector | None]:
            encoded = [self._encode(text) for text in texts]
            return [None if item is None else self._network.signature(item, kind) for item in encoded]

        return await self._next(work)

    async def _next(self, work: Callable[[], T]) -> T:
        """Do some work in the model's thread, in arrival order."""
        if self.waiting >= self._limit:
            raise QueueFull(f"{self.waiting} requests wait for the model already")
        self.waiting += 1

        def begin() -> T:
            self.waiting -= 1
            return work()

        task = self._pool.submit(begin)
        try:
            return await asyncio.wrap_future(task)
        except asyncio.CancelledError:
            if task.cancel():  # it never began
                self.waiting -= 1
            raise

    def _infer(
        self, texts: Sequence[TextPair], rule: ExitRule | None, *, importance: bool, explain: bool, asked: float
    ) -> Batch:
        started = time.perf_counter()
        encoded = [self._encode(text) for text in texts]
        readable = [item for item in encoded if item is not None]
        tokenized = time.perf_counter()
        ran = self._network.run(readable, rule, importance=importance, every_exit=explain) if readable else []
        traces = iter(ran)
        answers: list[Answer | None] = []
        for item in encoded:
            if item is None:
                answers.append(None)
                continue
            trace = next(traces)
            whole = len(trace.logits) == trace.exit_layer
            exits = self._network.encoder.calibrate(trace.logits.to(self._network.encoder.device), last_only=not whole)
            weights = None if trace.importance is None else trace.importance.tolist()
            answers.append(Answer(item, trace.exit_layer, exits.tolist(), weights))
        return Batch(answers, tokenized - started, started - asked, time.perf_counter() - tokenized)

    def _encode(self, text: TextPair) -> Encoded | None:
        try:
            return self._network.encode(text.text, text.text_pair)
        except UnreadableText:
            return None

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
