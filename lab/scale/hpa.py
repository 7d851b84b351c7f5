"""Kubernetes' HorizontalPodAutoscaler, version 2, as a function: from a metric of each pod to a number of replicas.

    desired = ceil(pods * mean / target), none where mean / target is within the tolerance of 1

Then the recommendations of the last seconds steady it (to the highest of the window on the way down, to the lowest on
the way up), the rules bound how much is added or removed in a period, and `least` and `most` hold. Written after the
documentation of the algorithm (kubernetes.io, Horizontal Pod Autoscaling) and the controller's behaviour. Left out:
several metrics, failed pods, and `selectPolicy` other than Max.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

from shared.errors import BadSetting


@dataclass(frozen=True)
class Rule:
    """At most `value` pods, or percent of the pods, in `period_s` seconds."""

    percent: bool
    value: int
    period_s: float


@dataclass(frozen=True)
class Way:
    """One way of scaling: the window that steadies it, and its rules; the one that lets most through counts."""

    window_s: float
    rules: tuple[Rule, ...]

    @classmethod
    def of(cls, behaviour: Mapping[str, Any]) -> Way:
        """`scaleUp` or `scaleDown` of a manifest."""
        rules = (Rule(one["type"] == "Percent", one["value"], one["periodSeconds"]) for one in behaviour["policies"])
        return cls(behaviour["stabilizationWindowSeconds"], tuple(rules))


@dataclass(frozen=True)
class Spec:
    """What a manifest says. `target` is a pod's mean, in the metric's unit."""

    target: float
    least: int
    most: int
    up: Way
    down: Way
    tolerance: float = 0.1

    @classmethod
    def read(cls, path: Path) -> Spec:
        """Of a manifest's file.

        Raises:
            BadSetting: it is no such manifest.
        """
        try:
            return cls.of(yaml.safe_load(path.read_text()))
        except (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError) as error:
            why = " ".join(str(error).split()) if isinstance(error, yaml.YAMLError) else repr(error)
            expected = "a HorizontalPodAutoscaler with one metric of type Pods and its behavior"
            raise BadSetting(f"{path}: expected {expected} ({why})") from error

    @classmethod
    def of(cls, manifest: Mapping[str, Any]) -> Spec:
        """Of a manifest of kind HorizontalPodAutoscaler with one metric of type Pods."""
        spec, (metric,) = manifest["spec"], manifest["spec"]["metrics"]
        quantity = metric["pods"]["target"]["averageValue"]
        target = float(quantity.removesuffix("m")) / (1000 if quantity.endswith("m") else 1)
        up, down = (Way.of(spec["behavior"][way]) for way in ("scaleUp", "scaleDown"))
        return cls(target, spec["minReplicas"], spec["maxReplicas"], up, down)

    def within(self, least: int, most: int, target: float | None = None) -> Spec:
        """The same with other bounds, or another target."""
        return replace(self, least=least, most=most, target=self.target if target is None else target)


def desired(current: int, values: Sequence[float], missing: int, spec: Spec) -> int:
    """Replicas that the pods' values ask for. `missing` pods have no value yet.

    Those count as 0 where more replicas are asked for, and as the target where fewer are; what they turn is not done.
    """
    if not values:
        return current
    ratio = fmean(values) / spec.target
    filled = [*values, *[0.0 if ratio > 1 else spec.target] * missing]
    new = fmean(filled) / spec.target
    if abs(new - 1) <= spec.tolerance or (ratio - 1) * (new - 1) < 0:
        return current
    wanted = math.ceil(new * len(filled) - 1e-9)
    return current if (new - 1) * (wanted - current) < 0 else wanted


class Autoscaler:
    """One autoscaler: it remembers its recommendations and what it did."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self._recommended: list[tuple[float, int]] = []
        self._done: list[tuple[float, int]] = []  # when, and by how much

    def step(self, now: float, current: int, values: Sequence[float], missing: int = 0) -> int:
        """The number of replicas from now on."""
        spec = self.spec
        wanted = self._steadied(now, current, desired(current, values, missing, spec))
        if wanted > current:
            limit = max(self._limit(now, current, rule, 1) for rule in spec.up.rules)
            wanted = min(wanted, limit)
        elif wanted < current:
            limit = min(self._limit(now, current, rule, -1) for rule in spec.down.rules)
            wanted = max(wanted, limit)
        wanted = max(spec.least, min(spec.most, wanted))
        if wanted != current:
            self._done.append((now, wanted - current))
        return wanted

    def _steadied(self, now: float, current: int, wanted: int) -> int:
        self._recommended.append((now, wanted))
        up, down = (
            [count for at, count in self._recommended if at > now - way.window_s or at == now]
            for way in (self.spec.up, self.spec.down)
        )
        return min(max(current, min(up)), max(down))

    def _limit(self, now: float, current: int, rule: Rule, sign: int) -> int:
        """How many replicas a rule allows, counted from those at its period's beginning."""
        began = current - sum(by for at, by in self._done if at > now - rule.period_s)
        if not rule.percent:
            return began + sign * rule.value
        factor = 1 + sign * rule.value / 100
        return math.ceil(began * factor) if sign > 0 else math.floor(began * factor)
