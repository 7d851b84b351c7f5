"""The pictures of docs/results, from the measured JSON alone: `make docs`, or `python -m lab.docs.pictures`.

A title is the one claim of its picture, written by hand. What a run of yours draws has a neutral title instead.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from lab.docs.measured import RESULTS, read
from lab.live import bench_report
from lab.papers import figures
from lab.picture import BLUE, GREEN, GREY, ORANGE, intervals, note, picture
from lab.replay import plan_report
from lab.replay import report as replay_report

CLAIMS = {
    "bench": "On IMDB reviews three tiers take 58 % less time than the cloud alone, for 0.8 points",
    "netem": "Over real links three tiers take 31 to 38 % of the cloud's mean time",
    "plan": "On 10,000 unseen IMDB reviews the planner's setting keeps the accuracy asked for",
    "replay": "200 IMDB reviews hardly tell policies apart by accuracy, but their times differ",
    "hu-1": "Theta alone saves at most 6 % here and costs no accuracy; in the paper it costs much",
    "hu-points": "Our exit rule gains 0.0 to 0.4 points over a plain threshold that takes as long",
    "hu-parts": "Changing a part moves accuracy by a point at most, but for pruning at 1.0 and above",
    "hu-pruned": "Training on pruned texts helps on whole texts, too",
    "dimee-1": "DIMEE-F's cost comes near the paper's, its accuracy does not",
    "dimee-rivals": "At DIMEE-F's cost a confidence cascade is better on two data sets, worse on none",
    "dimee-pools": "A text's embedding names its pool only 2 to 9 points more often than chance",
}


def draw(out: Path) -> None:
    """Every picture, into a folder."""
    bench_report.draw(read(RESULTS / "bench.json"), out / "bench.png", CLAIMS["bench"])
    plan_report.draw(read(RESULTS / "plan.json"), out / "plan.png", CLAIMS["plan"])
    replay_report.draw(
        read(RESULTS / "replay.json"), "collaborative", out / "replay-collaborative.png", CLAIMS["replay"]
    )
    figures.draw(read(RESULTS / "report.json")["tables"], out, CLAIMS)
    cells(out / "netem.png", CLAIMS["netem"])


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
        for policy, colour in {
            "collaborative": BLUE,
            "edge-only": GREEN,
            "cloud-only": ORANGE,
            "end-only": GREY,
        }.items():
            ms = {cell: report["policies"][policy]["latency_ms"]["mean"] for cell, report in reports.items()}
            intervals(axes, {cell: [mean] for cell, mean in ms.items()}, name=policy, colour=colour)
        axes.set(xlabel="mean latency seen by the client (ms)", xlim=(0, None))


if __name__ == "__main__":
    draw(Path(sys.argv[1]) if len(sys.argv) > 1 else RESULTS)
