"""A trial: one bundle on one set of unseen texts. Policies are replayed on it and compared text by text.

The tables and the planner stand on this; every number in them is a replay's (`lab/replay/report.py`), with what only a
comparison can say added: paired intervals of accuracy, time and cost, and McNemar's test.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from lab.console import aside
from lab.data.examples import Example, digest, load, splits, training_rows, without
from lab.data.readable import left_out_of
from lab.replay.compare import held_out, links_of, threads_of
from lab.replay.costs import unit_costs
from lab.replay.recorder import Recorders
from lab.replay.report import figures
from lab.replay.run import NONE, Run
from lab.replay.times import Times
from lab.replay.walk import Replay
from lab.stats import mcnemar, paired_difference, paired_saving, paired_score_difference, paired_shares
from shared.errors import BadSetting
from shared.model.bundle import Bundle

Spec = str | Mapping[str, Any]


@dataclass(frozen=True)
class Conditions:
    """What every trial of a report shares."""

    recorders: Recorders
    links: str = "5g-nsa/metro"
    threads: int | None = None  # of the deeper tiers; the first has 1
    seed: int = 0


@dataclass(frozen=True)
class Outcomes:
    """A policy on every text that can be read, [N]: label, whether right, modelled milliseconds, unit cost, bytes."""

    run: Run
    label: np.ndarray
    right: np.ndarray
    ms: np.ndarray
    cost: np.ndarray
    sent: np.ndarray  # bytes of bodies, up and down


class Trial:
    """One bundle on one set of texts."""

    def __init__(self, bundle: Bundle, examples: list[Example], conditions: Conditions, *, split: str) -> None:
        self.bundle, self.split, self.conditions = bundle, split, conditions
        self.replay = Replay(bundle, examples, conditions.recorders, seed=conditions.seed)
        self._examples = examples
        self._known: dict[str, Outcomes] = {}

    @cached_property
    def times(self) -> Times:
        """The model of times on this machine, measured when first asked for."""
        threads = threads_of(self.bundle, self.conditions.threads)
        links = links_of(self.bundle, self.conditions.links)
        return Times(self.replay, threads, links, self.conditions.recorders.console)

    @cached_property
    def reference(self) -> Run:
        """The deepest tier alone, on every text; what it cannot read is told once."""
        run = self.replay.run(self.replay.policy(f"{self.replay.order[-1]}-only"))
        left_out_of(self._examples, run.label != NONE).tell(aside())
        return run

    @property
    def read(self) -> np.ndarray:
        """Bool [N]: the texts that can be read."""
        return self.reference.label != NONE

    @cached_property
    def truth(self) -> np.ndarray:
        """Labels of the texts that can be read."""
        return self.replay.labels[self.read]

    def of(self, spec: Spec) -> Outcomes:
        """What a policy does to every text.

        Raises:
            UnknownPolicy: no such policy, or this bundle lacks what it needs.
        """
        key = json.dumps(spec, sort_keys=True)
        if key not in self._known:
            self._known[key] = self._outcomes(self.replay.run(self.replay.policy(spec)))
        return self._known[key]

    def _outcomes(self, run: Run) -> Outcomes:
        modelled, label = self.times.of(run), run.label[self.read]
        return Outcomes(
            run=run,
            label=label,
            right=label == self.truth,
            ms=modelled.seconds[self.read] * 1e3,
            cost=unit_costs(self.replay, run)[self.read],
            sent=(modelled.bytes_up + modelled.bytes_down)[self.read],
        )

    def row(self, spec: Spec, against: Spec | None = None) -> dict[str, Any]:
        """A policy's figures as `tierwise replay` gives them, and `paired` with another policy if one is named."""
        own = self.of(spec)
        out = {"spec": spec, **figures(self.replay, own.run, self.reference, self.times)}
        if against is not None:
            out["paired"] = self.paired(own, self.of(against))
        return out

    def paired(self, a: Outcomes, b: Outcomes) -> dict[str, Any]:
        """`a` less `b` over the same texts, each with its 95 % interval."""
        metric = self.bundle.metric
        return {
            metric.value: paired_score_difference(metric, a.label, b.label, self.truth),
            "accuracy": (0.0, 0.0, 0.0) if a is b else paired_shares(a.right, b.right),
            "mcnemar_p": mcnemar(a.right, b.right),
            "modelled_ms": paired_difference(a.ms, b.ms),
            "time_saved": paired_saving(a.ms, b.ms),
            "unit_cost": paired_difference(a.cost, b.cost),
        }

    def described(self) -> dict[str, Any]:
        """What a reader must know to make the same numbers again."""
        return {
            "bundle": self.bundle.name,
            "card_sha256": self.bundle.digest,
            "metric": self.bundle.metric.value,
            "split": self.split,
            "n": len(self.truth),
            "left_out": left_out_of(self._examples, self.read).report(),
            "data_sha256": digest(self._examples),
            "seed": self.conditions.seed,
            "links": self.conditions.links,
            "threads": threads_of(self.bundle, self.conditions.threads),
            "notes": self.times.notes,
        }


def unseen(bundle: Bundle, data: Path, n: int, conditions: Conditions) -> Trial:
    """The first `n` rows of the test split (GLUE: dev) whose texts do not occur in train.

    Raises:
        BadSetting: the file, its columns or its splits are not there.
    """
    split, rows = _unseen(data)
    return Trial(bundle, rows[:n], conditions, split=split)


def validation(bundle: Bundle, data: Path, n: int, conditions: Conditions) -> Trial:
    """The first `n` of the rows of train that were held out for this bundle's calibration.

    Raises:
        BadSetting: the bundle was calibrated on other data.
    """
    return Trial(bundle, _held_out(bundle, data)[:n], conditions, split="held out of train")


def tuning(bundle: Bundle, data: Path, n: int, conditions: Conditions) -> Trial:
    """What a choice may look at if the first `n` unseen rows judge it: held-out ones, and `n` / 2 after those.

    More texts tell the luckiest setting from the surest; those after the judged ones come from the judged split.

    Raises:
        BadSetting: the bundle was calibrated on other data.
    """
    held = _held_out(bundle, data)[:n]
    split, rows = _unseen(data)
    later = without(rows[n : n + n // 2], rows[:n])  # some reviews are there twice
    return Trial(bundle, held + later, conditions, split=f"held out of train, {len(later)} of {split}")


def _unseen(data: Path) -> tuple[str, list[Example]]:
    split = next((name for name in ("test", "dev") if name in splits(str(data))), None)
    if split is None:
        raise BadSetting(f"{data}: neither a test nor a dev split")
    return split, without(load(str(data), split), load(str(data), "train"))


def _held_out(bundle: Bundle, data: Path) -> list[Example]:
    rows = held_out(bundle, training_rows(str(data), None)[0])
    if not rows:
        raise BadSetting(f"bundle {bundle.name} was not calibrated on {data}: its card names other validation rows")
    return rows
