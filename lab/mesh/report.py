"""What runs of a mesh say: figures of each cell, a table, a picture. Every one says what it was: live or simulated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from lab.console import sheet
from lab.mesh.outcome import Cell, Exits, Outcome
from lab.outputs import REPLACED, write_json
from lab.picture import BLUE, GREEN, GREY, ORANGE, interval, label, note, picture
from lab.stats import accuracy_of, mean_interval, spread_of
from shared.mesh.source import Adapt
from shared.mesh.topology import written

WINDOWS = 5  # parts of a run, whose throughputs give its interval
_COLOURS = (GREY, ORANGE, GREEN, BLUE, "#CC79A7")
MOST_SAMPLES = 60  # of a run over time are about as many as a picture can show
RECONSTRUCTED = "MDI-Exit's algorithms are reconstructed, its constants from memory (docs/mesh.md)"


def name_of(cell: Cell) -> str:
    """What tells a cell from the others of a report."""
    exits = "no early exit" if cell.threshold > 1 and cell.adapt is not Adapt.THRESHOLD else cell.adapt.value
    return f"{cell.topology.name} {exits}"


def figures(cell: Cell, outcome: Outcome, exits: Exits, kind: str) -> dict[str, Any]:
    """One run's figures. All are of texts that were answered after `warm_s` and before the end."""
    late = [answer for answer in outcome.answered if cell.warm_s <= answer.at < cell.seconds]
    settled = [sample for sample in outcome.samples if sample.at >= cell.warm_s]
    span_s = cell.seconds - cell.warm_s
    counts, _ = np.histogram([answer.at for answer in late], WINDOWS, (cell.warm_s, cell.seconds))
    per_s, low, high = mean_interval(list(counts * WINDOWS / span_s))
    out: dict[str, Any] = {
        "name": name_of(cell),
        "kind": kind,
        "topology": cell.topology.name,
        "nodes": len(cell.topology.nodes),
        "adapt": cell.adapt.value,
        "threshold": cell.threshold,
        "rate": None if cell.adapt is Adapt.RATE else cell.rate,
        "seconds": cell.seconds,
        "warm_s": cell.warm_s,
        "link": cell.link,
        "service_ms": None if cell.service_s is None else cell.service_s * 1e3,
        "kill": cell.kill and list(cell.kill),
        "cut": cell.cut and list(cell.cut),
        "report_ms": cell.report_s * 1e3,
        "held": {node: written(held) for node, held in cell.held.items()},
        "seed": cell.seed,
        "throughput_per_s": per_s,
        "throughput_ci95": [low, high],
        "n": len(late),
        **{name: getattr(outcome, name) for name in ("offered", "admitted", "refused", "lost", "unfinished", "again")},
        "answered": len(outcome.answered),
        "threshold_mean": float(np.mean([s.threshold for s in settled])) if settled and cell.threshold <= 1 else None,
        "facts": outcome.facts,
        "over_time": [
            [round(s.at, 2), round(s.gap_s, 5), round(s.threshold, 3), {name: list(q) for name, q in s.queues.items()}]
            for s in outcome.samples[:: max(1, len(outcome.samples) // MOST_SAMPLES)]
        ],
    }
    if late:
        right = np.array([exits.labels[answer.text] == answer.label for answer in late])
        out |= accuracy_of(right)
        out["segments_mean"] = float(np.mean([answer.segments for answer in late]))
        if cell.adapt is not Adapt.RATE:  # there texts wait outside for as long as one likes
            out["latency_ms"] = spread_of(np.array([answer.at - answer.asked_at for answer in late]) * 1e3)
        ran = [node for answer in late for node in answer.nodes]
        out["share_of_nodes"] = {node: round(ran.count(node) / len(ran), 4) for node in cell.topology.nodes[:8]}
    queues = [sum(queue) for sample in settled for queue in sample.queues.values()]
    out["queue_mean"], out["queue_max"] = (float(np.mean(queues)), int(max(queues))) if queues else (None, None)
    return out


def write(cells: Sequence[Mapping[str, Any]], facts: Mapping[str, Any], out: Path, console: Console) -> None:
    """Print the table; write OUT.json and OUT.png."""
    console.print(table(cells))
    console.print(f"{RECONSTRUCTED}.")
    report = {**facts, "note": RECONSTRUCTED, "cells": list(cells)}
    before = write_json(out.with_name(f"{out.name}.json"), report)
    draw(report, out.with_name(f"{out.name}.png"))
    console.print(f"written: {out}.json, {out}.png{REPLACED if before else ''}")


def table(cells: Sequence[Mapping[str, Any]]) -> Any:
    """A row for each cell."""
    columns = ("answered/s [95 %]", "accuracy [95 %]", "segments", "T_e", "p50 ms", "queue", "lost", "again", "open")
    shown = sheet(None, "mesh", "runs", "nominal texts/s", *columns, words=("mesh", "runs"))
    for cell in cells:
        low, high = cell["throughput_ci95"]
        rate = "as many as fit" if cell["rate"] is None else f"{cell['rate']:g}"
        shown.add_row(
            cell["name"],
            cell["kind"],
            rate,
            f"{cell['throughput_per_s']:.1f} [{low:.1f}, {high:.1f}]",
            _accuracy(cell),
            f"{cell['segments_mean']:.2f}" if cell["n"] else "-",
            "-" if cell["threshold_mean"] is None else f"{cell['threshold_mean']:.2f}",
            f"{cell['latency_ms']['p50']:.0f}" if "latency_ms" in cell else "-",
            "-" if cell["queue_mean"] is None else f"{cell['queue_mean']:.1f}",
            str(cell["lost"]),
            str(cell["again"]),
            str(cell["unfinished"]),
        )
    return shown


def _accuracy(cell: Mapping[str, Any]) -> str:
    if not cell["n"]:
        return "-"
    low, high = cell["accuracy_ci95"]
    return f"{cell['accuracy']:.3f} [{low:.3f}, {high:.3f}]"


# -- pictures ---------------------------------------------------------------------------------------------------------


def draw(report: Mapping[str, Any], path: Path, title: str | None = None) -> None:
    """What the cells have in common decides: rates, accuracies, one run over time. No title: the report's."""
    cells = report["cells"]
    kinds = ", ".join(dict.fromkeys(cell["kind"] for cell in cells))
    below = note(kinds, f"links {cells[0]['link']}", f"n {sum(cell['n'] for cell in cells)}", report["note"])
    panels = [panel for panel in (_throughputs, _accuracies) if panel(None, cells)]
    if len(panels) < 2 and (len(cells) <= 2 or not panels):  # it draws one cell alone
        panels.append(_over_time)
    with picture(path, title or report["title"], below, panels=len(panels)) as axes:
        for panel, own in zip(panels, axes, strict=True):
            panel(own, cells)


def _throughputs(axes: Any, cells: Sequence[Mapping[str, Any]]) -> bool:
    """Answered texts a second by number of nodes, where sources adapt their rate."""
    rows = [cell for cell in cells if cell["adapt"] == "rate"]
    if axes is None:
        return len(rows) > 1
    rows = sorted(rows, key=lambda cell: (cell["threshold"], cell["nodes"]))
    for at, cell in enumerate(rows):
        colour = GREY if cell["threshold"] > 1 else BLUE
        interval(axes, cell["throughput_per_s"], at, cell["throughput_ci95"], colour=colour, across=True)
        axes.plot(cell["throughput_per_s"], at, "o", color=colour)
        label(axes, _accuracy(cell).partition(" ")[0], cell["throughput_per_s"], at, colour)
    axes.set_yticks(range(len(rows)), [cell["name"].replace(" rate", "") for cell in rows])
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.set_xlabel("answered texts a second; beside: accuracy")
    return True


def _accuracies(axes: Any, cells: Sequence[Mapping[str, Any]]) -> bool:
    """Accuracy against the rate of the texts, a line for each topology."""
    rows = [cell for cell in cells if cell["rate"] is not None and cell["n"]]
    if axes is None:
        return len({cell["rate"] for cell in rows}) > 1
    for colour, name in zip(_COLOURS * 3, dict.fromkeys(cell["name"] for cell in rows), strict=False):
        line = sorted((cell for cell in rows if cell["name"] == name), key=lambda cell: cell["rate"])
        for cell in line:
            ends = [100 * end for end in cell["accuracy_ci95"]]
            interval(axes, cell["rate"], 100 * cell["accuracy"], ends, colour=colour, faint=True)
        xs, ys = [cell["rate"] for cell in line], [100 * cell["accuracy"] for cell in line]
        axes.plot(xs, ys, "o-", color=colour, ms=5)
        kept = line[-1]["throughput_per_s"] / line[-1]["rate"]
        label(axes, name if kept > 0.9 else f"{name} (answers {kept:.0%} there)", xs[-1], ys[-1], colour)
    axes.set_xlabel("texts a second that come")
    axes.set_ylabel("accuracy of the answered (%)")
    return True


def _over_time(axes: Any, cells: Sequence[Mapping[str, Any]]) -> bool:
    """Each node's two queues together, in the last run; its threshold or rate, where it adapts."""
    cell = cells[-1]
    times = [row[0] for row in cell["over_time"]]
    names = list(dict.fromkeys(name for row in cell["over_time"] for name in row[3]))
    for colour, name in zip(_COLOURS * 2, names, strict=False):
        queues = [sum(row[3][name]) if name in row[3] else np.nan for row in cell["over_time"]]
        axes.plot(times, queues, color=colour)
        last = max(at for at, queue in enumerate(queues) if not np.isnan(queue))
        label(axes, name, times[last], queues[last], colour)
    if cell["adapt"] == "threshold":
        right = axes.twinx()
        right.plot(times, [row[2] for row in cell["over_time"]], "--", color="black", linewidth=1)
        right.set_ylabel("exit threshold T_e (dashed)")
        right.set_ylim(0, 1.05)
        right.grid(visible=False)
    if cell["kill"]:
        axes.axvline(cell["kill"][1], color=GREY, linestyle=":")
        label(axes, f"{cell['kill'][0]} is killed", cell["kill"][1], axes.get_ylim()[1] * 0.9, GREY)
    if cell.get("cut"):
        link, *times = cell["cut"]
        axes.axvspan(*times, color=GREY, alpha=0.15)
        label(axes, f"{link} is cut", times[0], axes.get_ylim()[1] * 0.9, GREY)
    axes.set_xlabel("seconds")
    axes.set_ylabel(f"texts in both queues: {cell['name']}")
    return True
