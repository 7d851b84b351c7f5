"""What a policy sees on a live tier when it looks, and what that costs a policy that does not."""

import json
import time

import pytest

from shared.links.profile import profile
from shared.pipeline.sight import LiveSight
from shared.policies import POLICIES, STAY, Clues, Decision, Policy, Visit, Where
from tests.service.test_infer import ask

SEEN = []  # what the policy saw


class Sees(Policy):
    """Keeps what it sees, and sends every text to the next tier once it was read."""

    name = "sees"
    carries_visits = True

    def look(self, at, where):
        SEEN.append((at, where.clues, where.visits, where.links, where.remaining_s, where.waiting_s))

    def before(self, where, clues, draw):
        self.look("before", where)
        return STAY

    def after(self, where, confidence, draw):
        self.look("after", where)
        return Decision(where.reachable[0], 1.0, "policy") if where.reachable else STAY

    def may_offload_after(self, where):
        return bool(where.reachable)


@pytest.fixture
def seen(monkeypatch):
    monkeypatch.setitem(POLICIES, "sees", Sees)
    SEEN.clear()
    return SEEN


def test_a_policy_sees_the_text_its_way_the_links_and_the_time_left(serve, seen, edge, cloud):
    caller = serve(edge=edge, cloud=cloud, link_profiles={"edge": "lte", "cloud": "lte+regional"}, links="none")
    (result,) = caller.results("a fine film", policy="sees", deadline_ms=60_000)
    (before, clues, visits, links, remaining_s, waiting_s), (after, *_, late_s, _) = seen
    assert (before, after) == ("before", "after")
    assert (clues, visits) == (Clues(3), ())
    (visit,) = seen[1][2]
    hop = result["hops"][0]
    assert (visit.tier, visit.exit_layer, visit.confidence) == ("end", hop["exit_layer"], hop["confidence"])
    assert visit.probabilities == tuple(hop["probabilities"].values())
    assert 0 < late_s < remaining_s <= 60
    assert waiting_s == 0
    assert {tier: (link.to, link.profile) for tier, link in links.items()} == {
        "edge": ("edge", "lte"),
        "cloud": ("cloud", "lte+regional"),
    }
    lte = profile("lte")
    assert (links["edge"].rate_up_bps, links["edge"].round_trip_s) == (lte.rate_up_bps, lte.rtt_s)
    assert (links["edge"].bytes_up, links["edge"].is_down) == (0, False)


def test_a_link_is_seen_as_measured_once_it_was_used_and_as_down_once_it_failed(serve, seen, edge):
    caller = serve(edge=edge, link_profiles={"edge": "lte"}, links="none", probe_ms=600_000)
    caller.results("a fine film", policy="sees")
    caller.results("a fine film", policy="sees")
    link = seen[-1][3]["edge"]
    upstream = caller.app.state.tier.upstreams["edge"]
    assert link.bytes_up == len(edge.requests[0].content)
    assert link.bytes_down == len(edge.answers[0].content)
    assert 0 < link.round_trip_s < profile("lte").rtt_s  # nothing shapes it here
    for _ in range(5):
        upstream.replicas.all[0].breaker.count(failed=True)
    caller.results("a fine film", policy="sees")
    assert seen[-1][3]["edge"].is_down


def test_a_link_is_seen_with_what_its_tier_says_and_takes(serve, seen, edge):
    def busy(request):
        answer = edge(request)
        answer.headers["x-tierwise-waiting-s"] = "0.250"
        return answer

    caller = serve(edge=busy, link_profiles={"edge": "lte"}, links="none")
    caller.results("a fine film", policy="sees")
    first, caller_tier = seen[-1][3]["edge"], caller.app.state.tier
    assert (first.waiting_s, first.compute_s, first.under_way_s) == (None, None, 0.0)
    assert first.fixed_s > profile("lte").rtt_s > 0.03  # and headers, at the profile's rate
    assert first.joules(125_000, 0, 1.0) == pytest.approx(1.28804 + 0.43839)
    caller.results("a fine film", policy="sees")
    link = seen[-1][3]["edge"]
    assert (link.waiting_s, link.compute_s) == (0.25, 0.0)  # the faked tier says that it took no time
    assert link.fixed_s < first.fixed_s  # nothing shapes it here
    assert caller.samples()["tierwise_upstream_wait_seconds", "end-edge"] == 0.25
    place = caller_tier.place(None)
    assert [place.sight.steady("x", value, 0.1) for value in (1.0, 1.05, 1.2)] == [1.0, 1.0, 1.2]


def test_an_answer_has_the_modelled_joules_of_links_with_a_power_model(serve, edge, always):
    caller = serve(edge=edge, link_profiles={"edge": "lte"}, links="none")
    (result,) = caller.results("a fine film", policy=always)
    link = result["hops"][1]["link"]
    took = (link["request_bytes"] * 0.43839 + link["response_bytes"] * 0.05197) * 8e-6 + 1.28804 * link["ms"] / 1e3
    assert link["modelled_joules"] == pytest.approx(took, abs=2e-6)
    assert result["modelled_joules"] == link["modelled_joules"]
    assert caller.samples()["tierwise_modelled_joules_total", "end-edge"] == pytest.approx(took, abs=2e-6)


def test_an_answer_over_links_without_a_power_model_names_no_joules(serve, edge, always):
    caller = serve(edge=edge, link_profiles={"edge": "5g-nsa"}, links="none")
    (result,) = caller.results("a fine film", policy=always)
    assert "modelled_joules" not in result
    assert "modelled_joules" not in result["hops"][1]["link"]
    assert caller.samples()["tierwise_modelled_joules_total", "end-edge"] == 0


def test_every_answer_between_tiers_says_what_waits(serve):
    caller = serve(tier="cloud")
    for answer in (ask(caller, ["a film"]), ask(caller, ["a film"], policy={"name": "no-such"})):
        assert float(answer.headers["x-tierwise-waiting-s"]) == 0
    assert "x-tierwise-waiting-s" not in caller.classify("a film").headers
    assert caller.samples()["tierwise_wait_seconds",] == 0


def test_through_a_tier_that_passes_on_the_link_is_that_ones(serve, seen, edge):
    caller = serve(edge=edge, link_profiles={"edge": "lte"}, links="none")
    caller.results("a fine film", policy="sees")
    assert {tier: link.to for tier, link in seen[0][3].items()} == {"edge": "edge", "cloud": "edge"}


def test_what_tiers_said_travels_only_where_the_policy_asks_for_it(serve, seen, edge, always):
    caller = serve(edge=edge)
    (result,) = caller.results("a fine film", policy="sees")
    said = result["hops"][0]
    assert edge.bodies[0]["visits"] == [
        [{"tier": "end", "exit_layer": said["exit_layer"], "probabilities": said["probabilities"]}]
    ]
    caller.results("a fine film", policy=always)
    assert "visits" not in edge.bodies[1]


SAID = {"tier": "end", "exit_layer": 3, "probabilities": {"negative": 0.25, "positive": 0.75}}


def test_a_deeper_tier_sees_what_those_before_it_said(serve, seen):
    caller = serve(tier="cloud")
    answer = ask(caller, ["a film", "a plot"], policy={"name": "sees"}, visits=[[SAID], []])
    assert answer.status_code == 200
    end = Visit("end", 3, 0.75, (0.75,), (0.25, 0.75), ((0.25, 0.75),))
    assert [visits for at, _, visits, *_ in seen if at == "before"] == [(end,), ()]
    assert [[visit.tier for visit in visits] for at, _, visits, *_ in seen if at == "after"] == [
        ["end", "cloud"],
        ["cloud"],
    ]


@pytest.mark.parametrize(
    "visits",
    [
        [],
        [[SAID], [SAID]],
        [[{**SAID, "tier": "cloud"}]],
        [[{**SAID, "tier": "fog"}]],
        [[SAID, SAID]],
        [[{**SAID, "exit_layer": 4}]],
        [[{**SAID, "probabilities": {"positive": 1.0}}]],
    ],
    ids=json.dumps,
)
def test_what_no_tier_before_can_have_said_is_refused(serve, visits):
    assert ask(serve(tier="cloud"), ["a film"], visits=visits).status_code == 422


def test_a_policy_that_does_not_look_pays_for_nothing(serve, monkeypatch):
    looked = []
    for what in ("clues", "visits", "link", "remaining_s", "waiting_s"):
        monkeypatch.setattr(LiveSight, what, lambda *_, what=what: looked.append(what))
    serve(tier="end").results(["a fine film", "a plot"], policy="collaborative")
    assert looked == []


def test_a_place_in_view_takes_microseconds():
    began = time.perf_counter()
    for _ in range(10_000):
        Where("end", (), {}, LiveSight(None, None, None))
    assert (time.perf_counter() - began) / 10_000 < 50e-6
