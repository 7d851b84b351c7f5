"""Exit rules on histories small enough to check by hand: [E, B, C], oldest exit first."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.model.exits import Confidence, Entropy, Patience, Similarity, exit_taken

RULES = [
    Similarity(0.1, 1),
    Similarity(0.1, 2),
    Similarity(0.1, 1, 0.8, 0.6),
    Confidence(0.9),
    Entropy(0.3),
    Patience(1),
    Patience(3),
]


def history(*exits):
    """Positive probabilities of each row, exit by exit -> [E, B, 2]."""
    positive = np.array(exits, dtype=np.float64)
    return np.stack([1 - positive, positive], -1)


def first_exit(rule, whole):
    """The 1-based exit at which each row would leave; 0: none."""
    out = [0] * whole.shape[1]
    for depth in range(1, len(whole) + 1):
        for row, leaves in enumerate(rule(whole[:depth]).tolist()):
            out[row] = out[row] or (depth if leaves else 0)
    return out


def test_similarity_leaves_after_patience_small_differences_in_a_row():
    #               row 0: .30 .02 .01 .00   row 1: .02 .30 .02 .02   row 2: never small
    whole = history([0.50, 0.50, 0.1], [0.80, 0.52, 0.9], [0.82, 0.82, 0.1], [0.83, 0.84, 0.9], [0.83, 0.86, 0.1])
    assert first_exit(Similarity(0.05, patience=1), whole) == [3, 2, 0]
    assert first_exit(Similarity(0.05, patience=2), whole) == [4, 5, 0]
    assert first_exit(Similarity(0.05, patience=3), whole) == [5, 0, 0]


def test_similarity_is_the_total_variation_over_all_classes():
    whole = np.array([[[0.5, 0.3, 0.2]], [[0.3, 0.3, 0.4]]])  # |.2| + |0| + |.2|, halved: .2
    assert Similarity(0.2001, 1)(whole).tolist() == [True]
    assert Similarity(0.1999, 1)(whole).tolist() == [False]


def test_similarity_is_strict_so_theta_zero_never_leaves():
    same = history([0.75], [0.75], [0.75], [0.75])
    assert first_exit(Similarity(0.0, 1), same) == [0]
    assert first_exit(Similarity(1e-9, 1), same) == [2]
    assert not Similarity(0.25, 1)(history([0.5], [0.75])).item()  # equal to theta is not below it


def test_similarity_can_demand_confidence_of_agreeing_exits():
    whole = history([0.55], [0.55], [0.56], [0.97], [0.97])
    assert first_exit(Similarity(0.05, 1), whole) == [2]
    assert first_exit(Similarity(0.05, 1, min_confidence=0.9), whole) == [5]


def test_similarity_can_let_the_unsure_leave_besides():
    whole = history([0.55, 0.8], [0.55, 0.8], [0.56, 0.81], [0.97, 0.97], [0.97, 0.97])
    assert first_exit(Similarity(0.05, 1, min_confidence=0.9, unsure=0.7), whole) == [2, 5]


def test_confidence_accepts_the_threshold_itself_from_either_label():
    whole = history([0.5, 0.5, 0.5], [0.75, 0.25, 0.74])
    assert Confidence(0.75)(whole).tolist() == [True, True, False]
    assert Confidence(0.5)(whole[:1]).tolist() == [True, True, True]


def test_entropy_in_nats_leaves_below_the_threshold():
    even, sure = history([0.5, 0.9]), math.log(2)
    assert Entropy(sure)(even).tolist() == [False, True]  # ln 2 is not below ln 2; H(.9) = .3251
    assert Entropy(0.326)(even).tolist() == [False, True]
    assert Entropy(0.325)(even).tolist() == [False, False]


def test_entropy_of_a_certain_answer_is_zero_and_not_nan():
    certain = history([0.0, 1.0])
    assert Entropy(1e-12)(certain).tolist() == [True, True]
    assert Entropy(0.0)(certain).tolist() == [False, False]


def test_patience_counts_unchanged_labels_in_a_row():
    #               row 0: + + - - -   row 1: + - + - +   row 2: + + + + +
    whole = history([0.9, 0.9, 0.6], [0.9, 0.1, 0.9], [0.1, 0.9, 0.6], [0.2, 0.1, 0.9], [0.3, 0.9, 0.6])
    assert first_exit(Patience(1), whole) == [2, 0, 2]
    assert first_exit(Patience(2), whole) == [5, 0, 3]
    assert first_exit(Patience(4), whole) == [0, 0, 5]


@pytest.mark.parametrize("rule", [Similarity(1.0, 2), Patience(2)])
def test_no_history_is_long_enough_before_patience_plus_one_exits(rule):
    assert first_exit(rule, history([0.5], [0.5], [0.5])) == [3]


@given(st.lists(st.lists(st.floats(0, 1), min_size=3, max_size=3), min_size=1, max_size=6), st.sampled_from(RULES))
def test_a_row_is_judged_by_itself_and_by_bool(exits, rule):
    whole = history(*exits)
    together = rule(whole)
    assert together.dtype == bool
    assert together.tolist() == [rule(whole[:, [row]]).item() for row in range(3)]


@given(st.lists(st.lists(st.floats(0, 1), min_size=3, max_size=3), min_size=1, max_size=6), st.sampled_from(RULES))
def test_recorded_exits_are_left_where_the_live_rule_first_accepts(exits, rule):
    whole = history(*exits)
    assert exit_taken(whole, rule).tolist() == [first or len(exits) for first in first_exit(rule, whole)]


def test_without_a_rule_every_row_takes_the_last_exit():
    assert exit_taken(history([0.9, 0.9], [0.9, 0.9]), None).tolist() == [2, 2]
