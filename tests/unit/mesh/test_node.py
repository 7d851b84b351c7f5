"""A node's queues and what it does with them, worked by hand; nothing here waits."""

import pytest

from shared.links.profile import Profile
from shared.mesh.algorithms import Next
from shared.mesh.node import Node, Report, Task
from shared.mesh.source import Adapt, Source

LINK = Profile("test", rate_up_bps=1e6, rate_down_bps=1e6, rtt_s=0.02, jitter_s=0.0, loss_ratio=0.0)


@pytest.fixture
def node():
    """Three segments, two neighbours; every draw is a half."""
    return Node("n1", segments=3, neighbours={"n2": LINK, "n3": LINK}, draw=lambda: 0.5)


def queued(node, leaving=0, waiting=0):
    node.service_s = [0.1, 0.1, 0.1]
    for at in range(waiting):
        node.put(Task(f"w{at}", 0, 0.9))
    node.leaving.extend(Task(f"l{at}", 1, 0.9, size=1000) for at in range(leaving))


def test_service_times_are_smoothed_by_segment(node):
    for seconds in (0.1, 0.2):
        node.ran(Task("a", 1, 0.9), 0.99, seconds)
    assert node.service_s == [None, pytest.approx(0.12), None]  # 0.1 + 0.2 * 0.1
    assert node.expects_s(2) == pytest.approx(0.12)  # as the others, until it is measured


def test_the_report_adds_up_the_work_that_waits(node):
    node.service_s = [0.1, 0.3, None]
    for segment in (0, 1, 2):
        node.put(Task("a", segment, 0.9))
    assert node.report() == Report(waiting=3, leaving=0, work_s=pytest.approx(0.1 + 0.3 + 0.2))
    node.next()
    assert node.report().work_s == pytest.approx(0.5)


def test_a_text_that_goes_on_stays_on_an_idle_node_and_leaves_a_busy_one(node):
    task = Task("a", 0, 0.9)
    assert node.ran(task, 0.5, 0.1) is Next.STAY
    assert (node.next(), task.segment) == (task, 1)
    node.put(Task("b", 0, 0.9))
    assert node.ran(task, 0.5, 0.1) is Next.LEAVE
    assert list(node.leaving) == [task]


def test_the_last_segment_answers(node):
    assert node.ran(Task("a", 2, 0.9), 0.1, 0.1) is Next.ANSWER


def test_an_idle_node_runs_what_waits_to_leave(node):
    queued(node, leaving=1)
    assert node.next().id == "l0"
    assert node.next() is None


def test_the_head_goes_to_the_neighbour_that_would_begin_first(node):
    queued(node, leaving=3, waiting=4)
    node.heard("n2", Report(1, 0, 0.1), now=0.0)
    node.heard("n3", Report(2, 0, 0.2), now=0.0)
    task, to = node.offload(0.0)  # 0.4 s of work here; n2: 0.1 + 0.01 + 8 * (1000 + 250 + 2 * 66) / 1e6
    assert (task.id, to) == ("l0", "n2")
    assert node.neighbours["n2"].seen("n2", 1000).waiting == 2  # what was sent counts until it reports
    assert node.neighbours["n2"].free_at == pytest.approx(8 * 1382 / 1e6)


def test_one_text_at_a_time_is_on_the_way_to_a_neighbour(node):
    queued(node, leaving=9, waiting=9)
    assert {node.offload(0.0)[1], node.offload(0.0)[1]} == {"n2", "n3"}
    assert node.offload(0.0) is None
    assert node.offload(0.02) is not None  # the links are free again after 11 ms


def test_a_draw_above_the_chance_keeps_the_text(node):
    queued(node, leaving=2, waiting=1)  # 0.1 s here
    for name in ("n2", "n3"):
        node.heard(name, Report(1, 0, 0.3), now=0.0)  # over 0.3 s there: a chance below a third
    assert node.offload(0.0) is None
    assert len(node.leaving) == 2


def test_a_report_replaces_what_was_sent_before(node):
    queued(node, leaving=9, waiting=9)
    _, to = node.offload(0.0)
    node.heard(to, Report(5, 0, 0.5), now=1.0, delay_s=0.05)
    seen = node.neighbours[to].seen(to, 1000)
    assert (seen.waiting, seen.work_s, seen.delay_s) == (5, 0.5, 0.05)


def test_a_silent_neighbour_leaves_the_set_until_it_is_heard(node):
    queued(node, leaving=9, waiting=9)
    node.heard("n3", Report(), now=0.5)
    assert node.silent(1.01) == ["n2"]
    assert node.silent(1.02) == []  # told once
    assert node.offload(1.1)[1] == "n3"
    assert node.offload(1.1) is None
    node.heard("n2", Report(), now=1.2)
    assert node.offload(1.2)[1] == "n2"


def test_a_text_that_was_lost_runs_before_all_others(node):
    queued(node, waiting=2)
    node.again(Task("lost", 1, 0.9))
    assert node.next().id == "lost"
    assert node.report().waiting == 2


def test_a_text_that_nobody_waits_for_is_dropped(node):
    queued(node, waiting=1, leaving=1)
    for queue in (node.waiting, node.leaving):
        node.drop(queue[0])
    assert node.next() is None
    assert node.report() == Report()


def test_a_source_that_adapts_its_rate_admits_one_text_a_gap(node):
    source = Source(node, Adapt.RATE, threshold=0.8, gap_s=0.1)
    assert [source.due_at(0.0), source.admit(0.0), source.due_at(0.0)] == [0.0, 0.8, 0.1]
    source.admit(5.0)  # a pause is not made good for
    assert source.due_at(5.0) == 5.0
    source.adapt(0.4)
    assert source.gap_s == 0.1  # not yet time
    source.adapt(0.5)
    assert source.gap_s == pytest.approx(0.08)


def test_a_source_that_adapts_its_threshold_admits_at_once(node):
    source = Source(node, Adapt.THRESHOLD, threshold=0.8)
    source.admit(0.0)
    assert source.due_at(0.0) == 0.0
    queued(node, waiting=31)
    source.adapt(0.5)
    assert source.admit(0.5) == pytest.approx(0.78)


def test_where_all_links_are_busy_the_first_that_is_free_is_waited_for(node):
    queued(node, leaving=9, waiting=9)
    node.offload(0.0)
    assert node.busy_until(0.0) is None  # one link is free still
    node.offload(0.005)
    assert node.busy_until(0.005) == pytest.approx(8 * 1382 / 1e6)  # the first one's
