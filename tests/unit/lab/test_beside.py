"""A policy beside others: what a bench and a replay put into figures, and the sentence at their end."""

import doctest

import numpy as np
import pytest

from lab import beside as module
from lab.beside import beside, verdict


def test_a_policy_is_paired_with_the_other():
    figures = beside(np.array([100.0, 300.0]), np.array([200.0, 600.0]), np.array([1, 0]), np.array([1, 1]))
    assert figures["time_ratio"] == pytest.approx([0.5, 0.5, 0.5])  # every text takes half: no doubt at all
    assert figures["p95_ratio"] == pytest.approx(0.5)
    assert figures["ms"] == [-200, -300, -100]
    assert figures["accuracy"] == [-0.5, -1, 0]


def test_the_interval_of_a_ratio_of_times_holds_it_and_grows_with_noise():
    noise = np.random.default_rng(3)
    theirs, right = noise.exponential(100, 300), np.ones(300, bool)
    value, low, high = beside(noise.permutation(theirs), theirs, right, right)["time_ratio"]
    assert value == pytest.approx(1)
    assert 0.7 < low < 0.95 < 1.05 < high < 1.4
    _, bound, same = beside(theirs, theirs, right, right)["accuracy"]
    assert bound < 0 < same  # no text differs, but 300 texts leave room


def test_a_verdict_names_files_by_their_names_and_each_other_in_turn():
    row = {"time_ratio": [0.5, 0.4, 0.6], "accuracy": [0.0, -0.01, 0.01], "p95_ratio": 2.0}
    said = verdict("results/plan.policy.json", {"cloud-only": row, "tabi": {**row, "p95_ratio": 0.9}})
    assert said == (
        "plan takes 0.50 [0.40, 0.60] times as long as cloud-only, at +0.0 [-1.0, +1.0] points of accuracy "
        "(p95: 2.00 times); 0.50 [0.40, 0.60] times as long as tabi, at +0.0 [-1.0, +1.0] points of accuracy "
        "(p95: 0.90 times). Brackets hold 95 % intervals."
    )


def test_a_policy_without_another_is_told_what_to_add():
    assert verdict("collaborative", {}).startswith("collaborative has nothing to stand beside: name another policy")


def test_the_examples_hold():
    assert doctest.testmod(module) == (0, 6)
