"""What replicas learned apart, put together: by hand, and the same as one replica that saw all."""

import json

import pytest

from shared.errors import BadSetting
from shared.model.pools import Pools, Signature
from shared.policies import Clues, Learner, Outcome, Visit, Where, build
from shared.policies.states import States

TIERS = ("end", "cloud")
WHERE = Where("end", ("cloud",), {"end": 4, "cloud": 4})
POOLS = Pools((3, 1), {Signature.MEAN_WORD: ((0.0, 0.0), (4.0, 0.0))})


def made(name, **parameters):
    return build({"name": name, **parameters}, TIERS, {})


def seen(end, cloud=None, arm=4, signature=None):
    visits = [Visit("end", arm, end, (end,) * arm)] + ([] if cloud is None else [Visit("cloud", 4, cloud, (cloud,))])
    return Outcome(Clues(3, signature), tuple(visits))


def taught(policy, state, outcomes, bound=None):
    for outcome in outcomes:
        state = policy.learn(state, bound or policy.bound(state), outcome)
    return state


def test_bandits_add_rounds_counts_and_totals_and_the_start_counts_once():
    policy, bound = made("splitee"), made("splitee", arm=4)
    outcomes = [seen(c / 10) for c in range(1, 10)]
    start = taught(policy, policy.initial_state(WHERE, None), outcomes[:2], bound)
    parts = [taught(policy, start, some, bound) for some in (outcomes[2:5], outcomes[5:9], [])]
    merged, whole = policy.merge(parts, start), taught(policy, start, outcomes[2:], bound)
    assert (merged["rounds"], merged["counts"], merged["arms"]) == (9, whole["counts"], whole["arms"])
    assert merged["totals"] == pytest.approx(whole["totals"])
    policy.check_state(merged, policy.initial_state(WHERE, None))


def test_a_bandit_that_began_elsewhere_is_refused():
    policy, bound = made("splitee"), made("splitee", arm=4)
    fresh = policy.initial_state(WHERE, None)
    with pytest.raises(ValueError, match="cannot have begun"):
        policy.merge([fresh], taught(policy, fresh, [seen(0.9)], bound))


def test_pools_of_replicas_are_those_of_all_their_texts():
    policy = made("dimee", adaptive=True)
    start = policy.initial_state(WHERE, POOLS)
    bound = policy.bound(start)
    near, far = [seen(0.9, signature=(x, 1.0)) for x in (0.5, 0.9, 1.1)], [seen(0.9, signature=(5.0, 2.0))]
    parts = [taught(policy, start, some, bound) for some in (near[:1], near[1:] + far)]
    merged, whole = policy.merge(parts, start), taught(policy, start, near + far, bound)
    assert merged["sizes"] == whole["sizes"] == [6, 2]
    for mean, expected in zip(merged["means"], whole["means"], strict=True):
        assert mean == pytest.approx(expected)
    assert policy.merge([start, start], start)["means"] == [list(mean) for mean in start["means"]]


def test_pools_that_forget_and_pools_that_began_larger_are_refused():
    forgets = made("dimee", adaptive=True, half_life=10)
    start = forgets.initial_state(WHERE, POOLS)
    with pytest.raises(ValueError, match="half_life"):
        forgets.merge([start], start)
    policy = made("dimee", adaptive=True)
    with pytest.raises(ValueError, match="a pool of 3 texts cannot have begun with 5"):
        policy.merge([start], {**start, "sizes": [5, 1]})


def test_histories_grow_together_and_the_oldest_go():
    policy = made("recserve", window=6)
    start = {"end": [0.1, 0.2]}
    merged = policy.merge([{"end": [0.1, 0.2, 0.5, 0.6]}, {"end": [0.1, 0.2, 0.9]}, start], start)
    assert merged == {"end": [0.1, 0.2, 0.5, 0.9, 0.6]}  # 0.9 is halfway between the two of the first
    full = policy.merge([{"end": [0.2, 0.3, 0.4, 0.5, 0.6]}, {"end": [0.1, 0.2, 0.9]}], start)
    assert full == {"end": [0.3, 0.4, 0.9, 0.5, 0.6]}  # a window of 6 holds 5 and the next one


def test_a_history_that_did_not_begin_with_the_start_is_refused():
    policy = made("recserve", window=6)
    with pytest.raises(ValueError, match="did not begin with"):
        policy.merge([{"end": [0.3, 0.4]}], {"end": [0.1, 0.2]})


def test_a_policy_that_does_not_say_how_refuses():
    class Mine(Learner):
        name = "mine"

    with pytest.raises(BadSetting, match="'mine' does not say how its states are merged: give it a method `merge`"):
        Mine().merge([], {})


def states(path=None):
    def first(policy):
        return policy.initial_state(WHERE, POOLS) if isinstance(policy, Learner) else None

    return States(path, lambda spec: build(spec, TIERS, {}), first)


def test_each_policy_is_merged_and_the_result_can_be_read_again(tmp_path):
    splitee, other, bound = made("splitee"), made("recserve"), made("splitee", arm=4)
    stores = [states(), states()]
    stores[0].learn(splitee, bound, [seen(0.9)] * 2)
    stores[0].learn(other, made("recserve", thresholds={}), [seen(0.7)])
    stores[1].learn(splitee, bound, [seen(0.8)])
    files = [dict(store._states) for store in stores]
    merged = states().merge(files, {})
    path = tmp_path / "end.json"
    path.write_text(json.dumps(merged))
    found = states(path)
    assert (found.of(splitee)["rounds"], found.of(other)) == (3, {"end": [0.7]})
    again = states().merge([merged, merged], merged)  # nobody has learned anything since
    assert again == merged


def test_what_cannot_be_merged_names_the_policy():
    forgets = made("dimee", adaptive=True, half_life=10)
    store = states()
    store.learn(forgets, forgets.bound(store.of(forgets)), [seen(0.9, signature=(1.0, 1.0))])
    with pytest.raises(BadSetting, match="policy 'dimee': its states cannot be merged: with half_life"):
        states().merge([dict(store._states)], {})
