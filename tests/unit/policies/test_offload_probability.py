"""The offload probability: the published shape of the curve, its printed values, and a draw that replays."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.policies.base import draw
from shared.policies.collaborative import Curve, offload_probability

RATIO = st.floats(0, 1)
STEEP = st.floats(0, 1000, exclude_min=True)
CURVES = st.sampled_from(Curve)

# confidence    .70    .80    .90    .95    .98    .99      steepness 10
TABLE = {
    (0.7, Curve.SIGMOID): [1.000, 0.846, 0.154, 0.028, 0.006, 0.003],
    (0.7, Curve.LINEAR): [1.000, 0.667, 0.333, 0.167, 0.067, 0.033],
    (0.8, Curve.SIGMOID): [1.000, 1.000, 0.500, 0.070, 0.011, 0.004],
}


@pytest.mark.parametrize(("threshold", "curve"), TABLE)
def test_the_table_of_check_values(threshold, curve):
    found = [offload_probability(c, threshold, 10.0, curve) for c in (0.70, 0.80, 0.90, 0.95, 0.98, 0.99)]
    assert found == pytest.approx(TABLE[threshold, curve], abs=6e-4)


def test_below_the_threshold_a_text_is_always_offloaded():
    for curve in Curve:
        assert offload_probability(0.7999, 0.8, 10.0, curve) == 1


def test_the_curve_starts_at_one_and_ends_at_zero():
    for curve in (Curve.SIGMOID, Curve.LINEAR):
        assert offload_probability(0.8, 0.8, 10.0, curve) == pytest.approx(1, abs=1e-9)
        just_above = offload_probability(0.8 + 1e-7, 0.8, 10.0, curve)
        assert just_above == pytest.approx(1, abs=1e-5)  # continuous with the plateau
        assert offload_probability(1.0, 0.8, 10.0, curve) == pytest.approx(0, abs=1e-9)
        assert offload_probability(0.9, 0.8, 10.0, curve) == pytest.approx(0.5)


@pytest.mark.parametrize("steepness", [5e-324, 1e-17, 1e-12, 9e-4])
def test_hardly_any_steepness_is_a_straight_line(steepness):
    for confidence in (0.8, 0.85, 0.93, 1.0):
        line = offload_probability(confidence, 0.8, curve=Curve.LINEAR)
        assert offload_probability(confidence, 0.8, steepness) == pytest.approx(line, abs=1e-6)


def test_a_step_offloads_below_the_threshold_only():
    assert [offload_probability(c, 0.8, curve=Curve.STEP) for c in (0.79, 0.8, 1.0)] == [1, 0, 0]


def test_a_threshold_of_one_offloads_all_but_certain_answers():
    for curve in Curve:
        assert offload_probability(0.999999, 1.0, curve=curve) == 1
        assert offload_probability(1.0, 1.0, curve=curve) == 0


def test_beyond_the_middle_the_sigmoid_offloads_less_than_the_line():
    for confidence in (0.86, 0.9, 0.95, 0.99):
        assert offload_probability(confidence, 0.7) < offload_probability(confidence, 0.7, curve=Curve.LINEAR)


@given(RATIO, STEEP, CURVES, RATIO, RATIO)
def test_a_probability_that_never_rises_with_confidence(threshold, steepness, curve, a, b):
    less, more = (offload_probability(confidence, threshold, steepness, curve) for confidence in sorted((a, b)))
    assert 1 >= less >= more - 1e-9
    assert more >= 0


def test_the_draw_is_the_documented_formula():
    digest = hashlib.sha256(b"seed-1:4:edge").digest()
    assert draw("seed-1", 4, "edge") == int.from_bytes(digest[:8], "big") / 2**64
    assert draw("seed-1", 0, "end") == pytest.approx(0.148999058, abs=1e-9)  # pinned: old logs must replay


@given(st.text("abc-_.019"), st.integers(0, 10_000), st.sampled_from(["end", "edge", "cloud"]))
def test_a_draw_replays_and_lies_in_the_unit_interval(seed, index, tier):
    assert 0 <= draw(seed, index, tier) < 1
    assert draw(seed, index, tier) == draw(seed, index, tier)


def test_draws_differ_by_seed_index_and_tier_and_fill_the_interval():
    assert len({draw("a", 0, "end"), draw("b", 0, "end"), draw("a", 1, "end"), draw("a", 0, "edge")}) == 4
    many = sorted(draw("s", i, "end") for i in range(2000))
    assert max(abs(value - i / 2000) for i, value in enumerate(many)) < 0.0364  # Kolmogorov-Smirnov, 1 %
