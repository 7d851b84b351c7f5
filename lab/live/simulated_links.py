"""Simulated links against netem: the same requests, the same profile, one after the other on running containers.

For every profile: `n` requests over end-edge with netem shaping it; then the same link unshaped, and the same requests
to the same edge through the simulated link of the HTTP client. Compared is the median of the time that every answer
reports for the link: a busy host's outliers decide a mean. Requests go one at a time over a warm connection.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from rich.console import Console
from rich.table import Table

from lab.console import progress, sheet
from lab.live.bench_report import cpu
from lab.live.client import classify, connect, key_of
from lab.live.demo import REVIEWS
from lab.live.links import address, running_links
from lab.outputs import write_json
from lab.stats import difference_of_medians, spread_of
from shared.contracts import InferRequest, TextPair
from shared.errors import BadSetting
from shared.links.profile import PROFILES, Backend
from shared.links.upstream import Upstream

LINK, EDGE_PORT = "end-edge", 8081


def run(url: str, n: int, out: Path, project: str | None, console: Console) -> None:
    """Measure every profile that carries traffic; print the table and write OUT.

    Raises:
        BadSetting: no containers are running, their links are not shaped, or the edge does not answer.
    """
    names = [name for name, raw in yaml.safe_load(PROFILES.read_text()).items() if raw["loss"] < 100]
    links = running_links(project)
    shown = links.show().get(LINK)
    if not shown:
        raise BadSetting(f"{LINK} is not shaped by netem: start the stack without TIERWISE_LINKS=simulated or none")
    before = next(iter(shown.values()))["profile"]
    rows = []
    try:
        with progress(console) as bar:
            for name in bar.track(names, description="profiles"):
                links.set_profile(LINK, name)
                real = asyncio.run(_netem(url, n))
                links.set_profile(LINK, "ideal")
                time.sleep(0.2)
                edge = f"http://{address('edge', LINK, project=project)}:{EDGE_PORT}"
                played = asyncio.run(_simulated(edge, name, n))
                rows.append(_row(name, np.array(real), np.array(played)))
    finally:
        links.set_profile(LINK, before)
    report = {"n": n, "link": LINK, "cpu": cpu(), "profiles": rows}
    write_json(out, report)
    console.print(_table(report))
    console.print(f"written: {out}")


async def _netem(url: str, n: int) -> list[float]:
    """Link times (ms) of requests that the end only passes on."""
    async with connect(url, timeout=60) as client:
        answers = [await classify(client, REVIEWS[at % 12], {"policy": "edge-only"}) for at in range(n + 3)]
    used = [answer.answer.results[0].hops[0].link for answer in answers[3:]]
    shaped = [link.ms for link in used if link is not None and link.backend == "netem"]
    if len(shaped) < n:
        raise BadSetting(f"only {len(shaped)} of {n} requests came back over {LINK} and netem; is the edge well?")
    return shaped


async def _simulated(url: str, name: str, n: int) -> list[float]:
    """The same calls from here, over a simulated link."""
    key = key_of("TIERWISE_KEY_FILE")
    upstream = Upstream(
        source="end", target="edge", url=url, backend=Backend.SIMULATED, profile_name=name, timeout_s=60, key=key
    )
    seen = []
    for at in range(n + 3):
        call, texts = f"compare-{at}", [TextPair(text=REVIEWS[at % 12])]
        request = InferRequest(
            request_id=call, call=call, seed=call, indices=[0], texts=texts, policy={"name": "edge-only"}, target="edge"
        )
        seen.append((await upstream.infer(request, {})).link_s * 1e3)
    await upstream.close()
    return seen[3:]


def _row(name: str, real: np.ndarray, played: np.ndarray) -> dict[str, Any]:
    low, high = difference_of_medians(played, real)
    median = float(np.median(real))
    return {
        "profile": name,
        "netem_ms": spread_of(real) | {"n": len(real)},
        "simulated_ms": spread_of(played) | {"n": len(played)},
        "difference": float(np.median(played)) / median - 1,
        "difference_ci95": [low / median, high / median],
    }


def _table(report: dict[str, Any]) -> Table:
    sides = [f"{side} {key}" for side in ("netem", "simulated") for key in ("p50 ms", "mean", "p95")]
    title = f"{report['link']}, n = {report['n']} a cell, one at a time"
    table = sheet(title, "profile", *sides, "p50 differs by [95 %]", words=("profile",))
    for row in report["profiles"]:
        low, high = row["difference_ci95"]
        table.add_row(
            row["profile"],
            *(f"{row[side][key]:.1f}" for side in ("netem_ms", "simulated_ms") for key in ("p50", "mean", "p95")),
            f"{row['difference']:+.0%} [{low:+.0%}, {high:+.0%}]",
        )
    return table
