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

import torch
from torch import Tensor

from lab.fit.exits import early_exit_rules
from lab.replay.walk import Replay
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

    def of(self, tier: int, tiers: int, layers: Tensor) -> Tensor:
        """The cost of texts that a tier answers after these layers."""
        if tier == tiers - 1 > 0:
            return torch.full(layers.shape, self.o2 + self.gamma).double()
        return self.lambda1 * layers.double() if tier == 0 else self.lambda2 * layers.double() + self.o1


@dataclass(frozen=True)
class Exited:
    """Every text at every tier under `C_l >= alpha`, all [tiers, N]; the last tier runs all its layers."""

    confidence: Tensor
    right: Tensor
    cost: Tensor
    sure: Tensor  # whether some exit reached alpha

    @property
    def pool(self) -> Tensor:
        """The first tier that is sure, else the last."""
        sure = self.sure.clone()
        sure[-1] = True
        return sure.int().argmax(0)

    def at(self, tier: Tensor, what: Tensor) -> Tensor:
        """What a text gets at its tier, [N]."""
        return what.gather(0, tier[None])[0]

    def reward(self, mu: float) -> float:
        """Mean reward of eq. 2, every text at its pool's tier."""
        return float((self.at(self.pool, self.confidence) - mu * self.at(self.pool, self.cost)).mean())


@dataclass
class Chosen:
    """What goes into the card, and beside it."""

    policies: dict[str, dict[str, Any]]
    pools: Pools | None = None
    report: dict[str, Any] = field(default_factory=dict)


def choose(replay: Replay, probabilities: dict[str, Tensor], *, within: float) -> Chosen:
    """All of it, and the early-exit rules. `probabilities` of the replay's texts are calibrated, [N, E, C] by tier."""
    labels, exits, costs, count = torch.tensor(replay.labels), list(probabilities.values()), Costs(), len(replay.order)
    thresholds, report = early_exit_rules(exits[-1], labels, within)
    chosen = Chosen(thresholds, report={"exit_thresholds": report})
    if count < 2:
        return chosen
    alpha, why = choose_alpha(exits, labels, costs, within)
    chosen.report["pools"] = {"costs_fitted_to_table_1": asdict(costs), **why}
    if alpha is None:
        return chosen
    exited = _exited(exits, labels, alpha, costs)
    pool, words = exited.pool, torch.tensor(replay.corpus.words[replay.numbers])
    signatures = {
        kind: torch.tensor(replay.stations[0].recorder.signatures(replay.numbers.tolist(), kind)) for kind in Signature
    }
    chosen.pools = pools_of(signatures, pool, count)
    edges = bins(words, torch.bincount(pool, minlength=count))
    chosen.policies |= {
        "dimee": {"exit_threshold": alpha},
        "length-quantile": {"exit_threshold": alpha, "edges": edges},
    }
    routes = {kind.value: _crossfit(s, pool, count) for kind, s in signatures.items()}
    routes["length_quantile"] = sum((words > edge).long() for edge in edges)  # type: ignore[assignment]
    routes["known_pools"] = pool
    chosen.report["pools"]["routing"] = {name: _route(exited, tier, count) for name, tier in routes.items()}
    return chosen


def choose_alpha(
    exits: Sequence[Tensor], labels: Tensor, costs: Costs, within: float
) -> tuple[float | None, dict[str, Any]]:
    """alpha by the reward under the dearest mu that leaves useful pools; null where none does."""
    deepest, by_alpha = exits[-1].shape[1], exited_by_alpha(exits, labels, costs)
    target = by_alpha[min(by_alpha)].right[-1].double().mean().item() - within

    def step(alpha: float, mu: float | None) -> dict[str, Any]:
        exited = by_alpha[alpha]
        return {
            "mu": mu,
            "alpha": alpha,
            "pools": torch.bincount(exited.pool, minlength=len(exits)).tolist(),
            "accuracy": round(exited.at(exited.pool, exited.right).double().mean().item(), 4),
            "mean_cost": round(exited.at(exited.pool, exited.cost).mean().item(), 4),
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


def exited_by_alpha(exits: Sequence[Tensor], labels: Tensor, costs: Costs) -> dict[float, Exited]:
    """Every text under each of ten equidistant alphas from 1 / C to 1; `exits` as in `choose_alpha`."""
    alphas = [round(alpha, 6) for alpha in torch.linspace(1 / exits[-1].shape[2], 1, 10).tolist()]
    return {alpha: _exited(exits, labels, alpha, costs) for alpha in alphas}


def best_alpha(by_alpha: Mapping[float, Exited], mu: float) -> float:
    """Eq. 3."""
    return max(by_alpha, key=lambda alpha: by_alpha[alpha].reward(mu))


def pools_of(signatures: Mapping[Signature, Tensor], pool: Tensor, count: int) -> Pools:
    """Sizes and means of the pools, [N] each text's own; a void one is infinitely far from every text."""
    sizes = torch.bincount(pool, minlength=count)
    means = {kind: _means(own, pool, count).nan_to_num(nan=math.inf) for kind, own in signatures.items()}
    return Pools(tuple(sizes.tolist()), {kind: tuple(map(tuple, own.tolist())) for kind, own in means.items()})


def bins(words: Tensor, sizes: Tensor) -> list[int]:
    """Words up to which a text belongs to each bin but the last: as many texts in a bin as in its pool, ties apart."""
    ordered = words.sort().values
    ends = sizes.cumsum(0)[:-1].clamp(1, len(words))
    return [int(ordered[int(end) - 1]) for end in ends]


def _exited(exits: Sequence[Tensor], labels: Tensor, alpha: float, costs: Costs) -> Exited:
    rows = torch.arange(len(labels))
    confidence, right, cost, sure = [], [], [], []
    for tier, own in enumerate(exits):
        last = tier == len(exits) - 1
        layer = torch.full((len(labels),), own.shape[1]) if last else exit_taken(own.transpose(0, 1), Confidence(alpha))
        best, label = own[rows, layer - 1].max(-1)
        confidence.append(best)
        right.append(label == labels)
        cost.append(costs.of(tier, len(exits), layer))
        sure.append(best >= alpha)
    return Exited(*(torch.stack(item) for item in (confidence, right, cost, sure)))


def _means(signatures: Tensor, pool: Tensor, count: int) -> Tensor:
    return torch.stack([signatures[pool == g].mean(0) for g in range(count)])


def _crossfit(signatures: Tensor, pool: Tensor, count: int) -> Tensor:
    """The nearest mean of each text, the means coming from the other half of the texts."""
    half, out = torch.arange(len(pool)) % 2 == 0, torch.zeros(len(pool), dtype=torch.long)
    for rows in (half, ~half):
        out[rows] = torch.cdist(signatures[rows], _means(signatures[~rows], pool[~rows], count)).argmin(1)
    return out


def _route(exited: Exited, tier: Tensor, count: int) -> dict[str, Any]:
    """What a way of routing gives, and what sending as many texts to each tier at random would give."""
    sent = torch.bincount(tier, minlength=count)
    shares = sent.double() / len(tier)
    return {
        "sent_to": sent.tolist(),
        "agrees_with_pools": round((tier == exited.pool).double().mean().item(), 4),
        "accuracy": round(exited.at(tier, exited.right).double().mean().item(), 4),
        "mean_cost": round(exited.at(tier, exited.cost).mean().item(), 4),
        "accuracy_at_random": round((exited.right.double().mean(1) @ shares).item(), 4),
        "mean_cost_at_random": round((exited.cost.mean(1) @ shares).item(), 4),
    }
