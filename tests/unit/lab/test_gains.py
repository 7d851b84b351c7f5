"""Gains by confidence, worked by hand; and policies over a trace, paired."""

import doctest

import numpy as np
import pytest

from lab.fit import gains as module
from lab.fit.gains import by_confidence
from lab.live.bench import Plan
from lab.live.bench_report import _over_trace


def test_the_examples_hold():
    assert doctest.testmod(module).failed == 0


def test_a_gain_stands_at_its_bins_mean_and_bins_with_the_same_gains_are_one():
    sure = np.linspace(0, 1, 1000, endpoint=False)
    near, far = (sure < 0.4) * 0.25, (sure < 0.2) * 0.5 + (sure < 0.4) * 0.25
    points, (to_near, to_far) = by_confidence(sure, [near, far])
    assert points == pytest.approx([0.1, 0.3, 0.7], abs=0.02)
    assert (to_near, to_far) == ([0.25, 0.25, 0.0], [0.75, 0.25, 0.0])


def test_a_gain_never_rises_with_the_confidence_and_keeps_its_mean():
    rng = np.random.default_rng(2)
    sure = rng.uniform(0.5, 1, 3000)
    gain = (rng.random(3000) < 1 - sure).astype(float) - (rng.random(3000) < 0.1)
    points, (found,) = by_confidence(sure, [gain])
    assert found == sorted(found, reverse=True)
    assert points == sorted(points)
    assert len(found) == len(points) > 3
    assert np.interp(sure, points, found).mean() == pytest.approx(gain.mean(), abs=0.01)


def test_no_gain_is_a_negative_zero():
    _, (found,) = by_confidence(np.full(100_000, 0.75), [np.eye(1, 100_000)[0] * -1])
    assert list(map(str, found)) == ["0.0"]


def test_texts_that_are_all_as_sure_are_one_bin():
    assert by_confidence(np.full(100, 0.75), [np.ones(100)]) == ([0.75], [[1.0]])


def test_over_a_trace_the_first_policy_stands_beside_each_other_one_text_by_text():
    plan = Plan([], ["network-aware", "buffer-threshold", "collaborative"], rate=2.0, trace="stepdown")
    assert plan.loop == "open, 2.0/s; trace stepdown"
    times, right = np.arange(100.0), np.ones(100, bool)
    arrays = {name: (times + more, right) for name, more in zip(plan.policies, (0.0, 10.0, 30.0), strict=True)}
    found = _over_trace(plan, arrays)
    assert found["trace"] == "stepdown"
    assert {other: list(row) for other, row in found["beside"].items()} == {
        "buffer-threshold": ["network-aware", "collaborative"],
        "collaborative": ["network-aware", "buffer-threshold"],
    }
    point, low, high = found["beside"]["collaborative"]["network-aware"]["p95_ms"]
    assert point == low == high == -30  # the same draws of texts on both sides
    assert found["verdict"].startswith("network-aware takes ")
    assert found["verdict"].endswith(
        "Its p95: -10 [-10, -10] ms beside buffer-threshold; -30 [-30, -30] ms beside collaborative."
    )
