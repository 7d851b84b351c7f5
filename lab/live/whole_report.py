"""What a bench says of whole models: every policy beside each of them, on the same texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.table import Table

from lab.console import sheet
from lab.live.bench import Sample
from lab.policies import shown
from lab.stats import paired_difference, paired_saving, paired_shares

Figures = dict[str, Any]


def beside(policy: Sequence[Sample], whole: Sequence[Sample]) -> Figures:
    """A policy's time over that of a whole model, and what it gains, each with its paired 95 % interval."""
    ours, theirs = (np.array([s.seconds for s in samples]) * 1e3 for samples in (policy, whole))
    hits = (np.array([s.right for s in samples]) for samples in (policy, whole))
    saving, low, high = paired_saving(ours, theirs)
    return {
        "time_of_whole": [1 - saving, 1 - high, 1 - low],
        "latency_minus_whole_ms": list(paired_difference(ours, theirs)),
        "accuracy_minus_whole": list(paired_shares(*hits)),
    }


def verdict(first: str, rows: Mapping[str, Mapping[str, Figures]]) -> str:
    """One sentence: the first policy beside each whole model.

    >>> row = {"time_of_whole": [0.5, 0.4, 0.6], "accuracy_minus_whole": [-0.01, -0.02, 0.0]}
    >>> verdict("collaborative", {"whole cloud-only": {"collaborative": row}})
    'collaborative takes 0.50 [0.40, 0.60] times as long as whole cloud-only, at -1.0 [-2.0, +0.0] points.'
    """
    clauses = []
    for whole, by_policy in rows.items():
        time, points = by_policy[first]["time_of_whole"], by_policy[first]["accuracy_minus_whole"]
        spread = "{:.2f} [{:.2f}, {:.2f}]".format(*time)
        gained = "{:+.1f} [{:+.1f}, {:+.1f}]".format(*(100 * share for share in points))
        clauses.append(f"{spread} times as long as {whole}, at {gained} points")
    return f"{shown(first)} takes {'; '.join(clauses)}."


def table(rows: Mapping[str, Mapping[str, Figures]]) -> Table:
    """A row for each whole model and policy."""
    columns = ("beside", "policy", "time of whole's [95 %]", "ms less whole's [95 %]", "points over it [95 %]")
    out = sheet("policies beside whole models, paired", *columns, words=("beside", "policy"))
    for whole, by_policy in rows.items():
        for policy, figures in by_policy.items():
            points = (100 * share for share in figures["accuracy_minus_whole"])
            out.add_row(
                whole,
                shown(policy),
                "{:.2f} [{:.2f} {:.2f}]".format(*figures["time_of_whole"]),
                "{:+.0f} [{:+.0f} {:+.0f}]".format(*figures["latency_minus_whole_ms"]),
                "{:+.1f} [{:+.1f} {:+.1f}]".format(*points),
            )
    return out
