"""Bajpai & Hanawal 2025 (DIMEE, arXiv 2410.05338): Table I again, each device alone, the pools, and changed costs.

    table_1    the paper's rows, and length-quantile, collaborative and oracle beside them, on one `split` bundle
    matched    what DIMEE must beat at equal cost: length bins as large as its pools, and a confidence cascade whose
               one threshold is set so that it costs as much. Both look at no label, so both may use the unseen texts
    devices    each tier alone, and each tier on the texts that DIMEE sends there
    variation  DIMEE-F as one unit cost changes (section VI-B, figure 3): alpha is chosen again on held-out texts by
               eq. 2-3 under the changed cost, mu stays the card's; the pools are those of these texts under that alpha

Unit costs are reconstructed, fitted to the paper's Table I [CALC] (`replay/costs.py`). The paper does not say how far
it alters them: a quarter to four times is ours. Left out: BERT, BERT-large.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import cache
from typing import Any

import numpy as np

from lab.fit.pools import Costs, best_alpha, bins, exited_by_alpha, pools_of
from lab.replay.costs import references, unit_costs
from lab.replay.recorder import Kernel
from lab.replay.trial import Outcomes, Spec, Trial
from lab.stats import accuracy_of, judged, score
from shared.errors import UnknownPolicy
from shared.model.pools import Signature

WHOLE: dict[str, Any] = {"name": "early-exit", "exit_threshold": 1.0}  # every layer, on the device
ROWS: dict[str, Spec] = {
    "whole model": WHOLE,
    "random": "random",
    "early-exit": "early-exit",
    "adaee": "adaee",
    "i-splitee": "i-splitee",
    "dimee-f": "dimee",
    "dimee-d": {"name": "dimee", "adaptive": True},
    "length-quantile": "length-quantile",
    "collaborative": "collaborative",
    "oracle": "oracle",
}
DIMEE: Spec = "dimee"
FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)  # of a unit cost
CASCADE = {  # tier after tier, all layers, until one is confident enough; the last one that ran answers
    "name": "collaborative",
    "curve": "step",
    "theta": 0.0,
    "pruning_coefficient": 0.0,
    "weighting": "last",
}


def table_1(trial: Trial) -> dict[str, Any]:
    """Every row, paired with the whole model on the device, and what DIMEE must beat, paired with DIMEE."""
    rows, refused = {}, {}
    for name, spec in ROWS.items():
        try:
            rows[name] = trial.row(spec, WHOLE)
        except UnknownPolicy as error:
            refused[name] = str(error)
    return {
        "rows": rows,
        "refused": refused,
        "cloud_only": trial.row(f"{trial.replay.order[-1]}-only", WHOLE),
        "against_dimee": matched(trial) if "dimee-f" in rows else {},
        "less_dimee": {
            name: trial.paired(trial.of(ROWS[name]), trial.of(DIMEE))
            for name in ("early-exit", "random")
            if {name, "dimee-f"} <= {*rows}
        },
    }


def matched(trial: Trial) -> dict[str, Any]:
    """Length bins and a cascade at DIMEE's cost; `paired` is each of them less DIMEE."""
    dimee, alpha = trial.of(DIMEE), trial.bundle.card.policies["dimee"]["exit_threshold"]
    sizes = np.bincount(dimee.run.answered_by, minlength=len(dimee.run.tiers))
    edges = bins(dimee.run.words[trial.replay.numbers], sizes)
    cascade = trial.within(CASCADE, "cost", float(dimee.cost.mean()), digits=6)
    by_length = {"name": "length-quantile", "exit_threshold": alpha, "edges": edges}
    return {
        "length-quantile, bins as large": trial.row(by_length, DIMEE),
        "confidence cascade, same cost": trial.row(cascade, DIMEE),
    }


def devices(trial: Trial) -> dict[str, Any]:
    """Each tier alone on all texts, and on those that DIMEE gives it."""
    order, dimee = trial.replay.order, trial.of(DIMEE)
    answered = dimee.run.answered_by[trial.read]
    cloud = references(trial.replay).cloud
    out: dict[str, Any] = {}
    for at, tier in enumerate(order):
        alone, here = trial.of(f"{tier}-only"), answered == at
        out[tier] = {
            "alone": _score(trial, alone, np.ones(len(here), bool)),
            "alone_on_what_dimee_sends": _score(trial, alone, here),
            "dimee_on_what_it_sends": _score(trial, dimee, here),
            "share_of_texts": float(here.mean()),
            "cost_against_cloud": float(alone.cost.mean() / cloud - 1),
        }
    return out


def _score(trial: Trial, outcomes: Outcomes, rows: np.ndarray) -> dict[str, Any]:
    labels, truth = outcomes.label[rows], trial.truth[rows]
    if not len(labels):
        return {"n": 0}
    return {"n": len(labels), **accuracy_of(labels == truth), **judged(trial.bundle.metric, labels, truth)}


def pools(trial: Trial) -> dict[str, Any]:
    """How often a text's embedding puts it into the pool that its exits say, and how often chance would."""
    alpha = trial.bundle.card.policies["dimee"]["exit_threshold"]
    numbers = trial.replay.numbers[trial.read]
    sure = [(s.table(numbers, Kernel.PLAIN).exits[numbers].max(-1) >= alpha).any(1) for s in trial.replay.stations]
    sure[-1][:] = True
    true = np.stack(sure).argmax(0)
    assigned = trial.of(DIMEE).run.answered_by[trial.read]
    chance = sum((true == tier).mean() * (assigned == tier).mean() for tier in range(len(trial.replay.order)))
    return {"agree": float((true == assigned).mean()), "agree_by_chance": float(chance)}


def variation(chosen_on: Trial, judged_on: Trial) -> dict[str, Any]:
    """Per unit cost and factor: alpha, score, mean cost in units at the changed prices, who answers; the score less
    the unchanged one's, paired."""
    mu, metric = judged_on.bundle.card.report["pools"]["chosen"]["mu"], judged_on.bundle.metric
    replay, read = chosen_on.replay, judged_on.read
    numbers, labels = replay.numbers[chosen_on.read], chosen_on.truth
    exits = [station.table(numbers, Kernel.PLAIN).exits[numbers] for station in replay.stations]
    vectors = replay.stations[0].recorder.signatures(numbers.tolist(), Signature.MEAN_WORD)
    signatures = {Signature.MEAN_WORD: np.array(vectors, dtype=np.float32)}

    @cache
    def alpha_at(costs: Costs) -> float:
        return best_alpha(exited_by_alpha(exits, labels, costs), mu)

    @cache
    def dimee(alpha: float) -> Outcomes:
        """What DIMEE-F with this alpha and its pools does to the unseen texts."""
        pool = exited_by_alpha(exits, labels, Costs())[alpha].pool
        bundle = replace(judged_on.bundle, pools=pools_of(signatures, pool, len(exits)))
        return judged_on.with_bundle(bundle).of({"name": "dimee", "exit_threshold": alpha})

    def row(costs: Costs, factor: float) -> dict[str, Any]:
        alpha = alpha_at(costs)
        outcomes = dimee(alpha)
        return {
            "factor": factor,
            "alpha": alpha,
            "score": score(metric, outcomes.label, judged_on.truth),
            "less_unchanged": judged_on.paired(outcomes, dimee(alpha_at(Costs())))[metric.value],
            "units": float(unit_costs(judged_on.replay, outcomes.run, costs)[read].mean()),
            "answered_by_tier": np.bincount(outcomes.run.answered_by[read], minlength=len(outcomes.run.tiers)).tolist(),
        }

    rows = {
        name: [row(replace(Costs(), **{name: fitted * factor}), factor) for factor in FACTORS]
        for name, fitted in asdict(Costs()).items()
    }
    return {"mu": mu, "chosen_on": chosen_on.described(), "rows": rows}
