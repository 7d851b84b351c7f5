"""What the other policies need from validation data: DIMEE's alpha and pools, and length bins of as many texts.

    pool of x     the first tier with an exit l where C_l >= alpha, else the last         (S001 III-B, Algorithm 1)
    r_alpha(x)  = C_l - mu*lambda1*l          left on the first tier                      (eq. 2, [R])
                = C_l - mu*(lambda2*l + o1)   left on a tier between
                = C_L - mu*(o2 + gamma)       the last tier
    alpha*      = argmax over 10 equidistant points of [1/K, 1] of the mean reward        (eq. 3, S001 IV-D)

S001 is Bajpai & Hanawal 2025, arXiv 2410.05338. It gives lambda2 = 1 and no other cost: those of `Costs` are fitted to
its Table I [CALC], never from the paper. mu, the price of a unit of cost, is not in its text either: with
mu = 1/(lambda1*L) (a full pass on the device costs 1) costs outweigh any confidence: nearly every text is easy, and the
last pool is void. So mu is halved until no pool is smaller than `SMALLEST` and answering by pools loses at most
`within` against the last exit (or else the least) [ours]; every step is in the card.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from lab.fit.exits import early_exit_rules
from lab.replay.walk import Replay
from shared.model.base import Array
from shared.model.exits import Confidence, exit_taken
from shared.model.pools import Pools, Signature

SMALLEST = 0.05  # share of the validation texts in the smallest pool
HALVINGS = 8


@dataclass(frozen=True)
class Costs:
    """Unit costs of eq. 2, fitted to Table I; lambda2 = 1 is the unit. Where there is no edge, its terms go unused."""

    lambda1: float = 2.0  # a layer on the first tier
    lambda2: float = 1.0  # a layer on a tier between
    o1: float = 5.0  # sending a text to a tier between
    o2: float = 10.0  # sending a text to the last tier
    gamma: float = 18.0  # the last tier's price

    def of(self, tier: int, tiers: int, layers: Array) -> Array:
        """The cost of texts that a tier answers after these layers."""
        if tier == tiers - 1 > 0:
            return np.full(layers.shape, self.o2 + self.gamma)
        return self.lambda1 * layers if tier == 0 else self.lambda2 * layers + self.o1


@dataclass(frozen=True)
class Exited:
    """Every text at every tier under `C_l >= alpha`, all [tiers, N]; the last tier runs all its layers."""

    confidence: Array
    right: Array
    cost: Array
    sure: Array  # whether some exit reached alpha

    @property
    def pool(self) -> Array:
        """The first tier that is sure, else the last."""
        sure = self.sure.copy()
        sure[-1] = True
        return np.asarray(sure.argmax(0))

    def at(self, tier: Array, what: Array) -> Array:
        """What a text gets at its tier, [N]."""
        return np.asarray(what[tier, np.arange(len(tier))])

    def reward(self, mu: float) -> float:
        """Mean reward of eq. 2, every text at its pool's tier."""
        return float((self.at(self.pool, self.confidence) - mu * self.at(self.pool, self.cost)).mean())


@dataclass
class Chosen:
    """What goes into the card, and beside it."""

    policies: dict[str, dict[str, Any]]
    pools: Pools | None = None
    report: dict[str, Any] = field(default_factory=dict)


def choose(replay: Replay, probabilities: dict[str, Array], *, within: float) -> Chosen:
    """All of it, and the early-exit rules. `probabilities` of the replay's texts are calibrated, [N, E, C] by tier."""
    labels, exits, costs, count = replay.labels, list(probabilities.values()), Costs(), len(replay.order)
    thresholds, report = early_exit_rules(exits[-1], labels, within)
    chosen = Chosen(thresholds, report={"exit_thresholds": report})
    if count < 2:
        return chosen
    alpha, why = choose_alpha(exits, labels, costs, within)
    chosen.report["pools"] = {"costs_fitted_to_table_1": asdict(costs), **why}
    if alpha is None:
        return chosen
    exited = _exited(exits, labels, alpha, costs)
    pool, words = exited.pool, replay.corpus.words[replay.numbers]
    signatures = {
        kind: np.array(replay.stations[0].recorder.signatures(replay.numbers.tolist(), kind), dtype=np.float32)
        for kind in Signature
    }
    chosen.pools = pools_of(signatures, pool, count)
    edges = bins(words, np.bincount(pool, minlength=count))
    chosen.policies |= {
        "dimee": {"exit_threshold": alpha},
        "length-quantile": {"exit_threshold": alpha, "edges": edges},
    }
    routes = {kind.value: _crossfit(s, pool, count) for kind, s in signatures.items()}
    routes["length_quantile"] = np.sum([words > edge for edge in edges], axis=0)
    routes["known_pools"] = pool
    chosen.report["pools"]["routing"] = {name: _route(exited, tier, count) for name, tier in routes.items()}
    return chosen


def choose_alpha(
    exits: Sequence[Array], labels: Array, costs: Costs, within: float
) -> tuple[float | None, dict[str, Any]]:
    """alpha by the reward under the dearest mu that leaves useful pools; null where none does."""
    deepest, by_alpha = exits[-1].shape[1], exited_by_alpha(exits, labels, costs)
    target = float(by_alpha[min(by_alpha)].right[-1].mean()) - within

    def step(alpha: float, mu: float | None) -> dict[str, Any]:
        exited = by_alpha[alpha]
        return {
            "mu": mu,
            "alpha": alpha,
            "pools": np.bincount(exited.pool, minlength=len(exits)).tolist(),
            "accuracy": round(float(exited.at(exited.pool, exited.right).mean()), 4),
            "mean_cost": round(float(exited.at(exited.pool, exited.cost).mean()), 4),
        }

    def useful(steps: list[dict[str, Any]]) -> list[dict[str, Any]]:
        large = [s for s in steps if min(s["pools"]) >= SMALLEST * len(labels)]
        return [s for s in large if s["accuracy"] >= target] or sorted(large, key=lambda s: -s["accuracy"])

    tried = []
    for halving in range(HALVINGS):
        mu = 1 / (costs.lambda1 * deepest) / 2**halving
        alpha = best_alpha(by_alpha, mu)
        tried.append({**step(alpha, round(mu, 6)), "reward": round(by_alpha[alpha].reward(mu), 4)})
    found = useful(tried) or useful([step(alpha, None) for alpha in by_alpha])  # null: no mu leads to any useful alpha
    report = {
        "tried": tried,
        "chosen": found[0] if found else None,
        "target_accuracy": round(target, 4),
        "smallest_pool": SMALLEST,
    }
    return (found[0]["alpha"] if found else None), report


def exited_by_alpha(exits: Sequence[Array], labels: Array, costs: Costs) -> dict[float, Exited]:
    """Every text under each of ten equidistant alphas from 1 / C to 1; `exits` as in `choose_alpha`."""
    alphas = [round(alpha, 6) for alpha in np.linspace(1 / exits[-1].shape[2], 1, 10).tolist()]
    return {alpha: _exited(exits, labels, alpha, costs) for alpha in alphas}


def best_alpha(by_alpha: Mapping[float, Exited], mu: float) -> float:
    """Eq. 3."""
    return max(by_alpha, key=lambda alpha: by_alpha[alpha].reward(mu))


def pools_of(signatures: Mapping[Signature, Array], pool: Array, count: int) -> Pools:
    """Sizes and means of the pools, [N] each text's own; a void one is infinitely far from every text."""
    sizes = np.bincount(pool, minlength=count)
    means = {kind: _means(own, pool, count) for kind, own in signatures.items()}
    return Pools(tuple(sizes.tolist()), {kind: tuple(map(tuple, own.tolist())) for kind, own in means.items()})


def bins(words: Array, sizes: Array) -> list[int]:
    """Words up to which a text belongs to each bin but the last: as many texts in a bin as in its pool, ties apart."""
    ordered = np.sort(words)
    ends = np.clip(np.cumsum(sizes)[:-1], 1, len(words))
    return [int(ordered[end - 1]) for end in ends]


def _exited(exits: Sequence[Array], labels: Array, alpha: float, costs: Costs) -> Exited:
    rows = np.arange(len(labels))
    confidence, right, cost, sure = [], [], [], []
    for tier, own in enumerate(exits):
        last = tier == len(exits) - 1
        layer = exit_taken(own.swapaxes(0, 1), None if last else Confidence(alpha))
        taken = own[rows, layer - 1]  # [N, C]
        best = taken.max(-1)
        confidence.append(best)
        right.append(taken.argmax(-1) == labels)
        cost.append(costs.of(tier, len(exits), layer))
        sure.append(best >= alpha)
    return Exited(*(np.stack(item) for item in (confidence, right, cost, sure)))


def _means(signatures: Array, pool: Array, count: int) -> Array:
    """The mean of each pool, [pools, D]; infinite for a void one."""
    of_pool = [signatures[pool == g] for g in range(count)]
    return np.stack([own.mean(0) if len(own) else np.full(signatures.shape[1], math.inf) for own in of_pool])


def _crossfit(signatures: Array, pool: Array, count: int) -> Array:
    """The nearest mean of each text, the means coming from the other half of the texts."""
    half, out = np.arange(len(pool)) % 2 == 0, np.zeros(len(pool), dtype=np.int64)
    for rows in (half, ~half):
        means = _means(signatures[~rows], pool[~rows], count)
        out[rows] = np.stack([np.linalg.norm(signatures[rows] - mean, axis=1) for mean in means]).argmin(0)
    return out


def _route(exited: Exited, tier: Array, count: int) -> dict[str, Any]:
    """What a way of routing gives, and what sending as many texts to each tier at random would give."""
    sent = np.bincount(tier, minlength=count)
    shares = sent / len(tier)
    return {
        "sent_to": sent.tolist(),
        "agrees_with_pools": round(float((tier == exited.pool).mean()), 4),
        "accuracy": round(float(exited.at(tier, exited.right).mean()), 4),
        "mean_cost": round(float(exited.at(tier, exited.cost).mean()), 4),
        "accuracy_at_random": round(float(exited.right.mean(1) @ shares), 4),
        "mean_cost_at_random": round(float(exited.cost.mean(1) @ shares), 4),
    }
