"""Compare policies on live tiers: every text goes through every policy, interleaved, so that noise is shared (paired).

Closed loop: `concurrency` requests under way at once. Open loop: Poisson arrivals at `rate` per second, latency counted
from the planned arrival, so that a slow system cannot slow its own load (coordinated omission). What the client waited
is the latency; the first request of each policy, with a text of ours, warms connections and is not counted. A text that
the tiers refuse is left out for every policy. Whole models (`whole.py`) take turns with the policies, in rows alike.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from rich.console import Console

from lab.console import aside, progress
from lab.data.examples import ALL, Example, check_labels, digest
from lab.data.readable import LeftOut, no_text, too_long
from lab.live.client import LIMITS, PROBE, TextRefused, classify, connect, info_of, play
from lab.policies import parse_policy
from shared.contracts import Result
from shared.errors import BadSetting
from shared.links.clients import AsyncClient

if TYPE_CHECKING:
    from lab.live.whole import Whole

Ask = Callable[[Example, str], Awaitable[Result]]  # an example and the seed of its draws


@dataclass(frozen=True)
class Plan:
    """What to measure. The first policy is the one the others are compared with."""

    examples: list[Example]
    policies: list[str]
    rate: float = 0.0
    concurrency: int = 1
    seed: int = 0
    split: str = ALL
    wholes: Sequence[Whole] = ()
    trace: str | None = None  # that the first tier's links follow, from its start for every policy

    @property
    def rows(self) -> list[str]:
        """Policies, then whole models, by the names that a report has for them."""
        return [*self.policies, *(whole.built.name for whole in self.wholes)]

    @property
    def loop(self) -> str:
        """Open at a rate, or closed."""
        loop = f"open, {self.rate}/s" if self.rate else f"closed, {self.concurrency} at once"
        return f"{loop}; trace {self.trace}" if self.trace else loop


@dataclass(frozen=True)
class Sample:
    """One text under one policy."""

    row: int
    policy: str
    seconds: float
    right: bool
    last_right: bool  # what the deepest tier alone would have answered
    result: Result


@dataclass(frozen=True)
class Done:
    """The first tier's `/info`, a sample per text and policy, and the texts that were refused."""

    info: dict[str, Any]
    samples: list[Sample]
    left_out: LeftOut


class _Kept:
    """What a run has so far; with a journal it is on disk too."""

    def __init__(self, plan: Plan, info: dict[str, Any], journal: TextIO | None) -> None:
        self.plan, self.labels, self.journal = plan, info["labels"], journal
        self.samples: list[Sample] = []
        limit = info.get("limits", {}).get("max_body_bytes", math.inf)
        whys = ((row, no_text(text) or too_long(text, limit)) for row, text in enumerate(plan.examples))
        self.refused = {row: why for row, why in whys if why}

    def note(self, line: dict[str, Any]) -> None:
        """A line of the journal that is new."""
        self.take(line)
        if self.journal is not None:
            self.journal.write(json.dumps(line) + "\n")
            self.journal.flush()

    def take(self, line: dict[str, Any]) -> None:
        """A line of the journal."""
        if "refused" in line:
            self.refused[line["row"]] = line["refused"]
        else:
            self.samples.append(_sample(self.plan, self.labels, **line))

    def done(self, info: dict[str, Any]) -> Done:
        """What counts: the texts that every policy answered."""
        left_out = LeftOut([(self.plan.examples[row], why) for row, why in sorted(self.refused.items())])
        return Done(info, [sample for sample in self.samples if sample.row not in self.refused], left_out)


def run(plan: Plan, url: str, console: Console, journal: Path | None = None) -> Done:
    """Drive the tiers at `url`, every text under every policy.

    With a `journal` every sample is kept as it comes, and a closed-loop run that was killed goes on where it stopped.

    Raises:
        NoAnswer: a policy that was refused, or a request that failed: a bench with holes is no bench.
        BadSetting: the journal is of another run, the tiers lack labels that the texts have, or none is answered.
    """
    return asyncio.run(_run(plan, url, console, journal))


async def _run(plan: Plan, url: str, console: Console, journal: Path | None) -> Done:
    async with AsyncExitStack() as stack, connect(url, timeout=120, limits=LIMITS) as client:
        info = await info_of(client)
        check_labels(plan.examples, info["labels"], f"bundle {info['bundle']} at {url}")
        asks = await _asks(plan, client, stack)
        for ask in asks.values():
            await ask(Example(PROBE, None, 0), "0")
        known = [] if journal is None else _resume(plan, journal, info)
        with nullcontext() if journal is None else journal.open("a") as file:
            kept = _Kept(plan, info, file)
            for line in known:
                kept.take(line)
            if plan.trace is None:
                await _measure(plan, asks, kept, console)
            else:
                for policy in plan.policies:
                    await play(client, plan.trace)
                    await _measure(replace(plan, policies=[policy]), asks, kept, console)
    done = kept.done(info)
    done.left_out.tell(aside())
    if not done.samples:
        raise BadSetting(f"the tiers at {url} answer none of the {len(plan.examples)} texts")
    return done


async def _asks(plan: Plan, client: AsyncClient, stack: AsyncExitStack) -> dict[str, Ask]:
    """How to ask each row of a report; the clients of whole models close with the stack."""
    asks = {policy: _ask_of(client, policy) for policy in plan.policies}
    for whole in plan.wholes:
        asks[whole.built.name] = await stack.enter_async_context(whole.asked())
    return asks


def _ask_of(client: AsyncClient, policy: str) -> Ask:
    spec = parse_policy(policy)

    async def ask(example: Example, seed: str) -> Result:
        inputs = example.text if example.pair is None else {"text": example.text, "text_pair": example.pair}
        return (await classify(client, inputs, {"policy": spec, "seed": seed})).answer.results[0]

    return ask


def _resume(plan: Plan, journal: Path, info: dict[str, Any]) -> list[dict[str, Any]]:
    """The lines that a killed run left; the first line names the run, so that two are never mixed."""
    links = [[link["to"], link["backend"], link["profile"]] for link in info["links"]]
    run = {"data": digest(plan.examples), "policies": plan.policies, "loop": plan.loop, "seed": plan.seed}
    wholes = {"wholes": {whole.built.name: whole.about for whole in plan.wholes}} if plan.wholes else {}
    header = json.dumps({**run, "card": info["card_sha256"], "links": links, **wholes})
    journal.parent.mkdir(parents=True, exist_ok=True)
    if not journal.exists() or not journal.read_text():
        journal.write_text(header + "\n")
        return []
    first, *lines = journal.read_text().splitlines(keepends=True)
    if first.strip() != header or plan.rate:
        raise BadSetting(f"{journal} is of another run, or of an open loop: delete it, or choose another --out")
    whole = [line for line in lines if line.endswith("\n")]  # the last one may have been cut
    journal.write_text(first + "".join(whole))
    return [json.loads(line) for line in whole]


def _sample(plan: Plan, labels: list[str], *, row: int, policy: str, seconds: float, result: dict[str, Any]) -> Sample:
    parsed, truth = Result.model_validate(result), labels[plan.examples[row].label]
    return Sample(row, policy, seconds, parsed.label == truth, parsed.hops[-1].label == truth, parsed)


async def _measure(plan: Plan, asks: Mapping[str, Ask], kept: _Kept, console: Console) -> None:
    shuffle = random.Random(plan.seed)
    every = [(row, policy) for row in range(len(plan.examples)) for policy in shuffle.sample(plan.rows, len(plan.rows))]
    known = {(sample.row, sample.policy) for sample in kept.samples if sample.policy in plan.rows}
    order = [step for step in every if step not in known]
    with progress(console) as bar:
        task = bar.add_task("bench", total=len(every), completed=len(known))

        async def one(row: int, policy: str, planned: float) -> None:
            if row not in kept.refused:
                kept.note(await _asked(plan, asks[policy], row, policy, planned))
            bar.advance(task)

        if plan.rate:
            await _open_loop(order, one, plan.rate, shuffle)
        else:
            await _closed_loop(order, one, plan.concurrency)


async def _asked(plan: Plan, ask: Ask, row: int, policy: str, planned: float) -> dict[str, Any]:
    """One request, as a line of the journal."""
    try:
        answer = await ask(plan.examples[row], f"{plan.seed}-{row}")
    except TextRefused as error:
        return {"row": row, "refused": str(error).removesuffix(" in input 0")}
    seconds = time.perf_counter() - planned
    result = answer.model_dump(mode="json", by_alias=True)
    return {"row": row, "policy": policy, "seconds": seconds, "result": result}


async def _open_loop(order: list[tuple[int, str]], one: Any, rate: float, clock: random.Random) -> None:
    start, at = time.perf_counter(), 0.0
    async with asyncio.TaskGroup() as group:
        for row, policy in order:
            at += clock.expovariate(rate)
            await asyncio.sleep(max(0.0, start + at - time.perf_counter()))
            group.create_task(one(row, policy, start + at))


async def _closed_loop(order: list[tuple[int, str]], one: Any, concurrency: int) -> None:
    queue = iter(order)

    async def user() -> None:
        for row, policy in queue:
            await one(row, policy, time.perf_counter())

    async with asyncio.TaskGroup() as group:
        for _ in range(concurrency):
            group.create_task(user())
