"""What a policy sees on a live tier when it looks: the text's way so far, the links, the time left, the queue."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shared.policies import Clues, Link, Sight, Visit

if TYPE_CHECKING:
    from shared.pipeline.text import Text
    from shared.pipeline.tier import Tier


class Steady:
    """Values that do not flap: each stays until a new one is further from it than a share of it.

    >>> steady = Steady()
    >>> [steady.of("rtt", value, band=0.2) for value in (100.0, 115.0, 85.0, 125.0, 110.0)]
    [100.0, 100.0, 100.0, 125.0, 125.0]
    """

    def __init__(self) -> None:
        self._held: dict[str, float] = {}

    def of(self, name: str, value: float, *, band: float) -> float:
        held = self._held.setdefault(name, value)
        if abs(value - held) > band * held:
            held = self._held[name] = value
        return held


class LiveSight(Sight):
    """From a tier, for a text of a request that expires; without a text, for all of them."""

    __slots__ = ("_expires", "_text", "_tier")

    def __init__(self, tier: Tier, expires: float | None, text: Text | None) -> None:
        self._tier, self._expires, self._text = tier, expires, text

    def clues(self) -> Clues | None:
        return None if self._text is None else self._text.clues

    def visits(self) -> tuple[Visit, ...]:
        return () if self._text is None else self._text.visits(self._tier.name)

    def link(self, to: str) -> Link:
        upstream = self._tier.sender.upstream(to)
        profile, line, measured = upstream.link[1], upstream.line, upstream.measured
        return Link(
            to=upstream.target,
            profile=profile.name,
            rate_up_bps=profile.rate_up_bps,
            rate_down_bps=profile.rate_down_bps,
            round_trip_s=upstream.round_trip_s,
            bytes_up=upstream.bytes_up,
            bytes_down=upstream.bytes_down,
            is_down=upstream.is_down,
            fixed_s=line.fixed_s,
            byte_s=line.byte_s,
            waiting_s=upstream.waiting_s,
            compute_s=measured.compute_s(to),
            under_way_s=upstream.under_way_s,
            joules=None if profile.radio is None else profile.radio.joules,
        )

    def remaining_s(self) -> float | None:
        return None if self._expires is None else self._expires - self._tier.worker.clock()

    def waiting_s(self) -> float:
        return self._tier.worker.queue.ahead_s

    def steady(self, name: str, value: float, band: float) -> float:
        return self._tier.steady.of(name, value, band=band)
