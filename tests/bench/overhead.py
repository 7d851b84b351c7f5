"""What a tier adds to its model, and what a further hop adds to that: on loopback, without a link's delay.

asked     the client's time less the model's in the same request, for the tier that is asked
hop       the same for the edge asked through the end, less the edge asked directly, in pairs

The client's time runs from the first byte that it sends to the last one that it reads. Its one warm connection is the
standard library's: httpx would add about a millisecond of its own. Client and tiers have cores of their own where there
are two, since they never share one on two machines.
"""

from __future__ import annotations

import json
import os
import time
from http.client import HTTPConnection  # noqa: TID251 - of loopback alone, and a client that costs little
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import psutil
from rich.console import Console

from lab.console import tracked
from lab.live.client import NoAnswer, Timed, key_of
from lab.live.demo import REVIEWS
from lab.live.stack import Process, Stack
from lab.stats import resampled
from shared.contracts import ClassifyResponse
from shared.model.base import Array

FIRST, SECOND = "end", "edge"
WARM = 50  # requests that do not count


class Caller:
    """One warm connection to the tier at `url`."""

    def __init__(self, url: str) -> None:
        self._connection = HTTPConnection(urlsplit(url).netloc, timeout=60)
        self._headers = {"content-type": "application/json"}
        if key := key_of("TIERWISE_DOOR_KEY_FILE"):
            self._headers["authorization"] = f"Bearer {key}"

    def ask(self, tier: str, at: int) -> Timed:
        """Review number `at`, answered by `tier` alone."""
        body = json.dumps({"inputs": REVIEWS[at % 6], "options": {"policy": f"{tier}-only"}}).encode()
        started = time.perf_counter()
        self._connection.request("POST", "/v1/classify", body, self._headers)
        answer = self._connection.getresponse()
        content = answer.read()
        seconds = time.perf_counter() - started
        if answer.status != 200:
            raise NoAnswer(f"{answer.status}: {content[:200].decode(errors='replace')}")
        return Timed(ClassifyResponse.model_validate_json(content), seconds)


def apart(cores: set[int]) -> tuple[set[int], set[int]]:
    """Cores of the client, and of the tiers: the same where there is but one.

    >>> apart({2, 0, 1}), apart({3})
    (({0}, {1, 2}), ({3}, {3}))
    """
    first = {min(cores)}
    return first, cores - first or first


def set_apart(stack: Stack) -> dict[str, list[int]]:
    """Give this process and the tiers cores of their own; which these are."""
    client, tiers = apart(os.sched_getaffinity(0))
    os.sched_setaffinity(0, client)
    for process in stack.processes:
        for thread in psutil.Process(process.child.pid).threads():
            os.sched_setaffinity(thread.id, tiers)
    return {"client": sorted(client), "tiers": sorted(tiers)}


def of_tiers(stack: Stack, requests: int, console: Console) -> list[dict[str, Any]]:
    """Each tier asked directly; its resident memory after half of the requests and after all."""
    return [_of_tier(process, requests, console) for process in stack.processes]


def _of_tier(process: Process, requests: int, console: Console) -> dict[str, Any]:
    seen, server, resident = [], [], []
    caller = Caller(process.url)
    for at in range(WARM):
        caller.ask(process.tier, at)
    for at in tracked(range(requests), console, f"{process.tier} alone"):
        timed = caller.ask(process.tier, at)
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


def of_hop(stack: Stack, requests: int, console: Console) -> dict[str, Any]:
    """The edge asked through the end, and directly, in turns."""
    at_tier = {process.tier: process.url for process in stack.processes}
    through, directly = [], []
    sides = [(Caller(at_tier[FIRST]), through), (Caller(at_tier[SECOND]), directly)]
    for at in range(WARM):
        for caller, _ in sides:
            caller.ask(SECOND, at)
    for at in tracked(range(requests), console, f"{SECOND} through {FIRST}"):
        for caller, seen in sides if at % 2 else reversed(sides):
            seen.append(_beyond_model(caller.ask(SECOND, at)))
    return {
        "through": f"{FIRST} > {SECOND}",
        "client_ms": float(np.median(through)),
        "direct_ms": float(np.median(directly)),
        "hop_ms": _median_of(np.array(through) - np.array(directly)),
    }


def _median_of(values: Array) -> list[float]:
    return [float(np.median(values)), *resampled(np.median, values)]


def _beyond_model(timed: Timed) -> float:
    return timed.seconds * 1e3 - _model_ms(timed)


def _model_ms(timed: Timed) -> float:
    return sum(hop.timings_ms.get("infer", 0.0) for hop in timed.answer.results[0].hops)
