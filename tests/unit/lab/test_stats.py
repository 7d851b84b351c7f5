"""Intervals and tests against values known from elsewhere."""

import math
from statistics import NormalDist

import numpy as np
import pytest
from scipy.special import betaincinv, stdtrit
from sklearn.metrics import f1_score, matthews_corrcoef

from lab.stats import (
    difference_of_medians,
    judged,
    lost_at_most,
    mcnemar,
    mean_interval,
    paired_difference,
    paired_saving,
    paired_score_difference,
    paired_shares,
    score,
    share_above,
    unseen_share,
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
    assert wilson(8, 10, 0.9)[0] == pytest.approx(0.5408, abs=1e-4)  # at alpha = 0.1, two-sided


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
    doubt = unseen_share(60) if metric is Metric.ACCURACY else 0
    assert paired_score_difference(metric, a, a, truth) == (0, -doubt, doubt)


def test_no_difference_among_few_texts_is_no_certainty():
    right = np.ones(30, bool)
    value, low, high = paired_shares(right, right.copy())
    assert (value, low) == (0.0, -high)
    assert high == pytest.approx(0.1157, abs=1e-4)  # Clopper-Pearson, 0 of 30
    assert paired_shares(right, ~right) == (1.0, 1.0, 1.0)


# The formulas that scipy's functions stand for, written out


@pytest.mark.parametrize(("right", "n"), [(0, 10), (8, 10), (10, 10), (81, 263), (9_412, 10_000)])
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_wilson_is_the_root_of_the_normal_test(right, n, confidence):
    p, z = right / n, NormalDist().inv_cdf((1 + confidence) / 2)
    centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    worked = [max(0.0, (centre - half) / (1 + z * z / n)), min(1.0, (centre + half) / (1 + z * z / n))]
    assert wilson(right, n, confidence) == pytest.approx(worked, abs=1e-9)


@pytest.mark.parametrize(("right", "n"), [(1, 10), (59, 59), (550, 600)])
def test_a_share_is_bounded_by_a_quantile_of_beta(right, n):
    assert share_above(right, n) == pytest.approx(betaincinv(right, n - right + 1, 0.05), abs=1e-9)


def test_the_interval_of_a_mean_is_student_s():
    values = [0.1, -0.2, 0.05, 0.3]
    half = stdtrit(3, 0.975) * np.std(values, ddof=1) / 2
    assert mean_interval(values) == pytest.approx((0.0625, 0.0625 - half, 0.0625 + half), abs=1e-9)
    assert mean_interval([0.4]) == (0.4, 0.4, 0.4)
    assert mean_interval([1.0, 1.0]) == (1, 1, 1)


@pytest.mark.parametrize("n", [1, 2, 90])
def test_resampling_draws_rows_of_texts_from_seed_0(n):
    noise = np.random.default_rng(4)
    a, b = noise.exponential(size=n), noise.exponential(size=n)
    rows = np.random.default_rng(0).integers(0, n, (2000, n))
    ends = np.percentile((a - b)[rows].mean(1), [2.5, 97.5])
    assert paired_difference(a, b) == pytest.approx([(a - b).mean(), *ends], abs=1e-9)
    ends = np.percentile(1 - a[rows].mean(1) / b[rows].mean(1), [2.5, 97.5])
    assert paired_saving(a, b) == pytest.approx([1 - a.mean() / b.mean(), *ends], abs=1e-9)
    random = np.random.default_rng(0)
    drawn = [np.median(random.choice(x, (2000, n)), axis=1) for x in (a, b)]
    assert difference_of_medians(a, b) == pytest.approx(np.percentile(drawn[0] - drawn[1], [2.5, 97.5]), abs=1e-9)


@pytest.mark.parametrize("classes", [2, 3])
def test_scores_are_scikit_learn_s_and_so_are_their_intervals(classes):
    noise = np.random.default_rng(5)
    said, truth = noise.integers(0, classes, (2, 50))
    assert score(Metric.MCC, said, truth) == pytest.approx(matthews_corrcoef(truth, said), abs=1e-9)
    of_label_1 = f1_score(truth == 1, said == 1)
    assert score(Metric.F1, said, truth) == pytest.approx(of_label_1, abs=1e-9)
    rows = np.random.default_rng(0).integers(0, 50, (1000, 50))
    ends = np.percentile([f1_score(truth[row] == 1, said[row] == 1) for row in rows], [2.5, 97.5])
    assert judged(Metric.F1, said, truth) == {"f1": round(of_label_1, 4), "f1_ci95": np.round(ends, 4).tolist()}


def test_a_bound_on_what_is_lost_holds_in_95_of_100_samples_and_is_no_looser_than_it_must_be():
    noise, n, lost, gained = np.random.default_rng(1), 1500, 0.03, 0.02
    held = 0
    for _ in range(1000):
        kind = noise.choice(3, n, p=[lost, gained, 1 - lost - gained])
        held += lost_at_most(kind == 1, kind == 0) >= lost - gained  # texts both are right or wrong on change nothing
    assert 0.93 <= held / 1000 <= 0.975


def test_where_nothing_differs_a_loss_is_bounded_by_the_number_of_texts():
    same = np.ones(1000, dtype=bool)
    assert lost_at_most(same, same) == pytest.approx(2.7 / 1000, rel=0.02)
    assert lost_at_most(~same, same) == pytest.approx(1.0)
    assert lost_at_most(same, ~same) < -0.99
