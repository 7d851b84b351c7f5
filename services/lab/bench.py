"""Compare policies on live tiers: every text goes through every policy, interleaved, so that noise is shared (paired).

Closed loop: `concurrency` requests under way at once. Open loop: Poisson arrivals at `rate` per second, latency counted
from the planned arrival, so that a slow system cannot slow its own load (coordinated omission). What the client waited
is the latency; the first request of each policy warms connections and is not counted.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import random
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import httpx
import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from services.lab.client import NoAnswer, classify
from services.lab.data import Example, digest
from services.lab.policies import parse_policy
from services.lab.stats import paired_difference, wilson
from shared.contracts import Result

STAGES: tuple[Literal["tokenize", "queue", "infer", "prune"], ...] = ("tokenize", "queue", "infer", "prune")


@dataclass(frozen=True)
class Plan:
    """What to measure. The first policy is the one the others are compared with."""

    examples: list[Example]
    policies: list[str]
    rate: float = 0.0
    concurrency: int = 1
    seed: int = 0


@dataclass(frozen=True)
class Sample:
    """One text under one policy."""

    row: int
    policy: str
    seconds: float
    right: bool
    last_right: bool  # what the deepest tier alone would have answered
    result: Result


def run(plan: Plan, url: str, console: Console) -> dict[str, Any]:
    """Drive the tiers at `url` and report per policy.

    Raises:
        NoAnswer: a request that was refused: a bench with holes is no bench.
    """
    return asyncio.run(_run(plan, url, console))


async def _run(plan: Plan, url: str, console: Console) -> dict[str, Any]:
    limits = httpx.Limits(max_connections=256, max_keepalive_connections=256, keepalive_expiry=60)
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as client:
        try:
            info = (await client.get("/info")).json()
        except httpx.HTTPError as error:
            raise NoAnswer(f"no tier answers at {url}: {error}") from error
        for policy in plan.policies:
            await classify(client, plan.examples[0].text, {"policy": parse_policy(policy)})
        samples = await _measure(plan, client, info["labels"], console)
    return _report(plan, info, samples)


async def _measure(plan: Plan, client: httpx.AsyncClient, labels: list[str], console: Console) -> list[Sample]:
    shuffle = random.Random(plan.seed)
    order = [
        (row, policy)
        for row in range(len(plan.examples))
        for policy in shuffle.sample(plan.policies, len(plan.policies))
    ]
    samples: list[Sample] = []
    with Progress(console=console) as progress:
        task = progress.add_task("bench", total=len(order))

        async def one(row: int, policy: str, planned: float) -> None:
            example = plan.examples[row]
            inputs = example.text if example.pair is None else {"text": example.text, "text_pair": example.pair}
            timed = await classify(client, inputs, {"policy": parse_policy(policy), "seed": f"{plan.seed}-{row}"})
            result = timed.answer.results[0]
            truth, seconds = labels[example.label], time.perf_counter() - planned
            right, last_right = result.label == truth, result.hops[-1].label == truth
            samples.append(Sample(row, policy, seconds, right, last_right, result))
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


def _report(plan: Plan, info: dict[str, Any], samples: list[Sample]) -> dict[str, Any]:
    by_policy = {p: sorted((s for s in samples if s.policy == p), key=lambda s: s.row) for p in plan.policies}
    return {
        "n": len(plan.examples),
        "data_sha256": digest(plan.examples),
        "loop": f"open, {plan.rate}/s" if plan.rate else f"closed, {plan.concurrency} at once",
        "seed": plan.seed,
        "hardware": {"machine": platform.machine(), "cpu": _cpu(), "cores": os.cpu_count(), "device": info["device"]},
        "first_tier": info,
        "policies": {policy: _summary(rows, by_policy[plan.policies[0]]) for policy, rows in by_policy.items()},
    }


def _summary(samples: list[Sample], reference: list[Sample]) -> dict[str, Any]:
    """One policy's figures; differences are against the first policy, over the same texts."""
    n = len(samples)
    ms = np.array([s.seconds * 1e3 for s in samples])
    right = np.array([s.right for s in samples], float)
    hops = [hop for s in samples for hop in s.result.hops]
    links = [hop.link for hop in hops if hop.link]
    sent = [(hop.words_kept, hop.words_in) for hop in hops if hop.words_kept is not None]
    stages: dict[str, float] = {stage: sum(hop.timings_ms[stage] for hop in hops) / n for stage in STAGES}
    low, high = wilson(int(right.sum()), n)
    return {
        "accuracy": right.mean(),
        "accuracy_ci95": [low, high],
        "accuracy_minus_first": paired_difference(right, np.array([s.right for s in reference], float)),
        "ensemble_minus_last_tier": paired_difference(right, np.array([s.last_right for s in samples], float)),
        "latency_ms": {
            "mean": ms.mean(),
            **{f"p{q}": float(np.percentile(ms, q)) for q in (50, 95, 99)},
        },
        "latency_minus_first_ms": paired_difference(ms, np.array([s.seconds * 1e3 for s in reference])),
        "answered_by_tier": _shares(Counter(s.result.tier for s in samples), n),
        "exits": {
            tier: dict(sorted(Counter(h.exit_layer for h in hops if h.tier == tier).items()))
            for tier in sorted({h.tier for h in hops})
        },
        "ran_by_tier": _shares(Counter(hop.tier for hop in hops), n),
        "words_kept_of_words_at_pruning": sum(k for k, _ in sent) / max(1, sum(w for _, w in sent)),
        "bytes_per_request": {
            "up": sum(link.request_bytes for link in links) / n,
            "down": sum(link.response_bytes for link in links) / n,
        },
        "stages_ms": {**stages, "link": sum(link.ms for link in links) / n},
        "links": sorted({f"{link.source}-{link.target} {link.profile} ({link.backend})" for link in links}),
        "degraded": dict(Counter(s.result.degraded for s in samples if s.result.degraded)),
        "truncated": sum(s.result.truncated for s in samples) / n,
    }


def _shares(counts: Counter[str], n: int) -> dict[str, float]:
    return {name: count / n for name, count in counts.most_common()}


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def write(report: dict[str, Any], out: Path, console: Console) -> None:
    """Print the table; write OUT.json and OUT.png."""
    console.print(_table(report))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
    draw(report, out.with_suffix(".png"))
    console.print(f"written: {out.with_suffix('.json')}, {out.with_suffix('.png')}")


def _table(report: dict[str, Any]) -> Table:
    hardware = report["hardware"]
    links = sorted({link for figures in report["policies"].values() for link in figures["links"]})
    table = Table(
        title=f"{report['n']} texts, {report['loop']}; {hardware['cpu']}, {hardware['cores']} cores, "
        f"{hardware['device']}; links: {', '.join(links) or 'none used'}",
        title_justify="left",
        show_edge=False,
        pad_edge=False,
    )
    columns = ("policy", "accuracy [95 %]", "vs first, points [95 %]", "mean ms", "p50", "p95", "p99")
    for column in (*columns, "ran at", "words kept", "bytes up", "infer ms", "link ms", "degraded"):
        table.add_column(column, justify="left" if column in ("policy", "ran at") else "right")
    for policy, f in report["policies"].items():
        low, high = f["accuracy_ci95"]
        gain, gain_low, gain_high = (100 * value for value in f["accuracy_minus_first"])
        table.add_row(
            policy,
            f"{f['accuracy']:.3f} [{low:.3f} {high:.3f}]",
            f"{gain:+.1f} [{gain_low:+.1f} {gain_high:+.1f}]",
            *(f"{f['latency_ms'][key]:.0f}" for key in ("mean", "p50", "p95", "p99")),
            " ".join(f"{tier} {share:.0%}" for tier, share in sorted(f["ran_by_tier"].items(), key=lambda x: -x[1])),
            f"{f['words_kept_of_words_at_pruning']:.0%}" if f["words_kept_of_words_at_pruning"] else "-",
            f"{f['bytes_per_request']['up']:.0f}",
            f"{f['stages_ms']['infer']:.0f}",
            f"{f['stages_ms']['link']:.0f}",
            str(sum(f["degraded"].values())),
        )
    return table


def draw(report: dict[str, Any], path: Path) -> None:
    """Accuracy against mean latency, one point per policy, with 95 % intervals."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    for policy, f in report["policies"].items():
        low, high = f["accuracy_ci95"]
        mean, accuracy = f["latency_ms"]["mean"], f["accuracy"]
        error = [[100 * (accuracy - low)], [100 * (high - accuracy)]]
        axes.errorbar(mean, 100 * accuracy, yerr=error, fmt="o", capsize=3)
        axes.annotate(policy, (mean, 100 * accuracy), xytext=(7, 6), textcoords="offset points", fontsize=8)
    links = sorted({link for f in report["policies"].values() for link in f["links"]})
    axes.set(xlabel="mean latency seen by the client (ms)", ylabel="accuracy (%), 95 % interval")
    axes.set_title(f"{report['n']} texts, {report['loop']}\n{'; '.join(links)}", fontsize=9)
    axes.margins(x=0.15)
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=130)
    plt.close(figure)
