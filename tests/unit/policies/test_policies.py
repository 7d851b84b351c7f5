"""Policies: each one's decisions for hand-picked draws, and what is refused."""

import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import UnknownPolicy
from shared.model.bundle import load_bundle
from shared.model.ensemble import Weighting
from shared.model.exits import Similarity
from shared.model.pruning import Pruning
from shared.policies import STAY, Clues, Decision, Link, Sight, Where, build, names, spec_of
from shared.policies.base import may_speculate
from shared.policies.baselines.fixed import Random
from shared.policies.collaborative import Collaborative, Curve, Tabi

TIERS = ("end", "edge", "cloud")
LAYERS = {"end": 3, "edge": 6, "cloud": 12}
END, EDGE, CLOUD = (
    Where("end", ("edge", "cloud"), LAYERS),
    Where("edge", ("cloud",), LAYERS),
    Where("cloud", (), LAYERS),
)
TEXT = Clues(words=20)


def made(spec, **defaults):
    return build(spec, TIERS, defaults)


def test_every_name_builds_and_is_offered():
    assert names(TIERS)[:4] == ["collaborative", "tabi", "path-gates", "network-aware"]
    assert names(TIERS)[-4:] == ["oracle", "end-only", "edge-only", "cloud-only"]
    assert len(set(names(TIERS))) == len(names(TIERS)) == 22
    for name in names(TIERS):
        assert spec_of(made(name))["name"] == name


def test_collaborative_infers_first_and_then_asks_the_next_tier():
    policy = made({"name": "collaborative", "offload_threshold": 0.8, "steepness": 10})
    assert policy.before(END, TEXT, draw=0.0) == STAY
    assert policy.after(END, 0.79, draw=0.999) == Decision("edge", 1.0, "confidence")
    assert policy.after(EDGE, 0.79, draw=0.0) == Decision("cloud", 1.0, "confidence")
    assert policy.may_offload_after(END)


def test_above_the_threshold_the_draw_decides_by_the_curve():
    policy = made({"name": "collaborative", "offload_threshold": 0.8, "steepness": 10})
    leaves, stays = policy.after(END, 0.9, draw=0.49), policy.after(END, 0.9, draw=0.51)
    assert (leaves.to, leaves.reason, leaves.final) == ("edge", "curve", False)
    assert stays.to is None
    assert leaves.probability == stays.probability == pytest.approx(0.5)
    assert policy.after(END, 1.0, draw=0.0).to is None


def test_the_last_tier_keeps_what_it_has():
    policy = made("collaborative")
    assert policy.after(CLOUD, 0.5, draw=0.0) == Decision(None, 0.0, "no_link")
    assert not policy.may_offload_after(CLOUD)


def test_a_text_that_is_unsure_enough_passes_over_the_tiers_between():
    policy = made({"name": "collaborative", "offload_threshold": 0.8, "skip_below": {"end": 0.6}})
    assert [policy.after(END, confidence, draw=0.0).to for confidence in (0.59, 0.6, 0.79)] == ["cloud", "edge", "edge"]
    assert made({"name": "collaborative", "skip_below": 1}).after(EDGE, 0.5, draw=0.0).to == "cloud"

    class Down(Sight):
        def link(self, to):
            return Link(to, "5g-nsa", 1.0, 1.0, 0.02, is_down=to == "cloud")

    seen = replace(END, sight=Down())
    assert policy.after(seen, 0.5, draw=0.0).to == "edge"  # not to a tier that is known to be down
    with pytest.raises(UnknownPolicy, match="skip_below"):
        made({"name": "collaborative", "skip_below": 1.5})


def test_an_unsure_exit_tells_where_a_text_will_go():
    spec = {"name": "collaborative", "offload_threshold": 0.8, "skip_below": {"end": 0.6}, "speculate_from": 2}
    policy = made({**spec, "speculate_below": {"end": 0.75}, "pruning_coefficient": 0})
    assert [policy.speculate(END, layer, 0.7, draw=0.5).to for layer in (1, 2, 3)] == [None, "edge", "edge"]
    assert [policy.speculate(END, 2, confidence, draw=0.5).to for confidence in (0.59, 0.74, 0.75)] == [
        *("cloud", "edge"),
        None,
    ]
    assert [may_speculate(policy, where) for where in (END, EDGE, CLOUD)] == [True, False, False]
    assert not may_speculate(policy, replace(END, reachable=()))
    assert not may_speculate(made({**spec, "speculate_below": 0.75, "pruning_coefficient": 1.0}), END)
    assert not may_speculate(made({"name": "collaborative", "pruning_coefficient": 0}), END)  # off unless asked for


def test_above_the_threshold_the_draw_decides_what_an_exit_tells():
    spec = {"name": "collaborative", "offload_threshold": 0.8, "steepness": 10, "speculate_below": 0.95}
    policy = made(spec)
    assert [policy.speculate(END, 3, 0.9, draw=draw).to for draw in (0.49, 0.51)] == ["edge", None]


def test_collaborative_names_its_exit_rule_pruning_and_weights():
    spec = {"name": "collaborative", "theta": 0.02, "patience": 3, "exit_min_confidence": 0.7}
    policy = made({**spec, "pruning_coefficient": 0.9, "weighting": "accuracy"})
    assert policy.exit_rule(END) == Similarity(0.02, 3, 0.7)
    assert policy.pruning("end") == Pruning(0.9, unread_words=False)
    assert policy.ensemble_weighting() is Weighting.ACCURACY
    assert made({"name": "collaborative", "theta": 0}).exit_rule(END) is None


def test_an_unsure_text_may_leave_early_only_where_it_is_sent_on():
    policy = made({"name": "collaborative", "theta": 0.1, "exit_min_confidence": 0.9, "exit_when_unsure": True})
    sure = Similarity(0.1, 2, 0.9)
    assert policy.exit_rule(END) == replace(sure, unsure=policy.offload_threshold)
    assert policy.exit_rule(CLOUD) == sure
    assert policy.exit_rule(replace(END, reachable=())) == sure
    named = made({**spec_of(policy), "offload_threshold": {"edge": 0.7}})
    assert named.exit_rule(END) == sure
    assert named.exit_rule(EDGE) == replace(sure, unsure=0.7)


def test_thresholds_and_theta_may_differ_by_tier():
    policy = made(
        {
            "name": "collaborative",
            "offload_threshold": {"end": 0.9},
            "theta": {"edge": 0.01},
            "exit_min_confidence": {"edge": 0.8},
            "curve": "step",
        }
    )
    assert policy.after(END, 0.85, draw=0.5).to == "edge"
    assert policy.after(EDGE, 0.0, draw=0.0) == Decision(None, 0.0, "policy")  # not named: never offloads
    assert not policy.may_offload_after(EDGE)
    assert policy.exit_rule(END) is None
    assert policy.exit_rule(EDGE) == Similarity(0.01, 2, 0.8)


def test_tabi_is_collaborative_without_early_exits():
    policy = made({"name": "tabi", "offload_threshold": 0.8})
    assert isinstance(policy, Collaborative)
    assert policy.exit_rule(END) is None
    assert policy.after(END, 0.5, draw=0.9) == made({"name": "collaborative", "offload_threshold": 0.8}).after(
        END, 0.5, 0.9
    )
    with pytest.raises(UnknownPolicy, match="theta"):
        made({"name": "tabi", "theta": 0.01})


def test_random_gives_each_reachable_tier_an_equal_share_before_inference():
    policy = made("random")
    third = pytest.approx(2 / 3)
    assert policy.before(END, TEXT, draw=0.33) == Decision(None, third, "policy", final=True)
    assert policy.after(END, 0.5, draw=0.33) == Decision(None, third, "policy")  # on record: the chance of leaving
    assert policy.before(END, TEXT, draw=0.34) == Decision("edge", third, "policy", final=True)
    assert policy.before(END, TEXT, draw=0.67) == Decision("cloud", third, "policy", final=True)
    assert policy.before(EDGE, TEXT, draw=0.5) == Decision("cloud", 0.5, "policy", final=True)
    assert policy.before(CLOUD, TEXT, draw=0.999999) == Decision(None, 0.0, "policy", final=True)


@given(st.floats(0, 1, exclude_max=True), st.sampled_from([END, EDGE, CLOUD]))
def test_random_always_names_a_tier_that_can_be_reached(draw, where):
    assert Random().before(where, TEXT, draw).to in (None, *where.reachable)


def test_a_single_tier_answers_every_text():
    assert made("end-only").before(END, TEXT, draw=0.0) == STAY
    assert made("edge-only").before(END, TEXT, draw=0.9) == Decision("edge", 1.0, "policy", final=True)
    assert made("cloud-only").before(END, TEXT, draw=0.0) == Decision("cloud", 1.0, "policy", final=True)
    assert made("cloud-only").before(CLOUD, TEXT, draw=0.0) == STAY


def test_a_capped_request_is_answered_by_the_deepest_tier_it_may_reach():
    layers = {"end": 3, "edge": 6, "fog": 9, "cloud": 12}
    assert made("cloud-only").before(Where("end", ("edge",), layers), TEXT, draw=0.0).to == "edge"
    assert made("cloud-only").before(Where("end", ("edge", "fog"), layers), TEXT, draw=0.0).to == "fog"
    assert made("cloud-only").before(Where("end", (), layers), TEXT, draw=0.0) == STAY


def test_policies_that_decide_before_change_nothing_afterwards():
    for name in ("random", "end-only"):
        policy = made(name)
        assert policy.after(END, 0.5, draw=0.0).to is None
        assert not policy.may_offload_after(END)
        assert policy.exit_rule(END) is None
        assert policy.pruning("end").coefficient == 0
        assert policy.ensemble_weighting() is Weighting.LAST


def test_parameters_not_given_come_from_the_card():
    card = {"collaborative": {"offload_threshold": 0.7, "theta": 0.5}}
    policy = build({"name": "collaborative", "theta": 0.25}, TIERS, card)
    assert (policy.offload_threshold, policy.theta) == (0.7, 0.25)
    assert made("collaborative").offload_threshold == Collaborative().offload_threshold


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        (
            "collaborativ",
            r"unknown policy 'collaborativ' \(did you mean collaborative\?\): choose one of collaborative, tabi",
        ),
        ("fog-only", "unknown policy 'fog-only'"),
        ({}, 'a policy needs its name, a text: {"name": "collaborative"}; choose one of collaborative, tabi'),
        ({"theta": 0.1}, "a policy needs its name"),
        ({"name": None}, "a policy needs its name"),
        ({"name": ["collaborative"]}, "a policy needs its name, a text"),
        ({"name": "collaborative", "tau": 0.9}, r"tau: unknown parameter \(parameters: theta, "),
        ({"name": "collaborative", "offload_threshold": 1.01}, "offload_threshold"),
        ({"name": "collaborative", "offload_threshold": {"end": -0.1}}, "offload_threshold"),
        (
            {"name": "collaborative", "offload_threshold": {"emd": 0.9}},
            "unknown tier 'emd': this bundle has end, edge, cloud",
        ),
        ({"name": "collaborative", "theta": {"fog": 0.1}}, "unknown tier 'fog'"),
        ({"name": "collaborative", "steepness": 0}, "steepness"),
        ({"name": "collaborative", "steepness": float("nan")}, "steepness"),
        ({"name": "collaborative", "patience": 0}, "patience"),
        ({"name": "collaborative", "curve": "cubic"}, "curve"),
        ({"name": "collaborative", "pruning_coefficient": float("inf")}, "pruning_coefficient"),
        ({"name": "random", "share": 0.5}, "share"),
        ({"name": "end-only", "theta": 0.1}, "policy 'end-only' has no parameters; got theta"),
    ],
)
def test_what_does_not_exist_or_is_out_of_range_is_refused(spec, says):
    with pytest.raises(UnknownPolicy, match=says):
        made(spec)


SPECS = st.one_of(
    st.sampled_from(names(TIERS)),
    st.fixed_dictionaries(
        {"name": st.just("collaborative")},
        optional={
            "offload_threshold": st.one_of(st.floats(0, 1), st.dictionaries(st.sampled_from(TIERS), st.floats(0, 1))),
            "steepness": st.floats(0.1, 1000),
            "curve": st.sampled_from([curve.value for curve in Curve]),
            "theta": st.floats(0, 1),
            "patience": st.integers(1, 64),
            "pruning_coefficient": st.floats(0, 10),
            "weighting": st.sampled_from([weighting.value for weighting in Weighting]),
        },
    ),
)


@given(SPECS)
def test_a_spec_builds_the_very_same_policy_on_another_tier(spec):
    policy = build(spec, TIERS, {"collaborative": {"theta": 0.125}, "tabi": {"steepness": 3.0}})
    elsewhere = build(spec_of(policy), TIERS, {"collaborative": {"theta": 0.5, "patience": 9}})
    assert elsewhere == policy
    assert type(elsewhere) is type(policy)
    assert spec_of(elsewhere) == spec_of(policy)


def test_tabi_travels_as_itself():
    assert isinstance(made(spec_of(Tabi())), Tabi)


def test_naming_policies_costs_no_torch_import():
    code = "import sys, shared.policies; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_tier_reads_as_much_as_its_limit_and_the_bundle_allow(tiny_bundle):
    bundle = load_bundle(str(tiny_bundle))
    policy = build({"name": "collaborative", "max_tokens": {"end": 16, "cloud": 100}}, bundle.order, {})
    assert [bundle.reads(tier, policy.token_limit(tier)) for tier in bundle.order] == [16, 64, 64]
    assert bundle.read_behind("edge", policy.token_limit) == (64, 64)
    policy = build({"name": "tabi", "max_tokens": 20}, bundle.order, {})
    assert [bundle.reads(tier, policy.token_limit(tier)) for tier in bundle.order] == [20, 20, 20]
    assert bundle.read_behind("edge", policy.token_limit) == (20, 20)
    assert bundle.read_behind("end", policy.token_limit) is None  # its tokenizer is another one
    assert bundle.reads("end", 1) == 8  # whatever a policy of one's own says


@pytest.mark.parametrize("limit", [7, 3.5, "many", {"end": 0}, True])
def test_a_token_limit_is_a_whole_number_from_8(limit):
    with pytest.raises(UnknownPolicy, match="max_tokens"):
        build({"name": "collaborative", "max_tokens": limit}, ("end", "cloud"), {})
