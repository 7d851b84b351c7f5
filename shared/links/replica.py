"""One replica of a tier: the connections to it, what waits there, and when it is not asked at all.

ejected    its breaker is open (`shared/links/breaker.py`); where the tier has others, one call without an answer does
probed     in the background, from then on, until it is well: no caller's request is the probe
full       with as many calls under way as there are connections: a further one would wait here, where nobody sees it
load       the seconds of work that its last answer said were waiting, less the time since, and the calls under way
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import structlog

from shared.errors import UpstreamFailure
from shared.links.breaker import Breaker
from shared.links.http import MOST, UpstreamHttp
from shared.links.measured import Waiting

log = structlog.get_logger()
Probe = Callable[[UpstreamHttp], Awaitable[None]]


class Replica:
    """At `address`, as people write it. `probe` asks it over its connections, and raises where it is not well."""

    def __init__(
        self,
        *,
        source: str,
        target: str,
        address: str,
        http: Callable[[Callable[[str | None], None]], UpstreamHttp],
        probe: Probe,
        probe_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._source, self._target, self.address, self._clock = source, target, address, clock
        self.waiting, self.breaker = Waiting(clock), Breaker()
        self.http = http(self.waiting.hear)
        self._probe, self._probe_s = probe, probe_s
        self._probing: asyncio.Task[None] | None = None
        self._under_way: dict[object, float] = {}
        self.turn = 0  # when it was asked last, counted in calls

    def begin(self, call: object) -> None:
        """A call leaves."""
        self._under_way[call] = self._clock()

    def end(self, call: object) -> None:
        """A call was answered, has failed or was given up."""
        self._under_way.pop(call, None)

    @property
    def is_free(self) -> bool:
        """Whether it may be asked now: it is not ejected, and a connection to it is left."""
        return not self.breaker.open and len(self._under_way) < MOST

    @property
    def under_way(self) -> int:
        """Calls without an answer."""
        return len(self._under_way)

    @property
    def under_way_s(self) -> float:
        """Seconds since the oldest call left that has no answer; 0: none is under way."""
        return self._clock() - min(self._under_way.values()) if self._under_way else 0.0

    def load_s(self, call_s: float) -> float:
        """Seconds of work that it has, where a call takes `call_s`."""
        return self.waiting.left_s + len(self._under_way) * call_s

    def count(self, *, failed: bool, eject: bool = False) -> None:
        """Count one call; with `eject`, this failure is enough."""
        was_open = self.breaker.open
        self.breaker.count(failed=failed)
        if failed and eject:
            self.breaker.trip()
        if self.breaker.open and not was_open:
            log.warning("breaker_open", tier=self._source, to=self._target, address=self.address)
            self.watch()

    def watch(self) -> None:
        """Probe in the background until it is well."""
        if self._probing is None or self._probing.done():
            self._probing = asyncio.get_running_loop().create_task(self._probe_until_well())

    async def _probe_until_well(self) -> None:
        pause, began = self._probe_s, time.monotonic()
        while self.breaker.open:
            await asyncio.sleep(max(0.0, began + pause - time.monotonic()))
            began = time.monotonic()
            try:
                await self._probe(self.http)
            except (UpstreamFailure, TimeoutError):
                pause = min(2 * pause, 4 * self._probe_s)  # from one probe's start to the next one's
            else:
                self.breaker.close()
                log.info("breaker_closed", tier=self._source, to=self._target, address=self.address)

    async def close(self) -> None:
        if self._probing is not None:
            self._probing.cancel()
        await self.http.close()
