"""DIMEE-F as one unit cost changes (Bajpai & Hanawal 2025, arXiv 2410.05338, section VI-B and figure 3).

    alpha    chosen again on held-out texts by eq. 2-3 under the changed cost; mu stays the card's
    pools    of those texts under that alpha; an unseen text goes to the nearest mean, as ever

The costs that change are reconstructed, fitted to the paper's Table I [CALC]; the paper does not say how far it alters
them: a quarter to four times is ours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from functools import cache
from typing import Any

import numpy as np
import torch

from lab.fit.pools import Costs, Exited, best_alpha, exited_by_alpha, pools_of
from lab.replay.costs import unit_costs
from lab.replay.recorder import Kernel
from lab.replay.trial import Outcomes, Trial
from lab.stats import score
from shared.model.pools import Signature

FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)


def variation(chosen_on: Trial, judged_on: Trial) -> dict[str, Any]:
    """Per unit cost and factor: alpha, score, mean cost in units at the changed prices, who answers; the score less
    the unchanged one's, paired."""
    mu = judged_on.bundle.card.report["pools"]["chosen"]["mu"]
    dimee, metric = dimee_at(chosen_on, judged_on), judged_on.bundle.metric
    usual = dimee(Costs(), mu)[1]
    rows: dict[str, list[dict[str, Any]]] = {}
    for name, fitted in asdict(Costs()).items():
        rows[name] = []
        for factor in FACTORS:
            costs = replace(Costs(), **{name: fitted * factor})
            alpha, own = dimee(costs, mu)
            rows[name].append(
                {
                    "factor": factor,
                    "alpha": alpha,
                    "score": score(metric, own.label, judged_on.truth),
                    "less_unchanged": judged_on.paired(own, usual)[metric.value],
                    "units": float(unit_costs(judged_on.replay, own.run, costs)[judged_on.read].mean()),
                    "answered_by_tier": np.bincount(
                        own.run.answered_by[judged_on.read], minlength=len(own.run.tiers)
                    ).tolist(),
                }
            )
    return {"mu": mu, "chosen_on": chosen_on.described(), "rows": rows}


def dimee_at(chosen_on: Trial, judged_on: Trial) -> Callable[[Costs, float], tuple[float, Outcomes]]:
    """alpha under some costs, and what DIMEE-F with that alpha and its pools does to the unseen texts."""
    replay = chosen_on.replay
    numbers = replay.numbers[chosen_on.read]
    exits = [station.table(numbers, Kernel.PLAIN).exits[numbers] for station in replay.stations]
    labels = torch.tensor(chosen_on.truth)
    signatures = {Signature.MEAN_WORD: torch.tensor(replay.signatures(numbers, Signature.MEAN_WORD))}

    @cache
    def outcomes(alpha: float) -> Outcomes:
        pool = exited_by_alpha(exits, labels, Costs())[alpha].pool
        bundle = replace(judged_on.bundle, pools=pools_of(signatures, pool, len(exits)))
        trial = Trial(bundle, list(judged_on.replay.examples), judged_on.conditions, split=judged_on.split)
        return trial.of({"name": "dimee", "exit_threshold": alpha})

    def dimee(costs: Costs, mu: float) -> tuple[float, Outcomes]:
        by_alpha: dict[float, Exited] = exited_by_alpha(exits, labels, costs)
        alpha = best_alpha(by_alpha, mu)
        return alpha, outcomes(alpha)

    return dimee
