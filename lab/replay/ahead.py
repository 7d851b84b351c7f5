"""Speculative sending in a replay: which texts leave a tier ahead of its answer, where to, and which of them in vain.

As `shared/pipeline/speculation.py` does it for requests that come one after the other: then the budget counts the texts
in their order. Answers do not depend on it. Left out: what a wasted call makes the tier that was asked do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from lab.replay.run import NONE
from lab.replay.station import ExitTable, Layers, Numbers
from shared.policies import STAY, Decision, Where
from shared.policies.mistakes import decision

if TYPE_CHECKING:
    from lab.replay.walk import Walk


def send_ahead(
    walk: Walk,
    at: int,
    where: Where,
    rows: np.ndarray,
    numbers: Numbers,
    layers: Layers,
    table: ExitTable,
    decisions: Sequence[Decision],
) -> None:
    """Note on the run which of the rows were sent on ahead of the decisions about them, as the texts `numbers`.

    `layers` are the exits that they took, by the table of the tier `at`.
    """
    out, replay, budget = walk.out, walk.replay, walk.out.budget(at, walk.replay.speculation_budget)
    out.watched[at] = True
    sent = numbers
    if walk.policy.pruning(where.tier).cuts_middle and (
        behind := replay.bundle.read_behind(where.tier, walk.policy.token_limit)
    ):
        sent = walk.stations[at].without_middle(numbers, behind)
    for i in np.argsort(rows).tolist():
        row, number, said = int(rows[i]), int(numbers[i]), decisions[i]
        confidences = table.exits[number, : layers[i] - 1].max(-1).tolist()
        layer, told = _first(walk, at, where, row, number, confidences)
        begun = told.to is not None and budget.begin()
        used = begun and (told.to, told.final) == (said.to, said.final)
        budget.end(begun=begun, wasted=begun and not used)
        if begun and told.to is not None:
            to = out.tiers.index(told.to)
            out.ahead_layer[at, row], out.ahead_used[at, row] = layer, used
            if not used:
                via = out.tiers.index(replay.routes[at].toward(told.to))
                one = np.array([row])
                out.cross_in_vain((at, via), one, sent[[i]], to if told.final else NONE)


def _first(
    walk: Walk, at: int, where: Where, row: int, number: int, confidences: Sequence[float]
) -> tuple[int, Decision]:
    """The layer of the first exit that tells where a text will go, and what it tells; `STAY`: none did."""
    draw = walk.replay.draws[at][row]
    seen = walk.seen(where, at, row, number)
    for layer, confidence in enumerate(confidences, 1):
        told = decision(walk.policy, "speculate", seen, layer, confidence, draw)
        if told.to is not None:
            return layer, told
    return 0, STAY
