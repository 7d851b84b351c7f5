"""What a policy asks of each tier, as `tierwise bench` measured it: which texts come, how deep, for how long.

A layer's seconds are those of the policy `TIER-only` of the same run: its inference over its layers. A text's seconds
on a tier are its layers there times that, and the tokenizer's.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from shared.errors import BadSetting, did_you_mean


@dataclass(frozen=True)
class Stop:
    """A tier on the way of a policy's texts."""

    tier: str
    share: float  # of all texts that come here
    onward: float  # of the texts of the stop before
    seconds: tuple[float, ...]  # of a text that leaves at each of the exits that were seen
    weights: tuple[int, ...]  # how many did

    @property
    def mean_s(self) -> float:
        """Seconds that a text takes here."""
        pairs = zip(self.seconds, self.weights, strict=True)
        return sum(seconds * weight for seconds, weight in pairs) / sum(self.weights)


@dataclass(frozen=True)
class Demand:
    """A policy's stops in their order, and the bytes of one call from a stop to the next, up and down."""

    policy: str
    stops: tuple[Stop, ...]
    call_bytes: tuple[float, float]

    def alone(self, tier: str) -> Demand:
        """The part of one tier: every text comes there.

        Raises:
            BadSetting: the policy has no text there.
        """
        for stop in self.stops:
            if stop.tier == tier:
                return replace(self, stops=(replace(stop, share=1.0, onward=1.0),))
        raise BadSetting(f"no text of {self.policy} comes to {tier!r}: {', '.join(stop.tier for stop in self.stops)}")

    def draw(self, chance: random.Random) -> list[float]:
        """Seconds of one text at each stop, as far as it goes."""
        out: list[float] = []
        for stop in self.stops:
            if out and chance.random() >= stop.onward:
                break
            out.append(chance.choices(stop.seconds, stop.weights)[0])
        return out


def _seconds_a_layer(policies: dict[str, Any], tier: str) -> tuple[float, float]:
    """A layer's seconds on a tier, and the tokenizer's."""
    if (alone := policies.get(f"{tier}-only")) is None:
        raise BadSetting(f"the measurement has no policy {tier}-only, which says what a layer of this tier takes")
    exits = {int(layer): n for layer, n in alone["exits"][tier].items()}
    depth = sum(layer * n for layer, n in exits.items()) / sum(exits.values())
    return alone["stages_ms"]["infer"] / depth / 1e3, alone["stages_ms"]["tokenize"] / 1e3


@contextmanager
def _read(path: Path) -> Iterator[Any]:
    """What a file of `tierwise bench` holds; what is missing from it, or of another kind, is the file's fault.

    Raises:
        BadSetting: it is no such file.
    """
    try:
        yield json.loads(path.read_text())
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        raise BadSetting(f"{path}: expected what `tierwise bench` wrote ({error!r})") from error


def policies(path: Path) -> list[str]:
    """The policies of a file of `tierwise bench` that ran on tiers.

    Raises:
        BadSetting: it is no such file.
    """
    with _read(path) as found:
        return [name for name in found["policies"] if not name.startswith("whole ")]


def measured(path: Path, policy: str) -> Demand:
    """The demand of a policy in a file of `tierwise bench`.

    Raises:
        BadSetting: it is no such file, or has no such policy, or not what tiers alone take.
    """
    with _read(path) as found:
        return _demand(path, found, policy)


def _demand(path: Path, found: dict[str, Any], policy: str) -> Demand:
    policies = found["policies"]
    if policy not in policies:
        raise BadSetting(f"policy {policy!r} is not in {path}{did_you_mean(policy, policies)}")
    one = policies[policy]
    order = [tier["name"] for tier in found["first_tier"]["tiers"] if tier["name"] in one["ran_by_tier"]]
    stops, before = [], 1.0
    for tier in order:
        layer_s, words_s = _seconds_a_layer(policies, tier)
        exits = {int(layer): n for layer, n in one["exits"][tier].items()}
        share = one["ran_by_tier"][tier]
        seconds = tuple(layer * layer_s + words_s for layer in exits)
        stops.append(Stop(tier, share, share / before, seconds, tuple(exits.values())))
        before = share
    calls = sum(stop.share for stop in stops if stop.tier != found["first_tier"]["tier"])
    sizes = one["bytes_per_request"]
    return Demand(policy, tuple(stops), (sizes["up"] / calls, sizes["down"] / calls) if calls else (0.0, 0.0))
