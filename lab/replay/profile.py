"""What things take on this machine, measured once: each layer at each length, tokenizing, pruning, a call over HTTP.

    CACHE/replay/profiles/*.json     one per shape of classifier, threads and machine; one for HTTP

`infer` holds seconds from the start of a forward pass until a text could leave by each exit, [E][lengths], with every
exit on the way evaluated; `whole` the same pass less what the exits before the last one took in it: a difference of two
passes would drown in noise. Both per attention kernel. Batch of one. By the wall clock, so what always runs beside
(the containers of an idle stack) is in it: measure where the texts will run, and let nothing else run. Every pass comes
after a rest, as a tier's does that is asked now and then: caches are cold then, which costs a short text some percent.
Means, all once a round, so that a slow spell of the machine falls on all alike.
Left out: several texts in one request, and waiting.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import statistics
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import perf_counter, sleep
from typing import Any, TypeVar, cast

from pydantic import BaseModel
from rich.console import Console

from lab.live.bench_report import cpu
from lab.live.client import classify, connect
from lab.live.stack import Layout, free_ports, running
from lab.replay.recorder import Kernel, Source
from shared.errors import BadSetting
from shared.model.base import Array
from shared.model.bundle import Bundle
from shared.model.classifier import Classifier
from shared.model.encoder import Engine
from shared.model.exits import Similarity
from shared.model.pruning import Pruning, keep_words
from shared.model.weights import cache_dir
from shared.model.words import Encoded
from shared.web.machine import cpus

LENGTHS = (8, 16, 32, 64, 96, 128, 192, 256, 384, 512)  # tokens
WORDS = (8, 32, 128, 512)
ROUNDS, SECONDS = 10, 0.015  # and how long at least each thing is done in each
REST, RESTED = 0.05, 2  # seconds before every pass; and how many passes a round at most
VERSION = 3  # of how it is measured: what an older one measured is not read
HTTP_CALLS = 40
_MEASURED: set[Path] = set()  # by this process: anew is once a run, however many bundles share a shape
_FILLER = "the film was good but slow and i would watch it again with a friend "


Work = Callable[[], list[float]]  # does it, and says how many seconds it took
Kept = TypeVar("Kept", bound=BaseModel)


class Table(BaseModel):
    """One classifier's times in seconds."""

    lengths: list[int]
    infer: dict[Kernel, list[list[float]]]  # [E][lengths]
    whole: dict[Kernel, list[float]]  # [lengths]: all E layers, the last exit alone
    words: list[int]
    tokenize: list[float]  # [words]
    prune: list[float]  # [words]
    spread: float  # slowest round over the mean, of the longest text: well above 1 on a machine that was not idle


class Http(BaseModel):
    """What a call adds to a tier's own stages, in seconds: from a client, and from one tier to the next."""

    client: float
    hop: float


class _Clock:
    """An engine that notes when each exit's head begins, and an exit rule that notes when it ends.

    The rule lets nobody leave, and is as dear as the usual one.
    """

    def __init__(self, engine: Engine) -> None:
        self.began, self.ended = list[float](), list[float]()
        self._engine, self._rule = engine, Similarity(1e-30, 2, 0.9)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def exits(self, n: int, state: Any) -> Array:
        """The engine's own exits."""
        self.began.append(perf_counter())
        return self._engine.exits(n, state)

    def __call__(self, history: Array) -> Array:
        leave = self._rule(history)
        self.ended.append(perf_counter())
        return leave & False


def measure_table(source: Source, threads: int, console: Console, *, anew: bool = False) -> Table:
    """A classifier's table: from the cache, or measured now (up to a minute). What it was trained on takes no time."""
    return _cached(f"{source.shape} {threads}", Table, lambda: table_now(source, threads, console), anew=anew)


def table_now(source: Source, threads: int, console: Console, *, rounds: int = ROUNDS) -> Table:
    """A classifier's table, measured now and not kept. No spinner: it would run beside what is measured."""
    what = f"{source.folder.name}, {source.layers} layers, {source.computes}, {threads} threads"
    console.print(f"measuring {what} (up to a minute)")
    max_tokens, classifier = source.max_tokens, source.load(threads)
    lengths = [*(n for n in LENGTHS if n < max_tokens), max_tokens]
    works: dict[tuple[object, ...], Work] = {}
    for length in lengths:
        text = classifier.tokens.encode(_FILLER * (length // 8 + 1), None, length)
        for kernel in Kernel:
            works["infer", kernel, length] = partial(_pass, classifier, text, kernel)
    for count in WORDS:
        words = " ".join((_FILLER * (count // 8)).split()[:count])
        works["tokenize", count] = partial(_tokenize, classifier, words)
        works["prune", count] = partial(_prune, words, classifier.encode(words))
    took = _rounds(works, rounds)
    mean = {key: [statistics.fmean(column) for column in zip(*own, strict=True)] for key, own in took.items()}
    longest = [own[-1] for own in took["infer", Kernel.PLAIN, max_tokens]]
    return Table(
        lengths=lengths,
        infer={
            k: [list(row) for row in zip(*(mean["infer", k, n][:-1] for n in lengths), strict=True)] for k in Kernel
        },
        whole={kernel: [mean["infer", kernel, n][-1] for n in lengths] for kernel in Kernel},
        words=list(WORDS),
        tokenize=[mean["tokenize", count][0] for count in WORDS],
        prune=[mean["prune", count][0] for count in WORDS],
        spread=max(longest) / statistics.fmean(longest),
    )


def _rounds(works: Mapping[tuple[object, ...], Work], rounds: int) -> dict[tuple[object, ...], list[list[float]]]:
    """What each work returned, averaged over each round; a first pass of each warms up."""
    for work in works.values():
        work()
    out = {key: list[list[float]]() for key in works}
    for _ in range(rounds):
        for key, work in works.items():
            most = RESTED if key[0] == "infer" else None
            passes = [work()]
            while sum(own[-1] for own in passes) < SECONDS and len(passes) != most:
                passes.append(work())
            out[key].append([statistics.fmean(column) for column in zip(*passes, strict=True)])
    return out


def _pass(classifier: Classifier, text: Encoded, kernel: Kernel) -> list[float]:
    """Seconds until each exit, after a rest; and until the last one had the others not been evaluated."""
    sleep(REST)
    clock = _Clock(classifier.engine)
    timed = replace(classifier, engine=cast(Engine, clock))
    started = perf_counter()
    timed.run([text], clock, importance=kernel is Kernel.COUNTED)
    ended = perf_counter()
    exits = sum(end - began for began, end in zip(clock.began, clock.ended, strict=False))  # the last asks no rule
    return [*(end - started for end in clock.ended), ended - started, ended - started - exits]


def _tokenize(classifier: Classifier, text: str) -> list[float]:
    started = perf_counter()
    classifier.encode(text)
    return [perf_counter() - started]


def _prune(text: str, encoded: Encoded) -> list[float]:
    importance = [float(at % 7) for at in range(len(encoded.ids))]
    started = perf_counter()
    keep_words(text, None, encoded, Pruning(1.0).mask(encoded, importance))
    return [perf_counter() - started]


def measure_http(bundle: Bundle, console: Console, *, anew: bool = False) -> Http:
    """What HTTP adds on this machine: from the cache, or measured on live tiers over loopback, links unshaped."""

    def measured() -> Http:
        layout = Layout(bundle=str(bundle.folder), port=free_ports(len(bundle.order)), access="ideal", backbone="ideal")
        with running(layout, console) as stack:
            return http_now(stack.url, bundle)

    return _cached("http", Http, measured, anew=anew)


def http_now(url: str, bundle: Bundle) -> Http:
    """What HTTP adds on the tiers at `url`, whose links are unshaped: measured now and not kept."""
    return asyncio.run(_calls(url, bundle.order))


async def _calls(url: str, order: tuple[str, ...]) -> Http:
    """Client seconds less the tier's own stages, asked at the first tier and through it at the last."""
    added: dict[str, list[float]] = {}
    async with connect(url, timeout=60) as client:
        for call in range(HTTP_CALLS):
            for tier in (order[0], order[-1]):
                timed = await classify(client, _FILLER, {"policy": f"{tier}-only"})
                stages = timed.answer.results[0].hops[0].timings_ms
                own = stages["tokenize"] + stages["infer"] + stages["prune"]
                if call:
                    added.setdefault(tier, []).append(timed.seconds - own / 1e3)
    near, far = statistics.fmean(added[order[0]]), statistics.fmean(added[order[-1]])
    return Http(client=near, hop=max(0.0, far - near))


def _cached(what: str, kind: type[Kept], measure: Callable[[], Kept], *, anew: bool) -> Kept:
    """What is in the cache; measured and put there if it is not, or if it is wanted anew and this process has not."""
    machine = f"{cpu()} {cpus():g}"
    name = hashlib.sha256(f"{VERSION} {what} {machine}".encode()).hexdigest()[:24]
    path = cache_dir() / "replay" / "profiles" / f"{name}.json"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)  # now, not after a minute of measuring
    except OSError as error:
        raise BadSetting(
            f"{path.parent}: cannot be written; TIERWISE_CACHE_DIR names another place: {error}"
        ) from error
    if not path.exists() or (anew and path not in _MEASURED):
        unfinished = path.with_suffix(f".{os.getpid()}.part")
        unfinished.write_text(measure().model_dump_json())
        unfinished.replace(path)
        _MEASURED.add(path)
    try:
        return kind.model_validate_json(path.read_text())
    except ValueError as error:
        raise BadSetting(f"{path}: damaged: delete it, and it is measured again") from error
