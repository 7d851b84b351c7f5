"""DIMEE and the bandits, by hand: which pool, which arm, what a text teaches."""

import json
import math

import pytest

from shared.errors import UnknownPolicy
from shared.model.ensemble import Ensemble, Weighting
from shared.model.exits import AtLayer, Confidence
from shared.model.pools import NO_POOLS, Pools, Signature
from shared.policies import Clues, Decision, Outcome, Visit, Where, build, spec_of

TIERS = ("end", "edge", "cloud")
SPLIT = {"end": 3, "edge": 6, "cloud": 12}
WHOLE = {"end": 12, "edge": 6, "cloud": 12}
POOLS = Pools((3, 1, 1), {Signature.MEAN_WORD: ((0.0, 0.0), (4.0, 0.0), (0.0, 4.0))})


def where(tier="end", layers=SPLIT):
    return Where(tier, TIERS[TIERS.index(tier) + 1 :], layers)


def made(name, **parameters):
    return build({"name": name, **parameters}, TIERS, {})


def outcome(*confidences, layers=(3, 12), exits=None, signature=None):
    """Visits of the end, and then of the cloud if there is a second confidence."""
    own = [exits or confidences[:1], *((c,) for c in confidences[1:])]
    visits = zip(("end", "cloud"), layers, confidences, own, strict=False)
    return Outcome(Clues(10, signature), tuple(Visit(*visit) for visit in visits))


# -- DIMEE ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("signature", "to"), [((1.0, 1.0), None), ((3.0, 1.0), "edge"), ((1.0, 3.0), "cloud"), ((2.0, 0.0), None)]
)
def test_the_nearest_pool_decides_and_a_tie_stays_shallow(signature, to):
    policy = made("dimee")
    bound = policy.bound(policy.initial_state(where(), POOLS))
    decision = bound.before(where(), Clues(10, signature), 0.5)
    assert decision.to == to
    assert decision == (Decision(to, 1.0, "policy", final=True) if to else Decision(None, 0.0, "policy"))


def test_dimee_leaves_by_confidence_and_runs_the_last_tier_whole():
    policy = made("dimee", exit_threshold=0.8)
    assert policy.exit_rule(where("end")) == policy.exit_rule(where("edge")) == Confidence(0.8)
    assert policy.exit_rule(where("cloud")) is None
    assert policy.signature("end") is Signature.MEAN_WORD
    assert made("dimee", signature="token_norms").signature("end") is Signature.TOKEN_NORMS


def test_a_pool_mean_moves_by_one_part_in_its_size():
    policy = made("dimee", adaptive=True)
    first = policy.initial_state(where(), POOLS)
    bound = policy.bound(first)
    state = policy.learn(first, bound, outcome(0.9, signature=(1.0, 0.4)))  # pool 0: three texts with mean (0, 0)
    assert state["sizes"] == [4, 1, 1]
    assert state["means"][0] == pytest.approx((0.25, 0.1))
    state = policy.learn(state, bound, outcome(0.9, signature=(6.0, 0.0)))  # pool 1: one text with mean (4, 0)
    assert (state["sizes"], tuple(state["means"][1])) == ([4, 2, 1], (5.0, 0.0))
    assert first["means"][0] == (0.0, 0.0)  # the state given is left alone
    assert bound.before(where(), Clues(1, (0.3, 0.0)), 0).to is None  # a bound policy does not move


def test_with_a_half_life_old_texts_fade():
    policy = made("dimee", adaptive=True, half_life=1)
    state = policy.initial_state(where(), POOLS)
    state = policy.learn(state, policy.bound(state), outcome(0.9, signature=(1.0, 1.0)))
    assert state["means"][0] == pytest.approx((0.5, 0.5))


def test_fixed_dimee_and_unreadable_texts_teach_nothing():
    fixed, adaptive = made("dimee"), made("dimee", adaptive=True)
    state = fixed.initial_state(where(), POOLS)
    assert not fixed.learns
    assert adaptive.learns
    assert fixed.learn(state, fixed.bound(state), outcome(0.9, signature=(1.0, 0.0))) is state
    assert adaptive.learn(state, adaptive.bound(state), outcome(0.9)) is state
    assert adaptive.bound(state).before(where(), Clues(3), 0).to is None


def test_dimee_says_what_is_missing():
    policy = made("dimee")
    with pytest.raises(UnknownPolicy, match="run `tierwise calibrate`"):
        policy.initial_state(where(), None)
    with pytest.raises(UnknownPolicy, match="run `tierwise calibrate`"):
        made("dimee", signature="token_norms").initial_state(where(), POOLS)
    with pytest.raises(UnknownPolicy, match="calibration found no pools in its texts"):
        policy.initial_state(where(), NO_POOLS)
    with pytest.raises(UnknownPolicy, match="3 pools for 2 tiers"):
        made("dimee").initial_state(Where("end", ("cloud",), {"end": 3, "cloud": 12}), POOLS)
    with pytest.raises(UnknownPolicy, match="ask that tier"):
        policy.initial_state(where("edge"), POOLS)


def test_a_state_lives_through_json():
    policy = made("dimee", adaptive=True)
    state = json.loads(json.dumps(policy.initial_state(where(), POOLS)))
    assert policy.bound(state).before(where(), Clues(1, (3.0, 1.0)), 0).to == "edge"
    assert policy.described(state) == {"sizes": [3, 1, 1], "norms_of_means": [0.0, 4.0, 4.0]}


def test_the_means_do_not_travel():
    policy = made("dimee")
    assert spec_of(policy.bound(policy.initial_state(where(), POOLS))) == {
        "name": "dimee",
        "exit_threshold": 0.9,
        "adaptive": False,
        "signature": "mean_word",
        "half_life": None,
    }


# -- bandits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "arms"),
    [
        ("adaee", [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        ("splitee", list(range(1, 13))),
        ("splitee-s", list(range(1, 13))),
        ("i-splitee", [3, 6, 9, 12]),
    ],
)
def test_each_arm_is_played_once_first(name, arms):
    policy = made(name)
    state = policy.initial_state(where(layers=WHOLE), None)
    assert state["arms"] == arms
    for n, arm in enumerate(arms):
        assert state["rounds"] == n
        bound = policy.bound(state)
        assert bound.arm == arm
        assert not bound.learns
        here = arm if name != "adaee" else 12
        exits = tuple([0.99] * here)
        state = policy.learn(state, bound, outcome(0.99, 0.99, layers=(here, 12), exits=exits))
    assert all(count >= 1 for count in state["counts"])


def test_then_the_upper_confidence_bound_decides():
    policy = made("splitee", exploration=1.0)
    state = {"arms": [1, 2], "rounds": 10, "counts": [8, 2], "totals": [6.4, 1.0]}
    # .8 + sqrt(ln 11 / 8) = 1.347;  .5 + sqrt(ln 11 / 2) = 1.595
    assert policy.bound(state).arm == 2
    assert made("splitee", exploration=0.0).bound(state).arm == 1
    assert 0.8 + math.sqrt(math.log(11) / 8) < 0.5 + math.sqrt(math.log(11) / 2)


def test_adaee_takes_ln_t_where_splitee_takes_ln_of_t_plus_one():
    assert (made("adaee").rounds_ahead, made("splitee").rounds_ahead) == (0, 1)


@pytest.mark.parametrize(
    ("arm", "confidences", "reward"),
    [
        (0.8, (0.85,), 0.0),  # it stayed
        (0.8, (0.6, 0.9), 0.9 - 0.6 - 0.1),  # the cloud is sure
        (0.8, (0.6, 0.7), 0.7 - 0.6 - 0.1),  # it is not, but surer
        (0.8, (0.6, 0.5), -0.1),  # nothing gained
        (0.8, (0.6,), None),  # it should have gone and could not
        (1.0, (1.0, 1.0), -0.1),  # .9999999, rounded on the hop: it went
    ],
)
def test_adaees_reward(arm, confidences, reward):
    policy = made("adaee", offload_cost=0.1)
    state = policy.initial_state(where(), None)
    after = policy.learn(state, made("adaee", arm=arm, offload_cost=0.1), outcome(*confidences))
    if reward is None:
        assert after is state
    else:
        assert dict(zip(after["arms"], after["counts"], strict=True))[arm] == sum(after["counts"]) == 1
        assert dict(zip(after["arms"], after["totals"], strict=True))[arm] == pytest.approx(reward)


def test_adaee_sends_below_its_arm_straight_to_the_last_tier_and_the_surer_answer_wins():
    policy = made("adaee", arm=0.8)
    assert policy.after(where(), 0.79, 0.99) == Decision("cloud", 1.0, "confidence", final=True)
    assert policy.after(where(), 0.8, 0.0).to is None
    assert policy.after(Where("end", (), SPLIT), 0.1, 0.0).to is None
    ensemble = Ensemble()
    assert policy.ensemble_weighting() is Weighting.SUREST
    assert ensemble.weights(["end", "cloud"], Weighting.SUREST, [0.7, 0.6]) == [1.0, 0.0]
    assert ensemble.weights(["end", "cloud"], Weighting.SUREST, [0.6, 0.6]) == [0.0, 1.0]


@pytest.mark.parametrize(
    ("name", "arm", "confidences", "exits", "rewards"),
    [
        ("splitee", 2, (0.9,), (0.6, 0.9), {2: 0.9 - 0.2}),
        ("splitee", 2, (0.6, 0.95), (0.5, 0.6), {2: 0.95 - 0.1 - 0.2}),
        ("splitee", 2, (0.6,), (0.5, 0.6), {}),
        ("splitee", 4, (0.6,), (0.5, 0.5, 0.5, 0.6), {4: 0.6 - 0.4}),  # the deepest arm never offloads
        ("splitee-s", 2, (0.9,), (0.75, 0.9), {1: 0.75 - 0.1, 2: 0.9 - 0.2}),
        ("splitee-s", 2, (0.9,), (0.6, 0.9), {1: 0.9 - 0.1 - 0.1, 2: 0.9 - 0.2}),  # C_s stands in for C_L
        ("splitee-s", 2, (0.6, 0.95), (0.5, 0.6), {1: 0.95 - 0.1 - 0.1, 2: 0.95 - 0.1 - 0.2}),
    ],
)
def test_splitees_rewards(name, arm, confidences, exits, rewards):
    policy = made(name)
    state = {"arms": [1, 2, 3, 4], "rounds": 0, "counts": [0] * 4, "totals": [0.0] * 4}
    after = policy.learn(state, made(name, arm=arm), outcome(*confidences, layers=(arm, 12), exits=exits))
    assert {a: q for a, n, q in zip(*(after[k] for k in ("arms", "counts", "totals")), strict=True) if n} == {
        a: pytest.approx(r) for a, r in rewards.items()
    }
    assert after["rounds"] == bool(rewards)


def test_a_split_is_where_the_device_stops_and_the_last_tier_runs_whole():
    policy = made("splitee", arm=5)
    assert policy.exit_rule(where("end")) == AtLayer(5)
    assert policy.exit_rule(where("cloud")) is None
    assert policy.after(where(layers=WHOLE), 0.69, 0.5) == Decision("cloud", 1.0, "confidence", final=True)
    assert policy.after(where(layers=WHOLE), 0.7, 0.5).to is None
    assert made("splitee", arm=12).after(where(layers=WHOLE), 0.1, 0.5).to is None


def test_i_splitee_always_has_the_deepest_arm():
    assert made("i-splitee").arms(where(layers={"end": 4, "cloud": 4})) == [3, 4]
    assert made("i-splitee").arms(where(layers={"end": 2, "cloud": 2})) == [2]


@pytest.mark.parametrize("name", ["early-exit", "splitee", "splitee-s", "i-splitee"])
def test_whole_model_methods_want_all_layers(name):
    made(name).check(where(layers=WHOLE))
    with pytest.raises(UnknownPolicy, match=f"{name}.*end, which holds 3 of its 12 layers"):
        made(name).check(where(layers=SPLIT))
    with pytest.raises(UnknownPolicy, match="edge, which holds 6 of its 12 layers"):
        made(name).check(where("edge", layers=WHOLE))


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ({"name": "dimee", "adaptive": 1}, "adaptive"),
        ({"name": "dimee", "signature": "cls"}, "signature"),
        ({"name": "dimee", "signature_kind": "mean_word"}, "signature_kind"),
        ({"name": "dimee", "half_life": 0}, "half_life"),
        ({"name": "dimee", "exit_threshold": 1.5}, "exit_threshold"),
        ({"name": "length-quantile", "edges": [1.5, 2]}, "edges"),
        ({"name": "adaee", "arm": 2.0}, "arm"),
        ({"name": "adaee", "offload_cost": -1}, "offload_cost"),
        ({"name": "adaee", "exploration": float("inf")}, "exploration"),
        ({"name": "splitee", "arm": 0}, "arm"),
        ({"name": "splitee", "arm": 2.5}, "arm"),
        ({"name": "splitee-s", "exit_threshold": -0.1}, "exit_threshold"),
        ({"name": "i-splitee", "layer_cost": 11}, "layer_cost"),
        ({"name": "i-splitee", "mu": 1}, "mu: unknown parameter"),
        ({"name": "early-exit", "exit_threshold": "high"}, "exit_threshold"),
        ({"name": "deebert", "entropy_threshold": -1}, "entropy_threshold"),
        ({"name": "deebert", "tier": "fog"}, "unknown tier 'fog'"),
        ({"name": "pabee", "patience": 0}, "patience"),
        ({"name": "pabee", "tier": 3}, "tier"),
        ({"name": "oracle", "labels": []}, "labels"),
    ],
)
def test_what_a_policy_does_not_have_or_cannot_take_is_refused(spec, says):
    with pytest.raises(UnknownPolicy, match=says):
        build(spec, TIERS, {})
