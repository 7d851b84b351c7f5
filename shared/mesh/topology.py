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


def held_of(text: str, segments: int) -> range:
    """The segments, from 0, that FIRST-LAST names from 1.

    Raises:
        BadSetting: it is not written so, or there are no such segments.

    >>> held_of("2-4", 4)
    range(1, 4)
    """
    first, dash, last = text.partition("-")
    if not (dash and first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last) <= segments):
        raise BadSetting(f"segments {text!r}: expected FIRST-LAST, from 1-1 to {segments}-{segments}")
    return range(int(first) - 1, int(last))


def written(held: range) -> str:
    """What `held_of` reads."""
    return f"{held.start + 1}-{held.stop}"


def check_held(mesh: Topology, held: Mapping[str, range], segments: int) -> None:
    """Whether a text gets through all segments wherever it goes; a node that `held` does not name holds all.

    Raises:
        BadSetting: a source without segment 1, or a node that texts come to with a next segment that neither it nor
            one of its neighbours holds.
    """
    whole = range(segments)
    if wrong := [node for node in mesh.sources if 0 not in held.get(node, whole)]:
        raise BadSetting(f"{wrong[0]} is a source in {mesh.name} and does not hold segment 1")
    at = set(mesh.sources)
    for segment in whole[1:]:
        on = {node: {to for to in (node, *mesh.edges[node]) if segment in held.get(to, whole)} for node in at}
        if ends := sorted(node for node, to in on.items() if not to):
            raise BadSetting(f"segment {segment + 1}: held neither by {ends[0]} nor by a neighbour in {mesh.name}")
        at = set().union(*on.values())


def _named(count: int) -> list[str]:
    return [f"n{at + 1}" for at in range(count)]


def _torus(count: int) -> dict[str, tuple[str, ...]]:
    """Rows of equal length where the count allows it; else the last ones' neighbours wrap earlier."""
    width, nodes = math.isqrt(count), _named(count)
    return {node: tuple(nodes[(at + step) % count] for step in (1, -1, width, -width)) for at, node in enumerate(nodes)}
