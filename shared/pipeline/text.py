"""A text on its way through a tier, what the tier's model says about it, and the call that brought it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from shared.contracts import DegradedReason, Hop, InferRequest, Onward, Speculation, TextPair
from shared.errors import DeadlinePassed
from shared.links.carried import Carried
from shared.model.pruning import keep_words
from shared.model.shares import Shares
from shared.model.state import State
from shared.model.words import Encoded
from shared.pipeline.watch import Watch
from shared.policies import STAY, Clues, Decision, Policy, Visit, Where


@dataclass(frozen=True)
class Answer:
    """What this tier's model says about one text. `exits` are calibrated, oldest first; `cut`: time ran out there."""

    encoded: Encoded
    exit_layer: int
    exits: list[list[float]]
    importance: list[float] | None
    shares: Shares | None = None  # with `explain`
    cut: bool = False
    state: State | None = None  # that another tier may go on from

    @property
    def probabilities(self) -> list[float]:
        return self.exits[-1]

    @property
    def rounded(self) -> tuple[tuple[float, ...], ...]:
        """The probabilities of each exit, rounded as on the wire."""
        return tuple(tuple(round(value, 6) for value in exit_) for exit_ in self.exits)


def sent_on(source: TextPair, encoded: Encoded, keep: Sequence[bool] | None) -> TextPair:
    """A text that was encoded as `encoded`, with the kept words alone; null keeps all."""
    if keep is None:
        return source
    text, pair = keep_words(source.text, source.text_pair, encoded, keep)
    return TextPair(text=text, text_pair=pair)


@dataclass(eq=False)
class Text:
    """One text on its way through one tier; nothing else in the pipeline changes.

    A tier fills it in this order: `decision` (before or after inference), `answer`, `keep`, `hop`, then `behind` or
    `degraded`.
    """

    index: int  # in the whole request
    source: TextPair
    draw: float
    clues: Clues
    before: Sequence[Visit] = ()  # what the tiers before this one said, where the policy asks for it
    begun: State | None = None  # what the tier before this one has computed of it
    decision: Decision = STAY
    answer: Answer | None = None  # null if the model did not run here, or could not read the text
    keep: Sequence[bool] | None = None  # which words travel on; null: all of them
    unread: Sequence[bool] | None = None  # the same, but for words that pruning by importance left behind
    way: Onward | None = None  # by text or by state; null where it can go by text alone
    ahead: asyncio.Task[Carried] | None = None  # the call that the decision makes, if it has begun already
    speculation: Speculation | None = None  # the call that began before the answer, used or not
    hop: Hop | None = None  # this tier's part; null where `answer` is
    behind: Sequence[Hop] = ()  # the further tiers' parts
    degraded: DegradedReason | None = None

    @property
    def onward(self) -> TextPair:
        """What travels on: the text itself, or the words of it that pruning kept."""
        return self.source if self.answer is None else sent_on(self.source, self.answer.encoded, self.keep)

    @property
    def unpruned(self) -> TextPair:
        """What travels on where importance leaves no word behind: the text as it was read here."""
        return self.source if self.answer is None else sent_on(self.source, self.answer.encoded, self.unread)

    @property
    def by_state(self) -> bool:
        """Whether it goes on with what a network has computed of it."""
        return self.way is not None and self.way.by == "state"

    def go_by_text(self) -> None:
        """Go on by text after all, and say so on record."""
        if self.way is not None:
            self.way = self.way.model_copy(update={"by": "text"})
            self.hop = self.hop and self.hop.model_copy(update={"onward": self.way})

    @property
    def state(self) -> State | None:
        """What a network has computed of it by now, here or before."""
        return self.begun if self.answer is None else self.answer.state

    @property
    def hops(self) -> list[Hop]:
        """This tier's hop, if it has one, and the further tiers' hops."""
        return [*([self.hop] if self.hop else []), *self.behind]

    def visits(self, here: str) -> tuple[Visit, ...]:
        """The tiers that ran for it up to this one, which is called `here`."""
        if (answer := self.answer) is None:
            return tuple(self.before)
        exits = answer.rounded
        confidences = tuple(map(max, exits))
        return (*self.before, Visit(here, answer.exit_layer, confidences[-1], confidences, exits[-1], exits))

    @property
    def came_back(self) -> bool:
        """Whether it was sent on before any layer ran, and the tier it was sent to gave no answer."""
        return self.degraded is not None and not self.hops


@dataclass(frozen=True)
class Call:
    """A request at one tier, with its policy, its texts and its deadline."""

    request: InferRequest
    policy: Policy
    where: Where
    texts: Sequence[Text]
    expires: float | None  # by the clock
    clock: Callable[[], float]
    headers: Mapping[str, str]
    watch: Watch | None = None  # who is told of exits and hops as they come

    @property
    def final(self) -> bool:
        """Whether this tier must answer itself."""
        return self.request.target == self.where.tier

    def remaining_s(self) -> float | None:
        """Seconds until the deadline; null where there is none."""
        return None if self.expires is None else self.expires - self.clock()

    @asynccontextmanager
    async def in_time(self, *, reserve_s: float = 0.0) -> AsyncIterator[None]:
        """Stop what runs inside `reserve_s` before the deadline: DeadlinePassed, also where it is too late to begin."""
        late, remaining_s = "the deadline passed before the first exit was reached", self.remaining_s()
        if remaining_s is not None and remaining_s <= 0:
            raise DeadlinePassed(late)
        try:
            async with asyncio.timeout(None if remaining_s is None else remaining_s - reserve_s):
                yield
        except TimeoutError as error:
            raise DeadlinePassed(late) from error
