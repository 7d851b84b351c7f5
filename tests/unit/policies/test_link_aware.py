"""Policies that see links and queues: decisions worked by hand, on links and queues that the test makes up."""

from dataclasses import replace

import pytest

from shared.errors import UnknownPolicy
from shared.pipeline.sight import Steady
from shared.policies import STAY, Clues, Decision, Link, Sight, Visit, Where, build, spec_of
from shared.policies.link_aware import FRAME, WORD

TIERS = ("end", "edge", "cloud")
LAYERS = {"end": 3, "edge": 6, "cloud": 12}
NEAR = Link("edge", "lte", 0, 0, 0.05, fixed_s=0.05, compute_s=0.03)
FAR = Link("cloud", "lte+metro", 0, 0, 0.08, fixed_s=0.08, compute_s=0.10)
GAINS = {
    "confidences": {"end": [0.5999, 0.6, 0.8999, 0.9], "edge": [0.7999, 0.8]},  # as good as steps at 0.6, 0.9, 0.8
    "gains": {
        "end": {"edge": [0.2, 0.06, 0.06, 0.0], "cloud": [0.3, 0.07, 0.07, 0.01]},
        "edge": {"cloud": [0.1, 0.0]},
    },
    "compute_ms": {"edge": 40.0, "cloud": 200.0},
}


class Seen(Sight):
    """Links by tier, this tier's queue, the time left, and values that do not flap."""

    def __init__(self, waiting_s=0.0, remaining_s=None, words=0, visits=(), **links):
        self._links, self._waiting, self._remaining, self._words = links, waiting_s, remaining_s, words
        self._visits = visits
        self.held = Steady()

    def clues(self):
        return Clues(self._words)

    def visits(self):
        return self._visits

    def link(self, to):
        return self._links.get(to)

    def remaining_s(self):
        return self._remaining

    def waiting_s(self):
        return self._waiting

    def steady(self, name, value, band):
        return self.held.of(name, value, band=band)


def at(tier, sight):
    return Where(tier, TIERS[TIERS.index(tier) + 1 :], LAYERS, sight)


def aware(**parameters):
    return build({"name": "network-aware", **GAINS, "value_ms": 1000.0, **parameters}, TIERS, {})


def test_a_text_goes_where_the_gain_is_worth_most_more_than_the_time():
    where = at("end", Seen(edge=NEAR, cloud=FAR))
    # below 0.6: edge 200 - (50 + 30) = 120 ms, cloud 300 - (80 + 100) = 120 less than nothing more: the nearer one
    assert aware().after(where, 0.55, 0.5) == Decision("edge", 1.0, "confidence")
    # twice as much: edge 400 - 80 = 320, cloud 600 - 180 = 420
    assert aware(value_ms=2000.0).after(where, 0.55, 0.5).to == "cloud"
    # from 0.6 on: 60 - 80 and 70 - 180
    assert aware().after(where, 0.6, 0.0) == Decision(None, 0.0, "confidence")
    # at 1500 ms: 90 - 80 = 10 for the edge, 105 - 180 for the cloud
    assert aware(value_ms=1500.0).after(where, 0.6, 0.0).to == "edge"
    assert aware(value_ms=1e6).after(where, 0.95, 0.0).to == "cloud"  # the only gain there is
    assert aware(value_ms=0.0).after(where, 0.1, 0.0).to is None


def test_the_rule_tells_the_gain_and_the_time_of_every_tier_that_can_be_asked():
    value = {"value_ms": 1000.0, "ms_per_joule": 0.0}
    seen = Seen(edge=NEAR, cloud=FAR, visits=(Visit("end", 3, 0.6, (0.6,)),))
    both = {"edge_gain": 0.06, "edge_ms": 80.0, "cloud_gain": 0.07, "cloud_ms": 180.0}
    assert aware().offload_rule(at("end", seen)).parameters == {**value, **both}
    far_down = Seen(edge=NEAR, cloud=replace(FAR, is_down=True), visits=seen.visits())
    assert aware().offload_rule(at("end", far_down)).parameters == {**value, "edge_gain": 0.06, "edge_ms": 80.0}
    assert aware().offload_rule(at("end", Seen(edge=NEAR))).parameters == value  # of no text
    assert aware().offload_rule(at("cloud", seen)) is None


def test_bytes_waiting_and_compute_all_count():
    policy = aware()
    seen = Seen(words=100, edge=NEAR)
    where = at("end", seen)
    size = FRAME + 100 * WORD
    assert policy.cost_ms(where, "edge", NEAR) == pytest.approx(50 + 30)
    assert aware(band=0.0).cost_ms(where, "edge", replace(NEAR, byte_s=1e-5)) == pytest.approx(80 + size * 1e-2)
    assert aware(band=0.0).cost_ms(where, "edge", replace(NEAR, waiting_s=0.25)) == pytest.approx(80 + 250)
    unmeasured = replace(NEAR, compute_s=None)
    assert aware(band=0.0).cost_ms(where, "edge", unmeasured) == pytest.approx(50 + 40)  # the card's
    assert policy.cost_ms(where, "edge", None) == 40  # a link that nobody knows costs nothing


def test_a_call_that_hangs_stands_for_all_that_would_follow_it():
    policy = aware(band=0.0)
    usual, hangs = replace(NEAR, under_way_s=0.07), replace(NEAR, under_way_s=0.5)
    where = at("end", Seen())
    assert policy.cost_ms(where, "edge", usual) == pytest.approx(80)
    assert policy.cost_ms(where, "edge", hangs) == pytest.approx(500)


def test_energy_counts_by_the_links_power_model_where_a_joule_is_worth_something():
    radio = replace(NEAR, joules=lambda up, down, seconds: 1.5 * seconds)  # 50 ms on the link: 0.075 J
    where = replace(at("end", Seen(edge=radio)), reachable=("edge",))
    assert aware().after(where, 0.55, 0.0).to == "edge"
    assert aware(ms_per_joule=1000.0).cost_ms(where, "edge", radio) == pytest.approx(80 + 75)
    assert aware(ms_per_joule=2000.0).after(where, 0.55, 0.0).to is None  # 200 - (80 + 150)


def test_joules_are_not_counted_over_links_without_a_model():
    with pytest.raises(UnknownPolicy, match="power model"):
        aware(ms_per_joule=1.0).settled(at("end", Seen(edge=NEAR, cloud=FAR)))
    radio = replace(NEAR, joules=lambda up, down, seconds: 0.0)
    for sight in (Seen(edge=radio, cloud=FAR), Seen()):  # one has a model; nobody knows the links
        policy = aware(ms_per_joule=1.0)
        assert policy.settled(at("end", sight)) is policy


def test_a_link_on_the_edge_of_being_worth_it_does_not_flap():
    """200 ms of gain against a round trip that moves around 170 ms, with 30 ms of compute."""
    moving = [0.165, 0.175, 0.165, 0.175, 0.22, 0.175, 0.185, 0.171]

    def sent(band):
        policy, sight = aware(band=band), Seen()
        decisions = []
        for fixed_s in moving:
            sight._links = {"edge": replace(NEAR, fixed_s=fixed_s)}
            where = replace(at("end", sight), reachable=("edge",))
            decisions.append(policy.after(where, 0.55, 0.0).to is not None)
        return decisions

    assert sent(0.0) == [True, False, True, False, False, False, False, False]
    assert sent(0.2) == [True, True, True, True, False, False, False, False]


def test_neither_a_tier_that_is_down_nor_one_that_cannot_answer_in_time_is_asked():
    down = at("end", Seen(edge=replace(NEAR, is_down=True), cloud=FAR))
    assert aware().after(down, 0.55, 0.0).to == "cloud"  # 300 - 180
    late = at("end", Seen(remaining_s=0.1, edge=NEAR, cloud=FAR))
    assert aware(value_ms=2000.0).after(late, 0.55, 0.0).to == "edge"  # 80 ms; the cloud would take 180
    assert aware().after(at("end", Seen(remaining_s=0.07, edge=NEAR, cloud=FAR)), 0.55, 0.0).to is None
    near_only = replace(at("end", Seen(edge=NEAR, cloud=FAR)), reachable=("edge",))
    assert aware(value_ms=2000.0).after(near_only, 0.55, 0.0).to == "edge"
    assert aware().after(replace(near_only, reachable=()), 0.1, 0.0) == Decision(None, 0.0, "no_link")


def test_a_card_without_a_gain_for_every_pair_of_tiers_is_refused():
    where = at("end", Sight())
    aware().check(where)
    for wrong in (
        {"gains": {}},
        {"gains": {**GAINS["gains"], "edge": {}}},
        {"confidences": {"end": [0.6]}},
        {"confidences": {**GAINS["confidences"], "edge": []}},
        {"confidences": {**GAINS["confidences"], "edge": [0.8, 0.8]}},
    ):
        with pytest.raises(UnknownPolicy, match=r"network-aware.*tierwise calibrate"):
            aware(**wrong).check(where)
    with pytest.raises(UnknownPolicy, match=r"network-aware.*tierwise calibrate"):
        build("network-aware", TIERS, {}).check(where)


def test_what_travels_decides_as_what_was_asked():
    policy = aware(theta=0.2, weighting="last")
    assert build(spec_of(policy), TIERS, {}) == policy
    rule = policy.offload_rule(at("end", Sight()))
    assert (rule.name, rule.parameters) == ("network-aware", {"value_ms": 1000.0, "ms_per_joule": 0.0})
    assert policy.offload_rule(at("cloud", Sight())) is None
    assert policy.may_offload_after(at("edge", Sight()))
    assert not policy.may_offload_after(at("cloud", Sight()))


# -- buffer-threshold --------------------------------------------------------------------------------------------------


def buffered(**parameters):
    return build({"name": "buffer-threshold", "offload_threshold": 0.8, "curve": "step", **parameters}, TIERS, {})


def test_the_threshold_falls_with_the_work_that_waits_at_the_next_tier():
    policy = buffered(slope=-2.0)
    thresholds = {None: 0.8, 0.0: 0.8, 0.1: 0.6, 0.4: 0.0, 3.0: 0.0}  # 0.8 - 2 q, at least 0
    for waiting_s, threshold in thresholds.items():
        where = at("end", Seen(waiting_s=9.0, edge=replace(NEAR, waiting_s=waiting_s)))
        assert policy.threshold(where) == pytest.approx(threshold)
        assert policy.after(where, 0.7, 0.5).to == ("edge" if threshold > 0.7 else None)
    assert policy.threshold(at("cloud", Seen())) == 0.8


def test_or_it_rises_with_the_work_that_waits_here():
    policy = buffered(slope={"end": 1.0}, queue="own")
    for waiting_s, threshold in ((0.0, 0.8), (0.15, 0.95), (0.5, 1.0)):
        assert policy.threshold(at("end", Seen(waiting_s=waiting_s, edge=NEAR))) == pytest.approx(threshold)
    assert policy.threshold(at("edge", Seen(waiting_s=0.15, cloud=FAR))) == 0.8  # not named: 0
    rule = policy.offload_rule(at("end", Seen(waiting_s=0.1, edge=NEAR)))
    assert rule.parameters["threshold"] == pytest.approx(0.9)


def test_what_a_card_says_of_collaborative_holds_where_parameters_are_shared():
    card = {"collaborative": {"theta": 0.2, "offload_threshold": {"end": 0.7}}, "buffer-threshold": {"slope": -1.0}}
    policy = build({"name": "buffer-threshold", "theta": 0.1}, TIERS, card)
    assert (policy.theta, policy.offload_threshold, policy.slope) == (0.1, {"end": 0.7}, -1.0)
    assert build("mdi-exit", TIERS, card).theta == 0.2
    assert build("network-aware", TIERS, {**card, "network-aware": {"theta": 0.0}}).theta == 0.0
    assert build("dimee", TIERS, card).exit_threshold == 0.9  # it is like no other


def test_without_a_queue_it_is_collaborative():
    plain = build({"name": "collaborative", "offload_threshold": 0.8}, TIERS, {})
    policy = build({"name": "buffer-threshold", "offload_threshold": 0.8}, TIERS, {})
    for tier in TIERS:
        for confidence in (0.5, 0.79, 0.8, 0.9, 1.0):
            where = at(tier, Sight())
            assert policy.after(where, confidence, 0.3) == plain.after(where, confidence, 0.3)


# -- mdi-exit ----------------------------------------------------------------------------------------------------------


def test_work_that_waits_goes_on_the_likelier_the_sooner_it_is_done_there():
    policy = build({"name": "mdi-exit", "exit_threshold": 0.9}, TIERS, {})
    link = replace(NEAR, fixed_s=0.1, waiting_s=0.3)
    for waiting_s, probability in ((0.1, 0.25), (0.3, 0.75), (0.4, 1.0), (2.0, 1.0)):  # min(1, w / (0.1 + 0.3))
        where = at("end", Seen(waiting_s=waiting_s, edge=link))
        below = policy.before(where, Clues(0), 0.99 * probability)
        assert (below.to, below.probability, below.final) == ("edge", pytest.approx(probability), False)
        if probability < 1:
            assert policy.before(where, Clues(0), probability).to is None
    slow = replace(link, byte_s=0.6 / FRAME)  # 0.6 s more
    where = at("end", Seen(waiting_s=0.5, edge=slow))
    assert policy.before(where, Clues(0), 0.4).probability == pytest.approx(0.5)


def test_nothing_is_sent_before_inference_where_nothing_waits_or_nobody_is_there():
    policy = build("mdi-exit", TIERS, {})
    assert policy.before(at("end", Seen(edge=NEAR)), Clues(9), 0.0) == STAY
    assert policy.before(at("end", Seen(waiting_s=1.0, edge=replace(NEAR, is_down=True))), Clues(9), 0.0) == STAY
    assert policy.before(at("cloud", Seen(waiting_s=1.0)), Clues(9), 0.0) == STAY


def test_an_exit_below_the_threshold_goes_on_at_the_next_tier():
    policy = build({"name": "mdi-exit", "exit_threshold": {"end": 0.9}}, TIERS, {})
    assert policy.after(at("end", Sight()), 0.89, 1.0) == Decision("edge", 1.0, "confidence")
    assert policy.after(at("end", Sight()), 0.9, 0.0).to is None
    assert policy.after(at("edge", Sight()), 0.1, 0.0).to is None  # not named: it answers
    assert policy.after(at("cloud", Sight()), 0.1, 0.0) == Decision(None, 0.0, "no_link")


def test_the_rule_of_mdi_exit_tells_its_threshold():
    policy = build({"name": "mdi-exit", "exit_threshold": {"end": 0.9}}, TIERS, {})
    rules = [policy.offload_rule(at(tier, Sight())) for tier in TIERS]
    assert [rule and rule.parameters for rule in rules] == [{"exit_threshold": 0.9}, {"exit_threshold": 0.0}, None]
