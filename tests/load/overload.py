"""`make load`: three tiers at rest, at half of their saturation, and at five times of it, under open-loop load.

    python -m tests.load.overload [--bundle collaborative] [--seconds 60] [--out docs/results/load.json]

    saturation   the rate of the highest goodput on a ladder of rising ones; the peak is measured there once more, since
                 the best of several is flattered by chance
    goodput      answers (200) a second; those with less than planned are counted, and their share is shown
    must hold    at five times saturation: goodput at least 90 % of the peak, p99 of the accepted at most 3 times that
                 at rest, refusals (429) p95 within 50 ms, nothing else than 200 and 429

All processes share this machine, the one that makes the load as well; its lateness is in the table.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from lab.live.demo import REVIEWS
from lab.live.stack import Layout, running
from lab.outputs import write_json
from tests.load.machine import machine
from tests.load.open_loop import load

STEP = 1.4  # between two rates of the ladder
console = Console(width=140)


@dataclass
class Phase:
    """What a rate did. Latencies in ms, from the moment a request was due."""

    name: str
    rate: float
    n: int
    goodput: float
    degraded: float  # share of the answers
    refused: int
    errors: int
    p50: float
    p99: float
    refused_p95: float | None
    late_p99: float


def phase(name, url, *, rate, seconds, bodies, poisson=True):
    """Load at a rate; goodput is counted from the second fifth on, when the line has filled."""
    samples = load(url, rate=rate, seconds=seconds, seed=round(1000 * rate), poisson=poisson, bodies=bodies)
    answered = [s for s in samples if s.status == 200]
    refused = [s.latency for s in samples if s.status == 429]
    assert answered, f"{name}: no answer among {len(samples)}"
    accepted = np.array([s.latency for s in answered]) * 1e3
    counted = [s for s in answered if seconds / 5 <= s.done < seconds]
    return Phase(
        name=name,
        rate=rate,
        n=len(samples),
        goodput=len(counted) / (seconds * 4 / 5),
        degraded=sum(s.degraded for s in answered) / len(answered),
        refused=len(refused),
        errors=len(samples) - len(answered) - len(refused),
        p50=float(np.percentile(accepted, 50)),
        p99=float(np.percentile(accepted, 99)),
        refused_p95=float(np.percentile(refused, 95)) * 1e3 if refused else None,
        late_p99=float(np.percentile([s.late for s in samples], 99)) * 1e3,
    )


def measure(url, bodies, *, seconds, first):
    """Every phase; `first` is the slow fixed rate at which no request meets another."""
    rest = phase("at rest", url, rate=first, seconds=seconds, bodies=bodies, poisson=False)
    ladder, rate = [], 500 / rest.p50 / STEP
    while not ladder or ladder[-1].refused < ladder[-1].n / 4:  # then the line is full, and more brings no more
        rate *= STEP
        ladder.append(phase("ladder", url, rate=rate, seconds=seconds / 2, bodies=bodies))
    best = max(ladder, key=lambda step: step.goodput)
    saturated = phase("saturated", url, rate=best.rate, seconds=seconds, bodies=bodies)
    peak = saturated.goodput
    half = phase("half", url, rate=peak / 2, seconds=seconds, bodies=bodies)
    five = phase("5 times", url, rate=5 * peak, seconds=seconds, bodies=bodies)
    return [rest, *ladder, saturated, half, five], verdict(rest, half, five, peak)


def verdict(rest, half, five, peak):
    """(what must hold, measured, limit, whether it holds), a row each."""
    refusals = five.refused_p95 or 0.0
    return [
        ("goodput at 5 times, share of peak", five.goodput / peak, 0.9, five.goodput >= 0.9 * peak),
        ("p99 of the accepted at 5 times, of that at rest", five.p99 / rest.p99, 3.0, five.p99 <= 3 * rest.p99),
        ("refusals p95, ms", refusals, 50.0, five.refused > 0 and refusals <= 50.0),
        ("errors", half.errors + five.errors, 0, half.errors + five.errors == 0),
    ]


def show(phases, verdicts):
    """One table: the phases, then what must hold."""
    columns = ("phase", "offered/s", "n", "goodput/s", "degraded", "refused", "errors")
    table = Table(*columns, "p50 ms", "p99 ms", "refused p95 ms", "late p99 ms", show_edge=False)
    for p in phases:
        numbers = [f"{p.rate:.1f}", str(p.n), f"{p.goodput:.1f}", f"{p.degraded:.0%}", str(p.refused), str(p.errors)]
        times = ["-" if t is None else f"{t:.0f}" for t in (p.p50, p.p99, p.refused_p95, p.late_p99)]
        table.add_row(p.name, *numbers, *times)
    console.print(table)
    for what, measured, limit, holds in verdicts:
        console.print(f"{'holds' if holds else 'MISS '}  {what}: {measured:.2f} (limit {limit:g})")


def main(
    bundle: Annotated[str, typer.Option(help="Bundle: a name in deploy/models, or a folder.")] = "collaborative",
    seconds: Annotated[float, typer.Option(help="Length of a phase.")] = 60.0,
    first: Annotated[float, typer.Option(help="Requests a second at rest.")] = 1.0,
    port: Annotated[int, typer.Option(help="First port of the tiers.")] = 8090,
    out: Annotated[Path, typer.Option(help="Where the figures go.")] = Path("docs/results/load.json"),
) -> None:
    """Measure, print the table, write the figures; exit status 1 on a miss."""
    bodies = [{"inputs": text, "options": {"seed": at}} for at, text in enumerate(REVIEWS)]
    with running(Layout(bundle=bundle, port=port, threads={"end": 1, "edge": 1, "cloud": 1}), console) as stack:
        about = {**machine(stack), "bundle": bundle, "seconds": seconds}
        load(stack.url, rate=2.0, seconds=10, bodies=bodies)  # warm
        phases, verdicts = measure(stack.url, bodies, seconds=seconds, first=first)
    show(phases, verdicts)
    rows = [dict(zip(("what", "measured", "limit", "holds"), row, strict=True)) for row in verdicts]
    write_json(out, {**about, "phases": [asdict(p) for p in phases], "verdict": rows})
    if not all(holds for *_, holds in verdicts):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
