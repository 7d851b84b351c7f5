"""When an upstream is left alone, by a clock of our own; how many retries a budget gives; smoothed times."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.links.breaker import Breaker, RetryBudget
from shared.links.estimates import Smoothed


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def breaker(clock):
    return Breaker(clock)


def tell(breaker, pattern):
    """x: failed, o: answered."""
    for letter in pattern:
        breaker.count(failed=letter == "x")
    return breaker.open


def test_five_failures_in_a_row_open_it(breaker):
    assert not tell(breaker, "xxxx")
    assert tell(breaker, "x")


def test_an_answer_in_between_starts_the_row_again(breaker):
    assert not tell(breaker, "xxxxoxxxx")
    assert tell(breaker, "x")


def test_over_half_of_twenty_within_ten_seconds_open_it(breaker):
    assert not tell(breaker, "xxo" * 6)  # 18 calls are too few to say
    assert tell(breaker, "xx")


def test_half_of_them_do_not(breaker):
    assert not tell(breaker, "ox" * 50)
    assert tell(breaker, "x")  # 51 of 101


def test_calls_older_than_ten_seconds_do_not_count(breaker, clock):
    tell(breaker, "xxo" * 6)
    clock.now += 10.1
    assert not tell(breaker, "xxo")
    clock.now += 9.9
    assert not tell(breaker, "xxoxxoxxoxxoxxo")  # 18 again


def test_ten_seconds_exactly_still_count(breaker, clock):
    tell(breaker, "xxo" * 6)
    clock.now += 10
    assert tell(breaker, "xx")


def test_what_comes_in_while_it_is_open_changes_nothing_and_closing_starts_afresh(breaker):
    assert tell(breaker, "xxxxx" + "o" * 100)
    breaker.close()
    assert not tell(breaker, "xxxx")


@given(st.text("xo", max_size=120))
def test_it_opens_exactly_when_a_rule_says_so(pattern):
    breaker, expected = Breaker(Clock()), False
    for upto in range(1, len(pattern) + 1):
        seen = pattern[:upto]
        mostly = len(seen) >= 20 and seen.count("x") > len(seen) / 2
        expected = expected or seen.endswith("xxxxx") or mostly
        breaker.count(failed=seen[-1] == "x")
        assert breaker.open == expected


@given(st.lists(st.booleans(), max_size=300))
def test_retries_never_exceed_a_tenth_of_the_calls(wanted):
    budget, retries = RetryBudget(), 0
    for calls, wants in enumerate(wanted, start=1):
        budget.call()
        retries += wants and budget.take()
        assert retries <= calls / 10 + 1e-6


def test_saved_retries_have_a_limit():
    budget = RetryBudget()
    for _ in range(1000):
        budget.call()
    assert sum(budget.take() for _ in range(100)) == 10


def test_smoothed_times_follow_and_are_forgotten(clock):
    link = Smoothed(forget_s=5, clock=clock)
    assert link.mean is link.high is None
    link.add(0.1)
    assert (link.mean, link.high) == (0.1, 0.2)
    for _ in range(100):
        link.add(0.3)
    assert link.mean == pytest.approx(0.3, abs=0.001)
    assert link.high == pytest.approx(0.3, abs=0.01)
    clock.now += 5.1
    assert link.mean is link.high is None
    link.add(0.2)
    assert link.mean == 0.2  # nothing of the old one is left


def test_one_outlier_moves_an_estimate_little_and_a_lasting_change_moves_it_wholly(clock):
    """A process that was stopped for 20 s in a pass of 20 ms: the estimate stays near the pass."""
    layer = Smoothed(clock=clock)
    for _ in range(50):
        layer.add(0.02)
    layer.add(20.0)
    assert layer.mean == pytest.approx(0.0275)  # 0.02 + (0.08 - 0.02) / 8
    for _ in range(40):
        layer.add(20.0)
    assert layer.mean == pytest.approx(20.0, rel=0.1)


def test_an_estimate_of_no_time_at_all_can_grow_again(clock):
    link = Smoothed(clock=clock)
    for seconds in [0.0] * 20 + [1.0] * 60:
        link.add(seconds)
    assert link.mean == pytest.approx(1.0, rel=0.1)


def test_after_a_pause_the_last_value_is_known_as_the_last_one_alone(clock):
    layer = Smoothed(forget_s=1, clock=clock)
    layer.add(20.0)
    clock.now += 1.1
    assert layer.mean is layer.high is None
    assert layer.last_high == 40.0
    layer.add(0.02)
    assert (layer.mean, layer.last_high) == (0.02, 0.04)
