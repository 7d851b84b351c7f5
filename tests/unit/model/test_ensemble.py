"""The ensemble: weights that sum to one, for whichever tiers answered."""

import doctest

import pytest
from hypothesis import given
from hypothesis import strategies as st

import shared.model.ensemble
from shared.model.ensemble import Ensemble, Weighting, combine

PATHS = (["end"], ["edge"], ["cloud"], ["end", "edge"], ["end", "cloud"], ["end", "edge", "cloud"], ["edge", "cloud"])
ENSEMBLE = Ensemble(
    accuracy={"end": 0.8, "edge": 0.85, "cloud": 0.95},
    fitted={"end": [1.0], "end+edge": [0.25, 0.75], "end+edge+cloud": [0.125, 0.25, 0.625]},
)


def test_accuracy_weights_are_renormalised_over_the_visited_tiers():
    assert ENSEMBLE.weights(["end", "edge", "cloud"], Weighting.ACCURACY) == pytest.approx(
        [0.8 / 2.6, 0.85 / 2.6, 0.95 / 2.6]
    )
    assert ENSEMBLE.weights(["end", "cloud"], Weighting.ACCURACY) == pytest.approx([0.8 / 1.75, 0.95 / 1.75])


def test_fitted_weights_belong_to_the_path_that_was_taken():
    assert ENSEMBLE.weights(["end", "edge"], Weighting.FITTED) == [0.25, 0.75]
    assert ENSEMBLE.weights(["end", "edge", "cloud"], Weighting.FITTED) == [0.125, 0.25, 0.625]


def test_a_path_that_calibration_never_saw_is_answered_by_its_deepest_tier():
    assert ENSEMBLE.weights(["end", "cloud"], Weighting.FITTED) == [0, 1]
    assert ENSEMBLE.weights(["end", "fog"], Weighting.ACCURACY) == [0, 1]
    assert Ensemble().weights(["end", "edge", "cloud"], Weighting.ACCURACY) == [0, 0, 1]


def test_without_an_ensemble_the_deepest_tier_answers():
    assert ENSEMBLE.weights(["end", "edge", "cloud"], Weighting.LAST) == [0, 0, 1]


@given(st.sampled_from(PATHS), st.sampled_from(Weighting))
def test_weights_sum_to_one_over_any_path(path, weighting):
    weights = ENSEMBLE.weights(path, weighting)
    assert len(weights) == len(path)
    assert sum(weights) == pytest.approx(1)
    assert min(weights) >= 0


def test_the_mean_of_probabilities_can_overrule_the_deepest_tier():
    answers = [{"negative": 0.9, "positive": 0.1}, {"negative": 0.45, "positive": 0.55}]
    assert combine(answers, [0.5, 0.5]) == pytest.approx({"negative": 0.675, "positive": 0.325})
    assert combine(answers, [0.0, 1.0]) == answers[1]


def test_labels_are_matched_by_name_not_by_place():
    answers = [{"a": 0.2, "b": 0.8}, {"b": 0.4, "a": 0.6}]
    assert combine(answers, [0.5, 0.5]) == pytest.approx({"a": 0.4, "b": 0.6})


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0.01, 1)), min_size=1, max_size=4))
def test_a_combination_is_a_distribution_within_its_parts(parts):
    total = sum(weight for _, weight in parts)
    mean = combine([{"a": p, "b": 1 - p} for p, _ in parts], [weight / total for _, weight in parts])
    assert sum(mean.values()) == pytest.approx(1)
    assert min(p for p, _ in parts) - 1e-9 <= mean["a"] <= max(p for p, _ in parts) + 1e-9


def test_the_printed_example_is_true():
    assert doctest.testmod(shared.model.ensemble) == (0, 1)


def test_rounded_weights_of_a_card_give_no_share_above_one():
    """0.3333 + 0.3333 + 0.3335 is a card's rounding; three sure answers must stay a distribution."""
    weights = Ensemble(fitted={"end+edge+cloud": [0.3333, 0.3333, 0.3335]}).weights(
        ["end", "edge", "cloud"], Weighting.FITTED
    )
    sure = {"negative": 0.0, "positive": 1.0}
    assert {label: round(p, 6) for label, p in combine([sure] * 3, weights).items()} == sure
