"""A step of load on one tier, and the autoscaler after it: by the work that waits, and beside it by CPU. Simulated.

goal   three replicas wanted within 60 s of the step, fewer than two reversals in its ten minutes, and a p99
       under three times that at rest
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import numpy as np

from lab.console import PlainConsole, sheet
from lab.scale.demand import Demand
from lab.scale.hpa import Spec
from lab.scale.simulate import Cell, Outcome, Signal, simulate

REST_S, STEP_S = 300.0, 600.0
SETTLED_S = 120.0  # after the step: until then replicas start
WANTED, WITHIN_S, REVERSALS, SLOWER = 3, 60.0, 2, 3.0
CPU_TARGET = 0.7  # of a replica's processor: what most start with


@dataclass(frozen=True)
class Read:
    """How a signal is read: every `scrape_s`, the mean of so many scrapes."""

    signal: Signal
    scrape_s: float
    scrapes: int

    def __str__(self) -> str:
        if self.scrapes == 1:
            return f"{self.signal}, every {self.scrape_s:g} s"
        return f"{self.signal}, mean of {self.scrape_s * self.scrapes:g} s, every {self.scrape_s:g} s"


READS = (Read("wait", 15, 1), Read("wait", 5, 6), Read("cpu", 15, 1), Read("cpu", 5, 6))


@dataclass(frozen=True)
class Reaction:
    """How an autoscaler reacted to a step of load, in one run."""

    replicas: Sequence[tuple[float, int, int]]  # seconds from the step on, replicas, ready ones
    reached_s: float | None  # until `WANTED` replicas were wanted; null: never
    reversals: int  # in the ten minutes of the step
    p99_ms: tuple[float, float]  # at rest, and once settled
    refused: float  # share of the texts of the step
    replica_hours: float

    @property
    def held(self) -> bool:
        """Whether the goal was met."""
        reached = self.reached_s is not None and self.reached_s <= WITHIN_S
        return reached and self.reversals < REVERSALS and self.p99_ms[1] < SLOWER * self.p99_ms[0]


def reversals(counts: Sequence[int]) -> int:
    """How often a number of replicas turned from growing to shrinking, or back.

    >>> reversals([1, 2, 4, 4, 3, 2, 4])
    2
    """
    ways = [after > before for before, after in itertools.pairwise(counts) if after != before]
    return sum(way != before for before, way in itertools.pairwise(ways))


def reaction(out: Outcome, rest_s: float = REST_S, step_s: float = STEP_S) -> Reaction:
    """What a run says that rested for `rest_s`, and then had more load for `step_s`."""
    ends_at = rest_s + step_s
    at_rest = [one for one in out.replicas if one[0] < rest_s][-1]
    seen = [(0.0, at_rest[1], at_rest[2])]
    seen += [(at - rest_s, wanted, ready) for at, wanted, ready in out.replicas if rest_s <= at < ends_at]
    came, latency_s = np.array(out.answered).T
    step = (came >= rest_s) & (came < ends_at)
    refused = sum(rest_s <= at < ends_at for at in out.refused)
    until = [*(one[0] for one in out.replicas[1:]), ends_at]
    held_s = sum(
        count * (min(after, ends_at) - min(at, ends_at))
        for (at, count, _), after in zip(out.replicas, until, strict=True)
    )
    parts = latency_s[came < rest_s], latency_s[step & (came >= rest_s + SETTLED_S)]
    return Reaction(
        replicas=seen,
        reached_s=next((at for at, wanted, _ in seen if wanted >= WANTED), None),
        reversals=reversals([wanted for _, wanted, _ in seen]),
        p99_ms=(float(np.percentile(parts[0], 99)) * 1e3, float(np.percentile(parts[1], 99)) * 1e3),
        refused=refused / (refused + int(step.sum())),
        replica_hours=held_s / 3600,
    )


def react(
    demand: Demand, spec: Spec, read: Read, rate: float, times: float, *, runs: int, **options: Any
) -> list[Reaction]:
    """Rest at `rate` texts a second on one replica, then `times` as much; `runs` with seeds from 0 on.

    Options are fields of `Cell`: `start_s`, `wait_s`, `limit`.
    """
    phases = ((REST_S, rate), (STEP_S, times * rate))
    if read.signal == "cpu":
        spec = spec.within(spec.least, spec.most, CPU_TARGET)
    reading: dict[str, Any] = {"signal": read.signal, "scrape_s": read.scrape_s, "scrapes": read.scrapes}
    return [
        reaction(simulate(Cell(demand, phases, (1,), 0, spec, seed=seed, **reading, **options))) for seed in range(runs)
    ]


def summary(read: Read, reactions: Sequence[Reaction]) -> dict[str, Any]:
    """One row: medians and ranges over the runs."""

    def spread(values: Sequence[float]) -> list[float]:
        return [median(values), min(values), max(values)]

    reached = [one.reached_s for one in reactions if one.reached_s is not None]
    return {
        "signal": str(read),
        "runs": len(reactions),
        "held": sum(one.held for one in reactions),
        "reached": len(reached),
        "reached_s": spread(reached) if reached else None,
        "at_rest": spread([one.replicas[0][1] for one in reactions]),
        "reversals": spread([one.reversals for one in reactions]),
        "p99_ratio": spread([one.p99_ms[1] / one.p99_ms[0] for one in reactions]),
        "refused": spread([one.refused for one in reactions]),
        "replica_hours": spread([one.replica_hours for one in reactions]),
        "first": asdict(reactions[0]),
    }


def show(rows: Sequence[Mapping[str, Any]], console: PlainConsole, kind: str = "Simulated") -> None:
    """Print what is counted, and the first run's replicas over time; `kind` says what the runs are."""

    def cell(values: list[float] | None, form: str) -> str:
        return "-" if values is None else "{} [{}, {}]".format(*(format(value, form) for value in values))

    columns = (
        "goal met",
        "3 wanted, s",
        "replicas at rest",
        "reversals",
        "p99 over that at rest",
        "refused",
        "replica h",
    )
    table = sheet(f"{kind}; median [least, most] of the runs", "signal", *columns)
    for row in rows:
        table.add_row(
            row["signal"],
            f"{row['held']} of {row['runs']}",
            cell(row["reached_s"], ".0f"),
            cell(row["at_rest"], ".0f"),
            cell(row["reversals"], ".0f"),
            cell(row["p99_ratio"], ".2f"),
            cell(row["refused"], ".1%"),
            cell(row["replica_hours"], ".2f"),
        )
    console.print(table)
    for row in rows:
        told = ", ".join(f"{at:.0f} s: {wanted} ({ready} ready)" for at, wanted, ready in row["first"]["replicas"])
        console.print(f"{row['signal']}, the first run: {told}")
