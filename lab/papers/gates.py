"""Gates on unseen texts: what a price of time buys, against the confidence rule that takes as long, text by text.

    path-gates   against `collaborative`, and against a bare threshold: below it, the last tier is asked; no early exits
    jei-dnn      against `deebert`: with two labels, a threshold on the entropy is one on the confidence

A rival has the threshold whose mean modelled time comes nearest from below. It is set on the judged texts themselves,
which says nothing of their labels. Gates are fitted on held-out texts.
Words that no tier reads travel in all of them: it changes no answer, and no text has to be recorded twice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from lab.choice import last_within
from lab.fit.gates import Recorded, first_best, fit_jei_dnn, fit_path
from lab.fit.prices import NAME, in_card, recorded
from lab.replay.trial import Spec, Trial
from shared.model.gates import OF_JEI_DNN

PRICES = (0.02, 0.1, 0.2, 0.4, 0.8)
WHOLE = {"unread_words": True}


def table(chosen_on: Trial, judged_on: Trial) -> dict[str, Any]:
    """A row per policy and price, paired with its rival; and how well JEI-DNN's gates tell what was best."""
    known, judged = (recorded(trial.replay, trial.times, **WHOLE) for trial in (chosen_on, judged_on))
    links, deepest = judged_on.conditions.links, judged_on.replay.order[-1]
    rows = []
    for price in PRICES:
        gates = fit_jei_dnn(known, deepest, price)
        path = {"profiles": [{"links": links, "tiers": fit_path(known, price)}], **WHOLE}
        exits = {"name": "jei-dnn", "gates": {deepest: gates}}
        with in_card(judged_on.replay, **path):  # so a digest of them travels
            rivals = {"collaborative": _collaborative, "threshold": _threshold}
            by_path = _against(judged_on, {"name": NAME, **path}, rivals)
        made = {NAME: by_path, "jei-dnn": _against(judged_on, exits, {"threshold": _deebert})}
        rows.append({"price": price, **made, "auc": auc(judged, deepest, price, gates)})
    cloud = f"{deepest}-only"
    return {
        "rows": rows,
        "collaborative": judged_on.row({"name": "collaborative", **WHOLE}),
        "cloud_only": judged_on.row(cloud),
    }


def _against(trial: Trial, spec: Spec, rivals: Mapping[str, Callable[[float], Spec]]) -> dict[str, Any]:
    """A policy's row, and that of each rival's setting that takes at most as long; `paired` is the policy less it."""
    limit, out = float(trial.of(spec).ms.mean()), trial.row(spec)
    for name, rival in rivals.items():

        def keeps(x: float, rival: Callable[[float], Spec] = rival) -> bool:
            return float(trial.of(rival(x)).ms.mean()) <= limit

        found = rival(last_within(keeps))
        out[name] = {**trial.row(found), "paired": trial.paired(trial.of(spec), trial.of(found))}
    return out


def _collaborative(x: float) -> dict[str, Any]:
    return {"name": "collaborative", "offload_threshold": round(x, 4), **WHOLE}


def _threshold(x: float) -> Spec:
    return {**_collaborative(x), "curve": "step", "skip_below": 1.0, "theta": 0.0}


def _deebert(x: float) -> Spec:
    return {"name": "deebert", "entropy_threshold": round(1 - x, 4)}


def auc(data: Recorded, tier: str, price: float, gates: list[list[float]]) -> dict[str, float]:
    """How well gates, and how well the confidence, tell the exits from JEI-DNN's g* on: over all exits, and by exit.

    `by_exit` are means over the exits; with two labels the two can differ there by the order that they give alone.
    """
    from sklearn.metrics import roc_auc_score

    x, weights = data.features[tier][:, :-1], np.array(gates)
    opens = first_best(data, tier, price)[:, None] <= np.arange(x.shape[1])  # [N, E - 1]
    scored = {"gates": (x[..., :OF_JEI_DNN] * weights[:, :-1]).sum(-1) + weights[:, -1], "confidence": x[..., 0]}
    both = [exit_ for exit_ in range(x.shape[1]) if 0 < opens[:, exit_].mean() < 1]
    out = {name: float(roc_auc_score(opens.ravel(), own.ravel())) for name, own in scored.items()}
    by_exit = {
        f"{name}_by_exit": float(np.mean([roc_auc_score(opens[:, exit_], own[:, exit_]) for exit_ in both]))
        for name, own in scored.items()
    }
    return {name: round(value, 4) for name, value in {**out, **by_exit}.items()}
