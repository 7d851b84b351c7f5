"""The replicas of one tier: which are there, and which of them is asked next.

    several addresses   each is a replica
    one name            each address that it stands for is one, of IPv4 where there are any. Until a first lookup finds
                        several, and for addresses and `localhost`, connections are made by name, as any client would
    looked up again     in the background when a call is made, at most every `LOOK_S`. One that is gone gets no new
                        call; a lookup that fails changes nothing
    asked next          the one with the least load of those that are neither ejected nor full; of equals, the longest
                        not asked

No replica need see the same caller twice: what policies learn stays with the tier that a client asks
(`shared/policies/states.py`), and everything that a call needs travels with it.
"""

from __future__ import annotations

import asyncio
import ipaddress
import math
import socket
import time
from collections.abc import Awaitable, Callable, Collection, Sequence

import structlog

from shared.links.clients import address
from shared.links.replica import Replica

log = structlog.get_logger()
LOOK_S, LOOKUP_S = 5.0, 5.0  # between two lookups; what one may take
_PORTS = {"http": 80, "https": 443}
Lookup = Callable[[str, int], Awaitable[Sequence[str]]]


async def addresses(host: str, port: int) -> list[str]:
    """The addresses that a name stands for, of one family, in order. Raises OSError."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    of_4, of_6 = ({str(info[4][0]) for info in found if info[0] is kind} for kind in (socket.AF_INET, socket.AF_INET6))
    return sorted(of_4 or of_6)


def _is_name(host: str) -> bool:
    """Whether a host is a name that may stand for several machines."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return host != "localhost"
    return False


class Replicas:
    """At `urls`. `new(url, at)` makes one that is connected to at the address `at`; null: by its name."""

    def __init__(
        self,
        urls: Sequence[str],
        new: Callable[[str, str | None], Replica],
        lookup: Lookup | None = addresses,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._new, self._lookup, self._clock = new, lookup, clock
        self.all = [new(url, None) for url in urls]
        self._url, base = urls[0], address(urls[0])
        self._host, self._port = base.host, base.port or _PORTS[base.scheme]
        self._is_name = len(urls) == 1 and lookup is not None and _is_name(self._host)
        self._at: dict[str, Replica] = {}  # by address, once a name stands for several
        self._gone: list[Replica] = []  # asked no more, and not yet closed: calls may be under way
        self._looked = -math.inf
        self._looking: asyncio.Task[None] | None = None
        self._turn = 0

    @property
    def down(self) -> bool:
        """Whether every one is ejected."""
        return all(one.breaker.open for one in self.all)

    def next(self, call_s: float, but: Collection[Replica] = ()) -> Replica | None:
        """The one to ask now; null where none is left. `call_s` is what a call takes."""
        ready = [one for one in self.all if one.is_free and one not in but]
        if not ready:
            return None
        self._turn += 1
        found = min(ready, key=lambda one: (one.load_s(call_s), one.turn))
        found.turn = self._turn
        return found

    def others(self, one: Replica) -> bool:
        """Whether others than this one are not ejected."""
        return any(other is not one and not other.breaker.open for other in self.all)

    def look(self) -> None:
        """Look the name up in the background, if that was not done of late."""
        if self._is_name and self._clock() - self._looked >= LOOK_S and (not self._looking or self._looking.done()):
            self._looked = self._clock()
            self._looking = asyncio.get_running_loop().create_task(self._look_up())

    async def _look_up(self) -> None:
        assert self._lookup is not None
        try:
            async with asyncio.timeout(LOOKUP_S):
                found = await self._lookup(self._host, self._port)
        except (OSError, UnicodeError) as error:
            log.warning("name_not_found", host=self._host, detail=str(error) or type(error).__name__)
            return
        if found and (self._at or len(found) > 1) and set(found) != self._at.keys():
            self._have(found)
        for gone in [one for one in self._gone if not one.under_way]:
            self._gone.remove(gone)
            await gone.close()

    def _have(self, found: Sequence[str]) -> None:
        """From now on these are the addresses."""
        self._at = {at: self._at.get(at) or self._new(self._url, at) for at in found}
        self._gone += [one for one in self.all if one not in self._at.values()]
        self.all = list(self._at.values())
        log.info("replicas", host=self._host, addresses=list(found))

    async def close(self) -> None:
        if self._looking is not None:
            self._looking.cancel()
        for one in [*self.all, *self._gone]:
            await one.close()
