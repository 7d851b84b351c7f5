"""How many replicas a rate needs, tier by tier, what a million texts cost, and what else would be full. Simulated.

Replicas are as many as keep each at `load` of its capacity. Links are those that the tiers are made for, one of each
kind: texts that come at several ends share none of them. Bytes a call are the measured mean over all of a text's calls.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from lab.console import PlainConsole, sheet
from lab.live.stack import role_of
from lab.scale.demand import Demand
from lab.scale.simulate import Cell, simulate
from shared.links.profile import profile

HOUR_S, MILLION = 3600.0, 1_000_000


def sized(demand: Demand, rate: float, *, load: float, texts: int, wait_s: float, seed: int = 0) -> dict[str, Any]:
    """Replicas of each tier at a rate, and what `texts` texts meet there."""
    replicas = tuple(max(1, math.ceil(rate * stop.share * stop.mean_s / load)) for stop in demand.stops)
    out = simulate(Cell(demand, ((texts / rate, rate),), replicas, wait_s=wait_s, seed=seed))
    latency_ms = np.array([latency_s for _, latency_s in out.answered]) * 1e3
    came = len(out.answered) + len(out.refused)
    return {
        "policy": demand.policy,
        "rate": rate,
        "texts": came,
        "replicas": {stop.tier: count for stop, count in zip(demand.stops, replicas, strict=True)},
        "p50_ms": float(np.percentile(latency_ms, 50)),
        "p99_ms": float(np.percentile(latency_ms, 99)),
        "refused": len(out.refused) / came,
        "degraded": out.degraded / came,
        "links": used(demand, rate),
    }


def hours(demand: Demand) -> dict[str, float]:
    """Hours of a processor that a million texts take on each tier, at full load."""
    return {stop.tier: MILLION * stop.share * stop.mean_s / HOUR_S for stop in demand.stops}


def used(demand: Demand, rate: float) -> dict[str, float]:
    """Share of each link's rate that is used, the fuller way of both; 0 for links without a rate."""
    out = {}
    for stop, after in itertools.pairwise(demand.stops):
        shape = profile(role_of(stop.tier).links.get(after.tier, "ideal"))
        ways = zip(demand.call_bytes, (shape.rate_up_bps, shape.rate_down_bps), strict=True)
        shares = [8 * size * rate * after.share / bps for size, bps in ways if bps]
        out[f"{stop.tier}-{after.tier} {shape.name}"] = max(shares, default=0.0)
    return out


def show(rows: Sequence[dict[str, Any]], console: PlainConsole) -> None:
    """Print replicas by rate, and at which rate each link is full."""
    columns = ("replicas", "p50 ms", "p99 ms", "refused", "degraded", "links used")
    table = sheet(f"Simulated, {rows[0]['policy']}", "texts/s", *columns)
    for row in rows:
        counts = ", ".join(f"{tier} {count}" for tier, count in row["replicas"].items())
        links = ", ".join(f"{name} {share:.1%}" for name, share in row["links"].items())
        ms = (f"{row['p50_ms']:.0f}", f"{row['p99_ms']:.0f}")
        table.add_row(f"{row['rate']:g}", counts, *ms, f"{row['refused']:.1%}", f"{row['degraded']:.1%}", links)
    console.print(table)
    full = {name: rows[0]["rate"] / share for name, share in rows[0]["links"].items() if share}
    for name, at in sorted(full.items(), key=lambda one: one[1]):
        console.print(f"one link {name} is full at {at:,.0f} texts a second")


def show_hours(costs: dict[str, dict[str, float]], prices: dict[str, float], console: PlainConsole) -> None:
    """Print the hours of a processor that a million texts take, by policy and tier, and what those cost.

    Without the price of a tier that a policy uses, its cost is not known: `-`.
    """
    tiers = list(dict.fromkeys(tier for spent in costs.values() for tier in spent))
    table = sheet("Hours of a processor for a million texts", "policy", *tiers, "all", *(["price"] if prices else []))
    for policy, spent in costs.items():
        cells = [f"{spent[tier]:.2f}" if tier in spent else "-" for tier in tiers]
        known = spent.keys() <= prices.keys()
        price = f"{sum(hours * prices[tier] for tier, hours in spent.items()):.2f}" if known else "-"
        table.add_row(policy, *cells, f"{sum(spent.values()):.2f}", *([price] if prices else []))
    console.print(table)
