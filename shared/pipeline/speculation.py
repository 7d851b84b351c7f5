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
from shared.links.carried import Carried
from shared.model.words import Encoded
from shared.pipeline.text import Call, Text, sent_on
from shared.policies import STAY, Decision
from shared.policies.base import may_speculate
from shared.policies.mistakes import decision

if TYPE_CHECKING:
    from shared.pipeline.tier import Tier

WINDOW = 100  # texts


class Budget:
    """Lets at most a `share` of any `WINDOW` texts in a row be sent ahead in vain; a call under way may be in vain.

    Hedging (`hedge.py`) counts calls by it, each second one as in vain.
    """

    def __init__(self, share: float) -> None:
        self._most = share * WINDOW + 1e-9
        self._wasted: deque[bool] = deque(maxlen=WINDOW)
        self._under_way = 0

    @property
    def any(self) -> bool:
        """Whether it ever lets one be sent."""
        return self._most >= 1

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
    """One text that may leave a tier ahead of its answer. Made on the event loop, and ended there in any case.

    The policy is asked in the model's thread, so that the loop is woken only for a text that leaves.
    """

    def __init__(self, tier: Tier, call: Call, text: Text) -> None:
        self._tier, self._call, self._text, self._loop = tier, call, text, asyncio.get_running_loop()
        self._told = self._closed = False
        self._mistake: BaseException | None = None  # of the policy
        self._decision, self._layer, self._bytes = STAY, 0, 0
        self._onward: TextPair | None = None  # the words of the call, once it has begun
        self._carried: asyncio.Task[Carried] | None = None

    @staticmethod
    def of(tier: Tier, call: Call, texts: Sequence[Text]) -> Ahead | None:
        """What watches the exits of a request's one text; null where nothing may leave ahead."""
        alone = len(call.texts) == len(texts) == 1 and not (call.final or texts[0].degraded)
        return Ahead(tier, call, texts[0]) if alone and may_speculate(call.policy, call.where) else None

    def passed(self, encoded: Encoded, layer: int, confidence: float) -> None:
        """The text has passed an exit; the model's thread says so.

        A mistake of the policy fails the request once that is decided, and nobody else's pass.
        """
        if self._told:
            return
        where = self._tier.where(self._call, self._text)
        try:
            told = decision(self._call.policy, "speculate", where, layer, confidence, self._text.draw)
        except BaseException as error:  # noqa: BLE001 - a user's code may raise anything
            self._told, self._mistake = True, error
            return
        if told.to is not None:
            self._told = True
            with suppress(RuntimeError):  # the loop has ended, and with it the request
                self._loop.call_soon_threadsafe(self._begin, told, encoded, layer)

    def _begin(self, told: Decision, encoded: Encoded, layer: int) -> None:
        """Send the text to the tier that the policy has told."""
        tier, text, sender = self._tier, self._text, self._tier.sender
        if self._closed or sender.upstream(str(told.to)).is_down or not tier.budget.begin():
            return
        self._decision, self._layer = told, layer
        text.keep = text.unread = tier.unread(self._call, text, encoded)
        self._onward, within_s = sent_on(text.source, encoded, text.keep), sender.within_s(self._call)
        call = sender.carry(self._call, told, [text], [self._onward], within_s, sends=self._sends)
        self._carried = self._loop.create_task(call)
        self._carried.add_done_callback(lambda task: task.cancelled() or task.exception())  # nobody else may ask

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
        self._cancel()

    def _close(self, *, used: bool) -> None:
        self._closed, begun = True, self._carried is not None
        self._tier.budget.end(begun=begun, wasted=begun and not used)
        if begun:
            self._count(used=used)
        if not used:
            self._cancel()

    def _cancel(self) -> None:
        if self._carried is not None:
            self._carried.cancel()

    def _count(self, *, used: bool) -> None:
        tier, to, telemetry = self._tier, str(self._decision.to), self._tier.telemetry
        via = tier.sender.upstream(to).target
        outcome = "used" if used else "moved" if self._text.decision.to else "wasted"
        telemetry.speculations.labels(tier.name, via, outcome).inc()
        if used:
            return
        call = self._carried  # not cancelled yet
        came = call is not None and call.done() and call.exception() is None
        sizes = {"up": self._bytes, "down": call.result().response_bytes if call is not None and came else 0}
        for direction, size in sizes.items():
            for counter in (telemetry.link_bytes, telemetry.wasted_bytes):
                counter.labels(f"{tier.name}-{via}", direction).inc(size)
