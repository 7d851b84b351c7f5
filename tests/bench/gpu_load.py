"""The throughput of one real cloud tier: the highest rate at which p95 stays within three times that at rest.

Requests of one text leave when they are due (`tests/load/open_loop.py`), by a Poisson process. A rate holds if every
request is answered in full and p95 is within the limit. Rates double until one does not hold; then the gap is halved.
What the load itself was late by is reported: beyond a few ms it is the bottleneck, not the tier.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from rich.console import Console

from lab.live.demo import REVIEWS
from lab.live.stack import Layout, running
from tests.load.open_loop import load

TIER, LIMIT, MOST = "cloud", 3.0, 12  # times p95 at rest; doublings
BATCH_TEXTS = 32


@dataclass(frozen=True)
class Rate:
    """What one rate did; times in ms from the moment a request was due."""

    rate: float  # requests a second
    n: int
    answered: int
    p50_ms: float | None
    p95_ms: float | None
    late_p99_ms: float

    def holds(self, rest: Rate) -> bool:
        """Whether all were answered, with p95 within the limit."""
        assert rest.p95_ms is not None
        return self.answered == self.n and self.p95_ms is not None and self.p95_ms <= LIMIT * rest.p95_ms


@dataclass(frozen=True)
class Effort:
    """How long each rate is offered, and how often the gap is halved."""

    seconds: float
    rest_rate: float
    halvings: int


FULL, QUICK = Effort(10.0, 5.0, 4), Effort(3.0, 2.0, 1)


def highest(measure: Callable[[float], Rate], rest: Rate, *, halvings: int) -> tuple[Rate | None, list[Rate]]:
    """The highest rate that holds (null if none does), and every rate that was tried in its order."""
    tried: list[Rate] = []
    best, low, high = None, rest.rate, None
    for _ in range(MOST):
        tried.append(measure(2 * low))
        if not tried[-1].holds(rest):
            high = tried[-1].rate
            break
        best, low = tried[-1], tried[-1].rate
    for _ in range(halvings if high else 0):
        tried.append(measure((low * high) ** 0.5))
        if tried[-1].holds(rest):
            best, low = tried[-1], tried[-1].rate
        else:
            high = tried[-1].rate
    return best, tried


def throughput(bundle: str, device: str, port: int, effort: Effort, console: Console) -> dict[str, Any]:
    """Start the tier on the device, and find the rate."""
    os.environ |= {
        "TIERWISE_ENGINE": "torch",
        "TIERWISE_DEVICE": device,
        "TIERWISE_BATCH_TEXTS": str(BATCH_TEXTS),
        "TIERWISE_QUEUE_LIMIT": "512",  # so that p95 decides, and not a refusal
        "TIERWISE_QUEUE_WAIT_MS": "60000",
    }
    bodies = [{"inputs": text, "options": {"policy": f"{TIER}-only"}} for text in REVIEWS]
    with running(Layout(bundle=bundle, port=port, only=TIER), console) as stack:

        def measure(rate: float, *, poisson: bool = True) -> Rate:
            seed = round(1000 * rate)
            samples = load(stack.url, rate=rate, seconds=effort.seconds, seed=seed, poisson=poisson, bodies=bodies)
            ms = [s.latency * 1e3 for s in samples if s.status == 200 and not s.degraded]
            p50, p95 = (float(np.percentile(ms, q)) if ms else None for q in (50, 95))
            late = float(np.percentile([s.late * 1e3 for s in samples], 99))
            return Rate(rate, len(samples), len(ms), p50, p95, late)

        warm(measure, effort)
        rest = measure(effort.rest_rate, poisson=False)
        assert rest.p95_ms is not None, "the tier answered nothing at rest"
        best, tried = highest(measure, rest, halvings=effort.halvings)
    return {
        "tier": TIER,
        "batch_texts": BATCH_TEXTS,
        "limit": LIMIT,
        "rest": asdict(rest),
        "highest": best and asdict(best),
        "tried": [asdict(rate) for rate in tried],
    }


def warm(measure: Callable[[float], Rate], effort: Effort) -> None:
    """Requests alone, then together: shapes of several batch sizes are recorded before anything counts."""
    for times in (1, 4, 16) if effort is FULL else (1, 4):
        measure(times * effort.rest_rate)
