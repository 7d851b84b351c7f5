"""What one end of a link does to the packets that it sends: a link's profile, seen from one side.

netem shapes what leaves an interface, so each end of a link takes half the RTT and its own direction's rate; jitter
and loss hold per direction. Jitter is the standard deviation of a normal, cut off symmetrically at 0 and at twice the
delay, so that the mean stays half the RTT; where that bites (jitter above half the delay) the deviation is smaller.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum

from shared.links.profile import Profile

PACKET = 1500  # bytes
QUEUE = 0.2  # seconds of the link's rate that may wait, besides what is on its way
FEWEST = 100  # packets: the queue of a slow link
ASSUMED = 1e9  # bits/s, to size the queue of an unlimited link
IN_ORDER = 1e10  # bits/s: without a rate, netem's jitter reorders packets


class Direction(StrEnum):
    """Up is from a link's source to its target: `end-edge` up is what the end sends."""

    UP = "up"
    DOWN = "down"


@dataclass(frozen=True)
class Shape:
    """Seconds, seconds, a ratio, bits per second (0: unlimited)."""

    delay: float
    jitter: float
    loss: float
    rate: float

    @property
    def limit(self) -> int:
        """Packets that the queue holds: those under way, and 200 ms of the rate.

        >>> Shape(delay=0.008, jitter=0.0, loss=0.0, rate=67e6).limit
        1162
        """
        return max(FEWEST, round((self.rate or ASSUMED) * (self.delay + QUEUE) / 8 / PACKET))

    @property
    def kernel_rate(self) -> int:
        """Bytes per second as netem takes them; 0 is unlimited."""
        return round((self.rate or (IN_ORDER if self.jitter else 0.0)) / 8)

    def as_dict(self) -> dict[str, float]:
        return {**asdict(self), "limit": self.limit}


@dataclass(frozen=True)
class Reading:
    """What the kernel says of an interface: its settings (seconds, ratio, bytes per second) and its counters."""

    delay: float
    jitter: float
    loss: float
    rate: int
    limit: int
    sent_bytes: int = 0
    sent_packets: int = 0
    drops: int = 0
    backlog: int = 0  # bytes

    def holds(self, shape: Shape) -> bool:
        """Whether the kernel does what `shape` asks for, to its own resolution (1 us, 1e-6)."""
        near = [(self.delay, shape.delay), (self.jitter, shape.jitter), (self.loss, shape.loss)]
        same = (self.rate, self.limit) == (shape.kernel_rate, shape.limit)
        return same and all(abs(a - b) <= 1e-6 for a, b in near)


def shape_of(profile: Profile, direction: Direction) -> Shape:
    """The end of a link that sends in `direction`."""
    rate = profile.rate_up_bps if direction is Direction.UP else profile.rate_down_bps
    return Shape(delay=profile.rtt_s / 2, jitter=profile.jitter_s, loss=profile.loss_ratio, rate=rate)
