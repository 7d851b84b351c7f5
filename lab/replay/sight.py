"""What a policy sees in a replay when it looks: the same as on a live tier, where that can be known from recordings.

The links are as their profiles say. No deadline, no queue, no failure, and no bytes: a replay has no order in time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lab.replay.answers import visit
from shared.policies import Clues, Link, Sight, Visit

if TYPE_CHECKING:
    from lab.replay.walk import Walk


class ReplaySight(Sight):
    """From a tier of a walk, for the text `number` of a row. `ruled`: null before inference, else if it had a rule."""

    __slots__ = ("_at", "_number", "_row", "_ruled", "_walk")

    def __init__(self, walk: Walk, at: int, row: int, number: int, *, ruled: bool | None = None) -> None:
        self._walk, self._at, self._row, self._number, self._ruled = walk, at, row, number, ruled

    def clues(self) -> Clues:
        walk, at = self._walk, self._at
        (clues,) = walk.replay.clues(np.array([self._number]), at, walk.policy.signature(walk.replay.order[at]))
        return clues

    def visits(self) -> tuple[Visit, ...]:
        out, stations, here = self._walk.out, self._walk.stations, self._at
        travelled = np.flatnonzero(out.ran[:here, self._row]).tolist() if self._walk.policy.carries_visits else []
        seen = [visit(out, stations, at, self._row, every_exit=False) for at in travelled]
        own = [] if self._ruled is None else [visit(out, stations, here, self._row, every_exit=self._ruled)]
        return (*seen, *own)

    def link(self, to: str) -> Link | None:
        replay, here = self._walk.replay, self._walk.replay.order[self._at]
        through = replay.routes[self._at].toward(to)
        profile = replay.profiles.get((here, through))
        if profile is None:
            return None
        return Link(through, profile.name, profile.rate_up_bps, profile.rate_down_bps, profile.rtt_s)
