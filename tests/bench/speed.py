"""Speed claims, measured: our encoder beside what a user would run instead, and what tiers add on loopback.

    python -m tests.bench.speed --data imdb.parquet

Needs the extra `rivals`. Ends with exit status 1 where a goal is missed (`goals.py`). Everything has one thread.
ONEDNN_MAX_CPU_ISA limits what OpenVINO and torch use of the processor: a proxy for a lesser one, since ONNX Runtime
does not heed it.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from lab.console import screen, sheet
from lab.live.stack import Layout, running
from lab.whole.build import versions
from shared.errors import TierwiseError
from shared.model.bundle import load_bundle
from tests.bench import engines, overhead
from tests.bench.goals import goals

BUNDLE = "collaborative"
LAYOUT = {"access": "ideal", "backbone": "ideal", "threads": {"end": 1, "edge": 1, "cloud": 1}}


def hardware() -> dict[str, Any]:
    """The processor, and what of it the engines may use."""
    from shared.model.openvino_engine import capabilities, core

    cpuinfo = Path("/proc/cpuinfo")
    return {
        "processor": str(core().get_property("CPU", "FULL_DEVICE_NAME")).strip(),
        "cores": os.cpu_count(),
        "allowed_cores": len(os.sched_getaffinity(0)),
        "amx": "amx_tile" in cpuinfo.read_text() if cpuinfo.is_file() else None,
        "isa": os.environ.get("ONEDNN_MAX_CPU_ISA", "all that the processor has"),
        "isa_is_a_proxy": "ONEDNN_MAX_CPU_ISA" in os.environ,
        "capabilities": capabilities(),
        "load_before": os.getloadavg()[0],  # processes that ran or waited: beyond the cores, times are others' too
    }


def measure_engines(data: str | None, pairs: int, count: int, labelled: int, console: Console) -> dict[str, Any]:
    """Times and accuracies of both classifiers."""
    texts, bundle = engines.texts_of(data, labelled), load_bundle(BUNDLE)
    out: dict[str, Any] = {**texts.about, "engines": {}, "shapes": [], "rules": [], "accuracy": []}
    for tier in engines.TIERS:
        contest = engines.contest(bundle, tier, texts)
        out["engines"][contest.name] = contest.classifier.runs_on
        out["shapes"] += engines.shapes(contest, pairs, console)
        out["rules"] += engines.rules(contest, count, console)
        out["accuracy"] += engines.accuracies(contest, console)
    return out


def measure_tiers(requests: int, port: int | None, console: Console) -> dict[str, Any]:
    """What tiers add, from processes on this host."""

    async def measured() -> dict[str, Any]:
        tiers = await overhead.of_tiers(stack, requests, console)
        return {"tiers": tiers, "hop": await overhead.of_hop(stack, requests, console)}

    with running(Layout(bundle=BUNDLE, port=port, **LAYOUT), console) as stack:
        return asyncio.run(measured())


def show(console: Console, title: str, rows: list[dict[str, Any]]) -> None:
    """Rows of one kind as a table."""
    if rows:
        table = sheet(title, *rows[0])
        for row in rows:
            table.add_row(*map(_cell, row.values()))
        console.print(table)


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_cell(item)}" for name, item in value.items())
    if isinstance(value, list):
        return " ".join(map(_cell, value))
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def main(
    data: Annotated[str | None, typer.Option(help="Labelled texts; without, the demo's reviews.")] = None,
    pairs: Annotated[int, typer.Option(min=2, help="Rounds per shape.")] = 21,
    rule_n: Annotated[int, typer.Option(min=2, help="Texts per length for the card's exit rule.")] = 50,
    accuracy_n: Annotated[int, typer.Option(min=1, help="Texts for the accuracies; they need --data.")] = 200,
    requests: Annotated[int, typer.Option(min=2, help="Requests per tier.")] = 1000,
    port: Annotated[int, typer.Option(help="First port of the tiers.")] = 8090,
    out: Annotated[Path, typer.Option(help="Where the figures go.")] = Path("docs/results/speed.json"),
) -> None:
    """Measure, print a table per claim and one of the goals, and write the figures."""
    console = screen()
    try:
        figures: dict[str, Any] = {
            "date": datetime.now(UTC).date().isoformat(),
            "versions": versions(),
            "hardware": hardware(),
            "threads": 1,
            "pairs": pairs,
            "requests": requests,
        }
        figures |= measure_tiers(requests, port, console)
        figures |= measure_engines(data, pairs, rule_n, accuracy_n, console)
    except TierwiseError as error:
        sys.exit(f"bench: {error}")
    found = [goal.report() for goal in goals(figures)]
    figures["goals"] = found
    out.write_text(json.dumps(figures, indent=1) + "\n")
    show(console, f"full depth, medians of {pairs} rounds", figures["shapes"])
    show(console, "the card's exit rule, means", figures["rules"])
    show(console, "accuracy, one text at a time", figures["accuracy"])
    show(console, f"each tier alone, {requests} requests one at a time", figures["tiers"])
    show(console, "goals", found)
    console.print(f"{_cell(dict(Counter(goal['verdict'] for goal in found)))}; written: {out}")
    if any(goal["verdict"] == "missed" for goal in found):
        sys.exit(1)


if __name__ == "__main__":
    typer.run(main)
