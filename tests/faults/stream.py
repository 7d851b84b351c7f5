"""A fixed stream of requests while something is broken, and what must hold of it: for both halves.

Of every request: answered exactly once, 200, in time, flagged if and only if a tier that its policy asks for is missing
or was cut short, with a reason that fits the fault; after the repair, full service within 10 s. In time: 50 ms after
the deadline are promised, and 250 allowed, since a busy host wakes tiers late. By how much it woke this client late, at
worst, is measured, printed, and allowed on top.
"""

import asyncio
import math
import time
from dataclasses import dataclass, field

from shared.links.clients import AsyncClient

TOLERANCE_MS, REPAIR_S = 250, 10.0
START_S = 150.0  # tiers that have only just started, on a busy machine
ALWAYS = {"name": "collaborative", "offload_threshold": 1.0}
STREAM = [(ALWAYS, ["end", "edge", "cloud"]), ("cloud-only", ["cloud"])]  # policy, the tiers of full service
STREAM += [STREAM[0], ("edge-only", ["edge"])]
TABLE = []  # a line per case; `tests/hooks.py` prints it at the end
HEAD = f"{'fault':33}{'on':7}{'n':>4}{'degraded':>10}{'ms over':>9}{'host late':>11}{'back after s':>14}  reasons"


@dataclass
class Entry:
    """One request of the stream."""

    request_id: str
    full: list
    ms: float = 0.0
    status: int = 0
    degraded: str | None = None
    tiers: list = field(default_factory=list)
    answers: int = 0
    service_ms: float = 0.0  # by the first tier's own clock

    @property
    def rightly(self):
        """Whether the flag says what came back."""
        whole = self.tiers == self.full
        return whole if self.degraded is None else not whole or self.degraded == "deadline"


@dataclass
class Case:
    """What a fault did to the stream."""

    requests: list
    over_ms: float  # the latest answer, after its deadline
    late_ms: float  # the latest wake-up of this client
    back_s: float

    def check(self, fault, where, reasons, *, must=True):
        """`reasons` may be given; `must`: something has to be degraded, or nothing may be (None: as it happens)."""
        given = sorted({entry.degraded for entry in self.requests if entry.degraded})
        degraded = sum(entry.degraded is not None for entry in self.requests)
        counts = f"{len(self.requests):4}{degraded:10}{self.over_ms:9.0f}{self.late_ms:11.0f}{self.back_s:14.1f}"
        TABLE.append(f"{fault:33}{where:7}{counts}  {', '.join(given)}")
        passed = [entry for entry in self.requests if entry.status == 504]  # refused in time, but no answer
        wrong = [e for e in self.requests if e not in passed and ((e.status, e.answers) != (200, 1) or not e.rightly)]
        assert wrong == [], wrong
        # a reason that fits, or that of a tier that gave up waiting for the one that met the fault
        assert set(given) <= {*reasons, "breaker_open", "deadline"}
        assert must is None or bool(degraded) == must
        assert not passed, f"{len(passed)} requests found no exit before their deadline"
        assert self.over_ms <= TOLERANCE_MS + self.late_ms  # after the deadline
        assert self.back_s <= REPAIR_S  # after the repair


async def story(url, cause, repair, *, deadline_ms, users, each, pace_s=0.0, lasts_s=math.inf):
    """`cause`, the stream, `repair`, and the way back to full service; the two block while they change something.

    Each of `users` asks `each` times, at most once in `pace_s`, and no more once `cause` was `lasts_s` ago.
    """
    loop, late = asyncio.get_running_loop(), []

    async def watch():
        while True:
            due = loop.time() + 0.005
            await asyncio.sleep(0.005)
            late.append(loop.time() - due)

    async def user(client, number):
        for n in range(each):
            if loop.time() > began + lasts_s:
                break
            entry = Entry(f"{number}-{n}", STREAM[(number + n) % len(STREAM)][1])
            requests.append(entry)
            soon = asyncio.create_task(asyncio.sleep(pace_s))
            await _ask(client, entry, STREAM[(number + n) % len(STREAM)][0], deadline_ms)
            await soon

    requests = []
    async with AsyncClient(url, timeout=30) as client:
        assert await _recovery(client, deadline_ms, START_S) < START_S, "not well at the start"
        began, watching = loop.time(), asyncio.create_task(watch())
        try:
            await asyncio.to_thread(cause)
            late.clear()
            await asyncio.gather(*(user(client, number) for number in range(users)))
            worst = max(late)
        finally:
            watching.cancel()
            await asyncio.to_thread(repair)
        over = max(entry.ms for entry in requests) - deadline_ms
        return Case(requests, over, 1e3 * worst, await _recovery(client, deadline_ms))


async def _ask(client, entry, policy, deadline_ms):
    started = time.perf_counter()
    body = {"inputs": "a fine film with a strong cast", "options": {"policy": policy, "deadline_ms": deadline_ms}}
    answer = await client.post("/v1/classify", json=body, headers={"x-request-id": entry.request_id})
    entry.ms, entry.status = (time.perf_counter() - started) * 1e3, answer.status_code
    if answer.status_code == 200:
        assert answer.json()["id"] == entry.request_id
        (result,) = answer.json()["results"]
        entry.answers += 1
        entry.service_ms = answer.json()["timings_ms"]["total"]
        entry.degraded, entry.tiers = result["degraded"], [hop["tier"] for hop in result["hops"]]


async def _recovery(client, deadline_ms, longest=3 * REPAIR_S):
    """Seconds until every kind of request gets full service again."""
    started = time.perf_counter()
    while time.perf_counter() - started < longest:
        entries = [Entry(f"back-{n}", full) for n, (_, full) in enumerate(STREAM)]
        for entry, (policy, _) in zip(entries, STREAM, strict=True):
            await _ask(client, entry, policy, deadline_ms)
        if all(entry.degraded is None and entry.status == 200 for entry in entries):
            break
        print("not yet well:", [(entry.status, entry.degraded, round(entry.ms)) for entry in entries])
        await asyncio.sleep(0.05)
    return time.perf_counter() - started
