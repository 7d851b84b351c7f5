"""Which base each tier runs and how many of its layers, from `--base` and `--tiers`.

    --tiers end=6,edge=6,cloud=12     the tiers, shallowest first, and their layers
    --base NAME                       of every tier; TIER=NAME: of that tier alone

Tiers of one base share one network, which is cut: without layers, the deepest of them gets all L layers of the base,
the one before it half of them, the next one half of that.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from shared.errors import BadSetting
from shared.model.base import read_config

SMALL = "sentence-transformers/all-MiniLM-L6-v2"  # minutes on two cores
TIERS = ("end", "edge", "cloud")


@dataclass(frozen=True)
class Network:
    """A network to train, and the layers that each of its tiers runs."""

    name: str
    base: str
    layers: Mapping[str, int]

    @property
    def ends(self) -> tuple[int, ...]:
        """The layers at which a tier ends, but the last."""
        return tuple(sorted(set(self.layers.values()))[:-1])

    @property
    def depth(self) -> int:
        return max(self.layers.values())


def networks(bases: Sequence[str], tiers: Sequence[str]) -> tuple[list[str], list[Network]]:
    """The tiers in order, and their networks; nothing named: one small network for three tiers.

    Raises:
        BadSetting: a tier twice, a base of no tier, or layers that a base does not have.
    """
    layers = _layers(tiers or TIERS)
    of = _bases(bases, list(layers))
    found = list[Network]()
    for base in dict.fromkeys(of.values()):
        own = [tier for tier in layers if of[tier] == base]
        found.append(Network(_name(base, [one.name for one in found]), base, _cut(base, own, layers)))
    return list(layers), found


def _layers(tiers: Sequence[str]) -> dict[str, int | None]:
    found = dict[str, int | None]()
    for named in (part.strip() for one in tiers for part in one.split(",")):
        tier, equals, said = named.partition("=")
        if not re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", tier) or (equals and not re.fullmatch(r"[1-9]\d{0,3}", said)):
            raise BadSetting(f"--tiers {named}: say TIER=LAYERS, as in end=6,edge=6,cloud=12")
        if tier in found:
            raise BadSetting(f"--tiers: {tier} is there twice")
        found[tier] = int(said) if equals else None
    return found


def _bases(bases: Sequence[str], tiers: Sequence[str]) -> dict[str, str]:
    of = dict.fromkeys(tiers, SMALL)
    own = dict[str, str]()
    for named in bases:
        tier, equals, base = named.partition("=")
        if equals and tier in tiers:
            own[tier] = base
        elif equals and not tier.startswith((".", "/", "~")):
            raise BadSetting(f"--base {named}: no tier {tier!r}; there are {', '.join(tiers)}")
        else:
            of = dict.fromkeys(tiers, named)
    return of | own


def _cut(base: str, tiers: Sequence[str], asked: Mapping[str, int | None]) -> dict[str, int]:
    """Layers of the tiers that share a base, shallowest first."""
    most = read_config(base).layers
    found = {tier: asked[tier] or math.ceil(most / 2 ** (len(tiers) - 1 - at)) for at, tier in enumerate(tiers)}
    if too_deep := next((tier for tier in tiers if found[tier] > most), None):
        raise BadSetting(f"--tiers {too_deep}={found[too_deep]}: {base} has {most} layers")
    if list(found.values()) != sorted(found.values()):
        raise BadSetting(f"--tiers: of {', '.join(tiers)}, which share {base}, the first must be the shallowest")
    return found


def _name(base: str, taken: Sequence[str]) -> str:
    """A folder's name for a base."""
    name = re.sub(r"[^a-z0-9]+", "-", Path(base).name.lower()).strip("-") or "base"
    return name if name not in taken else f"{name}-{len(taken) + 1}"
