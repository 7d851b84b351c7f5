"""Every exit of every tier on unseen texts: accuracy with its interval, ECE, and whether depth helped."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from lab.console import aside
from lab.data.examples import ALL, Example, check_labels, digest
from lab.data.readable import readable, readers_of
from lab.fit.checks import check_bundle
from lab.fit.exits import every_exit
from lab.outputs import write_json
from lab.replay.recorder import Recorders, other_engine, runs_on
from lab.stats import judged, wilson
from shared.errors import BadSetting
from shared.model.base import Array
from shared.model.bundle import Metric, load_bundle
from shared.model.calibration import Quality, calibrated, quality


def evaluate(
    name: str,
    examples: list[Example],
    *,
    max_tokens: int | None,
    threads: int,
    console: Console,
    save: bool,
    split: str = ALL,
) -> dict[str, Any]:
    """Print a table per tier; with `save`, write the figures into the card under `report.test`.

    Raises:
        BadSetting: labels or tokens that the bundle does not have, texts that cannot be read, no card to save into.
    """
    bundle, asked = load_bundle(name), examples
    if max_tokens:
        tiers = {tier: model.model_copy(update={"max_tokens": max_tokens}) for tier, model in bundle.tiers.items()}
        bundle = replace(bundle, tiers=tiers)
    check_bundle(bundle)
    check_labels(asked, bundle.labels, f"bundle {bundle.name}")
    card = bundle.folder / "card.json"
    if save and not card.is_file():
        raise BadSetting(f"bundle {bundle.name} has no card to save into: calibrate it first, or leave out --save")
    examples, left_out = readable(asked, readers_of(bundle))
    left_out.tell(aside())
    for note in other_engine(bundle):
        aside().print(f"evaluate: {note}", style="yellow")
    labels, engine = np.array([example.label for example in examples]), runs_on(bundle)
    report: dict[str, Any] = {"n": len(asked), "split": split, "data_sha256": digest(asked)}
    report |= {"left_out": left_out.report(), "engine": engine, "tiers": {}}
    tables = []
    for tier, logits in every_exit(bundle, examples, Recorders(console, threads=threads)).items():
        model = bundle.tiers[tier]
        temperatures = bundle.card.temperatures.get(tier, [1.0] * model.layers)
        rows: list[dict[str, Any]] = []
        for layer, temperature in enumerate(temperatures, start=1):
            own = logits[:, layer - 1]
            found = quality(calibrated(own, temperature), labels)
            rows.append(exit_row(rows, own, labels, found, bundle.metric) | nll_ece_brier(found))
        report["tiers"][tier] = {"max_tokens": model.max_tokens, "exits": rows}
        what = f"{len(examples)} texts, {model.max_tokens} tokens, {engine}"
        tables.append(_table(tier, rows, bundle.metric, what))
    if save:
        said = json.loads(card.read_text())
        said.setdefault("report", {})["test"] = report
        write_json(card, said)
    for table in tables:
        console.print(table)
    return report


def exit_row(
    shallower: Sequence[dict[str, Any]], logits: Array, labels: Array, found: Quality, metric: Metric
) -> dict[str, Any]:
    """What a card says of the next exit's answers, from its logits [N, C]."""
    low, high = wilson(round(found.accuracy * len(labels)), len(labels))
    return {
        "exit": len(shallower) + 1,
        "accuracy": round(found.accuracy, 4),
        "ci95": [round(low, 4), round(high, 4)],
        **judged(metric, logits.argmax(-1), labels),
        "worse_than_the_exit_before": bool(shallower) and round(found.accuracy, 4) < shallower[-1]["accuracy"],
    }


def nll_ece_brier(found: Quality) -> dict[str, float]:
    """How good the probabilities are, as a card says it."""
    return {key: round(getattr(found, key), 4) for key in ("nll", "ece", "brier")}


def _table(tier: str, rows: list[dict[str, Any]], metric: Metric, what: str) -> Table:
    table = Table(title=f"{tier}: {what}", title_justify="left", show_edge=False, pad_edge=False)
    extra = () if metric is Metric.ACCURACY else (metric.value.upper(), "95 %")
    for column in ("exit", "accuracy", "95 %", *extra, "ECE", "NLL", "Brier", ""):
        table.add_column(column, justify="right")
    for row in rows:
        low, high = row["ci95"]
        note = "worse than the exit before" if row["worse_than_the_exit_before"] else ""
        figures = (f"{row[key]:.3f}" for key in ("ece", "nll", "brier"))
        own = [f"{row['accuracy']:.3f}", f"[{low:.3f} {high:.3f}]"]
        if extra:
            low, high = row[f"{metric.value}_ci95"]
            own += [f"{row[metric.value]:.3f}", f"[{low:.3f} {high:.3f}]"]
        table.add_row(str(row["exit"]), *own, *figures, note)
    return table
