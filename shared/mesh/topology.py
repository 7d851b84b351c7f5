"""Who is whose neighbour. An edge is directed: it leads to a node that may be sent texts, over a link of its own.

    local     one node
    pair      two nodes
    mesh3     three nodes, each the neighbour of each
    ring3     three nodes in a circle: each sends to the next alone
    mesh5     five nodes, each the neighbour of each
    torusN    N nodes on a torus of four neighbours each, for the simulator alone

The names of the first five are the paper's (from memory). The first node is the source; on a torus every fifth is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from shared.errors import BadSetting, did_you_mean

LIVE = ("local", "pair", "mesh3", "ring3", "mesh5")
_TORUS, _MOST, _SOURCES = "torus", 100_000, 5


@dataclass(frozen=True)
class Topology:
    """Nodes by name, and whom each may send to."""

    name: str
    edges: Mapping[str, tuple[str, ...]]

    @property
    def nodes(self) -> tuple[str, ...]:
        """All names, the first source first."""
        return tuple(self.edges)

    @property
    def sources(self) -> tuple[str, ...]:
        """Nodes that texts come to."""
        return self.nodes[::_SOURCES] if self.name.startswith(_TORUS) else self.nodes[:1]


def topology(name: str) -> Topology:
    """A topology by name.

    Raises:
        BadSetting: there is none of this name.

    >>> topology("ring3").edges
    {'n1': ('n2',), 'n2': ('n3',), 'n3': ('n1',)}
    """
    count = name.removeprefix(_TORUS)
    if name.startswith(_TORUS) and count.isdecimal() and 9 <= int(count) <= _MOST:
        return Topology(name, _torus(int(count)))
    if name not in LIVE:
        hint = did_you_mean(name, LIVE)
        raise BadSetting(f"topology {name!r}{hint}: choose from {', '.join(LIVE)}, or torusN with 9 to {_MOST} nodes")
    nodes = _named({"local": 1, "pair": 2, "mesh5": 5}.get(name, 3))
    if name == "ring3":
        return Topology(name, {node: (nodes[(at + 1) % 3],) for at, node in enumerate(nodes)})
    return Topology(name, {node: tuple(other for other in nodes if other != node) for node in nodes})


def _named(count: int) -> list[str]:
    return [f"n{at + 1}" for at in range(count)]


def _torus(count: int) -> dict[str, tuple[str, ...]]:
    """Rows of equal length where the count allows it; else the last ones' neighbours wrap earlier."""
    width, nodes = math.isqrt(count), _named(count)
    return {node: tuple(nodes[(at + step) % count] for step in (1, -1, width, -width)) for at, node in enumerate(nodes)}
