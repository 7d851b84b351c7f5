"""Speculative sending: a text goes on ahead of this tier's answer, once an early exit tells where it will go.

    used     the answer sends the same words to the same tier: the call that is under way is the one to make
    wasted   it does not: the call is cancelled, so the tier that was asked drops its work
    moved    wasted too, and the text goes to another tier

No answer changes: a call carries what it would have carried later (`may_speculate`), and one that fails has failed as
it would have then. Left out: requests of several texts, which share one call per destination.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from shared.contracts import Speculation, TextPair
from shared.links.upstream import Carried
from shared.model.words import Encoded
from shared.pipeline.text import Call, Text, sent_on
from shared.policies import STAY, Decision
from shared.policies.base import may_speculate
from shared.policies.mistakes import decision

if TYPE_CHECKING:
    from shared.pipeline.tier import Tier

WINDOW = 100  # texts


class Budget:
    """Lets at most a `share` of any `WINDOW` texts in a row be sent ahead in vain; a call under way may be in vain."""

    def __init__(self, share: float) -> None:
        self._most = share * WINDOW + 1e-9
        self._wasted: deque[bool] = deque(maxlen=WINDOW)
        self._under_way = 0

    def begin(self) -> bool:
        """Whether one more text may be sent ahead; if so, it is under way."""
        allowed = sum(self._wasted) + self._under_way + 1 <= self._most
        self._under_way += allowed
        return allowed

    def end(self, *, begun: bool, wasted: bool) -> None:
        """Count a text that might have been sent ahead, and whether it was."""
        self._under_way -= begun
        self._wasted.append(wasted)


class Ahead:
    """One text that may leave a tier ahead of its answer. Made on the event loop, and ended there in any case."""

    def __init__(self, tier: Tier, call: Call, text: Text) -> None:
        self._tier, self._call, self._text, self._loop = tier, call, text, asyncio.get_running_loop()
        self._exits: asyncio.Queue[tuple[Encoded, int, float]] = asyncio.Queue()
        self._decision, self._layer, self._bytes = STAY, 0, 0
        self._onward: TextPair | None = None  # the words of the call, once it has begun
        self._mistake: BaseException | None = None  # of the policy
        self._closed = False
        self._carried = asyncio.create_task(self._go())
        self._carried.add_done_callback(lambda task: task.cancelled() or task.exception())  # nobody else may ask

    @staticmethod
    def of(tier: Tier, call: Call, texts: Sequence[Text]) -> Ahead | None:
        """What watches the exits of a request's one text; null where nothing may leave ahead."""
        alone = len(call.texts) == len(texts) == 1 and not (call.final or texts[0].degraded)
        return Ahead(tier, call, texts[0]) if alone and may_speculate(call.policy, call.where) else None

    def passed(self, encoded: Encoded, layer: int, confidence: float) -> None:
        """The text has passed an exit; the model's thread says so."""
        with suppress(RuntimeError):  # the loop has ended, and with it the request
            self._loop.call_soon_threadsafe(self._exits.put_nowait, (encoded, layer, confidence))

    async def _go(self) -> Carried:
        """Wait for an exit that tells where the text will go, and ask that tier for its hops."""
        tier, call, text = self._tier, self._call, self._text
        while self._decision.to is None:
            encoded, self._layer, confidence = await self._exits.get()
            told = self._told(confidence)
            if told.to is not None and not tier.sender.upstream(told.to).breaker.open and tier.budget.begin():
                self._decision = told
        text.keep = tier.unread(call, text, encoded)
        self._onward, within_s = sent_on(text.source, encoded, text.keep), tier.sender.within_s(call)
        return await tier.sender.carry(call, self._decision, [text], [self._onward], within_s, sends=self._sends)

    def _told(self, confidence: float) -> Decision:
        """What the policy expects; a mistake of its own fails the request once that is decided, and not this task."""
        where = self._tier.where(self._call, self._text)
        try:
            return decision(self._call.policy, "speculate", where, self._layer, confidence, self._text.draw)
        except BaseException as error:  # noqa: BLE001 - a user's code may raise anything
            self._mistake = error
            return STAY

    def _sends(self, size: int) -> None:
        self._bytes = size

    def settle(self) -> None:
        """Now that the text's decision is made: keep the call if it is the one to make, else cancel it.

        Raises:
            BadDecision: what `speculate` returned; what it raised comes through.
        """
        if self._mistake is not None:
            raise self._mistake
        text, told = self._text, self._decision
        used = (text.decision.to, text.decision.final, text.onward) == (told.to, told.final, self._onward)
        if told.to is not None:
            text.speculation = Speculation(to=told.to, layer=self._layer, used=used, request_bytes=self._bytes)
        if used:
            text.ahead = self._carried
        self._close(used=used)

    def end(self) -> None:
        """Let no call go on that nobody waits for: the request is over, answered or not."""
        if not self._closed:
            self._close(used=False)
        self._carried.cancel()

    def _close(self, *, used: bool) -> None:
        self._closed, begun = True, self._decision.to is not None
        self._tier.budget.end(begun=begun, wasted=begun and not used)
        if begun:
            self._count(used=used)
        if not used:
            self._carried.cancel()

    def _count(self, *, used: bool) -> None:
        tier, to, telemetry = self._tier, str(self._decision.to), self._tier.telemetry
        via = tier.sender.upstream(to).target
        outcome = "used" if used else "moved" if self._text.decision.to else "wasted"
        telemetry.speculations.labels(tier.name, via, outcome).inc()
        if used:
            return
        came = self._carried.done() and self._carried.exception() is None  # before it was cancelled
        sizes = {"up": self._bytes, "down": self._carried.result().response_bytes if came else 0}
        for direction, size in sizes.items():
            for counter in (telemetry.link_bytes, telemetry.wasted_bytes):
                counter.labels(f"{tier.name}-{via}", direction).inc(size)
