"""Compare policies on live tiers: every text goes through every policy, interleaved, so that noise is shared (paired).

Closed loop: `concurrency` requests under way at once. Open loop: Poisson arrivals at `rate` per second, latency counted
from the planned arrival, so that a slow system cannot slow its own load (coordinated omission). What the client waited
is the latency; the first request of each policy warms connections and is not counted.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import httpx
from rich.console import Console
from rich.progress import Progress

from services.lab.client import classify, connect, info_of
from services.lab.data import Example, check_labels, digest
from services.lab.policies import parse_policy
from shared.contracts import Result
from shared.errors import BadSetting
from shared.http import AsyncClient


@dataclass(frozen=True)
class Plan:
    """What to measure. The first policy is the one the others are compared with."""

    examples: list[Example]
    policies: list[str]
    rate: float = 0.0
    concurrency: int = 1
    seed: int = 0

    @property
    def loop(self) -> str:
        """Open at a rate, or closed."""
        return f"open, {self.rate}/s" if self.rate else f"closed, {self.concurrency} at once"


@dataclass(frozen=True)
class Sample:
    """One text under one policy."""

    row: int
    policy: str
    seconds: float
    right: bool
    last_right: bool  # what the deepest tier alone would have answered
    result: Result


def run(plan: Plan, url: str, console: Console, ledger: Path | None = None) -> tuple[dict[str, Any], list[Sample]]:
    """Drive the tiers at `url`: the first tier's `/info`, and a sample per text and policy.

    With a `ledger` every sample is kept as it comes, and a closed-loop run that was killed goes on where it stopped.

    Raises:
        NoAnswer: a request that was refused: a bench with holes is no bench.
        BadSetting: the ledger is of another run, or the texts have labels that the tiers do not have.
    """
    return asyncio.run(_run(plan, url, console, ledger))


async def _run(plan: Plan, url: str, console: Console, ledger: Path | None) -> tuple[dict[str, Any], list[Sample]]:
    limits = httpx.Limits(max_connections=256, max_keepalive_connections=256, keepalive_expiry=60)
    async with connect(url, timeout=120, limits=limits) as client:
        info = await info_of(client)
        labels = info["labels"]
        check_labels(plan.examples, labels, f"bundle {info['bundle']} at {url}")
        for policy in plan.policies:
            await classify(client, plan.examples[0].text, {"policy": parse_policy(policy)})
        done = [] if ledger is None else _resume(plan, ledger, info, labels)
        with nullcontext() if ledger is None else ledger.open("a") as file:
            samples = await _measure(plan, client, labels, done, file, console)
    return info, samples


def _resume(plan: Plan, ledger: Path, info: dict[str, Any], labels: list[str]) -> list[Sample]:
    """The samples that a killed run left; the first line names the run, so that two are never mixed."""
    links = [[link["to"], link["backend"], link["profile"]] for link in info["links"]]
    run = {"data": digest(plan.examples), "policies": plan.policies, "loop": plan.loop, "seed": plan.seed}
    header = json.dumps({**run, "card": info["card_sha256"], "links": links})
    ledger.parent.mkdir(parents=True, exist_ok=True)
    if not ledger.exists() or not ledger.read_text():
        ledger.write_text(header + "\n")
        return []
    first, *lines = ledger.read_text().splitlines(keepends=True)
    if first.strip() != header or plan.rate:
        raise BadSetting(f"{ledger} is of another run, or of an open loop: delete it, or choose another --out")
    whole = [line for line in lines if line.endswith("\n")]  # the last one may have been cut
    ledger.write_text(first + "".join(whole))
    return [_sample(plan, labels, **json.loads(line)) for line in whole]


def _sample(plan: Plan, labels: list[str], *, row: int, policy: str, seconds: float, result: dict[str, Any]) -> Sample:
    parsed, truth = Result.model_validate(result), labels[plan.examples[row].label]
    return Sample(row, policy, seconds, parsed.label == truth, parsed.hops[-1].label == truth, parsed)


async def _measure(
    plan: Plan,
    client: AsyncClient,
    labels: list[str],
    samples: list[Sample],
    ledger: TextIO | None,
    console: Console,
) -> list[Sample]:
    shuffle = random.Random(plan.seed)
    every = [
        (row, policy)
        for row in range(len(plan.examples))
        for policy in shuffle.sample(plan.policies, len(plan.policies))
    ]
    known = {(sample.row, sample.policy) for sample in samples}
    order = [step for step in every if step not in known]
    with Progress(console=console) as progress:
        task = progress.add_task("bench", total=len(every), completed=len(known))

        async def one(row: int, policy: str, planned: float) -> None:
            example = plan.examples[row]
            inputs = example.text if example.pair is None else {"text": example.text, "text_pair": example.pair}
            timed = await classify(client, inputs, {"policy": parse_policy(policy), "seed": f"{plan.seed}-{row}"})
            seconds = time.perf_counter() - planned
            result = timed.answer.results[0].model_dump(mode="json", by_alias=True)
            kept: dict[str, Any] = {"row": row, "policy": policy, "seconds": seconds, "result": result}
            samples.append(_sample(plan, labels, **kept))
            if ledger is not None:
                ledger.write(json.dumps(kept) + "\n")
                ledger.flush()
            progress.advance(task)

        if plan.rate:
            await _open_loop(order, one, plan.rate, shuffle)
        else:
            await _closed_loop(order, one, plan.concurrency)
    return samples


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
