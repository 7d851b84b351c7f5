"""Speed claims, measured: our encoder against transformers' own, and what a tier adds on loopback.

    python -m tests.bench.speed [--threads 1]

Paired: both sides run alternately in one process on the same ids with the same thread count; the figure is the median
of the per-pair ratios. transformers' fastest attention is SDPA for BERT and eager for MPNet (it has no other).
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import psutil
import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from lab.live.bench_report import cpu
from lab.live.client import classify, connect
from lab.live.demo import REVIEWS
from lab.live.stack import Layout, Process, running
from shared.model.classifier import load_base
from shared.model.encoder import MultiExitEncoder
from shared.model.tokens import SpecialTokens
from shared.model.words import Encoded

BASES = ("sentence-transformers/all-MiniLM-L6-v2", "sentence-transformers/all-mpnet-base-v2")
console = Console(width=120)


def encoder_speed(base_name: str, threads: int, pairs: int) -> list[dict[str, Any]]:
    """Full depth without and with importance, over transformers' own forward: ratios, one row per shape."""
    torch.set_num_threads(threads)
    theirs, tokenizer = load_base(base_name)
    theirs.eval()
    base, _ = load_base(base_name)
    ours = MultiExitEncoder(base, layers=base.config.num_hidden_layers, classes=2).eval()
    specials = SpecialTokens(tokenizer)
    rows = []
    for S, B in track([(S, B) for S in (64, 128, 256) for B in (1, 8)], description=base_name, console=console):
        ids = torch.randint(1000, 20000, (B, S))
        texts = [Encoded(row, [0] * S, list(range(S)), [], 0, False) for row in ids.tolist()]

        def forward(ids: torch.Tensor = ids) -> None:
            with torch.inference_mode():
                theirs(input_ids=ids, attention_mask=torch.ones_like(ids))

        def plain(texts: list[Encoded] = texts) -> None:
            ours.run(texts, specials, None)

        def counted(texts: list[Encoded] = texts) -> None:
            ours.run(texts, specials, None, importance=True)

        times = [[_time(side) for side in (forward, plain, counted)] for _ in range(pairs + 2)][2:]
        ratio = [statistics.median(t[side] / t[0] for t in times) for side in (1, 2)]
        ms = statistics.median(t[0] for t in times) * 1e3
        rows.append(
            {
                "base": base_name,
                "tokens": S,
                "batch": B,
                "transformers_ms": ms,
                "plain": ratio[0],
                "importance": ratio[1],
            }
        )
    return rows


def _time(work: Callable[[], None]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


async def overhead(processes: list[Process], requests: int) -> list[dict[str, Any]]:
    """What a tier adds to its model on loopback, and its resident memory after half of the requests and after all."""
    rows = []
    for process in processes:
        seen, server, resident = [], [], []
        async with connect(process.url, timeout=60) as client:
            for at in track(range(requests), description=process.tier, console=console):
                timed = await classify(client, REVIEWS[at % 6], {"policy": f"{process.tier}-only"})
                model = timed.answer.results[0].hops[0].timings_ms["infer"]
                seen.append(timed.seconds * 1e3 - model)
                server.append(timed.answer.timings_ms["total"] - model)
                if at + 1 in (requests // 2, requests):
                    resident.append(psutil.Process(process.child.pid).memory_info().rss / 1e6)
        rows.append(
            {
                "tier": process.tier,
                "client_ms": statistics.median(seen),
                "server_ms": statistics.median(server),
                "resident_mb": resident,
            }
        )
    return rows


def show(title: str, rows: list[dict[str, Any]]) -> None:
    """Rows of one shape as a table."""
    table = Table(*rows[0], title=title, title_justify="left", show_edge=False)
    for row in rows:
        table.add_row(*(f"{value:.3f}" if isinstance(value, float) else str(value) for value in row.values()))
    console.print(table)


def main(
    threads: Annotated[int, typer.Option(help="Compute threads.")] = 1,
    pairs: Annotated[int, typer.Option(help="Pairs per setting.")] = 21,
    requests: Annotated[int, typer.Option(min=2, help="Requests per tier.")] = 1000,
    port: Annotated[int, typer.Option(help="First port of the tiers.")] = 8090,
    out: Annotated[Path, typer.Option(help="Where the figures go.")] = Path("docs/results/speed.json"),
) -> None:
    """Measure, print one table per claim, and write the figures."""
    hardware = f"{cpu()}, {os.cpu_count()} cores, torch {torch.__version__}"
    console.print(hardware)
    with running(Layout(port=port), console) as stack:
        tiers = asyncio.run(overhead(stack.processes, requests))
    show(f"each tier alone, {requests} requests on loopback, one at a time", tiers)
    encoders = [row for base in BASES for row in encoder_speed(base, threads, pairs)]
    show(f"{threads} threads, median of {pairs} pairs", encoders)
    figures = {"hardware": hardware, "threads": threads, "pairs": pairs, "requests": requests}
    out.write_text(json.dumps({**figures, "encoders": encoders, "tiers": tiers}, indent=1) + "\n")
    console.print(f"written: {out}")


if __name__ == "__main__":
    typer.run(main)
