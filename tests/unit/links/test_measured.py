"""What calls of late say about a link and the tier behind it, in time that the test moves."""

import pytest

from shared.contracts import InferredRow, LinkUse
from shared.links.measured import Line, Measured, Waiting, by_profile
from shared.links.profile import Profile
from tests.clocks import Clock
from tests.hops import a_hop

LINK = Profile("plain", rate_up_bps=8e4, rate_down_bps=8e5, rtt_s=0.1, jitter_s=0.0, loss_ratio=0.0)


def hop(tier, infer_ms, link_ms=None):
    link = None
    if link_ms is not None:
        link = LinkUse(
            source="edge", target=tier, backend="none", profile="x", request_bytes=1, response_bytes=1, ms=link_ms
        )
    return a_hop(
        tier=tier,
        link=link,
        timings_ms={"tokenize": 1.0, "queue": 500.0, "infer": infer_ms, "prune": 0.0, "total": 501.0 + infer_ms},
    )


def test_before_any_call_a_link_is_as_its_profile_says():
    line = Measured(Clock()).line(LINK)
    assert line == by_profile(LINK)
    # 100 ms, and headers of 316 bytes: 31.6 ms up at 10 kB/s, 3.16 ms down at 100 kB/s
    assert line.fixed_s == pytest.approx(0.1 + 0.0316 + 0.00316)
    assert line.byte_s == pytest.approx((1e-4 + 1e-5) / 2)  # half of the bytes each way
    assert by_profile(Profile("ideal", 0, 0, 0, 0, 0)) == Line(0, 0)


def test_calls_of_one_length_move_the_fixed_part_alone():
    measured = Measured(Clock())
    for _ in range(5):
        measured.add(2000, 0.5)
    line = measured.line(LINK)
    assert line.byte_s == pytest.approx(5.5e-5)  # the profile's
    assert line.takes_s(2000) == pytest.approx(0.5)


def test_calls_of_many_lengths_tell_the_rate():
    measured = Measured(Clock())
    for size in (0, 50_000, 100_000):  # 0.2 s and 20 microseconds a byte
        measured.add(size, 0.2 + 2e-5 * size)
    line = measured.line(LINK)
    assert line.byte_s == pytest.approx(2e-5, rel=0.01)
    assert line.fixed_s == pytest.approx(0.2, rel=0.01)


def test_the_latest_calls_weigh_most_and_old_ones_are_forgotten():
    clock = Clock()
    measured = Measured(clock)
    measured.add(2000, 0.1)
    clock.sleep(1)
    measured.add(2000, 0.4)  # weighs twice as much
    assert measured.line(LINK).takes_s(2000) == pytest.approx(0.3)
    clock.sleep(4.5)  # the first is 5.5 s old
    assert measured.line(LINK).takes_s(2000) == pytest.approx(0.4)
    clock.sleep(1)
    assert measured.line(LINK) == by_profile(LINK)


def test_a_changed_link_begins_with_its_profile():
    measured = Measured(Clock())
    measured.add(2000, 9.0)
    measured.forget_link()
    assert measured.line(LINK) == by_profile(LINK)


def test_no_message_takes_less_than_no_time():
    measured = Measured(Clock())
    measured.add(10_000, 0.01)  # far faster than the profile's 55 microseconds a byte
    line = measured.line(LINK)
    assert (line.fixed_s, line.byte_s) == (0.0, pytest.approx(1e-6))


def test_a_tiers_time_leaves_out_its_queue_and_has_the_link_behind_the_upstream():
    measured = Measured(Clock())
    assert measured.compute_s("edge") is None
    rows = [InferredRow(index=0, hops=[hop("edge", 19.0), hop("cloud", 99.0, link_ms=30.0)])]
    measured.answered(rows)
    assert measured.compute_s("edge") == pytest.approx(0.020)
    assert measured.compute_s("cloud") == pytest.approx(0.130)


def test_texts_of_one_call_share_its_time():
    measured = Measured(Clock())
    measured.answered([InferredRow(index=at, hops=[hop("edge", 39.0)]) for at in (0, 1)])
    assert measured.compute_s("edge") == pytest.approx(0.020)


def test_what_a_replica_says_of_its_queue_is_forgotten_after_two_seconds():
    clock = Clock()
    waiting = Waiting(clock)
    assert waiting.seconds is None
    waiting.hear("0.250")
    clock.sleep(2)
    assert waiting.seconds == 0.25
    clock.sleep(0.1)
    assert waiting.seconds is None


@pytest.mark.parametrize("said", [None, "", "soon", "-1", "nan", "inf", "1e9"])
def test_nonsense_about_a_queue_is_left_out(said):
    waiting = Waiting(Clock())
    waiting.hear("0.5")
    waiting.hear(said)
    assert waiting.seconds == 0.5


def test_what_waits_is_worked_off():
    clock = Clock()
    waiting = Waiting(clock)
    assert waiting.left_s == 0
    waiting.hear("0.5")
    clock.sleep(0.2)
    assert waiting.left_s == pytest.approx(0.3)
    clock.sleep(9)
    assert waiting.left_s == 0
