"""A trial: one bundle on one set of unseen texts. Policies are replayed on it and compared text by text.

`tierwise replay`, the tables and the planner stand on this. Every number in them is a replay's
(`lab/replay/report.py`), with what only a comparison can say added: paired intervals of accuracy, time and cost, and
McNemar's test.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from lab.beside import beside, beside_whom, verdict
from lab.choice import last_within
from lab.console import aside
from lab.data.examples import Example, digest, load, training_rows, without
from lab.data.examples import unseen as unseen_split
from lab.data.readable import LeftOut, left_out_of
from lab.policies import parse_policy
from lab.replay.costs import unit_costs
from lab.replay.recorder import Recorders, other_engine, runs_on
from lab.replay.report import figures
from lab.replay.run import NONE, Run
from lab.replay.times import Times
from lab.replay.walk import Replay
from lab.stats import mcnemar, paired_difference, paired_saving, paired_score_difference, paired_shares
from shared.errors import BadSetting
from shared.links.profile import Profile, profile
from shared.model.bundle import Bundle
from shared.web.machine import cpus

Spec = str | Mapping[str, Any]


@dataclass(frozen=True)
class Conditions:
    """What every trial of a report shares. `links`: ACCESS/BACKBONE. `anew` measures this machine again."""

    recorders: Recorders
    links: str = "5g-nsa/metro"
    threads: int | None = None  # of the deeper tiers; the first has 1
    seed: int = 0
    anew: bool = False


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

    def __init__(
        self, bundle: Bundle, examples: list[Example], conditions: Conditions, *, split: str, data: str = "FILE"
    ) -> None:
        self._data = data
        self.bundle, self.split, self.conditions = bundle, split, conditions
        links = links_of(bundle, conditions.links)
        self.replay = Replay(bundle, examples, conditions.recorders, seed=conditions.seed, profiles=links)
        self._known: dict[str, Outcomes] = {}

    @cached_property
    def times(self) -> Times:
        """The model of times on this machine, measured when first asked for."""
        conditions = self.conditions
        threads, links = threads_of(self.bundle, conditions.threads), links_of(self.bundle, conditions.links)
        return Times(self.replay, threads, links, conditions.recorders.console, anew=conditions.anew, data=self._data)

    @cached_property
    def reference(self) -> Run:
        """The deepest tier alone, on every text; what it cannot read is told once.

        Raises:
            BadSetting: it can read none.
        """
        run = self.replay.run(self.replay.policy(f"{self.replay.order[-1]}-only"))
        if (run.label == NONE).all():
            raise BadSetting(f"bundle {self.bundle.name} can read none of the texts")
        left_out_of(self.replay.examples, run.label != NONE).tell(aside())
        return run

    @property
    def notes(self) -> list[str]:
        """What a reader of the figures must know."""
        return [*self.times.notes, *other_engine(self.bundle)]

    @property
    def read(self) -> np.ndarray:
        """Bool [N]: the texts that can be read."""
        return self.reference.label != NONE

    def with_bundle(self, bundle: Bundle) -> Trial:
        """Another bundle on the same texts."""
        return Trial(bundle, list(self.replay.examples), self.conditions, split=self.split, data=self._data)

    @property
    def left_out(self) -> LeftOut:
        """The texts that cannot be read."""
        return left_out_of(self.replay.examples, self.read)

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

    def put(self, spec: Spec, outcomes: Outcomes) -> None:
        """Have `of` give these outcomes for a policy, where its own would be those of texts that it was fitted on."""
        self._known[json.dumps(spec, sort_keys=True)] = outcomes

    def of_some(self, spec: Spec, rows: np.ndarray) -> Outcomes:
        """What a policy does to some of the texts that can be read. Other rows mean nothing, and nothing is kept.

        Raises:
            UnknownPolicy: as `of`.
        """
        return self._outcomes(self.replay.run(self.replay.policy(spec), np.flatnonzero(self.read)[rows]))

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
        """A policy's figures, and `paired` with another policy if one is named."""
        outcomes = self.of(spec)
        out = {"spec": spec, **figures(self.replay, outcomes.run, self.reference, self.times)}
        if against is not None:
            out["paired"] = self.paired(outcomes, self.of(against))
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

    def verdict(self, policies: Sequence[str], *more: str) -> str:
        """One sentence: the first of these policies beside the deepest tier alone, `tabi` if named, and `more`."""
        policy, others = beside_whom(policies, f"{self.replay.order[-1]}-only", *more)
        ours = self.of(parse_policy(policy))
        rows = {other: self.of(parse_policy(other)) for other in others}
        return verdict(policy, {name: beside(ours.ms, it.ms, ours.right, it.right) for name, it in rows.items()})

    def within(self, base: dict[str, Any], figure: str, limit: float, *, digits: int) -> dict[str, Any]:
        """The setting at the greatest offload threshold that keeps an outcome's mean (`ms`, `cost`) within a limit."""

        def keeps(threshold: float) -> bool:
            outcomes = self.of({**base, "offload_threshold": threshold})
            return float(getattr(outcomes, figure).mean()) <= limit

        return {**base, "offload_threshold": round(last_within(keeps), digits)}

    def described(self) -> dict[str, Any]:
        """What a reader must know to make the same numbers again."""
        return {
            "bundle": self.bundle.name,
            "card_sha256": self.bundle.digest,
            "metric": self.bundle.metric.value,
            "split": self.split,
            "n": len(self.truth),
            "left_out": self.left_out.report(),
            "data_sha256": digest(list(self.replay.examples)),
            "seed": self.conditions.seed,
            "links": self.conditions.links,
            "threads": threads_of(self.bundle, self.conditions.threads),
            "engine": runs_on(self.bundle),
            "notes": self.notes,
        }


def unseen(bundle: Bundle, data: Path, n: int, conditions: Conditions) -> Trial:
    """The first `n` rows of the test split (GLUE: dev) whose texts do not occur in train.

    Raises:
        BadSetting: the file, its columns or its splits are not there.
    """
    split, rows = _unseen(bundle, data)
    return Trial(bundle, rows[:n], conditions, split=split, data=str(data))


def validation(bundle: Bundle, data: Path, n: int, conditions: Conditions) -> Trial:
    """The first `n` of the rows of train that were held out for this bundle's calibration.

    Raises:
        BadSetting: the bundle was calibrated on other data.
    """
    return Trial(bundle, _held_out(bundle, data)[:n], conditions, split="held out of train", data=str(data))


def tuning(bundle: Bundle, data: Path, n: int, conditions: Conditions) -> Trial:
    """What a choice may look at if the first `n` unseen rows judge it: held-out ones, and `n` / 2 after those.

    More texts tell the luckiest setting from the surest; those after the judged ones come from the judged split.

    Raises:
        BadSetting: the bundle was calibrated on other data.
    """
    held = _held_out(bundle, data)[:n]
    split, rows = _unseen(bundle, data)
    later = without(rows[n : n + n // 2], rows[:n])  # some reviews are there twice
    return Trial(bundle, held + later, conditions, split=f"held out of train, {len(later)} of {split}", data=str(data))


def _unseen(bundle: Bundle, data: Path) -> tuple[str, list[Example]]:
    split = unseen_split(str(data))
    rows, seen = (load(str(data), name, labels=bundle.labels) for name in (split, "train"))
    return split, without(rows, seen)


def _held_out(bundle: Bundle, data: Path) -> list[Example]:
    rows = held_out(bundle, training_rows(str(data), None, bundle.labels)[0])
    if not rows:
        raise BadSetting(f"bundle {bundle.name} was not calibrated on {data}: its card names other validation rows")
    return rows


# -- conditions -------------------------------------------------------------------------------------------------------


def threads_of(bundle: Bundle, deeper: int | None = None) -> dict[str, int]:
    """As `tierwise serve` sets them: one on the first tier, two on each other."""
    return {tier: 1 if at == 0 else deeper_threads(deeper) for at, tier in enumerate(bundle.order)}


def deeper_threads(named: int | None) -> int:
    """Of every tier but the first: what was named, else two where there are as many processors."""
    return named or max(1, min(2, int(cpus())))


def access_and_backbone(named: str) -> tuple[str, str]:
    """The two profiles of ACCESS/BACKBONE (or ACCESS,BACKBONE).

    Raises:
        BadSetting: not two names.
    """
    access, slash, backbone = named.replace(",", "/").partition("/")
    if not slash or "/" in backbone:
        raise BadSetting(f"links {named!r}: expected ACCESS/BACKBONE, such as lte/regional")
    return access, backbone


def links_of(bundle: Bundle, named: str) -> dict[tuple[str, str], Profile]:
    """The profile between any two tiers, from ACCESS/BACKBONE (or ACCESS,BACKBONE).

    Raises:
        BadSetting: not two names, or no such profile.
    """
    access, backbone = access_and_backbone(named)
    order = bundle.order
    return {
        (order[a], order[b]): profile("+".join([access if at == 0 else backbone for at in range(a, b)]))
        for a, b in combinations(range(len(order)), 2)
    }


def held_out(bundle: Bundle, train: Sequence[Example], hold_out: int = 2500) -> list[Example]:
    """The rows of train that the bundle's card names as its validation data; none if it was calibrated on others."""
    card = bundle.card.report.get("validation", {})
    n = card.get("n", 0)
    candidates = [list(train[-n:]), list(train[-hold_out:][:n])] if 0 < n <= len(train) else []
    return next((rows for rows in candidates if digest(rows) == card.get("data_sha256")), [])
