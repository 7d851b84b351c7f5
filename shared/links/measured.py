"""What an upstream's calls of late say about the link to it, and about the tiers behind it.

    link      a line through the latest calls: seconds = fixed + bytes * per byte, a call's weight halved after each
              second. The slope is drawn to the link's rate, as if `PRIOR` calls had shown that one: texts of one length
              tell no rate. After 5 s without a call, all of it is the profile's but the rate
    rate      of the way up: the lower median of the profile's and those of the last 3 large bodies within a minute, so
              one that was slow is not believed, and two are
    cold      a call that began its connection (handshake, slow start) tells no rate, and the rest only where none of
              late was warm
    compute   what a tier takes for a text once it runs, by the hops of the answers; with the links behind the upstream
    waiting   the seconds of work before a replica's model, which every answer of its names; forgotten after 2 s

Left out: that the ways there and back differ otherwise than by the profile. Bytes count both ways together.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median_low

from shared.contracts import InferredRow
from shared.links.estimates import Smoothed
from shared.links.profile import Profile, on_the_wire

FORGET_S, HALF_LIFE_S = 5.0, 1.0  # of a call's time on the link
FORGET_COMPUTE_S = 60.0
FORGET_WAITING_S = 2.0
MOST_WAITING_S = 3600.0  # what an upstream may say
PRIOR = 4 * 1000.0**2  # bytes^2: four calls, each 1000 bytes from the mean
LARGE = 16_384  # bytes of a body that tells the rate
FORGET_RATE_S, LAST_LARGE = 60.0, 3


@dataclass(frozen=True)
class Line:
    """What a link takes: seconds of a call without a body, and of each byte of its bodies, both ways together; `up_s`:
    of each byte of the way up alone."""

    fixed_s: float
    byte_s: float
    up_s: float

    def takes_s(self, size: float) -> float:
        """Seconds of a call with bodies of `size` bytes in all.

        >>> Line(0.04, 1e-5, 2e-5).takes_s(2000)
        0.06
        """
        return self.fixed_s + size * self.byte_s


def by_profile(link: Profile) -> Line:
    """The line of a link that is as its profile says, half of the bytes each way."""
    up_s, down_s = (8 / rate if rate else 0.0 for rate in (link.rate_up_bps, link.rate_down_bps))
    return Line(link.rtt_s + on_the_wire(0) * (up_s + down_s), (up_s + down_s) / 2, up_s)


@dataclass
class _Calls:
    """Weighted sums over calls: of 1, bytes x, seconds y, x squared and x y. Weights halve after each second."""

    at: float = -math.inf  # when the last call ended
    sums: tuple[float, ...] = (0.0,) * 5

    def add(self, now: float, x: float, y: float) -> None:
        old, weight = self.sums, 0.5 ** ((now - self.at) / HALF_LIFE_S)
        self.at, self.sums = now, tuple(weight * a + b for a, b in zip(old, (1.0, x, y, x * x, x * y), strict=True))

    def known(self, now: float) -> bool:
        return now - self.at <= FORGET_S

    def line(self, now: float, byte_s: float, *, rate: bool = False) -> tuple[float, float]:
        """Fixed seconds and those of a byte; `rate`: these are by the calls too, and only drawn to `byte_s`."""
        total, x, y, xx, xy = self.sums
        mean_x, mean_y = x / total, y / total
        if rate:
            weight = 0.5 ** ((now - self.at) / HALF_LIFE_S)
            around, along = max(0.0, xx - x * mean_x), xy - x * mean_y
            byte_s = (weight * along + PRIOR * byte_s) / (weight * around + PRIOR)
        byte_s = min(max(0.0, byte_s), mean_y / max(1.0, mean_x))  # so that nothing takes less than no time
        return max(0.0, mean_y - byte_s * mean_x), byte_s


class Measured:
    """Of one upstream. `clock` gives seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.forget_link()
        self._compute: dict[str, Smoothed] = {}

    def forget_link(self) -> None:
        """The link is another one from now on."""
        self._warm, self._cold = _Calls(), _Calls()
        self._large: deque[tuple[float, float]] = deque(maxlen=LAST_LARGE)  # when, seconds of a byte on the way up

    def add(self, up: int, down: int, seconds: float, link: Profile, *, cold: bool = False) -> None:
        """A call with bodies of so many bytes was this long on the link, whose profile is `link`.

        `cold`: it began its connection.
        """
        now = self._clock()
        if up < LARGE:
            (self._cold if cold else self._warm).add(now, up + down, seconds)
        elif not cold:
            line = self.line(link)
            down_s = down * max(0.0, 2 * line.byte_s - line.up_s)
            self._large.append((now, max(0.0, seconds - line.fixed_s - down_s) / on_the_wire(up)))

    def line(self, link: Profile) -> Line:
        """What a call takes on the link now; `link` is its profile."""
        now, usual = self._clock(), by_profile(link)
        up_s = median_low([usual.up_s, *(rate for at, rate in self._large if now - at <= FORGET_RATE_S)])
        share = usual.up_s / usual.byte_s if usual.byte_s else 1.0  # of the way up in a byte of both
        byte_s = up_s / share if share else usual.byte_s
        if self._warm.known(now):
            fixed_s, byte_s = self._warm.line(now, byte_s, rate=True)
        elif self._cold.known(now):
            fixed_s, byte_s = self._cold.line(now, byte_s)
        else:
            fixed_s = usual.fixed_s
        return Line(fixed_s, byte_s, byte_s * share)

    def answered(self, rows: Sequence[InferredRow]) -> None:
        """Take in what the tiers behind the link took for the texts of one call."""
        for tier in {hop.tier for row in rows for hop in row.hops}:
            seconds = 0.0
            for row in rows:
                at = next((at for at, hop in enumerate(row.hops) if hop.tier == tier), None)
                if at is None:
                    continue
                hop = row.hops[at]
                ran = sum(hop.timings_ms.get(stage, 0.0) for stage in ("tokenize", "infer", "prune"))
                seconds = max(seconds, (ran + (hop.link.ms if at and hop.link else 0.0)) / 1e3)
            of_tier = self._compute.setdefault(tier, Smoothed(forget_s=FORGET_COMPUTE_S, clock=self._clock))
            of_tier.add(seconds / len(rows))

    def compute_s(self, tier: str) -> float | None:
        """Seconds of a text at a tier behind the link; null where none was measured of late."""
        return self._compute[tier].mean if tier in self._compute else None


class Waiting:
    """What waits at one replica, as it says. `clock` gives seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seconds, self._heard = 0.0, -math.inf

    def hear(self, said: str | None) -> None:
        """Take in how many seconds of work wait there, as an answer's header says; nonsense is left out."""
        try:
            seconds = float(said or "")
        except ValueError:
            return
        if 0 <= seconds <= MOST_WAITING_S:  # not so for NaN
            self._seconds, self._heard = seconds, self._clock()

    @property
    def seconds(self) -> float | None:
        """What it said; null where it said nothing of late."""
        return self._seconds if self._clock() - self._heard <= FORGET_WAITING_S else None

    @property
    def left_s(self) -> float:
        """What is left of it by now, if nothing came since."""
        return max(0.0, self._seconds - (self._clock() - self._heard))
