"""What a replay says: figures per bundle and policy, one table over all, and score against modelled latency."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from lab.outputs import REPLACED, write_json
from lab.picture import INTERVALS, Dot, note, percent, picture, scatter
from lab.records import Crossed, Record, write_records
from lab.replay.costs import references, unit_costs
from lab.replay.run import NONE, Run
from lab.replay.times import Modelled, Times
from lab.replay.walk import Replay
from lab.stats import accuracy_of, judged, paired_difference, paired_score_difference, spread_of
from shared.model.bundle import Metric


def figures(replay: Replay, run: Run, reference: Run, times: Times) -> dict[str, Any]:
    """One policy's figures; differences are against `reference`, over the same texts."""
    read = (run.label != NONE) & (reference.label != NONE)
    modelled, costs, whole = times.of(run), unit_costs(replay, run), references(replay)
    ran = run.ran[:, read]
    cost, layers = float(costs[read].mean()), run.exit_layer[:, read]
    return {
        **_quality(replay, run, reference, read),
        "modelled_ms": _latency(modelled, read),
        "unit_cost": {
            "mean": cost,
            "against_whole_model_on_device": cost / whole.device - 1,
            "against_cloud_only": cost / whole.cloud - 1,
        },
        "answered_by_tier": _answered_by(run, read),
        "ran_by_tier": _shares(run.tiers, ran.mean(1).tolist()),
        "mean_exit_layer": _shares(run.tiers, [float(own[own > 0].mean()) if own.any() else 0 for own in layers]),
        "words_sent_of_words_in": _words(run, read),
        "bytes_per_request": {
            "up": float(modelled.bytes_up[read].mean()),
            "down": float(modelled.bytes_down[read].mean()),
        },
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


def _answered_by(run: Run, read: np.ndarray) -> dict[str, float]:
    return _shares(run.tiers, [float((run.answered_by[read] == at).mean()) for at in range(len(run.tiers))])


def _quality(replay: Replay, run: Run, reference: Run, read: np.ndarray) -> dict[str, Any]:
    metric, truth = replay.bundle.metric, replay.labels[read]
    said, other, last = run.label[read], reference.label[read], run.last_label[read]
    right = (said == truth).astype(float)
    out = {
        **accuracy_of(right),
        "accuracy_minus_reference": paired_difference(right, (other == truth).astype(float)),
        "ensemble_minus_last_tier": paired_difference(right, (last == truth).astype(float)),
    }
    if metric is not Metric.ACCURACY:
        out |= judged(metric, said, truth)
        out[f"{metric.value}_minus_reference"] = paired_score_difference(metric, said, other, truth)
    return out


def _latency(modelled: Modelled, read: np.ndarray) -> dict[str, float]:
    ms = modelled.seconds[read] * 1e3
    return {
        **spread_of(ms),
        "infer": float(modelled.infer[read].mean() * 1e3),
        "link": float(modelled.link[read].mean() * 1e3),
    }


def _words(run: Run, read: np.ndarray) -> float | None:
    """Words sent on of words read, where `after` sent a text on; null where nothing was."""
    sent = read_in = 0
    for (here, _), carried in run.carried.items():
        rows = np.flatnonzero(read & (carried != NONE) & run.ran[here])
        sent += int(run.words[carried[rows]].sum())
        read_in += int(run.words[run.numbers[here, rows]].sum())
    return sent / read_in if read_in else None


def _shares(tiers: tuple[str, ...], values: list[float]) -> dict[str, float]:
    return {tier: round(value, 4) for tier, value in zip(tiers, values, strict=True) if value}


def table(report: dict[str, Any]) -> Table:
    """One row per bundle and policy."""
    hardware = report["hardware"]
    out = Table(
        title=f"Replayed; links {report['links']}; times are MODELLED from tables measured on "
        f"{hardware['cpu']}, {report['threads']['deeper_tiers']} thread(s) for each tier but the first, which has 1",
        caption="cost in DIMEE's units (constants fitted to its Table I, not the paper's own), relative to the whole "
        "model on the device, and to the cloud. *: replay only; what needs the whole model on the first tier gets the "
        "last tier's network there. words: what was sent on of what was read, where a tier that had read a text sent "
        "it on. " + " ".join(report["notes"]),
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    measured = any("measured_ms" in f for b in report["bundles"].values() for f in b["policies"].values())
    columns = ["bundle (texts)", "policy", "score [95 %]", "vs cloud, points", "model ms", "p95"]
    columns += ["measured (model off)"] if measured else []
    columns += ["cost/device", "/cloud", "answered at, %", "words", "bytes"]
    for column in columns:
        words = column in ("bundle (texts)", "policy", "answered at, %")
        name = column == "policy"
        out.add_column(
            column,
            justify="left" if words else "right",
            no_wrap=not name,
            overflow="fold",
            min_width=16 if name else None,
        )
    for name, own in report["bundles"].items():
        out.add_section()
        for at, (policy, f) in enumerate(own["policies"].items()):
            out.add_row(*_row("" if at else f"{name} ({_answered(own)})", policy, own["metric"], f, measured=measured))
    return out


def _answered(own: dict[str, Any]) -> int:
    """Texts behind the figures: a blank one has no words to read."""
    return int(own["n"]) - max((f["texts_left_out"] for f in own["policies"].values()), default=0)


def _row(bundle: str, policy: str, metric: str, f: dict[str, Any], *, measured: bool) -> list[str]:
    low, high = f[f"{metric}_ci95"]
    gain, gain_low, gain_high = (100 * value for value in f[f"{metric}_minus_reference"])
    beside = f.get("measured_ms")
    return [
        bundle,
        f"{policy} *" if f["replay_only"] else policy,
        f"{f[metric]:.3f} [{low:.3f} {high:.3f}]",
        f"{gain:+.1f} [{gain_low:+.1f} {gain_high:+.1f}]",
        f"{f['modelled_ms']['mean']:.0f}",
        f"{f['modelled_ms']['p95']:.0f}",
        *([f"{beside['mean']:.0f} ({beside['modelled_is_off_by']:+.0%})" if beside else "-"] if measured else []),
        f"{f['unit_cost']['against_whole_model_on_device']:+.0%}",
        f"{f['unit_cost']['against_cloud_only']:+.0%}",
        " ".join(f"{tier} {100 * share:.0f}" for tier, share in f["answered_by_tier"].items()),
        "-" if f["words_sent_of_words_in"] is None else f"{f['words_sent_of_words_in']:.0%}",
        f"{f['bytes_per_request']['up']:.0f}",
    ]


def write(report: dict[str, Any], records: list[Record], out: Path, console: Console) -> None:
    """Write OUT.json, OUT.parquet and a picture of each bundle; then print the table."""
    written, texts = (out.with_name(f"{out.name}.{ending}") for ending in ("json", "parquet"))
    pictures = {name: out.with_name(f"{out.name}-{name}.png") for name in report["bundles"]}
    replaced = write_json(written, report)
    write_records(texts, records)
    for name, path in pictures.items():
        draw(report, name, path)
    console.print(table(report))
    for name, own in report["bundles"].items():
        for policy, why in own["refused"].items():
            console.print(f"{name}, {policy}: {why}", style="yellow", highlight=False)
    console.print(
        f"written: {written}, {texts}, {', '.join(map(str, pictures.values()))}{REPLACED if replaced else ''}"
    )


def draw(report: dict[str, Any], bundle: str, path: Path, title: str | None = None) -> None:
    """Score against modelled mean latency on one bundle; a hollow dot is of a policy that only replay can run."""
    own, hardware = report["bundles"][bundle], report["hardware"]
    metric = own["metric"]
    made = note(
        f"{own['data']}, {own['split']} split, n = {_answered(own)}",
        f"{hardware['cpu']}, {hardware['cores']} cores",
        f"links {report['links']}",
        "replayed, times modelled",
        INTERVALS,
        "hollow: runs in replay only",
    )
    with picture(path, title or f"{bundle}: {metric} against modelled latency", made, height=6.2) as (axes,):
        scatter(
            axes,
            [
                Dot(policy, f["modelled_ms"]["mean"], 100 * f[metric], percent(f[f"{metric}_ci95"]), f["replay_only"])
                for policy, f in own["policies"].items()
            ],
        )
        axes.set(xlabel="modelled mean latency (ms)", ylabel=f"{metric} (%)")
