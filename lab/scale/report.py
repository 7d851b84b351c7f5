"""What `tierwise scale step --live` prints and draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lab.console import PlainConsole
from lab.picture import BLUE, ORANGE, label, note, picture
from lab.scale.step import show

TITLE = "An autoscaler after a step of load"


def show_live(rows: Sequence[Mapping[str, Any]], console: PlainConsole) -> None:
    """Print what the simulation prints, and what became of the texts."""
    show(rows, console, "Live; the replicas' time is slept")
    for row in rows:
        became = ", ".join(f"{what} {n}" for what, n in row["became"].items())
        drained = f"{row['drained']} replicas drained, {row['ended_otherwise']} ended otherwise"
        console.print(f"{row['signal']}: texts {became}; {drained}; sent {row['late_p99_ms']:.0f} ms late (p99)")


def draw(report: Mapping[str, Any], path: Path, title: str = TITLE) -> None:
    """Replicas, refusals and p99 over time, by signal."""
    given = report["given"]
    below = note(
        f"{given['tier']}, texts of {given['policy']}",
        f"{given['rate']:.1f} a second, then {given['times']:g} times as many",
        "live processes whose time is slept; one run, both signals at once",
    )
    with picture(path, title, below, panels=3, height=3.6) as axes:
        for row, colour in zip(report["signals"], (BLUE, ORANGE), strict=True):
            _one(axes, row, colour, given["step_s"])
        for one, what in zip(axes, ("replicas", "refused (%)", "p99 of the answered (ms)"), strict=True):
            one.set(xlabel="seconds from the step on", ylabel=what, ylim=(0, None))


def _one(axes: Sequence[Any], row: Mapping[str, Any], colour: str, step_s: float) -> None:
    replicas, over_time = row["first"]["replicas"], row["over_time"]
    times = [over_time["at_s"][0], *(at for at, _, _ in replicas), step_s]
    counts = [replicas[0][1], *(wanted for _, wanted, _ in replicas)]
    axes[0].stairs(counts, times, color=colour, linewidth=1.6, baseline=None)
    label(axes[0], row["signal"].partition(",")[0], times[-2], counts[-1], colour)
    axes[1].plot(over_time["at_s"], [100 * share for share in over_time["refused"]], color=colour, linewidth=1.4)
    axes[2].plot(over_time["at_s"], over_time["p99_ms"], color=colour, linewidth=1.4)
