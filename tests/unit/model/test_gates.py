"""Fitted gates as exit rules: on histories small enough to check by hand, [E, B, C], oldest exit first."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.model.exits import exit_taken
from shared.model.gates import FEATURES, JeiDnn, Path, features, leaving_probability

CONFIDENCE, VARIATION, KEPT = (FEATURES.index(name) for name in ("confidence", "variation", "kept"))


def history(*exits):
    """Positive probabilities of each row, exit by exit -> [E, B, 2]."""
    positive = np.array(exits, dtype=np.float64)
    return np.stack([1 - positive, positive], -1)


def gate(bias, names=FEATURES, **weights):
    """A gate with these weights, the others 0."""
    return (*(weights.get(name, 0.0) for name in names), bias)


def four(bias, **weights):
    return gate(bias, FEATURES[:4], **weights)


def test_the_features_are_those_of_the_paper_and_two_of_ours():
    whole = np.array([[[0.5, 0.3, 0.2]], [[0.6, 0.2, 0.2]], [[0.2, 0.7, 0.1]]])
    x = features(whole)
    assert x.shape == (3, 1, 6)
    squares = np.array([0.25, 0.09, 0.04]) / 0.38
    by_hand = [0.5, -sum(p * math.log(p) for p in (0.5, 0.3, 0.2)), 0.2, -(squares * np.log(squares)).sum(), 0.0, 0.0]
    assert x[0, 0].tolist() == pytest.approx(by_hand)
    assert x[1:, 0, VARIATION].tolist() == pytest.approx([0.1, 0.5])
    assert x[:, 0, KEPT].tolist() == [0, 1, 0]


def test_a_certain_answer_has_no_entropy():
    assert features(history([1.0]))[0, 0].tolist() == [1.0, 0.0, 1.0, 0.0, 0.0, 0.0]


def test_kept_counts_from_the_last_change_of_the_label():
    assert features(history([0.9], [0.8], [0.7], [0.2], [0.1]))[:, 0, KEPT].tolist() == [0, 1, 2, 0, 1]


@given(st.lists(st.lists(st.floats(0, 1), min_size=2, max_size=2), min_size=1, max_size=8))
def test_what_is_left_of_one_is_shared_among_exits_and_q_gives_it_back(gates):
    opened = np.array(gates)
    q = leaving_probability(opened)
    assert ((q >= 0) & (q <= 1)).all()
    shares = [max(0.0, min(g, 1 - opened[:exit_, 0].sum())) for exit_, g in enumerate(opened[:, 0])]
    stays, got = 1.0, []
    for chance in q[:, 0]:
        got.append(stays * chance)
        stays *= 1 - chance
    assert got == pytest.approx(shares, abs=1e-6)


def test_jei_dnn_leaves_when_gates_open_little_by_little():
    rule = JeiDnn((four(math.log(0.4 / 0.6)),) * 3)  # every g = .4: q = .4, .4 / .6, ...
    assert exit_taken(history([0.7], [0.7], [0.7], [0.7]), rule).tolist() == [2]
    assert exit_taken(history([0.7], [0.7]), JeiDnn((four(math.log(0.6 / 0.4)),))).tolist() == [1]


def test_jei_dnn_looks_at_the_confidence_of_each_exit():
    rule = JeiDnn((four(-80.0, confidence=100.0),) * 2)  # open above .8
    assert exit_taken(history([0.9, 0.5, 0.5], [0.5, 0.1, 0.5], [0.5, 0.5, 0.5]), rule).tolist() == [1, 2, 3]


def test_a_path_is_left_where_any_action_scores_more_than_going_on():
    answer, send = gate(-0.9, confidence=1.0), gate(-1.5, kept=1.0)  # above .9; kept twice
    rule = Path(((answer, send),) * 3)
    whole = history([0.95, 0.6, 0.6], [0.6, 0.7, 0.3], [0.6, 0.8, 0.6], [0.6, 0.8, 0.6])
    assert exit_taken(whole, rule).tolist() == [1, 3, 4]
    assert exit_taken(whole, Path(((answer,),) * 3)).tolist() == [1, 4, 4]


def test_a_score_of_zero_goes_on():
    assert exit_taken(history([0.75], [0.75]), Path(((gate(-0.75, confidence=1.0),),))).tolist() == [2]


RULES = [
    JeiDnn((four(-4.0, confidence=5.0), four(-2.0, entropy=-3.0, margin=4.0), four(0.1))),
    Path(((gate(-0.8, confidence=1.0), gate(0.1, variation=-1.0)),) * 3),
    Path(()),
]


@given(st.lists(st.lists(st.floats(0, 1), min_size=3, max_size=3), min_size=1, max_size=6), st.sampled_from(RULES))
def test_a_row_is_judged_by_itself_and_exits_without_gates_are_passed(exits, rule):
    whole = history(*exits)
    together = rule(whole)
    assert together.dtype == bool
    assert together.tolist() == [rule(whole[:, [row]]).item() for row in range(3)]
    assert not (together.any() and len(exits) > len(rule.gates))


@pytest.mark.parametrize("rule", RULES)
def test_a_recording_gives_what_the_live_encoder_gives_however_it_lies_in_memory(rule):
    whole = np.random.default_rng(0).dirichlet((1, 1), (6, 40)).astype(np.float32)
    strided = np.ascontiguousarray(whole.swapaxes(0, 1)).swapaxes(0, 1)
    for depth in range(1, 7):
        assert (rule(whole[:depth]) == rule(strided[:depth])).all()


def test_gates_cost_less_than_a_thousandth_of_a_layer():
    hidden, tokens, labels, exits = 384, 8, 2, 6  # the smallest layer that ships, on a very short text
    layer = tokens * 12 * hidden**2 + 2 * tokens**2 * hidden  # projections and feed-forward; attention
    feature = 4 * labels + 2 * labels  # logarithm and product twice, squares, a share of them, differences
    history_again = exits * feature  # every exit's features anew
    path = 3 * (len(FEATURES) + 1)  # answer, send to the edge, send to the cloud
    assert history_again + path < layer / 1000
    assert history_again + exits * 5 < layer / 1000
