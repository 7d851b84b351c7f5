"""Links: what stands between two tiers, and the simulated one for runs without a kernel that can shape.

A profile is a small value: rates, round-trip time, jitter, loss. `a+b` is the path over both: delays and losses add
up, the slower rate holds. With the `netem` back end the kernel enforces it; the shaper that owns the tier's network
namespace writes what is in force to a file, and `ShapedLinks` reads it: a link can change while the tier runs. The
`simulated` back end waits inside the HTTP client, each way, as netem would for each packet of the message: half the RTT
plus jitter of its own, in order, at the link's rate, headers included. A message has arrived when its last packet has,
so jitter costs time. Loss is modelled as one more RTT per lost packet (fast retransmit); 100 % is an outage. Left out:
TCP's slow start, handshakes and acknowledgements; every answer and table says `simulated`.
"""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import math
import random
import stat
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

import yaml

from shared.errors import BadSetting, UpstreamFailure

log = logging.getLogger(__name__)
PROFILES = Path(__file__).resolve().parents[2] / "deploy" / "netem" / "profiles.yaml"
_PAYLOAD, _FRAME = 1448, 66  # bytes of a full packet: what it carries; Ethernet, IP and TCP with timestamps around it
_HTTP = 250  # bytes of a request's or an answer's headers, as measured; they travel in a packet of their own
_BURST_S = 0.1  # seconds of a link's rate that one message may book ahead
_MOST = 1_000_000  # bytes of the shaper's file
_MODES = ("profile", "trace", "cut", "waiting")
_LATEST = 0.005  # seconds: a machine that wakes sleepers later than this is busy, not coarse

if TYPE_CHECKING:
    import numpy as np

Size = TypeVar("Size", int, "np.ndarray")


class Backend(StrEnum):
    """Who enforces the profile."""

    NETEM = "netem"
    SIMULATED = "simulated"
    NONE = "none"


@dataclass(frozen=True)
class Profile:
    """A link's impairments: bits per second (0 is unlimited), seconds, and a ratio."""

    name: str
    rate_up: float
    rate_down: float
    rtt: float
    jitter: float
    loss: float

    def then(self, other: Profile) -> Profile:
        """The path over this link and then the other."""
        return Profile(
            name=f"{self.name}+{other.name}",
            rate_up=_slower(self.rate_up, other.rate_up),
            rate_down=_slower(self.rate_down, other.rate_down),
            rtt=self.rtt + other.rtt,
            jitter=(self.jitter**2 + other.jitter**2) ** 0.5,
            loss=1 - (1 - self.loss) * (1 - other.loss),
        )


UNSHAPED = Profile("unshaped", 0.0, 0.0, 0.0, 0.0, 0.0)


def _slower(a: float, b: float) -> float:
    return min(a, b) if a and b else max(a, b)


@cache
def _known() -> dict[str, Profile]:
    return {
        name: Profile(
            name=name,
            rate_up=raw["rate_up"] * 1e6,
            rate_down=raw["rate_down"] * 1e6,
            rtt=raw["rtt"] / 1e3,
            jitter=raw["jitter"] / 1e3,
            loss=raw["loss"] / 100,
        )
        for name, raw in yaml.safe_load(PROFILES.read_text()).items()
    }


def profile(name: str) -> Profile:
    """A profile by name, or a path over several: `5g-nsa+metro`.

    Raises:
        BadSetting: a name that is not in `deploy/netem/profiles.yaml`.
    """
    parts = name.split("+")
    for part in parts:
        if part not in _known():
            raise BadSetting(f"link profile {part!r}: choose from {', '.join(_known())}, or join two with +")
    path = _known()[parts[0]]
    for part in parts[1:]:
        path = path.then(_known()[part])
    return path


def packets(size: Size) -> Size:
    """How many packets carry a message with a body of `size` bytes (a number, or an array of them)."""
    return 1 - -size // _PAYLOAD


def on_the_wire(size: Size) -> Size:
    """Bytes of those packets."""
    return size + _HTTP + packets(size) * _FRAME


class ShapedLinks:
    """What the shaper says is in force on this tier's links, read anew whenever its file has changed.

    Raises:
        BadSetting: the file is damaged when the tier starts.
    """

    FILE = "links.json"

    def __init__(self, folder: Path) -> None:
        self._path = folder / self.FILE
        self._stamp, self._links = (0, 0, 0), dict[str, Profile]()
        self._look()

    def in_force(self, link: str) -> Profile | None:
        """The profile on a link, `end-edge`; null if nothing shapes it (yet), or nobody can tell by a damaged file."""
        try:
            self._look()
        except BadSetting as error:
            log.error("%s", error)  # once: until the file changes again
        return self._links.get(link)

    def _look(self) -> None:
        try:
            found = self._path.stat()
            stamp = found.st_mtime_ns, found.st_ino, found.st_size
        except OSError as error:
            stamp = error.errno or 0, 0, 0
        if stamp == self._stamp:
            return
        self._stamp, self._links = stamp, {}
        if stamp[0] == errno.ENOENT:  # no shaper yet
            return
        try:
            self._links = _read(self._path)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
            raise BadSetting(f"{self._path} is damaged ({error!r}): start this tier's shaper again") from error


def _read(path: Path) -> dict[str, Profile]:
    found = path.stat()
    if not stat.S_ISREG(found.st_mode) or found.st_size > _MOST:
        raise ValueError("not a file of the shaper's")
    links = json.loads(path.read_text("utf-8"))["links"]
    return {name: _shaped(raw) for name, raw in links.items() if raw["mode"] != "waiting"}


def _shaped(raw: dict[str, Any]) -> Profile:
    numbers = [raw["rate"], raw["rate"], raw["rtt"], raw["jitter"], raw["loss"]]
    if not isinstance(raw["profile"], str) or raw["mode"] not in _MODES:
        raise ValueError(f"profile {raw['profile']!r}, mode {raw['mode']!r}")
    if any(isinstance(n, bool) or not 0 <= n < math.inf for n in numbers) or raw["loss"] > 1:
        raise ValueError(f"profile {raw['profile']!r}: {numbers}")
    return Profile(raw["profile"], *map(float, numbers))


class SimulatedLink:
    """Waits as long as the link would take. One instance per link: concurrent calls share its rate."""

    def __init__(self, profile: Profile, seed: int | None = None) -> None:
        self.profile = profile
        self._random = random.Random(seed)
        self._sending = {"up": asyncio.Lock(), "down": asyncio.Lock()}  # one message after the other
        self._free = {"up": 0.0, "down": 0.0}  # when the last packet of each direction arrives
        self._late = 0.0  # how late this machine wakes sleepers, in seconds; learned, and taken off every wait

    @classmethod
    def named(cls, name: str) -> Self:
        return cls(profile(name))

    async def carry(self, size: int, direction: str) -> None:
        """Return when `size` bytes would have arrived at the other end.

        Raises:
            UpstreamFailure: the link is out.
        """
        if self.profile.loss >= 1:
            raise UpstreamFailure("upstream_unavailable", f"link {self.profile.name} is out")
        began = asyncio.get_running_loop().time()
        async with self._sending[direction]:
            arrived = await self._send(size, direction, began)
        await self._until(arrived)

    async def _send(self, size: int, direction: str, began: float) -> float:
        """Book the link for a message that was given to it at `began`, in bursts: one that is cancelled frees the
        rest. The time at which it will have arrived."""
        link, rate = self.profile, self.profile.rate_up if direction == "up" else self.profile.rate_down
        lost, booked = 0, 0.0
        for at in range(packets(size)):
            if booked >= _BURST_S:
                await self._until(self._free[direction])
                booked = 0.0
            delay = self._random.gauss(link.rtt / 2, link.jitter)
            delay = min(max(0.0, delay), link.rtt)  # cut off on both sides, as the shaper does
            packet = (min(_PAYLOAD, size - (at - 1) * _PAYLOAD) if at else _HTTP) + _FRAME
            seconds = packet * 8 / rate if rate else 0.0
            self._free[direction] = max(self._free[direction], began + delay) + seconds
            booked += seconds
            lost += bool(link.loss) and self._random.random() < link.loss
        return self._free[direction] + lost * link.rtt

    async def _until(self, due: float) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        await asyncio.sleep(max(0.0, due - now - self._late))
        if due > now:
            self._late = min(max(0.0, self._late + 0.1 * (loop.time() - due)), _LATEST)
