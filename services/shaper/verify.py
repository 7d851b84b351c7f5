"""Does a link do what its profile says? Settings are read back from the kernel at both ends; RTT and rate are measured.

RTT: |median - expected| within max(1 ms, 5 %, 3 * 1.25 sd / sqrt(n)), sd of both directions' jitter. The delays are
symmetric, so median and mean agree on a quiet host; a busy one adds outliers to the mean. Expected is the profile's,
plus the time that the exchange's own bytes take at the link's rates. Rate: 85 to 101 % of the profile's, up to
200 Mbit/s. Loss: what the packets lost show, within 3 standard deviations of the profile's (and half a percent).
A probe that does not hold is made once more, and the second one counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from services.shaper.probe import ECHO_FRAME
from services.shaper.shape import Direction, Reading, Shape, shape_of
from shared.links.profile import Profile

LEAST, MOST = 0.85, 1.01  # of the rate


@dataclass(frozen=True)
class Check:
    """One thing that was compared: SI units or a ratio, words for settings."""

    name: str
    expected: str
    measured: str
    held: bool


@dataclass(frozen=True)
class Report:
    """Every check of one link, and the figures behind them."""

    link: str
    profile: str
    mode: str
    checks: tuple[Check, ...]
    measured: Mapping[str, Any]

    @property
    def ok(self) -> bool:
        return all(check.held for check in self.checks)

    @property
    def reason(self) -> str:
        """What did not hold; empty if everything did."""
        failed = [check for check in self.checks if not check.held]
        return "; ".join(f"{check.name}: expected {check.expected}, found {check.measured}" for check in failed)

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "ok": self.ok}


def judge_settings(profile: Profile, direction: Direction, shown: Mapping[str, Any]) -> Check:
    """One end: the kernel's settings against the profile's (or against the trace's, as its shaper sees them)."""
    shape = shape_of(profile, direction)
    if shown["mode"] == "cut":
        shape = replace(shape, loss_ratio=1.0)
    name, reading = f"settings {direction}", shown["kernel"] and Reading.of(shown["kernel"])
    if not reading:
        return Check(name, profile.name, "not shaped", held=False)
    if shown["trace"]:
        return Check(name, f"trace {shown['trace']}", reading_text(reading), bool(shown["held"]))
    return Check(name, _words(shape), reading_text(reading), reading.holds(shape))


def judge_probe(profile: Profile, mode: str, measured: Mapping[str, Any]) -> list[Check]:
    """What a probe from the source found, against the profile."""
    up, down = (shape_of(profile, direction) for direction in Direction)
    out = bool(measured.get("out"))
    if mode == "cut" or profile.loss_ratio >= 1 or out:
        nothing = mode == "cut" or profile.loss_ratio >= 1
        return [
            Check(
                "outage", "nothing gets through" if nothing else "a way", "nothing" if out else "a way", out == nothing
            )
        ]
    rtt = measured["rtt"]
    expected = profile.rtt_s + sum(8 * ECHO_FRAME / shape.rate_bps for shape in (up, down) if shape.rate_bps)
    deviation = (up.jitter_s**2 + down.jitter_s**2) ** 0.5
    room = max(1e-3, 0.05 * profile.rtt_s, 3 * 1.25 * deviation / rtt["n"] ** 0.5)
    checks = [
        Check(
            "rtt",
            f"{1e3 * expected:.2f} ± {1e3 * room:.2f} ms",
            f"{1e3 * rtt['median']:.2f} ms (mean {1e3 * rtt['mean']:.2f}, sd {1e3 * rtt['sd']:.2f}, n {rtt['n']})",
            abs(rtt["median"] - expected) <= room,
        )
    ]
    for direction, shape in zip(Direction, (up, down), strict=True):
        if direction.value in measured:
            checks += _judge_train(direction, shape, measured[direction.value])
    return checks


def _judge_train(direction: Direction, shape: Shape, measured: Mapping[str, Any]) -> list[Check]:
    if not measured["in_time"] and measured["rate"] < LEAST * shape.rate_bps:
        slow = "not measured: this host cannot send so fast (the settings above are the kernel's)"
        return [Check(f"rate {direction}", rate_text(shape.rate_bps), slow, held=True)]
    share = measured["rate"] / shape.rate_bps
    lost = 1 - measured["received"] / measured["sent"]
    room = 3 * (shape.loss_ratio * (1 - shape.loss_ratio) / measured["sent"]) ** 0.5 + 0.005
    return [
        Check(
            f"rate {direction}",
            f"{rate_text(shape.rate_bps)}, {LEAST:.0%} to {MOST:.0%}",
            f"{rate_text(measured['rate'])}, {share:.1%}",
            LEAST <= share <= MOST,
        ),
        Check(
            f"loss {direction}",
            f"{shape.loss_ratio:.2%} ± {room:.2%}",
            f"{lost:.2%} of {measured['sent']}",
            abs(lost - shape.loss_ratio) <= room,
        ),
    ]


def rate_text(rate: float) -> str:
    """Bits per second for people: `67 Mbit/s`."""
    if not rate:
        return "unlimited"
    scale, unit = next((scale, unit) for scale, unit in ((1e9, "G"), (1e6, "M"), (0, "k")) if rate >= scale)
    return f"{rate / (scale or 1e3):.4g} {unit}bit/s"


def _words(shape: Shape) -> str:
    return reading_text(Reading(shape.delay_s, shape.jitter_s, shape.loss_ratio, shape.bytes_per_s, shape.limit))


def reading_text(reading: Reading) -> str:
    """Settings in one line."""
    delay = f"{1e3 * reading.delay_s:g} ± {1e3 * reading.jitter_s:g} ms"
    return (
        f"{delay}, {rate_text(8 * reading.bytes_per_s)}, loss {100 * reading.loss_ratio:.4g} %, limit {reading.limit}"
    )
