"""What one end of a link does to the packets that it sends: a link's profile, seen from one side.

netem shapes what leaves an interface, so each end of a link takes half the RTT and its own direction's rate; jitter
and loss hold per direction. Jitter is the standard deviation of a normal, cut off symmetrically at 0 and at twice the
delay, so that the mean stays half the RTT; where that bites (jitter above half the delay) the deviation is smaller.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from shared.links.profile import Profile

PACKET_BYTES = 1500
QUEUE_S = 0.2  # of the link's rate that may wait, besides what is on its way
FEWEST_PACKETS = 100  # the queue of a slow link
ASSUMED_BPS = 1e9  # to size the queue of an unlimited link
IN_ORDER_BPS = 1e10  # without a rate, netem's jitter reorders packets
_SETTINGS = ("delay", "jitter", "loss", "rate", "limit")  # in the words of `show`


class Direction(StrEnum):
    """Up is from a link's source to its target: `end-edge` up is what the end sends."""

    UP = "up"
    DOWN = "down"


@dataclass(frozen=True)
class Shape:
    """What one end does to the packets that it sends. A rate of 0 is unlimited."""

    delay_s: float
    jitter_s: float
    loss_ratio: float
    rate_bps: float

    @property
    def limit(self) -> int:
        """Packets that the queue holds: those under way, and 200 ms of the rate.

        >>> Shape(delay_s=0.008, jitter_s=0.0, loss_ratio=0.0, rate_bps=67e6).limit
        1162
        """
        return max(FEWEST_PACKETS, round((self.rate_bps or ASSUMED_BPS) * (self.delay_s + QUEUE_S) / 8 / PACKET_BYTES))

    @property
    def bytes_per_s(self) -> int:
        """Bytes per second as netem takes them; 0 is unlimited."""
        return round((self.rate_bps or (IN_ORDER_BPS if self.jitter_s else 0.0)) / 8)


@dataclass(frozen=True)
class Reading:
    """What the kernel says of an interface: its settings and its counters."""

    delay_s: float
    jitter_s: float
    loss_ratio: float
    bytes_per_s: int
    limit: int
    sent_bytes: int = 0
    sent_packets: int = 0
    drops: int = 0
    backlog: int = 0  # bytes

    def holds(self, shape: Shape) -> bool:
        """Whether the kernel does what `shape` asks for, to its own resolution (1 us, 1e-6)."""
        near = [(self.delay_s, shape.delay_s), (self.jitter_s, shape.jitter_s), (self.loss_ratio, shape.loss_ratio)]
        same = (self.bytes_per_s, self.limit) == (shape.bytes_per_s, shape.limit)
        return same and all(abs(a - b) <= 1e-6 for a, b in near)

    def settings(self) -> dict[str, float]:
        """What `show` says of the settings; `Reading.of` reads it."""
        values = (self.delay_s, self.jitter_s, self.loss_ratio, self.bytes_per_s, self.limit)
        return dict(zip(_SETTINGS, values, strict=True))

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Reading:
        """A reading without counters, from what `show` says."""
        return cls(*(settings[key] for key in _SETTINGS))


def shape_of(profile: Profile, direction: Direction) -> Shape:
    """The end of a link that sends in `direction`."""
    rate_bps = profile.rate_up_bps if direction is Direction.UP else profile.rate_down_bps
    return Shape(profile.rtt_s / 2, profile.jitter_s, profile.loss_ratio, rate_bps)
