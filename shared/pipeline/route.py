"""The tiers that a text can reach from here, and the link to take. Live tiers and replay use the same `Route`."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Route:
    """The ways from the tier `here`.

    >>> route = Route(("end", "edge", "cloud"), "end", ("edge", "cloud"))
    >>> route.reachable("edge"), route.toward("cloud")
    (('edge',), 'cloud')
    """

    order: Sequence[str]  # every tier of the bundle, shallowest first
    here: str
    links: Collection[str]  # tiers that a link of this one leads to

    @property
    def deeper(self) -> tuple[str, ...]:
        """Tiers that a text can get to, nearest first; some only through others, which pass it on."""
        return tuple(self.order[min(map(self.order.index, self.links), default=len(self.order)) :])

    def reachable(self, max_tier: str | None) -> tuple[str, ...]:
        """Deeper tiers that may answer, nearest first: none beyond `max_tier`."""
        depth = len(self.order) - 1 if max_tier is None else self.order.index(max_tier)
        return tuple(tier for tier in self.deeper if self.order.index(tier) <= depth)

    def toward(self, tier: str) -> str:
        """The link to take to a tier: the direct one, else the link to the deepest tier before it."""
        at = self.order.index(tier)
        return max((link for link in self.links if self.order.index(link) <= at), key=self.order.index)
