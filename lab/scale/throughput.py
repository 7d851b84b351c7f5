"""What replicas of a tier answer in a second, slept: a closed loop over one first tier each for 1, 2, 4 of them.

All share the same replicas and are measured in turn, so what else this machine does meets each of them alike. Texts a
second are counted in windows; `of_linear` is their mean over that of one replica times the replicas.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import psutil

from lab.console import PlainConsole, sheet
from lab.scale.slept import OK, Plan, busy, replicas
from lab.stats import mean_interval, resampled

CALLERS = 4  # for each replica: some wait there at all times
WINDOW_S, WARM_S = 5.0, 2.0  # the first seconds of a turn are not counted


def throughput(plan: Plan, counts: Sequence[int], *, seconds: float, rounds: int) -> dict[str, Any]:
    """Measure each number of replicas for so many seconds, over so many turns.

    Raises:
        BadSetting: a replica does not start, or stops.
    """
    rates: dict[int, list[float]] = {count: [] for count in counts}
    became: dict[int, Counter[str]] = {count: Counter() for count in counts}
    with replicas(plan, counts, plan.most) as running:
        psutil.cpu_percent()
        for turn in range(rounds):
            for count in counts if turn % 2 == 0 else counts[::-1]:
                length = WARM_S + seconds / rounds
                done, said = asyncio.run(busy(running.ends[count], CALLERS * count, length))
                rates[count] += windows(done, WARM_S, length)
                became[count] += said
                running.check()
        used = psutil.cpu_percent()
    one = np.array(rates[counts[0]]) / counts[0]
    return {"processors_busy": used / 100, "rows": [_row(count, rates[count], became[count], one) for count in counts]}


def windows(done: Sequence[float], begins: float, ends: float) -> list[float]:
    """Events a second in each whole window between two times.

    >>> windows([2.5, 3.0, 8.0, 11.9, 12.5], 2.0, 12.0)
    [0.4, 0.4]
    """
    edges = begins + WINDOW_S * np.arange(int((ends - begins) / WINDOW_S + 1e-9) + 1)
    return [float(count) / WINDOW_S for count in np.histogram(done, edges)[0]]


def _row(count: int, rates: list[float], became: Counter[str], one: np.ndarray) -> dict[str, Any]:
    """One number of replicas; `one` are the windows of a single one."""

    def share(all_of: np.ndarray, one: np.ndarray, axis: int = -1) -> Any:
        return all_of.mean(axis) / one.mean(axis) / count

    whole = np.array(rates)
    return {
        "replicas": count,
        "callers": CALLERS * count,
        "windows": len(rates),
        "texts": became[OK],
        "others": {what: n for what, n in sorted(became.items()) if what != OK},
        "rate": list(mean_interval(rates)),
        "of_linear": [float(share(whole, one)), *(resampled(share, whole, one) if count > 1 else (1.0, 1.0))],
    }


def show(found: dict[str, Any], console: PlainConsole) -> None:
    """Print the table."""

    def cell(values: Sequence[float], form: str) -> str:
        return "{} [{}, {}]".format(*(format(value, form) for value in values))

    columns = ("callers", "texts", "texts/s [95 %]", "of linear [95 %]", "others")
    table = sheet("Time on the replicas is slept", "replicas", *columns)
    for row in found["rows"]:
        others = ", ".join(f"{what} {n}" for what, n in row["others"].items()) or "none"
        numbers = (str(row["callers"]), str(row["texts"]), cell(row["rate"], ".1f"), cell(row["of_linear"], ".3f"))
        table.add_row(str(row["replicas"]), *numbers, others)
    console.print(table)
    console.print(f"this machine's processors were busy {found['processors_busy']:.0%} of the time")
