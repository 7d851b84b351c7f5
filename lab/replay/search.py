"""What the planner tries, and in which order: a coarse grid, then one parameter at a time around the front.

    coarse    every policy at its card's point, and every combination of its parameters' coarse values
    refine    for each setting that is new on the front of its policy, each parameter goes one step up and one step
              down its fine values, of one tier at a time; `ROUNDS` times, or until nothing new is there

All combinations of the fine values would be over 10**12 settings; this tries a few thousand. It sees only the rows that
it is given. Left out: steps of two parameters at once, so a setting that pays only if both change may be missed.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lab.console import tracked
from lab.replay.trial import Outcomes, Trial
from shared.errors import BadSetting, UnknownPolicy
from shared.model.bundle import Bundle
from shared.policies import Where, spec_of

Spec = dict[str, Any]
ROUNDS = 6
TOKENS = (96, 128, 192)  # that the first tier may read unless `--tokens` says so: recordings of it are cheap
FIRST, SENDERS, EVERY = slice(0, 1), slice(0, -1), slice(None)  # tiers that have a value of their own


@dataclass(frozen=True)
class Knob:
    """A parameter that is searched: its values in the coarse grid (none: the card's alone), and its steps.

    Each of `tiers` has its own fine value; null stands for a tier that is not named. In the grid they have one value,
    unless they vary `apart`. `after`: a parameter that must not be 0 if this one is to matter.
    """

    name: str
    coarse: Sequence[Any]
    fine: Sequence[Any]
    tiers: slice | None = None
    apart: bool = False
    after: str = ""

    def beside(self, value: Any) -> list[Any]:
        """The next lower and the next higher of the fine values; of words and truths all others.

        >>> alpha = Knob("exit_threshold", (), (0.5, 0.7, 0.9))
        >>> alpha.beside(0.7), alpha.beside(0.8), alpha.beside(0.9)
        ([0.5, 0.9], [0.7, 0.9], [0.7])
        """
        if isinstance(self.fine[0], str | bool):
            return [other for other in self.fine if other != value]
        if value in self.fine:
            at = list(self.fine).index(value)
            return [*self.fine[max(0, at - 1) : at], *self.fine[at + 1 : at + 2]]
        numbers = [other for other in self.fine if other is not None]
        if value is None:
            return numbers[:1]
        return [n for n in numbers if n < value][-1:] + [n for n in numbers if n > value][:1]


# The first three are also what `tierwise calibrate` chooses from (`lab/fit/cascade.py`)
THRESHOLDS = (None, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.92, 0.94, 0.96, 0.98, 0.99)
SKIPS = (0.0, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0)
STEEPNESS = (3.0, 10.0, 30.0, 100.0, 1000.0)
THETAS = (0.0, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.08, 0.12, 0.2, 0.35, 0.5)
LEAST = (0.0, 0.8, 0.85, 0.9, 0.93, 0.95, 0.96, 0.97, 0.98, 0.99, 0.995)  # confidence that leaving early needs
SURE = (0.0, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95)  # confidences below which a text is sent ahead
VALUES = tuple(round(100 * 1.25**step) for step in range(24))  # milliseconds that a right answer is worth
ALPHAS = (0.7, 0.8, 0.85, 0.9, 0.93, 0.95, 0.96, 0.97, 0.98, 0.99)


def knobs(bundle: Bundle, coefficients: Sequence[float], tokens: Mapping[str, Sequence[int]]) -> dict[str, list[Knob]]:
    """Every policy that is searched, with its parameters. A new policy or parameter joins the search with a line here.

    `coefficients` of pruning, and `tokens` that each tier may read besides as many as the bundle says.
    """
    order, layers = bundle.order, max(model.layers for model in bundle.tiers.values())
    ahead = range(1, max(2, bundle.tiers[order[0]].layers))
    reading = [
        Knob("max_tokens", (), [*sorted(tokens[tier]), None], slice(at, at + 1)) for at, tier in enumerate(order)
    ]
    sending = [
        Knob("offload_threshold", (0.5, 0.7, 0.8, 0.9, 0.95), THRESHOLDS, SENDERS, apart=True),
        Knob("skip_below", (0.0, 0.7), SKIPS, FIRST),
        Knob("steepness", (30.0,), STEEPNESS),
        Knob("weighting", (), ("fitted", "last", "surest")),
        Knob("pruning_coefficient", (0.0,), sorted(coefficients)),
        *reading,
        Knob("speculate_below", (), SURE, FIRST),
        Knob("speculate_from", (), ahead, after="speculate_below"),
    ]
    leaving = [
        Knob("theta", (0.0, 0.2), THETAS, EVERY),
        Knob("patience", (1,), (1, 2, 3), after="theta"),
        Knob("exit_min_confidence", (0.9, 0.96), LEAST, EVERY, after="theta"),
    ]
    unsure = Knob("exit_when_unsure", (False, True), (False, True), after="theta")
    alpha, tier = Knob("exit_threshold", ALPHAS[1::2], ALPHAS), Knob("tier", order, order)
    return {
        "collaborative": [*sending, *leaving, unsure],
        "tabi": sending,
        # its gains stay those of the card's exits: the replay tells what another reading is worth with them
        "network-aware": [Knob("value_ms", VALUES[6::3], VALUES), *reading, *leaving],
        "dimee": [alpha],
        "length-quantile": [alpha],
        "early-exit": [alpha],
        "recserve": [Knob("beta", (0.1, 0.2, 0.3, 0.5), [n / 20 for n in range(1, 20)])],
        "adaee": [Knob("offload_cost", (), (0.0, 0.02, 0.05, 0.1, 0.2, 0.4))],
        "deebert": [tier, Knob("entropy_threshold", (0.1, 0.3), (0.02, 0.05, 0.1, 0.2, 0.3, 0.5))],
        "pabee": [tier, Knob("patience", range(2, layers, 2), range(1, layers + 1))],
        "jei-dnn": [tier],
        "random": [],
        **{f"{tier}-only": [] for tier in order},
    }


def coarse(name: str, of: Sequence[Knob], order: Sequence[str]) -> Iterator[Spec]:
    """The grid of one policy: its card's point first, then every combination that can matter."""
    yield {"name": name}
    axes = [[(knob.name, value) for value in _coarse_values(knob, order)] for knob in of if knob.coarse]
    firsts = {knob.name: knob.coarse[0] for knob in of if knob.coarse}
    for pairs in itertools.product(*axes) if axes else ():
        spec = dict(pairs)
        if all(spec[k.name] == firsts[k.name] or _matters(k, spec) for k in of if k.coarse):
            yield {"name": name, **spec}


def _coarse_values(knob: Knob, order: Sequence[str]) -> Iterable[Any]:
    if knob.tiers is None or not knob.apart:
        return knob.coarse
    tiers = order[knob.tiers]
    return [dict(zip(tiers, values, strict=True)) for values in itertools.product(knob.coarse, repeat=len(tiers))]


def beside(spec: Spec, of: Sequence[Knob], order: Sequence[str]) -> Iterator[Spec]:
    """Every setting that is one step away from a setting, all of whose parameters are named."""
    for knob in of:
        value = spec[knob.name]
        if not _matters(knob, spec):
            continue
        if knob.tiers is None:
            yield from ({**spec, knob.name: other} for other in knob.beside(value))
            continue
        each = dict(value) if isinstance(value, dict) else dict.fromkeys(order, value)
        for tier in order[knob.tiers]:
            for other in knob.beside(each.get(tier)):
                changed = {**each, tier: other}
                yield {**spec, knob.name: {tier: own for tier, own in changed.items() if own is not None}}


def _matters(knob: Knob, spec: Spec) -> bool:
    """Whether a parameter can change anything in a setting."""
    needed = spec.get(knob.after, 1)
    return any(needed.values()) if isinstance(needed, dict) else bool(needed)


def token_choices(asked: Sequence[str], bundle: Bundle) -> dict[str, list[int]]:
    """How many tokens each tier may read in the search, from `TIER=N,N`.

    >>> from shared.model.bundle import load_bundle
    >>> token_choices(["cloud=128,192"], load_bundle("collaborative"))
    {'end': [96, 128, 192], 'edge': [], 'cloud': [128, 192]}

    Raises:
        BadSetting: no such tier, or not numbers from 8 to what the bundle says.
    """
    out: dict[str, list[int]] = {tier: [] for tier in bundle.order}
    out[bundle.order[0]] = [n for n in TOKENS if n < bundle.tiers[bundle.order[0]].max_tokens]
    for one in asked:
        tier, _, numbers = one.partition("=")
        if tier not in out:
            raise BadSetting(f"--tokens {one}: expected TIER=N,N with a tier of {', '.join(bundle.order)}")
        most = bundle.tiers[tier].max_tokens
        try:
            out[tier] = sorted({int(number) for number in numbers.split(",")} - {most})
        except ValueError as error:
            raise BadSetting(f"--tokens {one}: expected TIER=N,N, such as {tier}=128,192") from error
        if wrong := [n for n in out[tier] if not 8 <= n <= most]:
            raise BadSetting(f"--tokens {one}: {wrong[0]} is not from 8 to {most}, which {tier} reads at most")
    return out


@dataclass(frozen=True)
class Seen:
    """A setting on every text, [N]: whether right, modelled milliseconds, bytes. Rows not asked for mean nothing."""

    right: np.ndarray
    ms: np.ndarray
    sent: np.ndarray


class Search:
    """Settings of one bundle, tried on some rows of a trial; each is tried once."""

    def __init__(
        self, trial: Trial, rows: np.ndarray, *, coefficients: Sequence[float], tokens: Mapping[str, Sequence[int]]
    ) -> None:
        self._trial, self._rows = trial, rows
        self._order = trial.replay.order
        self._knobs = knobs(trial.bundle, coefficients, tokens)
        self._full: list[Spec] = []  # every parameter named
        self._known: dict[str, int | None] = {}
        self._refined: set[int] = set()
        self.specs: list[Spec] = []  # less what the card says
        self.every: list[Seen] = []

    def run(self, front: Callable[[Sequence[Seen]], Sequence[int]]) -> None:
        """The coarse grid, then rounds around the settings of each policy that `front` finds among those so far."""
        grid = [spec for name, of in self._knobs.items() for spec in coarse(name, of, self._order)]
        self._try(grid, "coarse grid")
        for turn in range(1, ROUNDS + 1):
            new = [at for at in self._fronts(front) if at not in self._refined]
            self._refined.update(new)
            steps = [step for at in new for step in beside(self._full[at], self._knobs[self._name(at)], self._order)]
            if not self._try(steps, f"round {turn} around the front"):
                return

    def add(self, full: Spec, outcomes: Outcomes) -> None:
        """A setting with all its parameters that is tried already, on every text of the trial."""
        self._known[json.dumps(full, sort_keys=True)] = len(self.specs)
        self._keep(full, outcomes)
        self._trial.put(self.specs[-1], outcomes)

    def _keep(self, full: Spec, outcomes: Outcomes) -> None:
        self._full.append(full)
        self.specs.append(self._short(full))
        self.every.append(Seen(outcomes.right, outcomes.ms.astype(np.float32), outcomes.sent.astype(np.float32)))

    def _fronts(self, front: Callable[[Sequence[Seen]], Sequence[int]]) -> Iterator[int]:
        for name in self._knobs:
            own = [at for at in range(len(self.specs)) if self._name(at) == name]
            if own:
                yield from (own[at] for at in front([self.every[at] for at in own]))

    def _name(self, at: int) -> str:
        return str(self._full[at]["name"])

    def _try(self, specs: Sequence[Spec], what: str) -> int:
        """Try the settings that are new and that this bundle can run live; how many those are."""
        before, trial, rows = len(self.specs), self._trial, self._rows
        sizes = {tier: model.layers for tier, model in trial.bundle.tiers.items()}
        for spec in tracked(specs, trial.conditions.recorders.console, what):
            try:
                policy = trial.replay.policy(spec)
                full = spec_of(policy)
                key = json.dumps(full, sort_keys=True)
                if key in self._known:
                    continue
                self._known[key] = None
                policy.check(Where(self._order[0], self._order[1:], sizes))
                outcomes = trial.of_some(full, rows)
            except UnknownPolicy:  # this bundle lacks what it needs
                continue
            self._known[key] = len(self.specs)
            self._keep(full, outcomes)
        return len(self.specs) - before

    def _short(self, full: Spec) -> Spec:
        """A setting by what differs from the card."""
        card = spec_of(self._trial.replay.policy(full["name"]))
        return {key: value for key, value in full.items() if key == "name" or card.get(key, ...) != value}
