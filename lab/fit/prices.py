"""What a second may cost: gates at several prices, judged on texts that they were not fitted on, and one price chosen.

A price is a stake: what the mean time of the deepest tier alone, links included, may cost in errors (`jei-dnn`: in
nats, and of the whole pass of its tier). So the same `STAKES` do for the fastest links and the slowest. What each gives
is judged in a replay, each third of the validation texts under gates that were fitted on the other two. Kept is the
fastest that surely loses no more than is allowed (`choice`), fitted again on all texts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from lab.choice import operating_point
from lab.fit.gates import Gates, Recorded, fit_jei_dnn, fit_path
from lab.replay.recorder import Kernel
from lab.replay.times import Times
from lab.replay.walk import Replay
from shared.model.base import Array
from shared.model.exits import exit_taken
from shared.model.gates import FEATURES, JeiDnn, features
from shared.policies import Policy
from shared.policies.path_gates import PathGates

STAKES = tuple(round(0.008 * 1.35**step, 4) for step in range(10))  # .008 to .12
FOLDS = 3
CAUTION = 0.5  # standard errors that are added to a loss before it is compared with the one allowed
OTHER_LINKS = ("lte/regional", "3g/regional", "nbiot/regional")  # that the card has gates for besides
NAME = PathGates.name
Report = dict[str, Any]


@dataclass(frozen=True)
class Judged:
    """Texts under gates that were not fitted on them, [N]."""

    label: Array
    seconds: Array
    sent: Array  # bytes of bodies, both ways
    answered_by: Array


@contextmanager
def in_card(replay: Replay, **parameters: Any) -> Iterator[Policy]:
    """`path-gates` with these parameters, while the replay's card has them: then a digest of its gates travels."""
    policies = replay.bundle.card.policies
    before = policies.get(NAME)
    policies[NAME] = parameters
    try:
        yield replay.policy(NAME)
    finally:
        del policies[NAME]
        if before is not None:
            policies[NAME] = before


def recorded(replay: Replay, times: Times, *, unread_words: bool = False) -> Recorded:
    """What a replay's recordings say. Over the links travels what `path-gates` would send."""
    x, right, rows = dict[str, Array](), dict[str, Array](), np.arange(len(replay.numbers))
    for station in replay.stations:
        exits = station.table(replay.numbers, Kernel.PLAIN).exits[replay.numbers]  # [N, E, C]
        x[station.name] = features(exits.swapaxes(0, 1)).swapaxes(0, 1)
        right[station.name] = exits[rows, :, replay.labels].astype(float)
    sizes = {station.name: station.layers for station in replay.stations}
    until = {tier: times.until_exits(at) for at, tier in enumerate(sizes)}

    def links(*way: str) -> Array:
        profile = {"links": "any", "tiers": _forced(sizes, way)}
        with in_card(replay, profiles=[profile], unread_words=unread_words) as policy:
            return times.of(replay.run(policy)).link

    ways = {tier: tuple(dict.fromkeys((replay.order[0], tier))) for tier in replay.order}
    reached = {tier: route.reachable(None) for tier, route in zip(replay.order, replay.routes, strict=True)}
    there = {tier: links(*way) for tier, way in ways.items() if reached[tier]}
    pairs = {(a, b): links(*ways[a], b) - there[a] for a in there for b in reached[a]}
    return Recorded(sizes, x, right, until, pairs)


def _forced(layers: Mapping[str, int], way: Sequence[str]) -> dict[str, list[Gates]]:
    """Gates that take every text this way."""
    tiers, onward = list(layers), dict(pairwise(way))
    out = {}
    for at, tier in enumerate(tiers):
        actions = [tier, *tiers[at + 1 :]]
        bias = [9999.0 if action == onward.get(tier, tier) else -9999.0 for action in actions]
        out[tier] = [[[0.0] * len(FEATURES) + [b] for b in bias]] * (layers[tier] - (tier == tiers[-1]))
    return out


def choose_jei_dnn(replay: Replay, data: Recorded, within: float) -> tuple[dict[str, Any], Report]:
    """The parameters of `jei-dnn`, and what each price gives at the deepest tier: every tier has gates of its own."""
    gates, rows, best, every = dict[str, Gates](), list[Report](), 0, np.arange(len(replay.labels))
    for station in replay.stations:
        tier, rows = station.name, []
        exits = station.table(replay.numbers, Kernel.PLAIN).exits[replay.numbers]  # [N, E, C]
        full = exits[:, -1].argmax(-1) == replay.labels
        for price in prices(data.until[tier][:, -1]):
            layer = np.zeros(len(every), dtype=int)
            for fit, judge in folds(len(every)):
                rule = JeiDnn(tuple(map(tuple, fit_jei_dnn(data.only(fit), tier, price))))
                layer[judge] = exit_taken(exits[judge].swapaxes(0, 1), rule)
            right = exits[every, layer - 1].argmax(-1) == replay.labels
            row = _row(price, right, data.until[tier][every, layer - 1], full)
            rows.append(row | {"mean_exit_layer": round(float(layer.mean()), 3)})
        best = choice(rows, within)
        gates[tier] = fit_jei_dnn(data, tier, rows[best]["price"])
    about = {"n": len(every), "full_accuracy": round(float(full.mean()), 4), "may_cost": within}
    return {"gates": gates}, {**about, "by": rows, "chosen": rows[best]["price"]}


def choose_path(replay: Replay, every: Mapping[str, Times], within: float) -> tuple[dict[str, Any], Report]:
    """The parameters of `path-gates` for links by name, and what each price gives there."""
    profiles, report = list[dict[str, Any]](), Report()
    alone = replay.run(replay.policy(f"{replay.order[-1]}-only"))
    full = alone.label == replay.labels
    for links, times in every.items():
        data, rows = recorded(replay, times), list[Report]()
        for price in prices(times.of(alone).seconds):
            own = judged(replay, times, links, data, price)
            shares = {tier: round(float((own.answered_by == at).mean()), 4) for at, tier in enumerate(replay.order)}
            rows.append(_row(price, own.label == replay.labels, own.seconds, full) | {"answered_by": shares})
        best = rows[choice(rows, within)]["price"]
        profiles.append({"links": links, "tiers": fit_path(data, best)})
        report[links] = {"by": rows, "chosen": best}
    about = {"n": len(full), "full_accuracy": round(float(full.mean()), 4), "may_cost": within}
    return {"profiles": profiles}, {**about, **report}


def prices(seconds: Array) -> list[float]:
    """The prices of a second that `STAKES` are for texts that take so many [N]."""
    return [float(f"{stake / seconds.mean():.3g}") for stake in STAKES]


def judged(replay: Replay, times: Times, links: str, data: Recorded, price: float, *, as_card: bool = True) -> Judged:
    """What a price gives: each part of the texts under the gates that the others gave.

    `as_card`: as if the card had them. Else they travel whole, as those that a request gives.
    """
    n = len(replay.labels)
    out = Judged(np.zeros(n, dtype=int), np.zeros(n), np.zeros(n), np.zeros(n, dtype=int))
    for fit, rows in folds(n):
        own = {"profiles": [{"links": links, "tiers": fit_path(data.only(fit), price)}]}
        with in_card(replay, **own) if as_card else nullcontext(replay.policy({"name": NAME, **own})) as policy:
            run = replay.run(policy, rows)
            modelled = times.of(run)
        out.label[rows], out.answered_by[rows] = run.label[rows], run.answered_by[rows]
        out.seconds[rows], out.sent[rows] = modelled.seconds[rows], (modelled.bytes_up + modelled.bytes_down)[rows]
    return out


def folds(n: int) -> list[tuple[Array, Array]]:
    """Rows to fit on, and rows to judge on: every text is judged once, by gates that have not seen it."""
    at = np.arange(n) % FOLDS
    return [(np.flatnonzero(at != fold), np.flatnonzero(at == fold)) for fold in range(FOLDS)]


def _row(price: float, right: Array, seconds: Array, full: Array) -> Report:
    """What a price gives, and what it loses against the deepest exit on the same texts, with the standard error."""
    lost = full.astype(float) - right
    figures = {"accuracy": right.mean(), "lost": lost.mean(), "lost_se": lost.std() / np.sqrt(len(lost))}
    return {
        "price": price,
        **{name: round(float(value), 4) for name, value in figures.items()},
        "ms": round(float(seconds.mean()) * 1e3, 2),
    }


def choice(rows: Sequence[Report], within: float) -> int:
    """The fastest of the prices, which ascend, that loses at most `within`; if none does, the one that loses least.

    A higher price can only lose more in truth, so losses are made to ascend (isotonic regression): a lucky one is worth
    the mean of its neighbours. Then `CAUTION` standard errors of the paired difference are added.
    """
    from scipy.optimize import isotonic_regression

    ascending = isotonic_regression([row["lost"] for row in rows]).x
    surely = [-lost - CAUTION * row["lost_se"] for lost, row in zip(ascending, rows, strict=True)]
    return operating_point([row["ms"] for row in rows], surely, -within)
