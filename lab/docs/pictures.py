"""The pictures of docs/results, from the measured JSON alone: `make docs`, or `python -m lab.docs.pictures`.

A title is the one claim of its picture, written by hand in `pictures.yaml`. What a run of yours draws has a neutral
title instead.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml

from lab.docs.measured import RESULTS, read
from lab.live import bench_report
from lab.mesh import report as mesh_report
from lab.papers import figures
from lab.picture import BLUE, GREEN, GREY, ORANGE, intervals, note, picture
from lab.replay import plan_report
from lab.replay import report as replay_report
from lab.scale import report as scale_report

CLAIMS = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text())


def draw(out: Path) -> None:
    """Every picture, into a folder."""
    bench_report.draw(read(RESULTS / "bench.json"), out / "bench.png", CLAIMS["bench"])
    plan_report.draw(read(RESULTS / "plan.json"), out / "plan.png", CLAIMS["plan"])
    replay = read(RESULTS / "replay.json")
    replay_report.draw(replay, "collaborative", out / "replay-collaborative.png", CLAIMS["replay"])
    figures.draw(read(RESULTS / "report.json")["tables"], out, CLAIMS)
    cells(out / "netem.png", CLAIMS["netem"])
    scale_report.draw(read(RESULTS / "scale-live.json"), out / "scale-live.png", CLAIMS["scale-live"])
    for name in ("mesh-rate-simulated", "mesh-kill"):
        mesh_report.draw(read(RESULTS / f"{name}.json"), out / f"{name}.png", CLAIMS[name])


def cells(path: Path, title: str) -> None:
    """Mean latency over each pair of netem links."""
    reports: dict[str, Any] = {file.stem[6:]: read(file) for file in sorted(RESULTS.glob("netem-*.json"))}
    first = next(iter(reports.values()))
    made = note(
        f"IMDB, n = {first['n']} per policy and pair of links",
        "User-Mode Linux guest, all tiers on one core",
        "links shaped by netem",
    )
    with picture(path, title, made, height=3.6) as (axes,):
        colours = {
            "network-aware": BLUE,
            "collaborative": BLUE,
            "edge-only": GREEN,
            "cloud-only": ORANGE,
            "end-only": GREY,
        }
        for policy, colour in colours.items():
            ms = {cell: report["policies"][policy]["latency_ms"]["mean"] for cell, report in reports.items()}
            intervals(axes, {cell: [mean] for cell, mean in ms.items()}, name=policy, colour=colour)
        axes.set(xlabel="mean latency seen by the client (ms)", xlim=(0, None))


if __name__ == "__main__":
    draw(Path(sys.argv[1]) if len(sys.argv) > 1 else RESULTS)
