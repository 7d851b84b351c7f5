"""What a tier adds to its model, and what a further hop adds to that: on loopback, without a link's delay.

asked     the client's time less the model's, for the tier that is asked
hop       the same for the edge asked through the end, less the edge asked directly, in pairs
"""

from __future__ import annotations

from typing import Any

import numpy as np
import psutil
from rich.console import Console

from lab.console import tracked
from lab.live.client import Timed, classify, connect
from lab.live.demo import REVIEWS
from lab.live.stack import Process, Stack
from lab.stats import resampled
from shared.links.clients import AsyncClient
from shared.model.base import Array

FIRST, SECOND = "end", "edge"


async def of_tiers(stack: Stack, requests: int, console: Console) -> list[dict[str, Any]]:
    """Each tier asked directly; its resident memory after half of the requests and after all."""
    return [await _of_tier(process, requests, console) for process in stack.processes]


async def _of_tier(process: Process, requests: int, console: Console) -> dict[str, Any]:
    seen, server, resident = [], [], []
    async with connect(process.url, timeout=60) as client:
        await _ask(client, process.tier, 0)
        for at in tracked(range(requests), console, f"{process.tier} alone"):
            timed = await _ask(client, process.tier, at)
            seen.append(_beyond_model(timed))
            server.append(timed.answer.timings_ms["total"] - _model_ms(timed))
            if at + 1 in (requests // 2, requests):
                resident.append(psutil.Process(process.child.pid).memory_info().rss / 1e6)
    return {
        "tier": process.tier,
        "client_ms": float(np.median(seen)),
        "client_ms_ci95": list(resampled(np.median, np.array(seen))),
        "server_ms": float(np.median(server)),
        "resident_mb": resident,
    }


async def of_hop(stack: Stack, requests: int, console: Console) -> dict[str, Any]:
    """The edge asked through the end, and directly, in turns."""
    at_tier = {process.tier: process.url for process in stack.processes}
    through, directly = [], []
    async with connect(at_tier[FIRST], timeout=60) as first, connect(at_tier[SECOND], timeout=60) as second:
        sides = [(first, through), (second, directly)]
        for client, _ in sides:
            await _ask(client, SECOND, 0)
        for at in tracked(range(requests), console, f"{SECOND} through {FIRST}"):
            for client, seen in sides if at % 2 else reversed(sides):
                seen.append(_beyond_model(await _ask(client, SECOND, at)))
    return {
        "through": f"{FIRST} > {SECOND}",
        "client_ms": float(np.median(through)),
        "direct_ms": float(np.median(directly)),
        "hop_ms": _median_of(np.array(through) - np.array(directly)),
    }


def _median_of(values: Array) -> list[float]:
    return [float(np.median(values)), *resampled(np.median, values)]


async def _ask(client: AsyncClient, tier: str, at: int) -> Timed:
    return await classify(client, REVIEWS[at % 6], {"policy": f"{tier}-only"})


def _beyond_model(timed: Timed) -> float:
    return timed.seconds * 1e3 - _model_ms(timed)


def _model_ms(timed: Timed) -> float:
    return sum(hop.timings_ms.get("infer", 0.0) for hop in timed.answer.results[0].hops)
