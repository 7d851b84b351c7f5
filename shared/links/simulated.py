"""The simulated link, for runs without a kernel that can shape: the HTTP client waits as netem would make it wait.

Each way and for each packet of the message: half the RTT plus jitter of its own, in order, at the link's rate, headers
included. A message has arrived when its last packet has, so jitter costs time. Loss is modelled as one more RTT per
lost packet (fast retransmit); 100 % is an outage. A link that is cut says nothing: what is sent over it waits until it
is healed, as packets do that TCP sends again. A trace changes rate, RTT and loss with time, both ways alike; its
outages are cuts. Left out: TCP's slow start, handshakes and acknowledgements; every answer and table says `simulated`.
"""

from __future__ import annotations

import asyncio
import random

from shared.errors import UpstreamFailure
from shared.links.profile import FRAME, HTTP, PAYLOAD, Profile, packets
from shared.links.trace import Trace

_BURST_S = 0.1  # seconds of a link's rate that one message may book ahead
_LOOK_S, _LEAST_S = 0.5, 0.001  # how often an outage is looked at, at least and at most
_LATEST = 0.005  # seconds: a machine that wakes sleepers later than this is busy, not coarse


class SimulatedLink:
    """Waits as long as the link would take. One instance per link: concurrent calls share its rate."""

    def __init__(self, profile: Profile, seed: int | None = None) -> None:
        self._profile = profile
        self._trace: Trace | None = None
        self._began = 0.0  # of the trace
        self._random = random.Random(seed)
        self._sending = {"up": asyncio.Lock(), "down": asyncio.Lock()}  # one message after the other
        self._free = {"up": 0.0, "down": 0.0}  # when the last packet of each direction arrives
        self._late = 0.0  # how late this machine wakes sleepers, in seconds; learned, and taken off every wait
        self._healed = asyncio.Event()
        self._healed.set()

    @property
    def profile(self) -> Profile:
        """What is in force now."""
        if self._trace is None:
            return self._profile
        return self._trace.at(asyncio.get_running_loop().time() - self._began).on(self._profile)

    @property
    def trace(self) -> str | None:
        """The name of the trace that it follows; null: none."""
        return None if self._trace is None else self._trace.name

    @property
    def is_cut(self) -> bool:
        return not self._healed.is_set()

    def set(self, profile: Profile) -> None:
        """Be another link, also for the rest of what is under way. It ends a cut and a trace, as a shaper's `set`."""
        self._profile, self._trace = profile, None
        self.heal()

    def play(self, trace: Trace) -> None:
        """Follow a trace over the profile, from its start, again and again. It ends a cut."""
        self._trace, self._began = trace, asyncio.get_running_loop().time()
        self.heal()

    def cut(self) -> None:
        """Let nothing arrive any more, until `heal` or `set`."""
        self._healed.clear()

    def heal(self) -> None:
        """Let what waits go on, from now: nothing is booked any more."""
        self._free = dict.fromkeys(self._free, asyncio.get_running_loop().time())
        self._healed.set()

    async def carry(self, size: int, direction: str) -> None:
        """Return when `size` bytes would have arrived at the other end; raise UpstreamFailure where the link is out."""
        await self._passable()
        if self.profile.loss_ratio >= 1:
            raise UpstreamFailure("upstream_unavailable", f"link {self.profile.name} is out")
        began = asyncio.get_running_loop().time()
        async with self._sending[direction]:
            arrived = await self._send(size, direction, began)
        await self._until(arrived)

    async def _send(self, size: int, direction: str, began: float) -> float:
        """Book the link for a message given to it at `began`: the time at which it will have arrived.

        It is booked in bursts, so a message that is cancelled frees the rest.
        """
        lost, booked = 0, 0.0
        for at in range(packets(size)):
            if booked >= _BURST_S:
                await self._until(self._free[direction])
                booked = 0.0
            await self._passable()
            link = self.profile  # it may have changed since the last burst
            rate = link.rate_up_bps if direction == "up" else link.rate_down_bps
            delay = self._random.gauss(link.rtt_s / 2, link.jitter_s)
            delay = min(max(0.0, delay), link.rtt_s)  # cut off on both sides, as the shaper does
            packet = (min(PAYLOAD, size - (at - 1) * PAYLOAD) if at else HTTP) + FRAME
            seconds = packet * 8 / rate if rate else 0.0
            self._free[direction] = max(self._free[direction], began + delay) + seconds
            booked += seconds
            lost += bool(link.loss_ratio) and self._random.random() < link.loss_ratio
        return self._free[direction] + lost * self.profile.rtt_s

    async def _passable(self) -> None:
        """Wait while the link is cut, and while its trace has an outage; what waited goes on from then."""
        await self._healed.wait()
        loop = asyncio.get_running_loop()
        while self._trace is not None and (out_s := self._trace.out_for_s(loop.time() - self._began)):
            await asyncio.sleep(
                min(max(out_s, _LEAST_S), _LOOK_S)
            )  # another trace or profile may be put in force meanwhile
            self._free = {direction: max(free, loop.time()) for direction, free in self._free.items()}
            await self._healed.wait()

    async def _until(self, due: float) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        await asyncio.sleep(max(0.0, due - now - self._late))
        if due > now:
            self._late = min(max(0.0, self._late + 0.1 * (loop.time() - due)), _LATEST)
