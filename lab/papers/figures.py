"""The pictures of the papers' tables, from `report.json` alone: OUT/NAME.png."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lab.papers.published import published
from lab.picture import BLUE, GREY, ORANGE, Axes, Estimate, interval, intervals, label, note, percent, picture
from lab.stats import wilson

Parts = dict[str, Any]  # data set -> what was made of it: JSON


def draw(tables: Mapping[str, Parts], out: Path, claims: Mapping[str, str] | None = None) -> None:
    """Every picture whose table is there, titled by its claim; without one, by what it shows."""
    for name, (table, title, panels, height, paint) in FIGURES.items():
        if parts := tables.get(table):
            title = (claims or {}).get(name, title)
            with picture(out / f"{name}.png", title, _made(parts), panels=panels, height=height) as axes:
                paint(axes, parts)


def _made(parts: Parts) -> str:
    """Data sets, texts, machine and links."""
    every = [part["made"] for part in parts.values()]
    sizes = sorted({made["n"] for made in every})
    return note(
        f"{', '.join(parts)}, n = {' to '.join(f'{n:,}' for n in dict.fromkeys((sizes[0], sizes[-1])))}",
        ", ".join(dict.fromkeys(made["hardware"] for made in every)),
        f"links {', '.join(dict.fromkeys(made['links'] for made in every))}",
        "times and costs modelled",
    )


def _hu_1(axes: list[Axes], parts: Parts) -> None:
    """Points lost against time saved as theta grows, both against theta 0 at the same threshold."""
    (part,) = parts.values()
    ours = [
        (row["spec"]["offload_threshold"], row["spec"]["theta"], row["modelled_ms"]["mean"], row["accuracy"])
        for row in part["table"]["rows"]
    ]
    for rows, who, colour in ((published("hu-1")["rows"], "the paper", ORANGE), (ours, "ours", BLUE)):
        for threshold in sorted({row[0] for row in rows}):
            (_, _, whole, right), *rest = sorted(row for row in rows if row[0] == threshold)
            moved = [(100 * (1 - ms / whole), 100 * (accuracy - right)) for _, _, ms, accuracy in rest]
            axes[0].plot([0, *(x for x, _ in moved)], [0, *(y for _, y in moved)], "o-", ms=6, color=colour)
            if who == "the paper" or threshold == rows[0][0]:
                name = f"the paper, threshold {threshold:g}" if who == "the paper" else "ours, every threshold"
                label(axes[0], name, *moved[-1], colour)
    axes[0].set(
        xlabel="time saved against theta 0 (%), at theta 1e-5, 1e-4 and 1e-2 from the left",
        ylabel="accuracy against theta 0 (points)",
    )
    axes[0].set_xlim(right=32)  # room for the names


def _hu_points(axes: list[Axes], parts: Parts) -> None:
    """Points with early exit, on the line of thresholds without it."""
    (part,) = parts.values()
    points = part["points"]
    line = [
        (r["modelled_ms"]["mean"], 100 * r["accuracy"], r["spec"]["offload_threshold"]) for r in points["without_exit"]
    ]
    axes[0].plot([x for x, *_ in line], [y for _, y, _ in line], "o-", ms=5, color=GREY)
    for x, y, threshold in line:
        name = "" if threshold < line[-1][2] else "no early exit, threshold "
        label(axes[0], f"{name}{threshold:g}", x, y, GREY)
    for row in points["rows"]:
        mine = row["rule"] == "ours"
        colour, x, y = BLUE if mine else ORANGE, row["modelled_ms"]["mean"], 100 * row["accuracy"]
        axes[0].plot(x, y, "D" if mine else "v", ms=8, color=colour)
        who = "our rule" if mine else "similarity alone"
        label(axes[0], f"{who}, {row['spec']['offload_threshold']:g}", x, y, colour)
    wide = max(100 * (high - low) / 2 for low, high in (row["accuracy_ci95"] for row in points["rows"]))
    axes[0].set(xlabel="modelled mean latency (ms)", ylabel=f"accuracy (%), each ± {wide:.1f} (95 %)")
    axes[0].margins(x=0.1, y=0.12)


def _hu_parts(axes: list[Axes], parts: Parts) -> None:
    """What each change does to accuracy and time, paired with the card's operating point."""
    (part,) = parts.values()
    paired = {name: row["paired"] for name, row in part["rows"].items()}
    intervals(axes[0], {name: percent(row["accuracy"]) for name, row in paired.items()}, against_zero=True)
    intervals(axes[1], {name: row["modelled_ms"] for name, row in paired.items()}, against_zero=True)
    axes[0].set(xlabel=f"accuracy gained (points)\n{FADED}")
    axes[1].set(xlabel=f"modelled mean time added (ms)\n{FADED}", yticklabels=[])


def _hu_pruned(axes: list[Axes], parts: Parts) -> None:
    """Accuracy against the coefficient, for both networks."""
    (part,) = parts.values()
    rows = part["rows"]
    for key, name, colour, shift in (
        ("trained_on_pruned_too", "trained on pruned texts, too", BLUE, 0.04),
        ("trained_on_whole", "trained on whole texts", ORANGE, -0.04),
    ):
        at, values = [place + shift for place in range(len(rows))], [100 * row[key]["accuracy"] for row in rows]
        for x, y, row in zip(at, values, rows, strict=True):
            low, high = row[key]["accuracy_ci95"]
            interval(axes[0], x, y, (100 * low, 100 * high), colour=colour, faint=True)
        axes[0].plot(at, values, "o-", ms=6, color=colour)
        label(axes[0], name, at[-1], values[-1], colour)
    kept = [f"{row['pruning_coefficient']:g}\n{row['words_kept']:.0%}" for row in rows]
    axes[0].set_xticks(range(len(rows)), kept)
    axes[0].set(xlabel="pruning coefficient, and the words that it keeps", ylabel="accuracy (%), 95 % interval")
    axes[0].set_xlim(-0.4, len(rows) + 0.9)  # room for the names


def _score(data: str, part: dict[str, Any]) -> tuple[str, str]:
    """A data set's row, and the metric of its score."""
    metric = part["made"]["metric"]
    return f"{data} ({metric if metric == 'accuracy' else metric.upper()})", metric


def _dimee_1(axes: list[Axes], parts: Parts) -> None:
    """DIMEE-F's cost and score against the whole model on the device, beside the paper's."""
    paper = published("dimee-1")["rows"]
    ours, theirs = [dict[str, Estimate](), dict[str, Estimate]()], [dict[str, Estimate](), dict[str, Estimate]()]
    for data, part in parts.items():
        (row, metric), found = _score(data, part), part["rows"]["dimee-f"]
        ours[0][row] = [-100 * found["unit_cost"]["against_whole_model_on_device"]]
        ours[1][row] = percent(found["paired"][metric])
        score, cost = paper["dimee-f"].get(data, (None, None))
        theirs[0][row] = [] if cost is None else [-cost]
        theirs[1][row] = [] if score is None else [score - paper["whole model"][data][0]]
    for one, measured, printed in zip(axes, ours, theirs, strict=True):
        intervals(one, measured, name="ours", shift=-0.1)
        intervals(one, printed, name="the paper", colour=ORANGE, shift=0.1)
    if "qnli" in parts:  # as `published.yaml` says
        row, _ = _score("qnli", parts["qnli"])
        label(axes[1], "surely a misprint", theirs[1][row][0], list(parts).index("qnli") + 0.1, ORANGE)
    axes[0].set(xlabel="cost saved (%)", xlim=(0, 100))
    axes[1].axvline(0, color=GREY, linewidth=1)
    axes[1].set(xlabel="score gained (points, 95 % interval)", yticklabels=[])


def _dimee_rivals(axes: list[Axes], parts: Parts) -> None:
    """What each rival at DIMEE-F's cost scores more than it."""
    for rival, name, colour, shift in (
        ("confidence cascade, same cost", "confidence cascade", BLUE, -0.12),
        ("length-quantile, bins as large", "by length", ORANGE, 0.12),
    ):
        rows = {}
        for data, part in parts.items():
            row, metric = _score(data, part)
            rows[row] = percent(part["against_dimee"][rival]["paired"][metric])
        intervals(axes[0], rows, name=name, colour=colour, shift=shift, against_zero=True)
    axes[0].set(xlabel=f"score less DIMEE-F's (points)\n{FADED}")


def _dimee_pools(axes: list[Axes], parts: Parts) -> None:
    """How often an embedding names the pool that the exits say, and how often chance does."""
    shares = {data: (part["agree"], part["made"]["n"]) for data, part in parts.items()}
    agree = {data: percent([share, *wilson(round(share * n), n)]) for data, (share, n) in shares.items()}
    chance = {data: [100 * part["agree_by_chance"]] for data, part in parts.items()}
    intervals(axes[0], agree, name="by the embedding", shift=-0.1)
    intervals(axes[0], chance, name="by chance", colour=ORANGE, shift=0.1)
    axes[0].set(xlabel="texts put into the pool that their exits say (%, 95 % interval)", xlim=(0, None))


FADED = "95 % interval; faded where it holds 0"
# name: the table, its neutral title, panels, height in inches, and who paints them
FIGURES: dict[str, tuple[str, str, int, float, Callable[[list[Axes], Parts], None]]] = {
    "hu-1": ("hu-1", "Accuracy and time as theta grows", 1, 5.4, _hu_1),
    "hu-points": ("hu-1", "Operating points with early exit, and thresholds without it", 1, 5.4, _hu_points),
    "hu-parts": ("hu-parts", "What each part contributes", 2, 6.0, _hu_parts),
    "hu-pruned": ("hu-pruned", "Accuracy as texts are pruned", 1, 4.8, _hu_pruned),
    "dimee-1": ("dimee-1", "DIMEE-F against the whole model on the device", 2, 4.6, _dimee_1),
    "dimee-rivals": ("dimee-1", "Rivals at DIMEE-F's cost", 1, 4.8, _dimee_rivals),
    "dimee-pools": ("dimee-pools", "Pools by embedding, and by chance", 1, 4.2, _dimee_pools),
}
