"""Intervals and tests against values known from elsewhere."""

import numpy as np
import pytest

from lab.stats import (
    Z_ONE_SIDED,
    mcnemar,
    paired_saving,
    paired_score_difference,
    paired_shares,
    score,
    wilson,
)
from shared.model.bundle import Metric


def pairs(both, only_a, only_b, neither):
    a = np.repeat([True, True, False, False], [both, only_a, only_b, neither])
    b = np.repeat([True, False, True, False], [both, only_a, only_b, neither])
    return a, b


@pytest.mark.parametrize(
    ("only_a", "only_b", "p"),
    [(0, 0, 1.0), (5, 5, 1.0), (0, 5, 0.0625), (1, 9, 0.021484375), (9, 1, 0.021484375), (10, 0, 2 / 1024)],
)
def test_mcnemar_is_the_exact_binomial_test_of_the_texts_they_differ_on(only_a, only_b, p):
    assert mcnemar(*pairs(40, only_a, only_b, 7)) == pytest.approx(p)


def test_wilson_agrees_with_the_textbook():
    assert wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)  # statsmodels, proportion_confint(8, 10)
    assert wilson(8, 10, Z_ONE_SIDED)[0] == pytest.approx(0.5408, abs=1e-4)  # at alpha = 0.1, two-sided


def test_a_saving_is_of_the_means_and_its_interval_knows_the_pairs():
    noise = np.random.default_rng(1)
    slow = noise.exponential(100, 400)
    value, low, high = paired_saving(0.8 * slow, slow)
    assert (value, low, high) == pytest.approx((0.2, 0.2, 0.2))  # every text saves a fifth: no doubt at all
    value, low, high = paired_saving(noise.permutation(slow), slow)
    assert value == pytest.approx(0)
    assert low < -0.05 < 0.05 < high


def test_bootstrap_intervals_cover_the_truth_about_as_often_as_they_say():
    noise, covered = np.random.default_rng(2), 0
    for _ in range(200):
        a, b = noise.normal(110, 20, 80), noise.normal(100, 20, 80)
        _, low, high = paired_saving(a, b, draws=400)
        covered += low <= -0.1 <= high
    assert 180 <= covered <= 199


@pytest.mark.parametrize("metric", list(Metric))
def test_the_difference_of_a_metric_is_that_of_its_scores_and_zero_against_itself(metric):
    noise = np.random.default_rng(3)
    truth, a, b = (noise.integers(0, 2, 60) for _ in range(3))
    value, low, high = paired_score_difference(metric, a, b, truth)
    assert value == pytest.approx(score(metric, a, truth) - score(metric, b, truth))
    assert low < value < high
    assert paired_score_difference(metric, a, a, truth) == (0, 0, 0)


def test_no_difference_among_few_texts_is_no_certainty():
    right = np.ones(30, bool)
    value, low, high = paired_shares(right, right.copy())
    assert (value, low) == (0.0, -high)
    assert high == pytest.approx(0.1157, abs=1e-4)  # Clopper-Pearson, 0 of 30
    assert paired_shares(right, ~right) == (1.0, 1.0, 1.0)
