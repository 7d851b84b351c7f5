"""Pictures: one look, a scatter with its Pareto line, a chart of intervals, and labels that do not overprint.

A picture has a title that says one thing, and below it what it was made of. Names stand beside what they name, not in
a legend. A label tries places around its point and takes the one that covers least (`place`). Colours are those of
Okabe and Ito, which colour-blind readers tell apart. Left out: what a picture shows; each report says that of its own.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from lab.choice import front

Axes = Any  # matplotlib has no types
Estimate = list[float]  # a value; or one with the ends of its interval; or nothing
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#6B6B6B"
LABEL = "label"  # marks what `place` moves
INTERVALS = "bars: 95 % intervals; bold, on the line: no other is both faster and more accurate"
LOOK = {
    "text.parse_math": False,  # `$` in a policy's or file's name is no formula
    "font.size": 10.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.edgecolor": GREY,
    "grid.color": "#E8E8E8",
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": "black",
    "ytick.labelcolor": "black",
}


@dataclass(frozen=True)
class Dot:
    """One policy: a cost, a score in %, and the ends of its interval. A hollow one is no candidate for the line.

    `colour`: what kind it is; without one, blue on the line and grey off it. `chance`: the cost and score of its
    chance control.
    """

    name: str
    x: float
    y: float
    ends: Sequence[float]
    hollow: bool = False
    colour: str | None = None
    chance: tuple[float, float] | None = None


@contextmanager
def picture(path: Path, title: str, note: str, *, panels: int = 1, height: float = 5.4) -> Iterator[list[Axes]]:
    """The panels to draw on, side by side; then the labels are placed and the file is written."""
    import matplotlib as mpl

    mpl.use("Agg")  # no screen
    from matplotlib import pyplot as plt

    with mpl.rc_context(LOOK):
        figure, axes = plt.subplots(1, panels, figsize=(9.6, height), dpi=110, layout="constrained", squeeze=False)
        figure.suptitle(textwrap.fill(title, 84), x=0.01, ha="left", fontsize=13, fontweight="bold")
        figure.supxlabel(textwrap.fill(note, 130, break_on_hyphens=False), x=0.01, ha="left", fontsize=9, color=GREY)
        try:
            yield list(axes[0])
            place(figure)
            figure.savefig(path, dpi="figure")
        finally:
            plt.close(figure)


def note(*parts: str | None) -> str:
    """What a picture was made of, on one line."""
    return " · ".join(part for part in parts if part)


def percent(values: Sequence[float]) -> Estimate:
    """Shares in %."""
    return [100 * value for value in values]


# -- what is drawn ----------------------------------------------------------------------------------------------------


def scatter(axes: Axes, dots: Sequence[Dot]) -> None:
    """Score against cost. The Pareto line joins the dots that no other beats in both; they are large, with bold names.

    A cross marks the chance control of a dot, at the other end of a dotted line.
    """
    real = [dot for dot in dots if not dot.hollow]
    best = [real[at] for at in front([dot.x for dot in real], [dot.y for dot in real])]
    axes.plot([dot.x for dot in best], [dot.y for dot in best], color=BLUE, linewidth=6, alpha=0.2)
    for dot in dots:
        colour = dot.colour or (BLUE if dot in best else GREY)
        if dot.chance and dot.chance != (dot.x, dot.y):
            axes.plot(*zip((dot.x, dot.y), dot.chance, strict=True), ":", color=colour, linewidth=1, alpha=0.6)
            axes.plot(*dot.chance, "x", ms=5, color=colour, alpha=0.6)
        interval(axes, dot.x, dot.y, dot.ends, colour=colour, faint=True)
        size = 9 if dot in best else 6
        axes.plot(dot.x, dot.y, "o", ms=size, color=colour, markerfacecolor="white" if dot.hollow else colour)
        label(axes, dot.name, dot.x, dot.y, colour, bold=dot in best)
    axes.margins(x=0.12, y=0.08)


def intervals(
    axes: Axes,
    rows: Mapping[str, Estimate],
    *,
    name: str = "",
    colour: str = BLUE,
    shift: float = 0.0,
    against_zero: bool = False,
) -> None:
    """A row for each name, from the top: its value, and an interval if it has one. `shift` parts two series.

    `against_zero` draws a line at 0, and fades each row whose interval holds 0.
    """
    shown = [(at + shift, row) for at, row in enumerate(rows.values()) if row]
    for y, row in shown:
        value, low, high = row if len(row) == 3 else 3 * row
        faint = against_zero and low < high and low <= 0 <= high
        interval(axes, value, y, (low, high), colour=colour, across=True, faint=faint)
        axes.plot(value, y, "o", ms=6, color=colour, alpha=0.4 if faint else 1)
    if name and shown:
        label(axes, name, shown[0][1][0], shown[0][0], colour)
    if against_zero:
        axes.axvline(0, color=GREY, linewidth=1)
    axes.set_yticks(range(len(rows)), list(rows))
    axes.set_ylim(len(rows) - 0.5, -0.9)
    axes.grid(visible=False, axis="y")


def interval(
    axes: Axes, x: float, y: float, ends: Sequence[float], *, colour: str, across: bool = False, faint: bool = False
) -> None:
    """A thin bar from end to end, through a point."""
    xs, ys = (ends, (y, y)) if across else ((x, x), ends)
    axes.plot(xs, ys, color=colour, linewidth=1.4, alpha=0.3 if faint else 0.8, solid_capstyle="butt")


def label(axes: Axes, text: str, x: float, y: float, colour: str = "black", *, bold: bool = False) -> None:
    """Words beside a point; `place` finds where."""
    text = textwrap.fill(text, 40, break_on_hyphens=False)  # a policy's name may hold every parameter
    words = axes.annotate(text, (x, y), (9, 0), textcoords="offset points", color=colour, fontsize=9.5, gid=LABEL)
    words.set_fontweight("bold" if bold else "normal")
    words.set_in_layout(False)


# -- where labels go --------------------------------------------------------------------------------------------------


NEAR = 16  # points
OFFSETS = [
    (radius * round(math.cos(math.radians(angle)), 3), radius * round(math.sin(math.radians(angle)), 3))
    for radius in (9, 15, 24, 36, 52, 70)
    for angle in (0, 45, -45, 180, 135, -135, 90, -90, 22, -22, 158, -158)
]


def place(figure: Any) -> None:
    """Move every label to the place around its point that covers least; of places that are alike, the nearest."""
    figure.draw_without_rendering()  # the layout settles first
    for axes in figure.axes:
        drawn = np.vstack([np.empty((0, 2)), *(_inked(line) for line in axes.lines)])
        taken: list[Axes] = []
        for words in [text for text in axes.texts if text.get_gid() == LABEL]:
            taken.append(_settle(words, drawn, taken))


def _settle(words: Any, drawn: np.ndarray, taken: list[Any]) -> Any:
    """Place a label, and return its box. A white rim parts it from a line, a thin line leads to a far point."""
    from matplotlib.patheffects import withStroke
    from matplotlib.transforms import Bbox

    def cost(offset: tuple[float, float]) -> float:
        """Pixels of other labels that it would cover, pixels beyond the panel, points of dots and lines, distance."""
        box, panel = _box(words, offset), words.axes.get_window_extent()
        shared = [Bbox.intersection(box, other) for other in taken]
        overprinted = sum(both.width * both.height for both in shared if both)
        beyond = np.clip([panel.min - box.min, box.max - panel.max], 0, None).sum()
        return 1000 * overprinted + 300 * beyond + 3 * box.count_contains(drawn) + math.hypot(*offset)

    offset = min(OFFSETS, key=cost)
    words.set_path_effects([withStroke(linewidth=2.5, foreground="white")])
    if math.hypot(*offset) > NEAR:
        lead = {"arrowstyle": "-", "color": words.get_color(), "linewidth": 0.7, "shrinkA": 0, "shrinkB": 4}
        words.axes.annotate("", words.xy, offset, textcoords="offset points", arrowprops=lead).set_in_layout(False)
    return _box(words, offset)


def _box(words: Any, offset: tuple[float, float]) -> Any:
    """Move a label this far from its point, and return its box with a margin."""
    across, up = offset
    words.set_position(offset)
    words.set_horizontalalignment("center" if abs(across) < 1 else "right" if across < 0 else "left")
    words.set_verticalalignment("center" if abs(up) < 1 else "top" if up < 0 else "bottom")
    return words.get_window_extent().padded(5, 2)


def _inked(line: Any) -> np.ndarray:
    """Points along a line, 3 pixels apart; five for a marker."""
    corners = line.get_transform().transform(np.column_stack(line.get_data()))
    corners = corners[np.isfinite(corners).all(1)]
    steps = [np.linspace(a, b, max(2, int(np.hypot(*(b - a)) / 3))) for a, b in pairwise(corners)]
    around = [corners + way for way in ((4, 0), (-4, 0), (0, 4), (0, -4), (0, 0)) if line.get_marker() != "None"]
    return np.vstack([np.empty((0, 2)), *(steps if line.get_linestyle() != "None" else []), *around])
