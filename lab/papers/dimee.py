"""Bajpai & Hanawal 2025 (DIMEE, arXiv 2410.05338): Table I again, each device alone, costs, and the pools.

    table_1    the paper's rows, and length-quantile, collaborative and oracle beside them, on one `split` bundle
    matched    what DIMEE must beat at equal cost: length bins as large as its pools, and a confidence cascade whose
               one threshold is set so that it costs as much. Both look at no label, so both may use the unseen texts
    devices    each tier alone, and each tier on the texts that DIMEE sends there

Unit costs are reconstructed, fitted to the paper's Table I [CALC] (`replay/costs.py`). Left out: BERT, BERT-large.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from lab.choice import last_within
from lab.fit.pools import bins
from lab.papers.trial import Outcomes, Spec, Trial
from lab.replay.costs import references
from lab.stats import accuracy_of, judged
from shared.errors import UnknownPolicy

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
PLAIN = ("early-exit", "random")


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
            name: trial.paired(trial.of(ROWS[name]), trial.of(DIMEE)) for name in PLAIN if {name, "dimee-f"} <= {*rows}
        },
    }


def matched(trial: Trial) -> dict[str, Any]:
    """Length bins and a cascade at DIMEE's cost; `paired` is each of them less DIMEE."""
    return {name: trial.row(spec, DIMEE) for name, spec in rivals(trial).items()}


def rivals(trial: Trial) -> dict[str, dict[str, Any]]:
    """The settings of what is compared with DIMEE at equal cost."""
    alpha = trial.bundle.card.policies["dimee"]["exit_threshold"]
    run = trial.of(DIMEE).run
    sizes = np.bincount(run.answered_by, minlength=len(run.tiers))
    edges = bins(torch.tensor(run.words[trial.replay.numbers]), torch.tensor(sizes))
    return {
        "length-quantile, bins as large": {"name": "length-quantile", "exit_threshold": alpha, "edges": edges},
        "confidence cascade, same cost": cascade_at(trial, float(trial.of(DIMEE).cost.mean())),
    }


def cascade(threshold: float) -> dict[str, Any]:
    """Tier after tier, all layers, until one is confident enough; the last one that ran answers."""
    return {
        "name": "collaborative",
        "offload_threshold": threshold,
        "curve": "step",
        "theta": 0.0,
        "pruning_coefficient": 0.0,
        "weighting": "last",
    }


def cascade_at(trial: Trial, cost: float) -> dict[str, Any]:
    """The cascade whose mean cost is nearest below this one: cost grows with the threshold."""
    return cascade(round(last_within(lambda threshold: float(trial.of(cascade(threshold)).cost.mean()) <= cost), 6))


def devices(trial: Trial) -> dict[str, Any]:
    """Each tier alone on all texts, and on those that DIMEE gives it."""
    order, dimee = trial.replay.order, trial.of(DIMEE)
    answered = dimee.run.answered_by[trial.read]
    cloud = references(trial.replay).cloud
    out: dict[str, Any] = {}
    for at, tier in enumerate(order):
        alone, own = trial.of(f"{tier}-only"), answered == at
        out[tier] = {
            "alone": _score(trial, alone, np.ones(len(own), bool)),
            "alone_on_what_dimee_sends": _score(trial, alone, own),
            "dimee_on_what_it_sends": _score(trial, dimee, own),
            "share_of_texts": float(own.mean()),
            "cost_against_cloud": float(alone.cost.mean() / cloud - 1),
        }
    return out


def _score(trial: Trial, outcomes: Outcomes, rows: np.ndarray) -> dict[str, Any]:
    said, truth = outcomes.label[rows], trial.truth[rows]
    if not len(said):
        return {"n": 0}
    return {"n": len(said), **accuracy_of(said == truth), **judged(trial.bundle.metric, said, truth)}


def pools(trial: Trial) -> dict[str, Any]:
    """How often a text's embedding puts it into the pool that its exits say, and how often chance would."""
    from lab.replay.recorder import Kernel

    alpha = trial.bundle.card.policies["dimee"]["exit_threshold"]
    numbers = trial.replay.numbers[trial.read]
    sure = [
        (s.table(numbers, Kernel.PLAIN).exits[numbers].amax(-1) >= alpha).any(1).numpy() for s in trial.replay.stations
    ]
    sure[-1][:] = True
    true = np.stack(sure).argmax(0)
    assigned = trial.of(DIMEE).run.answered_by[trial.read]
    return {
        "agree": float((true == assigned).mean()),
        "agree_by_chance": float(
            sum((true == g).mean() * (assigned == g).mean() for g in range(len(trial.replay.order)))
        ),
    }
