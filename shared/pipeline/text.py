"""A text on its way through a tier, and the call that brought it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from shared.contracts import DegradedReason, Hop, InferredRow, InferRequest, TextPair
from shared.policies import STAY, Clues, Decision, Policy, Where


@dataclass(eq=False)
class Text:
    """One text on its way through one tier; nothing else in the pipeline changes.

    A tier fills it in this order: `decision` (before or after inference), `hop`, then `behind` or `degraded`.
    """

    index: int  # in the whole request
    source: TextPair
    draw: float
    clues: Clues
    decision: Decision = STAY
    onward: TextPair | None = None  # what travels on: the text itself, or the words that pruning kept
    hop: Hop | None = None  # this tier's part; null if it did not run, or could not read the text
    confidences: tuple[float, ...] = ()  # of the exits that were evaluated here
    behind: Sequence[Hop] = ()  # the further tiers' parts
    degraded: DegradedReason | None = None

    @property
    def hops(self) -> list[Hop]:
        """This tier's hop, if it has one, and the further tiers' hops."""
        return [*([self.hop] if self.hop else []), *self.behind]

    @property
    def came_back(self) -> bool:
        """Whether it was sent on before any layer ran, and the tier it was sent to gave no answer."""
        return self.degraded is not None and not self.hops

    def row(self) -> InferredRow:
        """The text's row in the answer to the tier before."""
        return InferredRow(index=self.index, hops=self.hops, degraded=self.degraded)


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

    @property
    def final(self) -> bool:
        """Whether this tier must answer itself."""
        return self.request.target == self.where.tier

    def remaining_s(self) -> float | None:
        """Seconds until the deadline; null where there is none."""
        return None if self.expires is None else self.expires - self.clock()
