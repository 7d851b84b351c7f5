"""What int8 costs: accuracy and calibration beside the fp32 reference, for every exit that may answer.

    python -m tests.bench.accuracy --data imdb.parquet

Both engines read the same unseen texts. Each is calibrated for itself: a temperature per exit, fitted on the same
training texts that were held out. Logits come from the recorder of the replay and stay in CACHE/replay, so a run that
was stopped goes on, and texts that another command has recorded are not run again. Ends with exit status 1 where a
goal is missed: the last exit of a tier loses more than `POINTS` of accuracy, or its ECE grows by more than `ECE`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from lab.console import screen
from lab.data.examples import Example, check_labels, digest, load, training_rows, unseen, without
from lab.data.readable import readable, readers_of
from lab.engine import Computes, check_torch
from lab.replay.recorder import Kernel, Recorders, source_of
from lab.stats import accuracy_of, paired_shares, resampled
from shared.errors import BadSetting, TierwiseError
from shared.model.base import Array
from shared.model.bundle import Bundle, load_bundle
from shared.model.calibration import calibrated, expected_calibration_error, fit_temperature
from shared.model.encoder import Precision
from shared.model.exits import exit_taken
from shared.policies.base import Where
from shared.policies.collaborative import Collaborative
from tests.bench.goals import Goal
from tests.bench.speed import hardware, show

BUNDLE = "collaborative"
OURS, REFERENCE = Computes("openvino", Precision.INT8), Computes("torch", Precision.FP32)
POINTS, ECE = 0.002, 0.005  # what int8 may cost


def exits_of(bundle: Bundle, tier: str) -> range:
    """The exits, counted from 1, that a tier may answer with: from the first that the card's rule can accept."""
    layers = bundle.tiers[tier].layers
    sizes = {name: model.layers for name, model in bundle.tiers.items()}
    rule = Collaborative(**bundle.card.policies[Collaborative.name]).exit_rule(Where(tier, (), sizes))
    agreeing = np.tile(np.eye(len(bundle.labels))[0], (layers, 1, 1))  # a text of which all exits say the same, surely
    return range(int(exit_taken(agreeing, rule)[0]), layers + 1)


def recorded(bundle: Bundle, tier: str, computes: Computes, texts: Sequence[Example], recorders: Recorders) -> Array:
    """What an engine says of texts: logits of every exit, [N, E, C]."""
    source = replace(source_of(bundle, tier), computes=computes)
    numbers = [recorders.corpus.number(text.text, text.pair) for text in texts]
    recorder = recorders.of(source, len(bundle.labels))
    records = recorder.records(numbers, Kernel.PLAIN)
    recorder.save()
    return np.stack([record.logits[: bundle.tiers[tier].layers] for record in records])


def compared(ours: Array, reference: Array, labels: Array) -> dict[str, Any]:
    """Probabilities of two engines on the same texts, [N, C]: accuracy and ECE of both, and ours less the reference."""
    sides = {"ours": ours, "reference": reference}
    right = {name: side.argmax(-1) == labels for name, side in sides.items()}

    def ece_grows(rows: Array) -> float:
        a, b = (expected_calibration_error(side[rows], labels[rows]) for side in sides.values())
        return a - b

    rows = np.arange(len(labels))
    return {
        **{
            name: accuracy_of(hits) | {"ece": expected_calibration_error(sides[name], labels)}
            for name, hits in right.items()
        },
        "accuracy_difference": list(paired_shares(right["ours"], right["reference"])),
        "ece_difference": [ece_grows(rows), *resampled(ece_grows, rows)],
        "same_label": float((ours.argmax(-1) == reference.argmax(-1)).mean()),
    }


def rows_of(
    bundle: Bundle, tier: str, unseen_texts: Sequence[Example], held_out: Sequence[Example], recorders: Recorders
) -> Iterator[dict[str, Any]]:
    """A row for each exit that the tier may answer with."""
    labels, fitted = (np.array([text.label for text in texts]) for texts in (unseen_texts, held_out))
    logits = [
        [recorded(bundle, tier, computes, texts, recorders) for texts in (unseen_texts, held_out)]
        for computes in (OURS, REFERENCE)
    ]
    for exit_layer in exits_of(bundle, tier):
        at = exit_layer - 1
        ours, reference = (calibrated(new[:, at], fit_temperature(held[:, at], fitted)) for new, held in logits)
        place = {"tier": tier, "classifier": bundle.tiers[tier].network, "exit": exit_layer}
        yield place | {"last": exit_layer == bundle.tiers[tier].layers} | compared(ours, reference, labels)


def goals(rows: Sequence[dict[str, Any]]) -> Iterator[Goal]:
    """What the last exit of each tier may lose."""
    for row in rows:
        if row["last"]:
            place = f"{row['tier']}, exit {row['exit']}"
            value, low, high = row["accuracy_difference"]
            yield Goal("accuracy that int8 loses", place, POINTS, [-value, -high, -low])
            yield Goal("ECE that int8 adds", place, ECE, row["ece_difference"])


def measured(
    bundle: Bundle, data: str, tiers: Sequence[str], *, n: int, held_out: int, recorders: Recorders
) -> dict[str, Any]:
    """The figures of some tiers of a bundle, and the goals.

    Raises:
        BadSetting: data that cannot be read, or whose labels the bundle does not have.
    """
    split, (train, _) = unseen(data), training_rows(data, None)
    asked = without(load(data, split), train)[:n]
    check_labels([*asked, *train], bundle.labels, f"bundle {bundle.name}")
    read, left_out = readable(asked, readers_of(bundle))
    known, _ = readable(train[-held_out:], readers_of(bundle))
    rows = [row for tier in tiers for row in rows_of(bundle, tier, read, known, recorders)]
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "hardware": hardware(),
        "ours": f"{OURS}, {OURS.version}",
        "reference": f"{REFERENCE}, {REFERENCE.version}",
        "bundle": bundle.name,
        "split": split,
        "n": len(read),
        "left_out": left_out.report(),
        "held_out": len(known),
        "data_sha256": digest(read),
        "exits": rows,
        "goals": [goal.report() for goal in goals(rows)],
    }


def main(
    data: Annotated[str, typer.Option(help="Labelled texts, with a split that no bundle was fitted on.")],
    n: Annotated[int, typer.Option(min=2, help="Unseen texts.")] = 2000,
    held_out: Annotated[int, typer.Option(min=30, help="The last training texts, to fit temperatures on.")] = 500,
    tier: Annotated[list[str] | None, typer.Option(help="A tier; repeatable. Without it all.")] = None,
    bundle_name: Annotated[str, typer.Option("--bundle", help="Whose classifiers.")] = BUNDLE,
    threads: Annotated[int, typer.Option(min=1)] = 1,
    out: Annotated[Path, typer.Option(help="Where the figures go.")] = Path("docs/results/accuracy.json"),
) -> None:
    """Compare, print a row for each exit and one for each goal, and write the figures."""
    console = screen()
    try:
        check_torch("bench")
        bundle = load_bundle(bundle_name)
        if strange := set(tier or ()) - {*bundle.order}:
            raise BadSetting(f"--tier {min(strange)}: bundle {bundle.name} has {', '.join(bundle.order)}")
        recorders = Recorders(console, threads=threads)
        figures = measured(bundle, data, tier or bundle.order, n=n, held_out=held_out, recorders=recorders)
    except TierwiseError as error:
        sys.exit(f"accuracy: {error}")
    out.write_text(json.dumps(figures, indent=1) + "\n")
    show(console, f"{OURS} beside {REFERENCE}, {figures['n']} texts", figures["exits"])
    show(console, "goals", figures["goals"])
    console.print(f"written: {out}")
    if any(goal["verdict"] == "missed" for goal in figures["goals"]):
        sys.exit(1)


if __name__ == "__main__":
    typer.run(main)
