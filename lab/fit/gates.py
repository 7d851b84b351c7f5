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

Both are logistic regressions, so a fit takes a fraction of a second. What a price gives: `lab/fit/prices.py`.
Left out: what the ensemble adds to an answer (the replay has it), and JEI-DNN's turns of training its exits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from threadpoolctl import threadpool_limits

from shared.model.base import Array
from shared.model.gates import FEATURES, OF_JEI_DNN, scores

BARRED = -9999.0  # bias of a gate to a tier that cannot be reached
DIGITS = 4  # significant ones of a weight
RIDGE, PATH_RIDGE = 1e-3, 1e-2  # on weights of features with variance 1; a path's gates have four times as many
Gates = list[list[float]]  # a row for each gate: weights, then the bias


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


def fit_jei_dnn(data: Recorded, tier: str, price: float) -> Gates:
    """A gate for each exit of a tier but the last."""
    best = first_best(data, tier, price)
    exits, out = data.layers[tier], []
    for exit_ in range(exits - 1):
        here = int((best == exit_).sum())
        opens = best <= exit_
        weight = np.where(opens, min(5.0, (len(best) - here) / max(here, 0.1)), 1.0)
        x = data.features[tier][:, exit_, :OF_JEI_DNN]
        out += _fitted(x, 1, [(0, 1, opens, weight)], RIDGE)
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
    fitted = _fitted(x, actions, pairs, PATH_RIDGE) if pairs else [[0.0] * (len(FEATURES) + 1)] * actions
    return [own if action in costs else [0.0] * len(FEATURES) + [BARRED] for action, own in enumerate(fitted)]


def _chosen(x: Array, gates: Gates, costs: Mapping[int, Array], going: Array | None) -> Array:
    """What each text costs [N] under these gates."""
    scored = scores(x, np.array(gates))
    every = np.stack([costs.get(action, np.full(len(x), np.inf)) for action in range(len(gates))])
    best = scored.argmax(-1)
    cost = every[best, np.arange(len(x))]
    return cost if going is None else np.where(scored.max(-1) > 0, cost, going)


def _fitted(x: Array, gates: int, pairs: Sequence[tuple[int, int, Array, Array]], ridge: float) -> Gates:
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
    ridges = np.tile([*[ridge] * x.shape[1], RIDGE / 1000], gates)  # the bias must stay finite where all texts agree
    found = _logistic(rows, target, weight / max(weight.sum(), 1e-12), ridges).reshape(gates, -1)
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
