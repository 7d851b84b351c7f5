"""The budget of speculative sending."""

import random

import pytest

from shared.pipeline.speculation import WINDOW, Budget


def test_a_call_under_way_counts_as_wasted_until_it_is_used():
    budget = Budget(0.02)
    assert [budget.begin() for _ in range(3)] == [True, True, False]
    budget.end(begun=True, wasted=False)
    assert [budget.begin() for _ in range(2)] == [True, False]


def test_what_was_wasted_is_forgotten_after_a_window():
    budget = Budget(0.01)
    assert budget.begin()
    budget.end(begun=True, wasted=True)
    for _ in range(WINDOW - 1):
        assert not budget.begin()
        budget.end(begun=False, wasted=False)
    budget.end(begun=False, wasted=False)
    assert budget.begin()


@pytest.mark.parametrize("share", [0.0, 0.005, 0.29, 1.0])
def test_no_window_wastes_more_than_its_share(share):
    budget, pick, under_way, wasted = Budget(share), random.Random(6), 0, []
    for _ in range(2000):
        if pick.random() < 0.6 and budget.begin():
            under_way += 1
        if under_way and pick.random() < 0.7:
            under_way -= 1
            wasted.append(pick.random() < 0.8)
            budget.end(begun=True, wasted=wasted[-1])
        else:
            wasted.append(False)
            budget.end(begun=False, wasted=False)
    worst = max(sum(wasted[at : at + WINDOW]) for at in range(len(wasted) - WINDOW))
    assert worst <= round(share * WINDOW, 6)
    assert worst >= min(int(share * WINDOW), 20)  # and it is used
