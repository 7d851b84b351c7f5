"""Which profile or trace is in force on one end of a link. Pure: the kernel, the clock and the names come from outside.

    set PROFILE -> profile      trace FILE -> trace      cut -> cut      heal -> what was before the cut

The state says `waiting` until the interface is known and shaped, whatever was asked for: never an unshaped link that
looks shaped.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import StrEnum

from services.shaper.shape import Direction, Shape, shape_of
from shared.errors import BadSetting
from shared.links.profile import Profile, profile
from shared.links.trace import Trace


class Mode(StrEnum):
    PROFILE = "profile"
    TRACE = "trace"
    CUT = "cut"
    WAITING = "waiting"


@dataclass
class Link:
    """One end: its name, the other tier, the direction in which this end sends, and what is in force."""

    name: str
    peer: str
    direction: Direction
    profile: Profile
    clock: Callable[[], float]  # unix time
    trace: Trace | None = None
    is_cut: bool = False
    since: float = field(init=False)
    trace_start: float = 0.0
    interface: int | None = None  # None until the way to the peer is known
    applied: Shape | None = None

    def __post_init__(self) -> None:
        self.since = self.clock()

    @property
    def mode(self) -> Mode:
        if self.applied is None:
            return Mode.WAITING
        return Mode.CUT if self.is_cut else Mode.TRACE if self.trace else Mode.PROFILE

    def set(self, name: str) -> bool:
        """Put a profile in force, ending a trace or a cut. False if it already was. Raises BadSetting."""
        return self._change(profile(name), None, is_cut=False)

    def play(self, trace: Trace) -> bool:
        """Replay a trace from its start over the profile's other numbers."""
        self.trace_start = self.clock()
        self._change(self.profile, trace, is_cut=False)
        return True

    def cut(self) -> bool:
        return self._change(self.profile, self.trace, is_cut=True)

    def heal(self) -> bool:
        return self._change(self.profile, self.trace, is_cut=False)

    def shape(self) -> Shape:
        """What this end should do now."""
        now = self.trace.at(self.clock() - self.trace_start).on(self.profile) if self.trace else self.profile
        shape = shape_of(now, self.direction)
        return replace(shape, loss_ratio=1.0) if self.is_cut else shape

    def status(self) -> dict[str, object]:
        """What `links.json` says: rate and loss of this end, the whole RTT, jitter per direction."""
        shape = self.applied or self.shape()
        trace = self.trace.name if self.trace else None
        return {
            "profile": self.profile.name,
            "mode": self.mode.value,
            "trace": trace,
            "since": self.since,
            "rate": shape.rate_bps,
            "rtt": shape.delay_s * 2,
            "jitter": shape.jitter_s,
            "loss": shape.loss_ratio,
        }

    def _change(self, profile: Profile, trace: Trace | None, *, is_cut: bool) -> bool:
        same = (self.profile, self.trace, self.is_cut) == (profile, trace, is_cut)
        self.profile, self.trace, self.is_cut = profile, trace, is_cut
        if not same:
            self.since = self.clock()
        return not same


def link_between(name: str, tier: str, profile_name: str, clock: Callable[[], float]) -> Link:
    """This tier's end of the link `name`, which is SOURCE-TARGET.

    Raises:
        BadSetting: the tier is at neither end, or there is no such profile.
    """
    ends = {Direction.UP: name.removeprefix(f"{tier}-"), Direction.DOWN: name.removesuffix(f"-{tier}")}
    for direction, peer in ends.items():
        if peer not in ("", name):
            return Link(name, peer, direction, profile(profile_name), clock)
    raise BadSetting(f"link {name!r}: expected SOURCE-TARGET, one of them {tier}")
