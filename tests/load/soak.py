"""`make soak`: half load for minutes, memory and descriptors of every tier's process watched.

    python -m tests.load.soak [--minutes 30] [--bundle collaborative] [--out docs/results/soak.json]

Half load is half of the peak goodput that `make load` measured on this machine (its JSON), or `--rate`. The service
may answer with less than planned, but it may not fail: an error is any status but 200. Memory and descriptors are
compared between the second sixth of the time (of 30 minutes: from minute 5) and the last one: the median resident
memory may grow by 5 MB, and the least number of descriptors may not be above the greatest of before.
"""

import json
import statistics
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import psutil
import typer
from rich.console import Console
from rich.table import Table

from lab.live.demo import REVIEWS
from lab.live.stack import Layout, running
from lab.outputs import write_json
from tests.load.machine import machine
from tests.load.open_loop import load

EVERY_S = 2.0
GROWTH_MB = 5.0
SPARE = 16  # connections of a burst stay open unused for 75 s: in a run of under 5 minutes they are no leak
RESULTS = Path("docs/results")
console = Console(width=140)


@dataclass
class Watched:
    """One tier: (seconds since the start, resident MB, descriptors), every few seconds."""

    tier: str
    rows: list = field(default_factory=list)

    def between(self, start, end):
        return [row for row in self.rows if start * self.rows[-1][0] <= row[0] <= end * self.rows[-1][0]]

    def summary(self, spare):
        """Memory and descriptors after the first sixth and at the end (medians of a sixth each), and the verdict."""
        early, late = self.between(1 / 6, 1 / 3), self.between(5 / 6, 1)
        mb = [statistics.median(row[1] for row in rows) for rows in (early, late)]
        open_ = [max(row[2] for row in early), min(row[2] for row in late)]
        flat = mb[1] - mb[0] <= GROWTH_MB and open_[1] <= open_[0] + spare
        return {"tier": self.tier, "resident_mb": mb, "descriptors": open_, "flat": flat}


@contextmanager
def watching(processes, every_s=EVERY_S):
    """Samples every process of a stack until the end of the block."""
    watched = [(Watched(p.tier), psutil.Process(p.child.pid)) for p in processes]
    done, start = threading.Event(), time.monotonic()

    def sample():
        while not done.wait(every_s):
            for one, process in watched:
                now = time.monotonic() - start
                one.rows.append((now, process.memory_info().rss / 1e6, process.num_fds()))

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield [one for one, _ in watched]
    finally:
        done.set()
        thread.join()


def soak(stack, *, rate, minutes, bodies):
    """The report: requests, errors, and every tier's memory and descriptors."""
    load(stack.url, rate=rate, seconds=5, bodies=bodies)  # warm
    with watching(stack.processes, min(EVERY_S, minutes)) as watched:
        samples = load(stack.url, rate=rate, seconds=60 * minutes, bodies=bodies)
    errors = [s.status for s in samples if s.status != 200]
    tiers = [one.summary(SPARE if minutes < 5 else 0) for one in watched]
    return {
        "minutes": minutes,
        "rate": rate,
        "requests": len(samples),
        "errors": len(errors),
        "statuses": sorted(set(errors)),
        "degraded": sum(s.degraded for s in samples),
        "tiers": tiers,
        "holds": not errors and all(tier["flat"] for tier in tiers),
    }


def show(report):
    table = Table("tier", "MB early", "MB late", "grown MB", "descriptors early", "late", "flat", show_edge=False)
    for tier in report["tiers"]:
        early, late = tier["resident_mb"]
        counts = map(str, tier["descriptors"])
        table.add_row(
            tier["tier"], f"{early:.1f}", f"{late:.1f}", f"{late - early:+.1f}", *counts, str(tier["flat"]).lower()
        )
    console.print(table)
    console.print(
        f"{report['minutes']:g} minutes at {report['rate']:.1f}/s: {report['requests']} requests, {report['errors']} "
        f"errors {report['statuses']}, {report['degraded']} degraded: {'holds' if report['holds'] else 'MISS'}"
    )


def main(
    minutes: Annotated[float, typer.Option(min=1.0, help="How long.")] = 30.0,
    bundle: Annotated[str, typer.Option(help="Bundle: a name in deploy/models, or a folder.")] = "collaborative",
    rate: Annotated[float | None, typer.Option(help="Requests a second; else half of what `make load` found.")] = None,
    port: Annotated[int, typer.Option(help="First port of the tiers.")] = 8090,
    out: Annotated[Path, typer.Option(help="Where the figures go.")] = RESULTS / "soak.json",
) -> None:
    """Measure, print the table, write the figures; exit status 1 on a miss."""
    if rate is None:
        phases = json.loads((RESULTS / "load.json").read_text())["phases"]
        rate = next(p["rate"] for p in phases if p["name"] == "half")
    bodies = [{"inputs": text, "options": {"seed": at}} for at, text in enumerate(REVIEWS)]
    with running(Layout(bundle=bundle, port=port, threads={"end": 1, "edge": 1, "cloud": 1}), console) as stack:
        about = {**machine(stack), "bundle": bundle}
        report = soak(stack, rate=rate, minutes=minutes, bodies=bodies)
    show(report)
    write_json(out, {**about, **report})
    if not report["holds"]:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
