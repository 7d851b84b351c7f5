"""A policy beside another on the same texts, paired: figures, a table, and the sentence that bench, replay and the
tables end with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.table import Table

from lab.console import sheet
from lab.policies import shown
from lab.stats import paired_difference, paired_saving, paired_shares

Figures = dict[str, Any]


def beside(ms: np.ndarray, other_ms: np.ndarray, right: np.ndarray, other_right: np.ndarray) -> Figures:
    """Of the same texts, [N]: mean time and p95 over the other's, ms more and accuracy gained; all but p95 with 95 %.

    >>> one, two = np.array([10.0, 10.0]), np.array([True, True])
    >>> beside(one, 2 * one, two, two)["time_ratio"], beside(one, 2 * one, two, two)["p95_ratio"]
    ([0.5, 0.5, 0.5], 0.5)
    """
    saving, low, high = paired_saving(ms, other_ms)
    return {
        "time_ratio": [1 - saving, 1 - high, 1 - low],
        "p95_ratio": float(np.percentile(ms, 95) / np.percentile(other_ms, 95)),
        "ms": list(paired_difference(ms, other_ms)),
        "accuracy": list(paired_shares(right.astype(bool), other_right.astype(bool))),
    }


def verdict(policy: str, rows: Mapping[str, Figures]) -> str:
    """One sentence: a policy beside each of the others; `rows` holds what `beside` gave, by the other's name.

    >>> row = {"time_ratio": [0.5, 0.4, 0.6], "accuracy": [-0.01, -0.02, 0.0], "p95_ratio": 1.3}
    >>> verdict("collaborative", {"cloud-only": row})  # doctest: +NORMALIZE_WHITESPACE
    'collaborative takes 0.50 [0.40, 0.60] times as long as cloud-only, at -1.0 [-2.0, +0.0] points of accuracy
    (p95: 1.30 times). Brackets hold 95 % intervals.'
    """
    if not rows:
        return f"{shown(policy)} has nothing to stand beside: name another policy too, such as the deepest tier alone."
    clauses = []
    for other, row in rows.items():
        time = "{:.2f} [{:.2f}, {:.2f}]".format(*row["time_ratio"])
        points = "{:+.1f} [{:+.1f}, {:+.1f}]".format(*(100 * share for share in row["accuracy"]))
        tail = f"(p95: {row['p95_ratio']:.2f} times)"
        clauses.append(f"{time} times as long as {shown(other)}, at {points} points of accuracy {tail}")
    return f"{shown(policy)} takes {'; '.join(clauses)}. Brackets hold 95 % intervals."


def beside_whom(policies: Sequence[str], deepest: str, *more: str) -> tuple[str, list[str]]:
    """Whom a verdict is about, and whom it compares with: the deepest tier alone, `tabi` if it was asked, and `more`.

    >>> beside_whom(["collaborative", "tabi", "random"], "cloud-only")
    ('collaborative', ['cloud-only', 'tabi'])
    >>> beside_whom(["cloud-only", "end-only"], "cloud-only", "whole cloud-only")
    ('end-only', ['cloud-only', 'whole cloud-only'])
    """
    policy = next((name for name in policies if name != deepest), deepest)
    others = [deepest, *(["tabi"] if "tabi" in policies else []), *more]
    return policy, [name for name in dict.fromkeys(others) if name != policy]


def table(rows: Mapping[str, Mapping[str, Figures]]) -> Table:
    """A row for each pair: the other's name, then the policy's."""
    columns = ("beside", "policy", "times its time [95 %]", "ms more [95 %]", "times its p95", "points over it [95 %]")
    out = sheet("policies beside others, paired", *columns, words=("beside", "policy"))
    for other, by_policy in rows.items():
        for policy, figures in by_policy.items():
            points = (100 * share for share in figures["accuracy"])
            out.add_row(
                shown(other),
                shown(policy),
                "{:.2f} [{:.2f} {:.2f}]".format(*figures["time_ratio"]),
                "{:+.0f} [{:+.0f} {:+.0f}]".format(*figures["ms"]),
                f"{figures['p95_ratio']:.2f}",
                "{:+.1f} [{:+.1f} {:+.1f}]".format(*points),
            )
    return out
