"""A node's queues and what it does with them, worked by hand; nothing here waits."""

import pytest

from shared.errors import BadSetting
from shared.links.profile import Profile
from shared.mesh.algorithms import Next
from shared.mesh.node import Node, Report, Task
from shared.mesh.source import Adapt, Source
from shared.mesh.topology import check_held, held_of, topology, written

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
    assert node.report() == Report(waiting=3, leaving=0, work_s=pytest.approx(0.1 + 0.3 + 0.2), held=range(3))
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
    assert node.report() == Report(held=range(3))


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


# -- nodes that hold a part -------------------------------------------------------------------------------------------


@pytest.fixture
def part():
    """n1 holds the first two of four segments, n2 the third, n3 the last two; no draw lets a text go by chance."""
    node = Node("n1", segments=4, held=range(2), neighbours={"n2": LINK, "n3": LINK}, draw=lambda: 0.999)
    node.heard("n2", Report(5, 0, 0.5, range(2, 3)), now=0.0)
    node.heard("n3", Report(9, 0, 0.9, range(2, 4)), now=0.0)
    return node


def test_a_text_whose_next_segment_is_not_held_leaves_even_an_idle_node(part):
    task = Task("a", 0, 0.9, size=1000)
    assert part.ran(task, 0.5, 0.1) is Next.STAY
    part.next()
    assert part.ran(task, 0.5, 0.1) is Next.LEAVE
    assert part.next() is None  # it cannot run here
    assert part.offload(0.0) == (task, "n2")  # O = 1 < I_m = 5, and the draw is above every chance
    assert part.report().held == range(2)


def test_what_a_nearer_neighbour_does_not_hold_goes_to_one_that_does(part):
    part.leaving.append(Task("a", 3, 0.9, size=1000))
    assert part.offload(0.0)[1] == "n3"


def test_what_cannot_run_here_leaves_before_what_can(part):
    part.leaving.extend([Task("can", 1, 0.9), Task("cannot", 3, 0.9), Task("cannot either", 2, 0.9)])
    assert [part.offload(0.0)[0].id for _ in range(2)] == ["cannot", "cannot either"]
    assert part.offload(0.0) is None
    assert part.next().id == "can"


def test_a_text_waits_for_its_holder_and_others_pass_it(part):
    part.lose("n3")
    part.leaving.extend([Task("last", 3, 0.9), Task("third", 2, 0.9)])
    assert part.offload(0.0)[0].id == "third"
    assert part.offload(0.0) is None
    assert part.stranded() == []  # n3 may come back
    part.heard("n3", Report(held=range(2, 4)), now=0.1)
    assert part.offload(0.1)[1] == "n3"


def test_a_busy_link_to_the_one_holder_is_waited_for(part):
    part.leaving.extend(Task("a", 3, 0.9, size=1000) for _ in range(2))
    assert part.offload(0.0)[1] == "n3"
    assert part.offload(0.0) is None
    assert part.busy_until(0.0) == pytest.approx(8 * 1382 / 1e6)  # though the link to n2 is free


def test_a_lost_text_that_cannot_run_here_leaves_first_to_another_holder(part):
    part.leaving.append(Task("other", 2, 0.9))
    part.lose("n2")
    part.again(Task("lost", 2, 0.9))
    assert part.report().waiting == 0
    task, to = part.offload(0.0)
    assert (task.id, to) == ("lost", "n3")


def test_a_neighbour_that_refused_is_left_alone_for_a_while(part):
    part.leaving.append(Task("a", 3, 0.9))
    part.refused("n3", 0.0)
    assert part.offload(0.0) is None
    assert part.busy_until(0.0) == 0.1
    assert part.offload(0.1)[1] == "n3"


def test_a_text_is_stranded_where_no_neighbour_has_its_segment(part):
    task = Task("a", 3, 0.9)
    part.leaving.append(task)
    part.neighbours["n3"].report = Report()  # it has not told
    assert part.stranded() == []
    part.heard("n3", Report(held=range(2, 3)), now=0.1)
    assert part.stranded() == [task]
    part.drop(task)
    assert part.stranded() == []


def test_segments_are_written_from_one():
    assert [held_of(text, 12) for text in ("1-4", "5-12", "3-3")] == [range(4), range(4, 12), range(2, 3)]
    assert written(range(4, 12)) == "5-12"


@pytest.mark.parametrize("text", ["", "3", "0-2", "4-3", "1-13", "a-b", "1-", "-4", "1-2-3"])
def test_a_wrong_range_is_refused(text):
    with pytest.raises(BadSetting, match="expected FIRST-LAST, from 1-1 to 12-12"):
        held_of(text, 12)


@pytest.mark.parametrize(
    ("name", "held", "why"),
    [
        ("pair", {"n1": range(2), "n2": range(2, 4)}, None),
        ("ring3", {"n1": range(1), "n2": range(1, 3), "n3": range(3, 4)}, None),
        ("pair", {"n1": range(1, 4)}, "n1 is a source in pair and does not hold segment 1"),
        ("pair", {"n1": range(2), "n2": range(3, 4)}, "segment 3: held neither by n1"),
        ("local", {"n1": range(2)}, "segment 3: held neither by n1"),
        ("ring3", {"n1": range(1), "n2": range(3, 4), "n3": range(1, 4)}, "segment 2: held neither by n1"),  # n1 -> n2
        ("ring3", {"n1": range(1), "n2": range(1, 2), "n3": range(1)}, "segment 3: held neither by n2"),
    ],
)
def test_a_mesh_must_hold_every_segment_where_texts_come(name, held, why):
    if why is None:
        check_held(topology(name), held, 4)
    else:
        with pytest.raises(BadSetting, match=why):
            check_held(topology(name), held, 4)
