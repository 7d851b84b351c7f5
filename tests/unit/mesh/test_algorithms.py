"""MDI-Exit's four algorithms, worked by hand."""

import pytest

from shared.mesh.algorithms import (
    Constants,
    Next,
    Own,
    Seen,
    adapted_gap,
    adapted_threshold,
    after_segment,
    nearest,
    send_chance,
)


@pytest.mark.parametrize(
    ("confidence", "last", "waiting", "leaving", "goes"),
    [
        (0.90, False, 3, 0, Next.ANSWER),  # C >= T_e, and 0.9 is enough
        (0.89, False, 3, 0, Next.LEAVE),
        (0.89, True, 3, 0, Next.ANSWER),  # there is no further segment
        (0.89, False, 0, 0, Next.STAY),  # the node has nothing else to do
        (0.89, False, 3, 50, Next.LEAVE),
        (0.89, False, 3, 51, Next.STAY),  # O > T_O
    ],
)
def test_a_text_leaves_at_a_sure_exit_and_goes_on_where_the_queues_say(confidence, last, waiting, leaving, goes):
    assert after_segment(confidence, 0.9, last=last, waiting=waiting, leaving=leaving) is goes


def test_a_threshold_over_one_never_exits_early():
    assert after_segment(1.0, 2.0, last=False, waiting=1, leaving=0) is Next.LEAVE


@pytest.mark.parametrize(
    ("own", "to", "chance"),
    [
        (Own(4, 2, 0.08), Seen("m", 1, 0.02, 0.14), 0.08 / 0.16),
        (Own(8, 2, 0.16), Seen("m", 1, 0.02, 0.14), 1.0),  # as long here as there
        (Own(9, 2, 0.18), Seen("m", 1, 0.02, 0.14), 1.0),
        (Own(9, 2, 0.18), Seen("m", 2, 0.04, 0.0), 0.0),  # O is not above the neighbour's I
        (Own(0, 2, 0.0), Seen("m", 1, 0.02, 0.14), 0.0),  # nothing waits here
        (Own(9, 2, 0.18), Seen("m", 0, 0.0, 0.0), 1.0),  # at once, whatever division by zero would say
    ],
)
def test_the_chance_to_send_compares_the_wait_here_with_the_wait_there(own, to, chance):
    assert send_chance(own, to) == pytest.approx(chance)


def test_the_neighbour_that_would_begin_first_is_asked():
    near, idle, busy = Seen("near", 3, 0.06, 0.01), Seen("idle", 0, 0.0, 0.05), Seen("busy", 9, 0.18, 0.0)
    assert nearest([near, idle, busy]) == idle  # 0.07, 0.05, 0.18
    assert nearest([]) is None


@pytest.mark.parametrize(("queued", "gap_ms"), [(0, 80), (9, 80), (10, 90), (29, 90), (30, 120), (99, 120)])
def test_the_rate_follows_the_queues(queued, gap_ms):
    assert adapted_gap(0.1, queued) == pytest.approx(gap_ms / 1e3)


def test_the_gap_has_a_floor():
    assert adapted_gap(0.0011, 0) == 0.001
    assert adapted_gap(0.9, 30) == 1.0


@pytest.mark.parametrize(("queued", "threshold"), [(9, 0.92), (10, 0.9), (30, 0.9), (31, 0.88)])
def test_the_threshold_follows_the_queues(queued, threshold):
    assert adapted_threshold(0.9, queued) == pytest.approx(threshold)


def test_the_threshold_stays_between_its_bounds():
    assert adapted_threshold(0.99, 0) == 1.0
    assert adapted_threshold(0.61, 99) == 0.6
    assert adapted_threshold(0.36, 99, Constants.of(4)) == pytest.approx(0.35)  # 1/4 + 0.1
