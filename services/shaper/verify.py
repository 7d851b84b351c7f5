"""Does a link do what its profile says? Settings are read back from the kernel at both ends; RTT and rate are measured.

RTT: |median - expected| within max(1 ms, 5 %, 3 * 1.25 sd / sqrt(n)), sd of both directions' jitter. The delays are
symmetric, so median and mean agree on a quiet host; a busy one adds outliers to the mean. Expected is the profile's,
plus the time that the exchange's own bytes take at the link's rates. Rate: 85 to 101 % of the profile's, up to
200 Mbit/s. Loss: the share of packets lost, within 3 standard deviations of the profile's (and half a percent).
A probe that fails is made once more, and the second one counts.
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
    asked = Reading(shape.delay_s, shape.jitter_s, shape.loss_ratio, shape.bytes_per_s, shape.limit)
    return Check(name, reading_text(asked), reading_text(reading), reading.holds(shape))


def judge_probe(profile: Profile, mode: str, measured: Mapping[str, Any]) -> list[Check]:
    """What a probe from the source found, against the profile."""
    up, down = (shape_of(profile, direction) for direction in Direction)
    cut, out = mode == "cut" or profile.loss_ratio >= 1, bool(measured.get("out"))
    if cut or out:
        words = {True: "nothing gets through", False: "a way"}
        return [Check("outage", words[cut], words[out], held=out == cut)]
    rtt = measured["rtt"]
    expected_s = profile.rtt_s + sum(8 * ECHO_FRAME / shape.rate_bps for shape in (up, down) if shape.rate_bps)
    deviation_s = (up.jitter_s**2 + down.jitter_s**2) ** 0.5
    room_s = max(1e-3, 0.05 * profile.rtt_s, 3 * 1.25 * deviation_s / rtt["n"] ** 0.5)
    expected = f"{1e3 * expected_s:.2f} ± {1e3 * room_s:.2f} ms"
    found = f"{1e3 * rtt['median']:.2f} ms (mean {1e3 * rtt['mean']:.2f}, sd {1e3 * rtt['sd']:.2f}, n {rtt['n']})"
    checks = [Check("rtt", expected, found, held=abs(rtt["median"] - expected_s) <= room_s)]
    for direction, shape in zip(Direction, (up, down), strict=True):
        if direction.value in measured:
            checks += _judge_train(direction, shape, measured[direction.value])
    return checks


def _judge_train(direction: Direction, shape: Shape, measured: Mapping[str, Any]) -> list[Check]:
    rate, loss = f"rate {direction}", f"loss {direction}"
    expected, found = rate_text(shape.rate_bps), rate_text(measured["rate"])
    share = measured["rate"] / shape.rate_bps
    if not measured["in_time"] and share < LEAST:
        slow = "not measured: this host cannot send so fast (the settings above are the kernel's)"
        return [Check(rate, expected, slow, held=True)]
    sent, lost_ratio = measured["sent"], 1 - measured["received"] / measured["sent"]
    room = 3 * (shape.loss_ratio * (1 - shape.loss_ratio) / sent) ** 0.5 + 0.005
    held = abs(lost_ratio - shape.loss_ratio) <= room
    return [
        Check(rate, f"{expected}, {LEAST:.0%} to {MOST:.0%}", f"{found}, {share:.1%}", held=LEAST <= share <= MOST),
        Check(loss, f"{shape.loss_ratio:.2%} ± {room:.2%}", f"{lost_ratio:.2%} of {sent}", held=held),
    ]


def rate_text(rate: float) -> str:
    """Bits per second for people: `67 Mbit/s`."""
    if not rate:
        return "unlimited"
    scale, unit = next((scale, unit) for scale, unit in ((1e9, "G"), (1e6, "M"), (0, "k")) if rate >= scale)
    return f"{rate / (scale or 1e3):.4g} {unit}bit/s"


def reading_text(reading: Reading) -> str:
    """Settings in one line."""
    delay = f"{1e3 * reading.delay_s:g} ± {1e3 * reading.jitter_s:g} ms"
    return (
        f"{delay}, {rate_text(8 * reading.bytes_per_s)}, loss {100 * reading.loss_ratio:.4g} %, limit {reading.limit}"
    )
