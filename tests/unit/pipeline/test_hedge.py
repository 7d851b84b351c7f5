"""Hedged sending: when a second call is made, where to, and which answer counts; in virtual time."""

import asyncio
from types import SimpleNamespace

import pytest

from shared.contracts import InferredRow
from shared.errors import UpstreamFailure
from shared.links.carried import Carried
from shared.links.profile import Backend, profile
from shared.pipeline.hedge import Hedger
from shared.pipeline.route import Route
from shared.pipeline.speculation import Budget
from shared.policies import Decision
from shared.telemetry import Telemetry
from tests.clocks import now, run
from tests.hops import a_hop

ORDER = ("end", "edge", "cloud")
TO_EDGE = Decision("edge", 1.0, "confidence")
KIND = ("edge", False, 1)


def hop(tier):
    return a_hop(tier=tier)


class Sender:
    """Upstreams that take so many seconds, or fail after them; `asked` has (link, tier, final, seconds allowed)."""

    name = "end"

    def __init__(self, takes, link="lte", down=(), has_another=False):
        self.takes, self.asked, self.cancelled = takes, [], []
        shown = (Backend.NONE, profile(link))
        self.upstreams = {
            to: SimpleNamespace(target=to, link=shown, is_down=to in down, has_another=has_another)
            for to in ORDER[1:]
            if to in takes
        }
        self.route = Route(ORDER, "end", tuple(self.upstreams))
        self.telemetry = Telemetry(
            tier="end", tiers=ORDER, policies=["x"], layers=3, labels=["a"], upstreams=list(self.upstreams)
        )

    def upstream(self, to):
        return self.upstreams[self.route.toward(to)]

    async def carry(self, call, way, texts, onward, within_s, *, sends=lambda size: None, via=None):
        link = (via or self.upstream(way.to)).target
        self.asked.append((link, way.to, way.final, within_s))
        sends(500)
        took = self.takes[link]
        took = took.pop(0) if isinstance(took, list) else took
        try:
            await asyncio.sleep(abs(took))
        except asyncio.CancelledError:
            self.cancelled.append(link)
            raise
        if took < 0:
            raise UpstreamFailure("upstream_unavailable", f"{link} is away")
        return Carried([InferredRow(index=0, hops=[hop(way.to)])], 500, 700, 0.01, None, link)


def carried(sender, *, way=TO_EDGE, share=0.05, usual=(0.1,) * 20, within_s=None, reachable=("edge", "cloud")):
    """The answer to one call, when it came, and the hedger; `usual` are the times of calls before it."""
    call = SimpleNamespace(where=SimpleNamespace(reachable=reachable))

    async def once():
        hedger = Hedger(sender, Budget(share), now)
        for seconds in usual:
            hedger._usual.add((way.to, way.final, 1), seconds)
        try:
            answer = await hedger.carry(call, way, ["text"], ["text"], within_s)
        except UpstreamFailure as failure:
            answer = failure
        await asyncio.sleep(0)  # lets cancelled calls end
        return answer, now(), hedger

    return run(once())


def counted(sender, name):
    """The samples of a counter that are not 0, by the values of their labels."""
    (metric,) = getattr(sender.telemetry, name).collect()
    return {tuple(s.labels.values()): s.value for s in metric.samples if s.name.endswith("_total") and s.value}


def test_a_call_that_is_late_is_made_past_the_tier_too_and_the_first_answer_counts():
    sender = Sender({"edge": 5.0, "cloud": 0.2})
    answer, at, _ = carried(sender, within_s=2.0)
    assert at == pytest.approx(0.3)  # 0.1 of waiting, 0.2 at the cloud
    assert sender.asked == [("edge", "edge", False, 2.0), ("cloud", "cloud", False, pytest.approx(1.9))]
    assert sender.cancelled == ["edge"]
    ((hedge, tier),) = [(row.hops[0].hedge, row.hops[0].tier) for row in answer.rows]
    assert tier == "cloud"
    assert (hedge.first, hedge.second, hedge.won, hedge.after_ms) == ("edge", "cloud", True, pytest.approx(100, abs=1))
    assert hedge.request_bytes == 500
    assert hedge.modelled_joules == pytest.approx(1.28804 * 0.3 + 0.43839 * 500 * 8e-6, abs=1e-5)


def test_another_replica_of_the_tier_comes_before_any_other_way():
    sender = Sender({"edge": [5.0, 0.2], "cloud": 0.2}, has_another=True)
    answer, at, _ = carried(sender)
    assert at == pytest.approx(0.3)
    assert [asked[:3] for asked in sender.asked] == [("edge", "edge", False)] * 2
    assert [(row.hops[0].hedge.second, row.hops[0].hedge.won) for row in answer.rows] == [("edge", True)]
    assert counted(sender, "hedges") == {("end", "edge", "edge", "won"): 1}


def test_what_both_calls_cost_is_counted():
    sender = Sender({"edge": 5.0, "cloud": 0.2})
    carried(sender)
    assert counted(sender, "hedges") == {("end", "edge", "cloud", "won"): 1}
    assert counted(sender, "hedge_wasted_bytes") == counted(sender, "link_bytes") == {("end-edge", "up"): 500}
    assert counted(sender, "joules")["end-edge",] > 0


def test_the_first_call_may_still_win():
    sender = Sender({"edge": 0.15, "cloud": 0.2}, link="5g-nsa")
    answer, at, _ = carried(sender)
    hedge = answer.rows[0].hops[0].hedge
    assert (at, answer.rows[0].hops[0].tier, hedge.won) == (pytest.approx(0.15), "edge", False)
    assert hedge.modelled_joules is None
    assert sender.cancelled == ["cloud"]
    assert counted(sender, "hedges") == {("end", "edge", "cloud", "lost"): 1}
    assert counted(sender, "hedge_wasted_bytes") == {("end-cloud", "up"): 500}


def test_a_call_in_time_is_made_once():
    sender = Sender({"edge": 0.1, "cloud": 0.2})
    answer, _, _ = carried(sender, usual=(0.2,) * 20)
    assert [link for link, *_ in sender.asked] == ["edge"]
    assert answer.rows[0].hops[0].hedge is None
    assert not counted(sender, "hedges")


@pytest.mark.parametrize(
    ("why", "given"),
    [
        ("it is off", {"share": 0.0}),
        ("too few calls are known", {"usual": (0.1,) * 19}),
        ("that tier must answer, and no other way leads there", {"way": Decision("edge", 1.0, "policy", final=True)}),
        ("the request goes no deeper", {"reachable": ("edge",)}),
    ],
)
def test_no_second_call_is_made_where(why, given):
    sender = Sender({"edge": 0.5, "cloud": 0.1})
    carried(sender, **given)
    assert [link for link, *_ in sender.asked] == ["edge"], why


def test_a_tier_that_is_down_is_no_other_way():
    sender = Sender({"edge": 0.5, "cloud": 0.1}, down=("cloud",))
    carried(sender)
    assert [link for link, *_ in sender.asked] == ["edge"]


def test_to_the_deepest_tier_the_other_way_is_through_the_one_between():
    sender = Sender({"edge": 0.2, "cloud": 5.0})
    answer, at, _ = carried(sender, way=Decision("cloud", 1.0, "confidence"))
    assert sender.asked[1][:3] == ("edge", "cloud", True)  # it passes the text on
    assert (at, answer.rows[0].hops[0].tier) == (pytest.approx(0.3), "cloud")


def test_if_one_call_fails_the_other_is_waited_for_and_if_both_do_the_first_says_why():
    answer, at, _ = carried(Sender({"edge": -0.2, "cloud": 0.4}))
    assert (at, answer.rows[0].hops[0].tier) == (pytest.approx(0.5), "cloud")
    answer, at, _ = carried(Sender({"edge": 0.4, "cloud": -0.1}))
    assert (at, answer.rows[0].hops[0].tier) == (pytest.approx(0.4), "edge")
    sender = Sender({"edge": -0.5, "cloud": -0.1})
    failure, at, _ = carried(sender)
    assert (at, failure.reason) == (pytest.approx(0.5), "upstream_unavailable")
    assert "edge is away" in str(failure)
    assert counted(sender, "hedges") == {("end", "edge", "cloud", "failed"): 1}
    failure, at, _ = carried(Sender({"edge": -0.05, "cloud": 0.1}))  # before it was late: as without hedging
    assert (at, failure.reason) == (pytest.approx(0.05), "upstream_unavailable")


def test_at_most_its_share_of_calls_is_hedged():
    sender = Sender({"edge": 0.5, "cloud": 0.1})
    call = SimpleNamespace(where=SimpleNamespace(reachable=("edge", "cloud")))

    async def many():
        hedger = Hedger(sender, Budget(0.05), now)
        for _ in range(20):
            hedger._usual.add(KIND, 0.1)
        for _ in range(40):
            hedger._usual._seconds[KIND].extend([0.1] * 20)  # as if calls were as quick as ever
            await hedger.carry(call, TO_EDGE, ["text"], ["text"], None)

    run(many())
    assert [link for link, *_ in sender.asked].count("cloud") == 5  # of 100
    assert [link for link, *_ in sender.asked].count("edge") == 40


def test_a_cancelled_call_stands_among_its_kind_with_the_time_it_had_taken():
    _, _, hedger = carried(Sender({"edge": 5.0, "cloud": 0.2}))
    assert list(hedger._usual._seconds[KIND])[-1] == pytest.approx(0.3)


def test_a_caller_who_leaves_takes_both_calls_along():
    sender = Sender({"edge": 5.0, "cloud": 5.0})
    call = SimpleNamespace(where=SimpleNamespace(reachable=("edge", "cloud")))

    async def leaves():
        hedger = Hedger(sender, Budget(0.05), now)
        for _ in range(20):
            hedger._usual.add(KIND, 0.1)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await hedger.carry(call, TO_EDGE, ["text"], ["text"], None)
        await asyncio.sleep(0)
        return hedger

    hedger = run(leaves())
    assert sorted(sender.cancelled) == ["cloud", "edge"]
    assert len(hedger._usual._seconds[KIND]) == 20
