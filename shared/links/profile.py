"""A link's profile: the impairments of one directed pair of tiers, as a small value.

`a+b` is the path over both: delays and losses add up, the slower rate holds. Two back ends enforce a profile: `netem`,
in the kernel (`services/shaper`, `shaped.py`), and `simulated`, inside the HTTP client (`simulated.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import cache, reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import yaml

from shared.errors import BadSetting

PROFILES = Path(__file__).resolve().parents[2] / "deploy" / "netem" / "profiles.yaml"
SHAPER_SOCKET = "tier.sock"  # beside `links.json`: where a shaper takes its tier's changes
PAYLOAD, FRAME = 1448, 66  # bytes of a full packet: what it carries; Ethernet, IP and TCP with timestamps around it
HTTP = 250  # bytes of a request's or an answer's headers, as measured; they travel in a packet of their own

if TYPE_CHECKING:
    import numpy as np

Size = TypeVar("Size", int, "np.ndarray")


class Backend(StrEnum):
    """Who enforces the profile."""

    NETEM = "netem"
    SIMULATED = "simulated"
    NONE = "none"


@dataclass(frozen=True)
class Radio:
    """What a device's radio takes while a call is on its link: a power model, linear in the rates.

        joules = base * seconds + up * Mbit sent + down * Mbit received

    Form and numbers: Huang et al. 2012, MobiSys, "A Close Examination of Performance and Power Characteristics of 4G
    LTE Networks"; `source` says how sure the numbers are. Left out: what the radio takes to wake, and its tail, the
    seconds that it stays awake after a call. The tail outweighs a single message; calls that overlap count twice.
    """

    base_w: float
    up_w: float  # for each Mbit/s
    down_w: float
    source: str

    def joules(self, up_bytes: float, down_bytes: float, seconds: float) -> float:
        """Modelled joules of a call with these bodies, so long on the link.

        >>> Radio(1.0, 0.5, 0.25, "made up").joules(125_000, 250_000, 2)
        3.0
        """
        return self.base_w * seconds + (self.up_w * up_bytes + self.down_w * down_bytes) * 8 / 1e6


@dataclass(frozen=True)
class Profile:
    """A link's impairments. A rate of 0 is unlimited; `loss_ratio` is of packets; `radio`: null without a model."""

    name: str
    rate_up_bps: float
    rate_down_bps: float
    rtt_s: float
    jitter_s: float
    loss_ratio: float
    radio: Radio | None = None  # of the device at its beginning

    def then(self, other: Profile) -> Profile:
        """The path over this link and then the other."""
        return Profile(
            name=f"{self.name}+{other.name}",
            rate_up_bps=_slower(self.rate_up_bps, other.rate_up_bps),
            rate_down_bps=_slower(self.rate_down_bps, other.rate_down_bps),
            rtt_s=self.rtt_s + other.rtt_s,
            jitter_s=(self.jitter_s**2 + other.jitter_s**2) ** 0.5,
            loss_ratio=1 - (1 - self.loss_ratio) * (1 - other.loss_ratio),
            radio=self.radio,
        )


UNSHAPED = Profile("unshaped", 0.0, 0.0, 0.0, 0.0, 0.0)


def _slower(a: float, b: float) -> float:
    return min(a, b) if a and b else max(a, b)


@cache
def _known() -> dict[str, Profile]:
    return {
        name: Profile(
            name=name,
            rate_up_bps=raw["rate_up"] * 1e6,
            rate_down_bps=raw["rate_down"] * 1e6,
            rtt_s=raw["rtt"] / 1e3,
            jitter_s=raw["jitter"] / 1e3,
            loss_ratio=raw["loss"] / 100,
            radio=_radio(raw["radio"]) if "radio" in raw else None,
        )
        for name, raw in yaml.safe_load(PROFILES.read_text()).items()
    }


def _radio(raw: dict[str, Any]) -> Radio:
    return Radio(raw["base"], raw["up"], raw["down"], raw["source"])


def profile_names() -> list[str]:
    """Every profile that `profile` knows, without paths."""
    return list(_known())


def profile(name: str) -> Profile:
    """A profile by name, or a path over several: `5g-nsa+metro`.

    Raises:
        BadSetting: a name that is not in `deploy/netem/profiles.yaml`.
    """
    known = _known()
    for part in name.split("+"):
        if part not in known:
            raise BadSetting(f"link profile {part!r}: choose from {', '.join(known)}, or join two with +")
    return reduce(Profile.then, [known[part] for part in name.split("+")])


def radio_of(name: str) -> Radio | None:
    """The power model of a path's first link; null where it has none, or nobody knows the profile."""
    first = _known().get(name.partition("+")[0])
    return None if first is None else first.radio


def packets(size: Size) -> Size:
    """How many packets carry a message with a body of `size` bytes (a number, or an array of them)."""
    full = -(-size // PAYLOAD)  # rounded up
    return 1 + full


def on_the_wire(size: Size) -> Size:
    """Bytes of those packets."""
    return size + HTTP + packets(size) * FRAME
