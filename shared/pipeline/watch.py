"""Who watches a request while it runs: told each exit and each hop as it comes.

Exits come from the model's thread, which never waits for whoever watches: it leaves an event to the loop and goes on.
Hops come from the loop itself. Times count from the watch's beginning.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress

from shared.contracts import Exit, ExitEvent, Hop, HopEvent

Event = ExitEvent | HopEvent


class Watch:
    """Hands events to `put`, which is called on the event loop that made the watch."""

    def __init__(self, put: Callable[[Event], None], *, clock: Callable[[], float] = time.perf_counter) -> None:
        self._put, self._clock, self._started = put, clock, clock()
        self._loop = asyncio.get_running_loop()

    def exit(self, index: int, tier: str, said: Exit, met: bool | None) -> None:
        """A text has reached an exit; may be called by any thread."""
        event = ExitEvent(index=index, tier=tier, met=met, ms=self._ms(), **dict(said))
        with suppress(RuntimeError):  # the loop has ended, and with it whoever watched
            self._loop.call_soon_threadsafe(self._put, event)

    def hop(self, index: int, hop: Hop) -> None:
        """A tier is done with a text."""
        self._put(HopEvent(index=index, hop=hop, ms=self._ms()))

    def hop_from_afar(self, index: int, hop: Hop, *, cut: bool) -> None:
        """A further tier is done with a text; `cut`: its deadline may have ended the hop, not the exit rule."""
        for said in hop.exits or ():
            here, last = said.exit == hop.exit_layer, said.exit == hop.layers
            met = None if last or (here and cut) else here
            self._put(ExitEvent(index=index, tier=hop.tier, met=met, ms=self._ms(), **dict(said)))
        self.hop(index, hop)

    def _ms(self) -> float:
        return round((self._clock() - self._started) * 1e3, 3)
