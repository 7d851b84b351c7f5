"""Fit the gates of `jei-dnn` and `path-gates` from recordings: what a second may cost against being right.

    jei-dnn      J_l = -ln p_l(y) + price * seconds until exit l;  g* = argmin_l J_l;  gate l learns 1[l >= g*], the
                 ones weighted by min(5, (N - n_l) / max(n_l, .1)), n_l texts having g* = l
                 (Regol et al. 2024, arXiv 2310.09163, [C:networkslab/dynn])
    path-gates   from the deepest tier to the first, from the last exit to the first, what an action costs a text:
                 answer     1 - p_l(y)                              (JEI-DNN's objective "prob", not "ce")
                 send to u  price * seconds of the links to u, and what the gates of u, fitted before, make of it
                 go on      price * seconds until the next exit, and what the gates from there make of it
                 of any two actions the cheaper is to score more, each text weighing by the difference    [ours]

Where the path differs from JEI-DNN: no hindsight. What lies behind an action is what the gates there do, not the best
that could be done with the text. And it counts errors, since -ln p pays to be surer of what is right already.

Both are logistic regressions, so a fit takes a fraction of a second. What each of `PRICES` gives is judged in a replay,
each half of the validation texts under gates that were fitted on the other. Kept is the fastest price within the loss
allowed, fitted again on all of them.
Left out: what the ensemble adds to an answer (the replay has it), and JEI-DNN's turns of training its exits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from lab.choice import operating_point
from lab.replay.recorder import Kernel
from lab.replay.times import Times
from lab.replay.walk import Replay
from shared.model.base import Array
from shared.model.exits import exit_taken
from shared.model.gates import FEATURES, OF_JEI_DNN, JeiDnn, features, scores
from shared.policies.path_gates import PathGates

PRICES = (
    0.01,
    0.05,
    0.1,
    0.2,
    0.4,
    0.8,
    1.2,
    1.6,
    2.4,
    3.2,
    4.8,
)  # of a second, in nats or errors
OTHER_LINKS = ("lte/regional", "3g/regional", "nbiot/regional")  # that the card has gates for besides
BARRED = -9999.0  # bias of a gate to a tier that cannot be reached
DIGITS = 4  # significant ones of a weight
RIDGE = 1e-3  # on weights of features with variance 1
NAME = PathGates.name
Gates = list[list[float]]  # a row for each gate: weights, then the bias
Report = dict[str, Any]


@dataclass(frozen=True)
class Recorded:
    """What gates are fitted on: T tiers, N texts, and by tier E exits."""

    layers: Mapping[str, int]  # of each tier, shallowest first
    features: Mapping[str, Array]  # [N, E, 6]
    right: Mapping[str, Array]  # [N, E] p_l(y): what the true label gets
    until: Mapping[str, Array]  # [N, E] seconds from a text's arrival until it could leave
    links: Mapping[tuple[str, str], Array]  # [N] seconds of all links there and back, by (from, to)

    def only(self, rows: Array) -> Recorded:
        """Some of the texts."""
        x, right, until = (
            {tier: own[rows] for tier, own in each.items()} for each in (self.features, self.right, self.until)
        )
        return Recorded(self.layers, x, right, until, {pair: own[rows] for pair, own in self.links.items()})


def recorded(replay: Replay, times: Times, *, unread_words: bool = False) -> Recorded:
    """What a replay's recordings say. Over the links travels what `path-gates` would send, its gates too."""
    x, right, rows = dict[str, Array](), dict[str, Array](), np.arange(len(replay.numbers))
    for station in replay.stations:
        exits = station.table(replay.numbers, Kernel.PLAIN).exits[replay.numbers]  # [N, E, C]
        x[station.name] = features(exits.swapaxes(0, 1)).swapaxes(0, 1)
        right[station.name] = exits[rows, :, replay.labels].astype(float)
    sizes = {station.name: station.layers for station in replay.stations}
    until = {tier: times.until_exits(at) for at, tier in enumerate(sizes)}

    def links(*way: str) -> Array:
        spec = {
            "name": NAME,
            "profiles": [{"links": "any", "tiers": _forced(sizes, way)}],
            "unread_words": unread_words,
        }
        return times.of(replay.run(replay.policy(spec))).link

    ways = {tier: tuple(dict.fromkeys((replay.order[0], tier))) for tier in replay.order}
    reached = {tier: route.reachable(None) for tier, route in zip(replay.order, replay.routes, strict=True)}
    there = {tier: links(*way) for tier, way in ways.items() if reached[tier]}
    pairs = {(a, b): links(*ways[a], b) - there[a] for a in there for b in reached[a]}
    return Recorded(sizes, x, right, until, pairs)


def _forced(layers: Mapping[str, int], way: Sequence[str]) -> dict[str, list[Gates]]:
    """Gates that take every text this way, in numbers as long as those of fitted ones: they travel with a text."""
    tiers, onward = list(layers), dict(pairwise(way))
    out = {}
    for at, tier in enumerate(tiers):
        actions = [tier, *tiers[at + 1 :]]
        bias = [9999.0 if action == onward.get(tier, tier) else -9999.0 for action in actions]
        out[tier] = [[[12.34] * len(FEATURES) + [b] for b in bias]] * (layers[tier] - (tier == tiers[-1]))
    return out


# -- choosing a price -------------------------------------------------------------------------------------------------


def choose_jei_dnn(replay: Replay, data: Recorded, within: float) -> tuple[dict[str, Any], Report]:
    """The parameters of `jei-dnn`, and what each price gives at the deepest tier: every tier has gates of its own."""
    gates, report, labels, rows = dict[str, Gates](), list[Report](), replay.labels, np.arange(len(replay.labels))
    full = best = 0.0
    for station in replay.stations:
        tier, report = station.name, []
        exits = station.table(replay.numbers, Kernel.PLAIN).exits[replay.numbers]  # [N, E, C]
        for price in PRICES:
            layer = np.zeros(len(rows), dtype=int)
            for fit, judge in folds(len(rows)):
                rule = JeiDnn(tuple(map(tuple, fit_jei_dnn(data.only(fit), tier, price))))
                layer[judge] = exit_taken(exits[judge].swapaxes(0, 1), rule)
            right = exits[rows, layer - 1].argmax(-1) == labels
            took = data.until[tier][rows, layer - 1]
            report.append(_row(price, right, took) | {"mean_exit_layer": round(float(layer.mean()), 3)})
        full = float((exits[:, -1].argmax(-1) == labels).mean())
        best = PRICES[_best(report, full - within)]
        gates[tier] = fit_jei_dnn(data, tier, best)
    about = {"n": len(rows), "full_accuracy": round(full, 4), "may_cost": within}
    return {"gates": gates}, {**about, "by": report, "chosen": best}


def choose_path(replay: Replay, every: Mapping[str, Times], within: float) -> tuple[dict[str, Any], Report]:
    """The parameters of `path-gates` for links by name, and what each price gives there."""
    profiles, report, labels = list[dict[str, Any]](), Report(), replay.labels
    full = float((replay.run(replay.policy(f"{replay.order[-1]}-only")).label == labels).mean())
    for links, times in every.items():
        data = recorded(replay, times)
        rows = [_judged(replay, times, links, data, price) for price in PRICES]
        best = PRICES[_best(rows, full - within)]
        profiles.append({"links": links, "tiers": fit_path(data, best)})
        report[links] = {"by": rows, "chosen": best}
    about = {"n": len(labels), "full_accuracy": round(full, 4), "may_cost": within}
    return {"profiles": profiles}, {**about, **report}


def _judged(replay: Replay, times: Times, links: str, data: Recorded, price: float) -> Report:
    """What a price gives: each half of the texts under the gates that the other half gave."""
    texts = len(replay.labels)
    right, seconds, by = np.zeros(texts, dtype=bool), np.zeros(texts), np.zeros(texts, dtype=int)
    for fit, judge in folds(texts):
        profile = {"links": links, "tiers": fit_path(data.only(fit), price)}
        run = replay.run(replay.policy({"name": NAME, "profiles": [profile]}))
        right[judge] = (run.label == replay.labels)[judge]
        seconds[judge], by[judge] = times.of(run).seconds[judge], run.answered_by[judge]
    shares = {tier: round(float((by == at).mean()), 4) for at, tier in enumerate(replay.order)}
    return _row(price, right, seconds) | {"answered_by": shares}


def folds(n: int) -> list[tuple[Array, Array]]:
    """Rows to fit on, and rows to judge on, twice: every text is judged once, by gates that have not seen it."""
    even, odd = np.arange(0, n, 2), np.arange(1, n, 2)
    return [(even, odd), (odd, even)]


def _row(price: float, right: Array, seconds: Array) -> Report:
    return {"price": price, "accuracy": round(float(right.mean()), 4), "ms": round(float(seconds.mean()) * 1e3, 2)}


def _best(rows: Sequence[Report], target: float) -> int:
    return operating_point([row["ms"] for row in rows], [row["accuracy"] for row in rows], target)


# -- fitting ----------------------------------------------------------------------------------------------------------


def fit_jei_dnn(data: Recorded, tier: str, price: float) -> Gates:
    """A gate for each exit of a tier but the last."""
    best = first_best(data, tier, price)
    exits, out = data.layers[tier], []
    for exit_ in range(exits - 1):
        here = int((best == exit_).sum())
        opens = best <= exit_
        weight = np.where(opens, min(5.0, (len(best) - here) / max(here, 0.1)), 1.0)
        x = data.features[tier][:, exit_, :OF_JEI_DNN]
        out += _fitted(x, 1, [(0, 1, opens, weight)])
    return out


def first_best(data: Recorded, tier: str, price: float) -> Array:
    """JEI-DNN's g* [N], from 0: the exit of a tier with the least loss and cost, known in hindsight."""
    nll = -np.log(np.maximum(data.right[tier], 1e-9))
    return np.asarray((nll + price * data.until[tier]).argmin(1))


def fit_path(data: Recorded, price: float) -> dict[str, list[Gates]]:
    """By tier, for each exit: a gate for each action. The deepest tier has none at its last exit."""
    tiers, gates, behind = list(data.layers), dict[str, list[Gates]](), dict[str, Array]()
    for at in reversed(range(len(tiers))):
        tier, x, until = tiers[at], data.features[tiers[at]], data.until[tiers[at]]
        sent = {to: price * data.links[tier, to] + behind[to] for to in tiers[at + 1 :] if (tier, to) in data.links}
        cost: Array | None = None  # of going on
        gates[tier] = []
        for exit_ in reversed(range(data.layers[tier])):
            going = None if cost is None else price * (until[:, exit_ + 1] - until[:, exit_]) + cost
            costs = {
                0: 1 - data.right[tier][:, exit_],
                **{1 + tiers[at + 1 :].index(to): own for to, own in sent.items()},
            }
            if going is None and tier == tiers[-1]:
                cost = costs[0]
                continue
            fitted = _of_actions(x[:, exit_], len(tiers) - at, costs, going)
            gates[tier].insert(0, fitted)
            cost = _chosen(x[:, exit_], fitted, costs, going)
        assert cost is not None
        behind[tier] = cost + price * until[:, 0]
    return gates


def _of_actions(x: Array, actions: int, costs: Mapping[int, Array], going: Array | None) -> Gates:
    """Gates for actions of these costs [N], going on (which scores 0) among them; an action without costs is barred."""
    every = costs if going is None else {**costs, actions: going}
    pairs = [(a, b, one < other, np.abs(one - other)) for (a, one), (b, other) in combinations(every.items(), 2)]
    fitted = _fitted(x, actions, pairs) if pairs else [[0.0] * (len(FEATURES) + 1)] * actions
    return [own if action in costs else [0.0] * len(FEATURES) + [BARRED] for action, own in enumerate(fitted)]


def _chosen(x: Array, gates: Gates, costs: Mapping[int, Array], going: Array | None) -> Array:
    """What each text costs [N] under these gates."""
    scored = scores(x, np.array(gates))
    every = np.stack([costs.get(action, np.full(len(x), np.inf)) for action in range(len(gates))])
    best = scored.argmax(-1)
    cost = every[best, np.arange(len(x))]
    return cost if going is None else np.where(scored.max(-1) > 0, cost, going)


def _fitted(x: Array, gates: int, pairs: Sequence[tuple[int, int, Array, Array]]) -> Gates:
    """Weights and biases by logistic regression on features x [N, F].

    A pair (a, b, target [N], weight [N]) says where gate a is to score more than gate b. Going on is the gate after the
    last one: it scores 0.
    """
    mean, deviation = x.mean(0), x.std(0)
    deviation[deviation < 1e-9] = np.inf  # a feature that never changes gets no weight
    scaled = np.concatenate([(x - mean) / deviation, np.ones((len(x), 1))], 1)  # [N, F + 1]
    signs = np.array([[float(gate == a) - float(gate == b) for gate in range(gates)] for a, b, _, _ in pairs])
    rows = np.einsum("pg,nf->pngf", signs, scaled).reshape(len(pairs) * len(x), -1)  # [P * N, G * (F + 1)]
    target, weight = (np.concatenate([np.asarray(pair[at], float) for pair in pairs]) for at in (2, 3))
    ridge = np.tile([*[RIDGE] * x.shape[1], RIDGE / 1000], gates)  # the bias must stay finite where all texts agree
    found = _logistic(rows, target, weight / max(weight.sum(), 1e-12), ridge).reshape(gates, -1)
    weights = found[:, :-1] / deviation
    biases = found[:, -1] - weights @ mean
    return [_short([*own, bias]) for own, bias in zip(weights.tolist(), biases.tolist(), strict=True)]


def _logistic(rows: Array, target: Array, weight: Array, ridge: Array) -> Array:
    """The weights [D] of a logistic regression: rows [M, D], targets and weights [M], a ridge for each weight."""
    from scipy.optimize import minimize
    from scipy.special import expit

    def loss(w: Array) -> float:
        z = rows @ w
        return float(weight @ (np.logaddexp(0, z) - target * z) + ridge @ (w * w) / 2)

    def slope(w: Array) -> Array:
        return np.asarray((weight * (expit(rows @ w) - target)) @ rows + ridge * w)

    def curvature(w: Array) -> Array:
        p = expit(rows @ w)
        return np.asarray((rows * (weight * p * (1 - p))[:, None]).T @ rows + np.diag(ridge))

    start = np.zeros(rows.shape[1])
    with threadpool_limits(1):  # of products this small: more threads wait for each other, on a busy machine minutes
        return np.asarray(minimize(loss, start, jac=slope, hess=curvature, method="trust-exact").x)


def _short(values: Sequence[float]) -> list[float]:
    return [float(f"{value:.{DIGITS}g}") for value in values]
