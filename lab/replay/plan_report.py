"""What a plan says: its front as table and picture, the choice as a policy file, how it fares on unseen texts."""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from lab.choice import front
from lab.console import tracked
from lab.live.bench_report import cpu
from lab.outputs import REPLACED, write_json
from lab.picture import BLUE, GREEN, GREY, ORANGE, Axes, interval, label, note, picture
from lab.replay.plan import Plan, Targets, choose, confirm, deepest_of, measure, parts, whole_of
from lab.replay.recorder import runs_on
from lab.replay.search import Spec
from lab.replay.trial import Trial
from shared.model.bundle import MODELS, Metric
from shared.policies import spec_of

RESAMPLINGS = 100
LONGEST = 120  # characters of a parameter that are shown


def report(found: Plan, targets: Targets, chosen_on: Trial, judged_on: Trial) -> dict[str, Any]:
    """Everything, as JSON: what was asked, the front, the choice, and what unseen texts say of it."""
    spec = found.specs[found.nearest]
    seen = confirm(judged_on.of(spec), np.arange(len(judged_on.truth)), deepest_of(judged_on))
    misses = found.confirmed[found.nearest].misses(targets, bounds=True)
    walked = [
        {
            "spec": found.specs[at],
            "searched": _told(asdict(found.searched[at])),
            "confirmed": _told(asdict(found.confirmed[at])),
            "chosen": at == found.chosen,
        }
        for at in found.path
    ]
    own = [found.searched[at] for at in found.path]
    best = front([point.cost(targets) for point in own], [point.accuracy for point in own])
    return {
        "targets": _told(asdict(targets)),
        "bundle": chosen_on.bundle.name if chosen_on.bundle.folder.parent == MODELS else str(chosen_on.bundle.folder),
        "feasible": found.chosen is not None,
        "policy": spec_of(chosen_on.replay.policy(spec)),
        "missed_by": _told(misses),
        "hardware": f"{cpu()}, {os.cpu_count()} cores",
        "engine": runs_on(chosen_on.bundle),
        "settings": len(found.specs),
        "validation": chosen_on.described(),
        "deepest_tier_alone": {"validation": _alone(chosen_on), "unseen": _alone(judged_on)},
        "cost": targets.cost,
        "walked": [{**point, "on_front": at in best} for at, point in enumerate(walked)],
        "front": [walked[at] for at in reversed(best)],
        "unseen": {
            **judged_on.described(),
            **_told(asdict(seen)),
            "holds_of_100_resamplings": resampled(judged_on, spec, targets),
            "replanned": replanned(found, targets, chosen_on, judged_on),
        },
        "notes": [*judged_on.notes, *_metric_note(chosen_on.bundle.metric)],
    }


def _metric_note(metric: Metric) -> list[str]:
    return [] if metric is Metric.ACCURACY else [f"planned by accuracy; this bundle's own metric is {metric.value}"]


def _alone(trial: Trial) -> float:
    """Accuracy of the deepest tier alone: whether two sets of texts are as hard."""
    return float(deepest_of(trial).mean())


def _told(figures: dict[str, Any]) -> dict[str, Any]:
    """JSON has no infinity: a bound that few texts cannot give is null."""
    return {key: None if isinstance(v, float) and math.isinf(v) else v for key, v in figures.items()}


def resampled(trial: Trial, spec: Spec, targets: Targets) -> int:
    """In how many of 100 resamplings of these texts every target holds."""
    noise, outcomes, n = np.random.default_rng(trial.conditions.seed), trial.of(spec), len(trial.truth)
    drawn = (measure(outcomes, noise.integers(0, n, n), deepest_of(trial)) for _ in range(RESAMPLINGS))
    return sum(own.meets(targets, bounds=False) for own in drawn)


def replanned(found: Plan, targets: Targets, chosen_on: Trial, judged_on: Trial) -> dict[str, int]:
    """100 plans from resampled validation texts: how many find a setting, how many of those hold on unseen texts.

    Each chooses among the settings that this search tried.
    """
    noise, n = np.random.default_rng(chosen_on.conditions.seed), len(chosen_on.truth)
    whole, deepest = partial(whole_of, chosen_on, found.specs), deepest_of(chosen_on)
    judged, everything = partial(whole_of, judged_on, found.specs), np.arange(len(judged_on.truth))
    feasible = held = 0
    for _ in tracked(range(RESAMPLINGS), chosen_on.conditions.recorders.console, "plans from resampled texts"):
        rows = [noise.choice(rows, len(rows)) for rows in parts(n)]
        again = choose(found.specs, found.every, targets, *rows, pinned=found.pinned, whole=whole, deepest=deepest)
        if again.chosen is not None:
            feasible += 1
            held += measure(judged(again.chosen), everything, deepest_of(judged_on)).meets(targets, bounds=False)
    return {"feasible": feasible, "hold": held}


# -- for people -------------------------------------------------------------------------------------------------------


def write(said: dict[str, Any], out: Path, console: Console) -> None:
    """Write OUT.json, OUT.png and, where a setting was found, OUT.policy.json; print the plan."""
    written, drawn = out.with_name(f"{out.name}.json"), out.with_name(f"{out.name}.png")
    replaced = write_json(written, said)
    draw(said, drawn)
    console.print(table(said))
    for line in sentences(said):
        console.print(line, highlight=False)
    policy = out.with_name(f"{out.name}.policy.json").resolve()
    if said["feasible"]:
        write_json(policy, said["policy"])
        print(f"TIERWISE_BUNDLE={said['bundle']}\nTIERWISE_POLICY={policy}")
    else:
        policy.unlink(missing_ok=True)  # an older plan's would pass for this one's
    console.print(f"written: {written}, {drawn}{REPLACED if replaced else ''}")


def sentences(said: dict[str, Any]) -> list[str]:
    """The choice, and how it fares."""
    unseen, again = said["unseen"], said["unseen"]["replanned"]
    targets = ", ".join(f"{k} {v}" for k, v in said["targets"].items() if v is not None and k != "objective")
    parameters = ", ".join(f"{k} {_cut(json.dumps(v))}" for k, v in said["policy"].items() if k != "name")
    if said["feasible"]:
        out = [f"Chosen for {targets}: {said['policy']['name']} ({parameters})"]
    else:
        missed = [
            f"{name} by {gap:.2%}" if gap is not None else f"{name}: too few texts to bound it"
            for name, gap in said["missed_by"].items()
        ]
        gaps = ", ".join(missed) or "nothing, but a safer setting before it on the front did, so it is not proved"
        out = [
            f"No setting meets {targets} beyond doubt on {said['validation']['n']} validation texts. Nearest: "
            f"{said['policy']['name']} ({parameters}); its bounds miss {gaps}."
        ]
    out.append(
        f"On {unseen['n']} unseen texts: accuracy {unseen['accuracy']:.3f}, modelled mean {unseen['mean_ms']:.0f} ms, "
        f"p95 {unseen['p95_ms']:.0f} ms, {unseen['bytes']:.0f} bytes; {unseen['lost']:+.4f} lost against the deepest "
        f"tier, at most {unseen['lost_high']:.4f} by a bound; the targets hold in "
        f"{unseen['holds_of_100_resamplings']} of 100 resamplings. Planned again from 100 resampled validation sets: "
        f"{again['feasible']} find a setting, {again['hold']} of these hold there."
    )
    alone = said["deepest_tier_alone"]
    out.append(
        f"The deepest tier alone has accuracy {alone['validation']:.3f} on the validation texts and "
        f"{alone['unseen']:.3f} on the unseen ones: whether these are as hard."
    )
    return [*out, *said["notes"]]


def _cut(value: str) -> str:
    """A parameter's value, without what makes gates longer than all the rest; the policy file has all of it."""
    return value if len(value) <= LONGEST else f"{value[:LONGEST]}..."


def table(said: dict[str, Any]) -> Table:
    """What was walked, from its safe end; of each setting, whether another one that was walked beats it."""
    made = said["validation"]
    out = Table(
        title=f"{said['settings']} settings of {made['bundle']}, {made['n']} validation texts, a third to search on; "
        f"links {made['links']}; {said['engine']}; times are MODELLED",
        box=box.SIMPLE_HEAD,
        title_justify="left",
        pad_edge=False,
    )
    for column in (
        "policy",
        "search: accuracy",
        "mean ms",
        "confirm: accuracy",
        "bound",
        "mean ms",
        "p95",
        "bytes",
        "",
    ):
        out.add_column(column, justify="left" if column == "policy" else "right", overflow="fold")
    for point in said["walked"]:
        a, b = point["searched"], point["confirmed"]
        name, *rest = (
            str(value) if key == "name" else f"{key}={_cut(str(value))}" for key, value in point["spec"].items()
        )
        out.add_row(
            f"{name} {' '.join(rest)}",
            f"{a['accuracy']:.3f}",
            f"{a['mean_ms']:.0f}",
            f"{b['accuracy']:.3f}",
            f"{b['accuracy_low']:.3f}",
            f"{b['mean_ms']:.0f}",
            f"{b['p95_ms']:.0f}",
            f"{b['bytes']:.0f}",
            "chosen" if point["chosen"] else "" if point["on_front"] else "beaten",
        )
    return out


COSTS = {"p95_ms": "modelled p95 (ms)", "mean_ms": "modelled mean (ms)", "bytes": "bytes of bodies a request"}


def draw(said: dict[str, Any], path: Path, title: str | None = None) -> None:
    """The front as it was searched and as it was confirmed with its bound; the target, the choice, and unseen texts."""
    made, seen, cost = said["validation"], said["unseen"], Targets(**said["targets"]).cost
    about = note(
        f"{made['bundle']}, {made['n']:,} texts {made['split']}, a third to search on",
        said["hardware"],
        f"links {made['links']}",
        "times modelled",
        "bars: down to the one-sided 95 % bound",
    )
    with picture(path, title or f"{made['bundle']}: {said['settings']} settings, and their front", about) as (axes,):
        line = sorted((point["searched"][cost], 100 * point["searched"]["accuracy"]) for point in said["front"])
        axes.plot(*zip(*line, strict=True), color=GREY, linewidth=1.2, alpha=0.6)
        label(axes, "Pareto line of the search", *line[-1], GREY)
        for point in said.get("walked", said["front"]):
            confirmed, chosen = point["confirmed"], point["chosen"]
            x, y, low = confirmed[cost], 100 * confirmed["accuracy"], 100 * confirmed["accuracy_low"]
            interval(axes, x, y, (low, y), colour=BLUE, faint=not chosen)
            axes.plot(x, y, "o", ms=10 if chosen else 6, color=BLUE)
            if chosen or len(point["spec"]) == 1:
                label(axes, "chosen, where it was confirmed" if chosen else point["spec"]["name"], x, y, BLUE)
        axes.plot(seen[cost], 100 * seen["accuracy"], "D", ms=9, color=GREEN)
        label(axes, f"on {seen['n']:,} unseen texts", seen[cost], 100 * seen["accuracy"], GREEN)
        _targets(axes, said["targets"], cost, line)
        axes.set(xlabel=COSTS[cost], ylabel="accuracy (%)")


def _targets(axes: Axes, targets: dict[str, Any], cost: str, line: list[tuple[float, float]]) -> None:
    """What was asked for, as lines; a limit on the other axis only where it is drawn."""
    if (accuracy := targets["accuracy"]) is not None:
        axes.axhline(100 * accuracy, color=ORANGE, linewidth=1.2)
        label(axes, f"asked for: {100 * accuracy:g} %", line[-1][0], 100 * accuracy, ORANGE)
    if (limit := targets.get(cost)) is not None:
        axes.axvline(limit, color=ORANGE, linewidth=1.2)
        label(axes, f"asked for: {limit:g}", limit, line[0][1], ORANGE)
