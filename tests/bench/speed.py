"""Speed claims, measured: our encoder against transformers' own, and what a tier adds on loopback.

    python -m tests.bench.speed [--threads 1]

Paired: both sides run alternately in one process on the same ids with the same thread count; the figure is the median
of the per-pair ratios. transformers' fastest attention is SDPA for BERT and eager for MPNet (it has no other).
"""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from collections.abc import Callable
from typing import Annotated

import httpx
import psutil
import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from services.lab.client import classify
from services.lab.demo import REVIEWS
from services.lab.stack import Layout, running
from shared.encoder import MultiExitEncoder
from shared.network import load_base
from shared.tokens import SpecialTokens
from shared.words import Encoded

BASES = ("sentence-transformers/all-MiniLM-L6-v2", "sentence-transformers/all-mpnet-base-v2")
console = Console(width=120)


def encoder_speed(base_name: str, threads: int, pairs: int) -> Table:
    """Full depth without and with importance, over transformers' own forward."""
    torch.set_num_threads(threads)
    theirs, tokenizer = load_base(base_name)
    theirs.eval()
    base, _ = load_base(base_name)
    ours = MultiExitEncoder(base, layers=base.config.num_hidden_layers, classes=2).eval()
    specials = SpecialTokens(tokenizer)
    table = Table(title=f"{base_name}, {threads} threads, median of {pairs} pairs", title_justify="left")
    for column in ("tokens", "batch", "transformers ms", "ours / transformers", "with importance / transformers"):
        table.add_column(column, justify="right")
    for S in (64, 128, 256):
        for B in (1, 8):
            ids = torch.randint(1000, 20000, (B, S))
            texts = [Encoded(row, [0] * S, list(range(S)), [], 0, False) for row in ids.tolist()]

            def forward(ids: torch.Tensor = ids) -> None:
                with torch.inference_mode():
                    theirs(input_ids=ids, attention_mask=torch.ones_like(ids))

            def plain(texts: list[Encoded] = texts) -> None:
                ours.run(texts, specials, None)

            def counted(texts: list[Encoded] = texts) -> None:
                ours.run(texts, specials, None, importance=True)

            times = [[_time(side) for side in (forward, plain, counted)] for _ in range(pairs)][2:]
            ratios = [statistics.median(t[side] / t[0] for t in times) for side in (1, 2)]
            milliseconds = statistics.median(t[0] for t in times) * 1e3
            table.add_row(str(S), str(B), f"{milliseconds:.1f}", f"{ratios[0]:.3f}", f"{ratios[1]:.3f}")
    return table


def _time(work: Callable[[], None]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


async def overhead(urls: list[str], requests: int) -> Table:
    """What a tier adds to its model on loopback, and what memory the tiers hold after `requests` of each policy."""
    table = Table(title=f"each tier alone, {requests} requests on loopback, one at a time", title_justify="left")
    for column in ("tier", "client less model, p50 ms", "server less model, p50 ms"):
        table.add_column(column, justify="right")
    for tier, url in zip(("end", "edge", "cloud"), urls, strict=True):
        seen, server = [], []
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            for at in track(range(requests), description=tier, console=console):
                timed = await classify(client, REVIEWS[at % 6], {"policy": f"{tier}-only"})
                model = timed.answer.results[0].hops[0].timings_ms["infer"]
                seen.append(timed.seconds * 1e3 - model)
                server.append(timed.answer.timings_ms["total"] - model)
        table.add_row(tier, f"{statistics.median(seen):.2f}", f"{statistics.median(server):.2f}")
    return table


def memory() -> Table:
    """Resident memory of every tier that is a child of this process."""
    table = Table("tier", "resident MB", title="after those requests", title_justify="left")
    for child in psutil.Process().children():
        name = child.environ().get("TIERWISE_TIER")
        if name:
            table.add_row(name, f"{child.memory_info().rss / 1e6:.0f}")
    return table


def main(
    threads: Annotated[int, typer.Option(help="Compute threads.")] = 1,
    pairs: Annotated[int, typer.Option(help="Pairs per setting.")] = 21,
    requests: Annotated[int, typer.Option(help="Requests per tier.")] = 1000,
    port: Annotated[int, typer.Option(help="First port of the tiers.")] = 8090,
) -> None:
    """Measure, and print one table per claim."""
    console.print(f"{os.cpu_count()} cores, torch {torch.__version__}")
    with running(Layout(port=port), console) as stack:
        console.print(asyncio.run(overhead([process.url for process in stack.processes], requests)))
        console.print(memory())
    for base in BASES:
        console.print(encoder_speed(base, threads, pairs))


if __name__ == "__main__":
    typer.run(main)
