"""What an upstream's calls of late say about the link to it, and about the tiers behind it.

    link      a line through the calls of the last 5 s: seconds = fixed + bytes * per byte, a call's weight halved after
              each second. The slope is drawn to the profile's, as if `PRIOR` calls had shown that one: texts of one
              length tell no rate. Before any call, all of it is the profile's
    compute   what a tier takes for a text once it runs, by the hops of the answers; with the links behind the upstream
    waiting   the seconds of work before a replica's model, which every answer of its names; forgotten after 2 s

Left out: that the ways there and back differ. Bytes count both ways together.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from shared.contracts import InferredRow
from shared.links.estimates import Smoothed
from shared.links.profile import Profile, on_the_wire

FORGET_S, HALF_LIFE_S = 5.0, 1.0  # of a call's time on the link
FORGET_COMPUTE_S = 60.0
FORGET_WAITING_S = 2.0
MOST_WAITING_S = 3600.0  # what an upstream may say
PRIOR = 4 * 1000.0**2  # bytes^2: four calls, each 1000 bytes from the mean
MOST_CALLS = 200


@dataclass(frozen=True)
class Line:
    """What a link takes: seconds of a call without a body, and of each byte of its bodies, both ways together."""

    fixed_s: float
    byte_s: float

    def takes_s(self, size: float) -> float:
        """Seconds of a call with bodies of `size` bytes in all.

        >>> Line(0.04, 1e-5).takes_s(2000)
        0.06
        """
        return self.fixed_s + size * self.byte_s


def by_profile(link: Profile) -> Line:
    """The line of a link that is as its profile says, half of the bytes each way."""
    per_bit = [1 / rate for rate in (link.rate_up_bps, link.rate_down_bps) if rate]
    headers_s = sum(8 * on_the_wire(0) * bit_s for bit_s in per_bit)
    return Line(link.rtt_s + headers_s, 8 * sum(per_bit) / 2)


class Measured:
    """Of one upstream. `clock` gives seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._calls: deque[tuple[float, int, float]] = deque(maxlen=MOST_CALLS)  # when, bytes, seconds
        self._compute: dict[str, Smoothed] = {}

    def forget_link(self) -> None:
        """The link is another one from now on."""
        self._calls.clear()

    def add(self, size: int, seconds: float) -> None:
        """A call with bodies of `size` bytes in all was this long on the link."""
        self._calls.append((self._clock(), size, seconds))

    def line(self, link: Profile) -> Line:
        """What a call takes on the link now; `link` is its profile."""
        now, usual = self._clock(), by_profile(link)
        weighed = [
            (0.5 ** ((now - at) / HALF_LIFE_S), size, seconds)
            for at, size, seconds in self._calls
            if now - at <= FORGET_S
        ]
        if not weighed:
            return usual
        total = sum(weight for weight, _, _ in weighed)
        mean_size = sum(weight * size for weight, size, _ in weighed) / total
        mean_s = sum(weight * seconds for weight, _, seconds in weighed) / total
        around = [(weight, size - mean_size, seconds - mean_s) for weight, size, seconds in weighed]
        spread = sum(weight * by * by for weight, by, _ in around) + PRIOR
        slope = (sum(weight * by * of for weight, by, of in around) + PRIOR * usual.byte_s) / spread
        byte_s = min(max(0.0, slope), mean_s / max(1.0, mean_size))  # so that nothing takes less than no time
        return Line(max(0.0, mean_s - byte_s * mean_size), byte_s)

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
