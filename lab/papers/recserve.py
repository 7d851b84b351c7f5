"""RecServe (arXiv 2505.16502) on unseen texts: is a share that each tier learns better than a threshold that stands?

    learned     the policy `recserve`: each tier sends on the least sure share beta of what it saw; paired with the
                operating point of the card
    fixed       the same with thresholds that send the share beta of held-out texts, paired with learned

The paper's own numbers are of other models and data, so none stands beside these.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lab.replay.trial import Trial
from shared.policies.baselines.recserve import cut

BETAS = (0.1, 0.3, 0.5)


def table(chosen_on: Trial, judged_on: Trial) -> dict[str, Any]:
    """A row per beta, and the bundle's own policy and its last tier beside them."""
    rows = []
    for beta in BETAS:
        learned = {"name": "recserve", "beta": beta}
        fixed = {**learned, "thresholds": held_out_thresholds(chosen_on, beta)}
        rows.append(
            {"beta": beta, "learned": judged_on.row(learned, "collaborative"), "fixed": judged_on.row(fixed, learned)}
        )
    cloud = f"{judged_on.replay.order[-1]}-only"
    return {"rows": rows, "collaborative": judged_on.row("collaborative"), "cloud_only": judged_on.row(cloud)}


def held_out_thresholds(trial: Trial, beta: float) -> dict[str, float]:
    """For each tier but the last, the confidence below which a share beta of the texts that reach it lies."""
    thresholds: dict[str, float] = {}
    for at, tier in enumerate(trial.replay.order[:-1]):
        run = trial.of({"name": "recserve", "thresholds": dict(thresholds)}).run
        below = cut(np.sort(run.confidence[at, run.ran[at]]).tolist(), beta)
        if below is not None:
            thresholds[tier] = round(below, 6)
    return thresholds
