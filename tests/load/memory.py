"""How much memory a tier needs: its peak at rest, and under the largest requests that it takes. (`docs/operate.md`)

    python -m tests.load.memory [--bundle collaborative]

The limits in `docker-compose.yml` follow from it. Peaks are the kernel's (`VmHWM`), so they only grow from row to row.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from lab.console import screen, sheet
from lab.live.demo import REVIEWS
from lab.live.stack import Layout, Process, running
from shared.links.clients import AsyncClient

LONG = " ".join(REVIEWS * 5)  # longer than any tier reads
MOST_INPUTS, MOST_BYTES = 32, 2_000_000  # the defaults of TIERWISE_MAX_INPUTS and TIERWISE_MAX_BODY_BYTES
KINDS = {  # what is sent: the inputs of each request, how many requests at once
    "50 short texts, one at a time": (REVIEWS[:1], 1, 50),
    "32 long texts, 8 at once": ([LONG] * MOST_INPUTS, 8, 8),
    "bodies of 1.9 MB, 64 at once": (["word " * (MOST_BYTES * 19 // 20 // 6 // 5)] * 6, 64, 64),
}


def peak_mb(process: Process) -> float:
    """The most resident memory that a tier's process has had."""
    status = Path(f"/proc/{process.child.pid}/status").read_text()
    found = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024 / 1e6


async def send(url: str, tier: str, inputs: Sequence[str], *, at_once: int, requests: int) -> None:
    """These inputs for one tier, through the first; a request that is refused holds its body too."""
    places = asyncio.Semaphore(at_once)
    body = {"inputs": list(inputs), "options": {"policy": f"{tier}-only"}}

    async def one(client: AsyncClient) -> None:
        async with places:
            answer = await client.post("/v1/classify", json=body)
            assert answer.status_code in (200, 429), answer.text

    async with AsyncClient(url, timeout=600) as client:
        await asyncio.gather(*(one(client) for _ in range(requests)))


def measure(processes: Sequence[Process]) -> list[dict[str, Any]]:
    """A row for each kind of request: every tier's peak after all tiers were sent it."""
    rows: list[dict[str, Any]] = [{"sent": "nothing yet", **{one.tier: peak_mb(one) for one in processes}}]
    for kind, (inputs, at_once, requests) in KINDS.items():
        for process in processes:
            asyncio.run(send(processes[0].url, process.tier, inputs, at_once=at_once, requests=requests))
        rows.append({"sent": kind, **{one.tier: peak_mb(one) for one in processes}})
    return rows


def main(
    bundle: Annotated[str, typer.Option(help="Bundle: a name in deploy/models, or a folder.")] = "collaborative",
    port: Annotated[int, typer.Option(help="First port of the tiers.")] = 8090,
) -> None:
    """Measure and print."""
    console = screen()
    with running(Layout(bundle=bundle, port=port, access="ideal", backbone="ideal"), console) as stack:
        rows = measure(stack.processes)
    table = sheet("peak of resident memory, MB", *rows[0], words={"sent"})
    for row in rows:
        table.add_row(row.pop("sent"), *(f"{value:.0f}" for value in row.values()))
    console.print(table)


if __name__ == "__main__":
    typer.run(main)
