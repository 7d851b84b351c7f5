"""A request on its way through one tier: what was asked, and what was resolved from it once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from shared.contracts import InferRequest
from shared.policies import Clues, Policy, Where


@dataclass(frozen=True)
class Call:
    """`draws` and `clues` have an item per text."""

    request: InferRequest
    policy: Policy
    where: Where
    draws: list[float]
    expires: float | None  # by the clock
    clock: Callable[[], float]
    headers: Mapping[str, str]
    clues: list[Clues]
    exits: dict[int, list[float]] = field(default_factory=dict)  # confidences of the exits evaluated here, by row

    def remaining(self) -> float | None:
        return None if self.expires is None else self.expires - self.clock()
