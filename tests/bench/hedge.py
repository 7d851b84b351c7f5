"""What hedging saves and costs: the tier's own hedger and links, in simulated time, with and without a budget.

    python -m tests.bench.hedge --out docs/results/hedge.json

An end sends each text on to the edge, and hedges past it to the cloud. The hedger, its budget, both upstreams and their
simulated links are the product's; the edge and the cloud sleep `EDGE_S` and `CLOUD_S` a text. Time is virtual, so what
else runs on the machine changes nothing. Texts come open-loop (Poisson), the same in both runs, and each has the same
stall in both. Links draw their jitter and losses anew in each run, since a second call draws too.

    stalls      the edge stands still for 1 s in 2 of 100 texts
    jitter      the link to the edge is lte-weak: 70 ms, jitter of 15 ms, 0.3 % of the packets lost
    trace       the link to the edge follows the trace `handover`, with outages of up to 3 s
    hangs       the edge answers nothing for 5 s of every minute

Left out: a queue at the edge or the cloud, which a second call would lengthen.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx
import numpy as np

from lab.outputs import write_json
from lab.stats import paired_difference, paired_percentile, spread_of
from shared.contracts import InferRequest, TextPair
from shared.links.carried import Carried
from shared.links.profile import Backend
from shared.links.upstream import Upstream
from shared.pipeline.hedge import Hedger
from shared.pipeline.route import Route
from shared.pipeline.sender import Sender
from shared.pipeline.speculation import Budget
from shared.pipeline.text import Call, Text
from shared.policies import Decision
from shared.telemetry import Telemetry
from tests.clocks import now, run
from tests.hops import a_hop

ORDER, EDGE_S, CLOUD_S, TIMEOUT_S = ("end", "edge", "cloud"), 0.04, 0.08, 10.0
RATE, WARM = 5.0, 100  # texts a second; of which so many do not count
TEXT = " ".join(["word"] * 200)


@dataclass(frozen=True)
class Scenario:
    """A slow tail: a link's profile or trace to the edge, and seconds that the edge stands still for a text."""

    name: str
    link: str = "5g-nsa"
    trace: str | None = None
    still_s: Callable[[float, random.Random], float] = lambda at, draw: 0.0


SCENARIOS = (
    Scenario("stalls", still_s=lambda at, draw: 1.0 if draw.random() < 0.02 else 0.0),
    Scenario("jitter", link="lte-weak"),
    Scenario("trace", trace="handover"),
    Scenario("hangs", still_s=lambda at, draw: max(0.0, 5.0 - at % 60)),
)


class End:
    """The end's sending half: `upstreams` by tier. What came of it is in `asked` and `hedged`."""

    name = "end"

    def __init__(self, scenario: Scenario, seed: int) -> None:
        self.scenario, self.asked, self.bytes_up = scenario, 0, 0
        links = {"edge": scenario.link, "cloud": "5g-nsa+metro"}
        self.upstreams = {to: self._upstream(to, name) for to, name in links.items()}
        for at, upstream in enumerate(self.upstreams.values()):
            upstream._simulated._random.seed(seed + at)  # type: ignore[union-attr]
        self.route = Route(ORDER, "end", tuple(self.upstreams))
        self.telemetry = Telemetry(
            tier="end", tiers=ORDER, policies=["x"], layers=12, labels=["a"], upstreams=list(self.upstreams)
        )
        self._draws = random.Random(seed)
        self._still: dict[str, float] = {}

    def _upstream(self, to: str, link: str) -> Upstream:
        return Upstream(
            source="end",
            target=to,
            url=f"http://{to}",
            backend=Backend.SIMULATED,
            profile_name=link,
            timeout_s=TIMEOUT_S,
            transport=httpx.MockTransport(self._answer),
            clock=now,
        )

    async def _answer(self, request: httpx.Request) -> httpx.Response:
        asked, tier = json.loads(request.content), request.url.host
        await asyncio.sleep(EDGE_S + self._still[asked["seed"]] if tier == "edge" else CLOUD_S)
        row = {"index": 0, "hops": [a_hop(tier=tier).model_dump(mode="json")]}
        return httpx.Response(200, json={"version": 2, "call": asked["call"], "rows": [row], "total_ms": 0.0})

    def come(self, seed: str) -> None:
        """A text comes: what the edge will do to it is drawn, whether or not it is asked."""
        self._still[seed] = self.scenario.still_s(now(), self._draws)

    def upstream(self, to: str) -> Upstream:
        return self.upstreams[self.route.toward(to)]

    async def carry(
        self,
        call: Any,
        way: Decision,
        texts: Any,
        onward: Any,
        within_s: float | None,
        *,
        sends: Callable[[int], None] = lambda size: None,
        via: Upstream | None = None,
    ) -> Carried:
        """`Sender.carry` without a bundle: one text, as it came."""
        self.asked += 1

        def count(size: int) -> None:
            self.bytes_up += size
            sends(size)

        return await (via or self.upstream(str(way.to))).infer(call.request, {}, within_s=within_s, sends=count)


def requested(seed: str) -> InferRequest:
    """One text of 200 words."""
    policy = {"name": "collaborative"}
    return InferRequest(request_id=seed, call=seed, seed=seed, indices=[0], texts=[TextPair(text=TEXT)], policy=policy)


def measured(scenario: Scenario, share: float, n: int, seed: int) -> dict[str, Any]:
    """A run's times [n] of texts in the order in which they came, and its calls and bytes."""

    async def all_of_them() -> dict[str, Any]:
        end, gaps = End(scenario, seed), random.Random(seed)
        if scenario.trace:
            end.upstreams["edge"].play(scenario.trace)
        hedger = Hedger(cast(Sender, end), Budget(share), now)
        seconds, tiers = np.zeros(n + WARM), [""] * (n + WARM)

        async def one(at: int) -> None:
            name = f"{seed}-{at}"
            end.come(name)
            call = SimpleNamespace(request=requested(name), where=SimpleNamespace(reachable=("edge", "cloud")))
            began = now()
            answer = await hedger.carry(
                cast(Call, call),
                Decision("edge", 1.0, "confidence"),
                cast(list[Text], [None]),
                [TextPair(text=TEXT)],
                None,
            )
            seconds[at], tiers[at] = now() - began, answer.rows[0].hops[0].tier

        asks: list[Awaitable[None]] = []
        for at in range(n + WARM):
            await asyncio.sleep(gaps.expovariate(RATE))
            asks.append(asyncio.create_task(one(at)))
        await asyncio.gather(*asks)
        await asyncio.gather(*(upstream.close() for upstream in end.upstreams.values()))
        return {"seconds": seconds[WARM:], "tiers": tiers[WARM:], "calls": end.asked, "bytes_up": end.bytes_up}

    return cast(dict[str, Any], run(all_of_them()))


def compared(scenario: Scenario, share: float, n: int, seed: int) -> dict[str, Any]:
    """A scenario without and with hedging."""
    plain, hedged = (measured(scenario, budget, n, seed) for budget in (0.0, share))
    ms = [1e3 * one["seconds"] for one in (hedged, plain)]
    return {
        "scenario": scenario.name,
        "n": n,
        "without_ms": spread_of(ms[1]) | {"p99": float(np.percentile(ms[1], 99))},
        "with_ms": spread_of(ms[0]) | {"p99": float(np.percentile(ms[0], 99))},
        "mean_ms": list(paired_difference(*ms)),
        "p95_ms": list(paired_percentile(*ms, 95)),
        "p99_ms": list(paired_percentile(*ms, 99)),
        "more_calls": hedged["calls"] / plain["calls"] - 1,
        "more_bytes_up": hedged["bytes_up"] / plain["bytes_up"] - 1,
        "answered_by_cloud": hedged["tiers"].count("cloud") / n,
    }


def main() -> None:
    """Measure every scenario, and write OUT."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--n", type=int, default=3000, help="texts of each run (default 3000)")
    parser.add_argument("--budget", type=float, default=0.05, help="share of calls that may be hedged (default 0.05)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("hedge.json"))
    asked = parser.parse_args()
    rows = [compared(scenario, asked.budget, asked.n, asked.seed) for scenario in SCENARIOS]
    report = {
        "kind": "simulated time and links; the edge sleeps 40 ms a text, the cloud 80 ms",
        "budget": asked.budget,
        "rate": RATE,
        "seed": asked.seed,
        "scenarios": rows,
    }
    write_json(asked.out, report)
    for row in rows:
        print(json.dumps(row))
    print(f"written: {asked.out}")


if __name__ == "__main__":
    main()
