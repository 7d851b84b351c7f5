"""What a policy sees in a replay when it looks: the same as on a live tier, where that can be known from recordings.

The links are as their profiles say. No deadline, no queue, here or at another tier, no call under way, no failure, and
no bytes: a replay has no order in time. Nor does it know what a tier takes for a text (`Link.compute_s`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lab.replay.answers import visit
from shared.links.measured import by_profile
from shared.policies import Clues, Link, Sight, Visit

if TYPE_CHECKING:
    from lab.replay.walk import Replay, Walk


class LinkSight(Sight):
    """From a tier, without a text."""

    __slots__ = ("_at", "_replay")

    def __init__(self, replay: Replay, at: int) -> None:
        self._replay, self._at = replay, at

    def link(self, to: str) -> Link | None:
        replay, here = self._replay, self._replay.order[self._at]
        through = replay.routes[self._at].toward(to)
        profile = replay.profiles.get((here, through))
        if profile is None:
            return None
        line = by_profile(profile)
        return Link(
            to=through,
            profile=profile.name,
            rate_up_bps=profile.rate_up_bps,
            rate_down_bps=profile.rate_down_bps,
            round_trip_s=profile.rtt_s,
            fixed_s=line.fixed_s,
            byte_s=line.byte_s,
            joules=None if profile.radio is None else profile.radio.joules,
        )


class ReplaySight(LinkSight):
    """From a tier of a walk, for the text `number` of a row. `ruled`: null before inference, else if it had a rule."""

    __slots__ = ("_number", "_row", "_ruled", "_walk")

    def __init__(self, walk: Walk, at: int, row: int, number: int, *, ruled: bool | None = None) -> None:
        super().__init__(walk.replay, at)
        self._walk, self._row, self._number, self._ruled = walk, row, number, ruled

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
