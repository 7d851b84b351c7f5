"""What a replay says: figures per bundle and policy, one table over all, and score against modelled latency."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from lab.beside import beside
from lab.outputs import REPLACED, write_json
from lab.picture import INTERVALS, Dot, note, percent, picture, scatter
from lab.records import Crossed, Record, write_records
from lab.replay.chance import chance
from lab.replay.costs import references, unit_costs
from lab.replay.run import NONE, Run
from lab.replay.times import Times
from lab.replay.walk import Replay
from lab.stats import accuracy_of, judged, paired_difference, paired_score_difference, spread_of
from shared.model.bundle import Metric

CROSSES = "crosses: as many texts per tier (where one tier runs: per exit), drawn at random"


def figures(replay: Replay, run: Run, reference: Run, times: Times) -> dict[str, Any]:
    """One policy's figures; differences are against `reference`, over the same texts."""
    read = (run.label != NONE) & (reference.label != NONE)
    modelled, whole, layers = times.of(run), references(replay), run.exit_layer[:, read]
    cost = float(unit_costs(replay, run)[read].mean())
    return {
        **_quality(replay, run, reference, read),
        "chance": chance(replay, run, times, read),
        "beside_reference": _beside(replay, run, reference, times, read),
        "modelled_ms": {
            **spread_of(modelled.seconds[read] * 1e3),
            "infer": float(modelled.infer[read].mean() * 1e3),
            "link": float(modelled.link[read].mean() * 1e3),
        },
        "unit_cost": {
            "mean": cost,
            "against_whole_model_on_device": cost / whole.device - 1,
            "against_cloud_only": cost / whole.cloud - 1,
        },
        "answered_by_tier": _by_tier(run, [(run.answered_by[read] == at).mean() for at in range(len(run.tiers))]),
        "ran_by_tier": _by_tier(run, run.ran[:, read].mean(1)),
        "mean_exit_layer": _by_tier(run, [exits[exits > 0].mean() if exits.any() else 0 for exits in layers]),
        "words_sent_of_words_in": _words(run, read),
        "bytes_per_request": {
            "up": float(modelled.bytes_up[read].mean()),
            "down": float(modelled.bytes_down[read].mean()),
        },
        "speculation": _speculation(run, read),
        "texts_left_out": int((~read).sum()),
        "replay_only": run.replay_only,
        "layers": dict(zip(run.tiers, run.layers, strict=True)),
    }


def records_of(replay: Replay, run: Run, times: Times, name: str) -> list[Record]:
    """What a policy did to each text that it answered."""
    ms, labels = times.of(run).seconds * 1e3, replay.bundle.labels
    crossed: dict[int, list[Crossed]] = {}
    kept: dict[int, int] = {}
    for (here, there), rows, up, down in times.crossings(run):
        link = f"{run.tiers[here]}-{run.tiers[there]}"
        for row, asked, answered in zip(rows.tolist(), up.tolist(), down.tolist(), strict=True):
            crossed.setdefault(row, []).append(Crossed(link, int(asked), int(answered)))
            if run.ran[here, row]:
                kept[row] = int(run.words[run.carried[here, there][row]])
    return [
        Record(
            bundle=replay.bundle.name,
            row=row,
            example=replay.examples[row],
            policy=name,
            label=labels[replay.labels[row]],
            predicted=labels[run.label[row]],
            confidence=round(float(run.probabilities[row].max()), 6),
            tier=run.tiers[at],
            exit_layer=int(run.exit_layer[at, row]),
            ms=float(ms[row]),
            crossed=crossed.get(row, []),
            degraded=None,
            words_in=int(run.words[replay.numbers[row]]),
            words_kept=kept.get(row),
        )
        for row, at in enumerate(run.answered_by.tolist())
        if run.label[row] != NONE
    ]


def _quality(replay: Replay, run: Run, reference: Run, read: np.ndarray) -> dict[str, Any]:
    metric, truth = replay.bundle.metric, replay.labels[read]
    labels, other, last = run.label[read], reference.label[read], run.last_label[read]
    right = (labels == truth).astype(float)
    out = {
        **accuracy_of(right),
        "accuracy_minus_reference": paired_difference(right, (other == truth).astype(float)),
        "ensemble_minus_last_tier": paired_difference(right, (last == truth).astype(float)),
    }
    if metric is not Metric.ACCURACY:
        out |= judged(metric, labels, truth)
        out[f"{metric.value}_minus_reference"] = paired_score_difference(metric, labels, other, truth)
    return out


def _beside(replay: Replay, run: Run, reference: Run, times: Times, read: np.ndarray) -> dict[str, Any]:
    """The policy beside the reference; `bytes_ratio` is of all bodies, null where the reference sends none."""
    ours, theirs = times.of(run), times.of(reference)
    right, sent = [], []
    for one, modelled in ((run, ours), (reference, theirs)):
        right.append((one.label == replay.labels)[read])
        sent.append(float((modelled.bytes_up + modelled.bytes_down)[read].mean()))
    return {
        **beside(ours.seconds[read] * 1e3, theirs.seconds[read] * 1e3, *right),
        "bytes_ratio": sent[0] / sent[1] if sent[1] else None,
    }


def _words(run: Run, read: np.ndarray) -> float | None:
    """Words sent on of words read, where `after` sent a text on; null where nothing was."""
    sent = read_in = 0
    for (here, _), carried in run.carried.items():
        rows = np.flatnonzero(read & (carried != NONE) & run.ran[here])
        sent += int(run.words[carried[rows]].sum())
        read_in += int(run.words[run.numbers[here, rows]].sum())
    return sent / read_in if read_in else None


def _speculation(run: Run, read: np.ndarray) -> dict[str, dict[str, float]]:
    """By tier that sent texts on ahead of its answer, the shares of the texts that it read: sent so, and in vain."""
    out = {}
    for at, tier in enumerate(run.tiers):
        if (ran := read & run.ran[at]).any() and run.watched[at]:
            ahead, used = run.ahead_layer[at, ran] > 0, run.ahead_used[at, ran]
            out[tier] = {"sent_ahead": float(ahead.mean()), "in_vain": float((ahead & ~used).mean())}
    return out


def _by_tier(run: Run, values: Iterable[float]) -> dict[str, float]:
    return {tier: round(float(value), 4) for tier, value in zip(run.tiers, values, strict=True) if value}


def table(report: dict[str, Any]) -> Table:
    """One row per bundle and policy."""
    hardware, against = report["hardware"], report["against"]
    out = Table(
        title=f"Replayed on {hardware['engine']}; links {report['links']}; times are MODELLED from tables measured on "
        f"{hardware['cpu']}, {report['threads']['deeper_tiers']} thread(s) for each tier but the first, which has 1",
        caption=(f"reference: {against}. " if against else "")
        + "cost in DIMEE's units (constants fitted to its Table I, not the paper's own), relative to the whole model "
        "on the device, and to the cloud. *: replay only; what needs the whole model on the first tier gets the last "
        "tier's network there. over chance: accuracy more than as many texts per tier (where one tier runs: per exit), "
        "drawn at random, would give. words: what was sent on of what was read, where a tier that had read a text "
        "sent it on. " + " ".join(report["notes"]),
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    measured = any("measured_ms" in f for b in report["bundles"].values() for f in b["policies"].values())
    columns = ["bundle (texts)", "policy", "score [95 %]", f"vs {'reference' if against else 'cloud'},\npoints [95 %]"]
    columns += ["over chance,\npoints [95 %]", "model\nms", "p95"]
    columns += ["measured\n(model off)"] if measured else []
    columns += ["cost/\ndevice", "/cloud", "answered at, %", "words", "bytes"]
    for column in columns:
        name, words = column == "policy", column in ("bundle (texts)", "policy", "answered at, %")
        shape: dict[str, Any] = {"min_width": 16} if name else {"no_wrap": True}
        out.add_column(column, justify="left" if words else "right", overflow="fold", **shape)
    for name, part in report["bundles"].items():
        out.add_section()
        for at, (policy, f) in enumerate(part["policies"].items()):
            bundle = "" if at else f"{name} ({_answered(part)})"
            out.add_row(*_row(bundle, policy, part["metric"], f, measured=measured))
    return out


def _answered(part: dict[str, Any]) -> int:
    """Texts behind the figures: a blank one has no words to read."""
    return int(part["n"]) - max((f["texts_left_out"] for f in part["policies"].values()), default=0)


def _row(bundle: str, policy: str, metric: str, f: dict[str, Any], *, measured: bool) -> list[str]:
    low, high = f[f"{metric}_ci95"]
    gain, gain_low, gain_high = (100 * value for value in f[f"{metric}_minus_reference"])
    lucky, lucky_low, lucky_high = (100 * value for value in f["chance"]["accuracy_over_chance"])
    live = f.get("measured_ms")
    return [
        bundle,
        f"{policy} *" if f["replay_only"] else policy,
        f"{f[metric]:.3f} [{low:.3f} {high:.3f}]",
        f"{gain:+.1f} [{gain_low:+.1f} {gain_high:+.1f}]",
        f"{lucky:+.1f} [{lucky_low:+.1f} {lucky_high:+.1f}]",
        f"{f['modelled_ms']['mean']:.0f}",
        f"{f['modelled_ms']['p95']:.0f}",
        *([f"{live['mean']:.0f} ({live['modelled_is_off_by']:+.0%})" if live else "-"] if measured else []),
        f"{f['unit_cost']['against_whole_model_on_device']:+.0%}",
        f"{f['unit_cost']['against_cloud_only']:+.0%}",
        " ".join(f"{tier} {100 * share:.0f}" for tier, share in f["answered_by_tier"].items()),
        "-" if f["words_sent_of_words_in"] is None else f"{f['words_sent_of_words_in']:.0%}",
        f"{f['bytes_per_request']['up']:.0f}",
    ]


def write(report: dict[str, Any], records: list[Record], out: Path, console: Console) -> None:
    """Write OUT.json, OUT.parquet and a picture of each bundle; then print the table."""
    files = [out.with_name(f"{out.name}{ending}") for ending in (".json", ".parquet")]
    replaced = write_json(files[0], report)
    write_records(files[1], records)
    for name in report["bundles"]:
        files.append(out.with_name(f"{out.name}-{name}.png"))
        draw(report, name, files[-1])
    console.print(table(report))
    for name, part in report["bundles"].items():
        for policy, why in part["refused"].items():
            console.print(f"{name}: left out {policy}: {why}", style="yellow", highlight=False, soft_wrap=True)
    console.print(f"written: {', '.join(map(str, files))}{REPLACED if replaced else ''}")
    for name, part in report["bundles"].items():
        console.print(f"{name}, times modelled: {part['verdict']}", highlight=False, soft_wrap=True)


def _chance(f: dict[str, Any]) -> tuple[float, float] | None:
    """Where a policy's chance control stands; none in a report that is older than it."""
    drawn = f.get("chance")
    return (drawn["modelled_ms"], 100 * drawn["accuracy"]) if drawn else None


def draw(report: dict[str, Any], bundle: str, path: Path, title: str | None = None) -> None:
    """Score against modelled mean latency on one bundle; a hollow dot is of a policy that only replay can run."""
    part, hardware = report["bundles"][bundle], report["hardware"]
    metric = part["metric"]
    made = note(
        f"{part['data']}, {part['split']} split, n = {_answered(part)}",
        f"{hardware['cpu']}, {hardware['cores']} cores",
        f"links {report['links']}",
        "replayed, times modelled",
        INTERVALS,
        "hollow: runs in replay only",
        CROSSES if any("chance" in f for f in part["policies"].values()) and metric == "accuracy" else None,
    )
    with picture(path, title or f"{bundle}: {metric} against modelled latency", made, height=6.2) as (axes,):
        scatter(
            axes,
            [
                Dot(
                    policy,
                    f["modelled_ms"]["mean"],
                    100 * f[metric],
                    percent(f[f"{metric}_ci95"]),
                    f["replay_only"],
                    chance=_chance(f) if metric == "accuracy" else None,
                )
                for policy, f in part["policies"].items()
            ],
        )
        axes.set(xlabel="modelled mean latency (ms)", ylabel=f"{metric} (%)")
