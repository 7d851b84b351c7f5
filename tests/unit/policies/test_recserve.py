"""RecServe by hand, and beside the rule as its paper's code writes it."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import BadSetting, UnknownPolicy
from shared.policies import STAY, Clues, Decision, Outcome, Visit, Where, build
from shared.policies.baselines.recserve import cut
from shared.policies.states import States

TIERS = ("end", "edge", "cloud")
LAYERS = {"end": 3, "edge": 6, "cloud": 12}
END, EDGE = Where("end", ("edge", "cloud"), LAYERS), Where("edge", ("cloud",), LAYERS)
ALONE = Where("end", (), LAYERS)


def made(**parameters):
    return build({"name": "recserve", **parameters}, TIERS, {})


def way(*confidences):
    """A text that went as far as it has confidences."""
    visits = [Visit(tier, 3, c, (c,)) for tier, c in zip(TIERS, confidences, strict=False)]
    return Outcome(Clues(5), tuple(visits))


def taught(policy, *ways):
    state = policy.initial_state(END, None)
    for one in ways:
        state = policy.learn(state, policy.bound(state), one)
    return state


@pytest.mark.parametrize(
    ("before", "beta", "now", "goes"),
    [
        # .9 .6 .8 and .7: sorted .6 .7 .8 .9; the 30th percentile lies at .3 * 3 = .9, so t = .6 + .9 * .1 = .69
        ([0.9, 0.6, 0.8], 0.3, 0.7, False),
        # with .5: sorted .5 .6 .8 .9; t = .5 + .9 * .1 = .59
        ([0.9, 0.6, 0.8], 0.3, 0.5, True),
        # the 50th percentile lies at 1.5: with .7, t = .75; with .8, sorted .6 .8 .8 .9, t = .8: strictly below
        ([0.9, 0.6, 0.8], 0.5, 0.7, True),
        ([0.9, 0.6, 0.8], 0.5, 0.8, False),
        # one value before: t lies between both, so the lower one goes whatever beta is
        ([0.9], 0.1, 0.8, True),
        ([0.9], 0.1, 0.9, False),
        # the first text never goes; beta = 0 sends none, beta = 1 all but the surest so far
        ([], 1.0, 0.1, False),
        ([0.9, 0.6], 0.0, 0.1, False),
        ([0.9, 0.6], 1.0, 0.89, True),
        ([0.9, 0.6], 1.0, 0.9, False),
    ],
)
def test_a_text_goes_on_below_the_percentile_of_what_its_tier_saw(before, beta, now, goes):
    policy = made(beta=beta)
    bound = policy.bound(taught(policy, *map(way, before)))
    assert bound.after(END, now, draw=0.5) == (Decision("edge", 1.0, "confidence") if goes else STAY)
    t = np.percentile([*before, now], 100 * beta)
    assert bool(len(before) > 0 and now < t) == goes


digits = st.integers(0, 1_000_000).map(lambda n: n / 1_000_000)
betas = st.integers(0, 100).map(lambda n: n / 100)


@given(st.lists(digits, max_size=60), betas, digits)
def test_one_number_says_what_the_interpolated_percentile_with_the_text_itself_says(before, beta, now):
    threshold = cut(before, beta)
    ordered = sorted([*before, now])
    low, part = divmod(round(100 * beta) * len(before), 100)
    t = ordered[low] + (ordered[min(low + 1, len(before))] - ordered[low]) * part / 100
    assert (threshold is not None and now < threshold) == (bool(before) and now < t)


def test_each_tier_has_a_history_of_its_own_and_the_deepest_sends_nothing():
    policy = made(beta=0.5)
    state = taught(policy, way(0.9), way(0.6, 0.7), way(0.5, 0.8, 0.99))
    assert state == {"end": [0.9, 0.6, 0.5], "edge": [0.7, 0.8]}
    bound = policy.bound(state)
    assert bound.thresholds == {"end": 0.6, "edge": 0.7}
    assert bound.after(END, 0.65, 0.0) == STAY
    assert bound.after(EDGE, 0.65, 0.0).to == "cloud"
    assert bound.after(ALONE, 0.1, 0.0) == STAY
    assert policy.described(state) == {
        "end": {"texts": 3, "threshold": 0.6},
        "edge": {"texts": 2, "threshold": 0.7},
    }
    assert policy.initial_state(EDGE, None) == {"edge": []}  # asked first, it knows nothing of the end


def test_the_window_holds_the_text_itself():
    policy = made(beta=1.0, window=3)
    assert taught(policy, way(0.9), way(0.8), way(0.7))["end"] == [0.8, 0.7]  # the fourth is the third of three


def test_a_confidence_counts_as_it_travels():
    policy = made(beta=1.0)
    bound = policy.bound(taught(policy, way(0.912346)))
    assert bound.after(END, 0.9123456, 0.0) == STAY  # the same text again: not below itself


def test_fixed_thresholds_learn_nothing():
    policy = made(thresholds={"end": 0.8})
    assert (policy.learns, policy.initial_state(END, None)) == (False, None)
    assert policy.after(END, 0.79, 0.0).to == "edge"
    assert policy.after(EDGE, 0.1, 0.0) == STAY  # not named
    with pytest.raises(UnknownPolicy, match="unknown tier 'fog'"):
        made(thresholds={"fog": 0.8})


@pytest.mark.parametrize(
    ("history", "fits"),
    [([0.5, 0.25], True), ([], True), ([0.1] * 4, False), ([2.0], False), (["x"], False), ([True], False), (7, False)],
)
def test_only_a_history_that_could_have_grown_is_read_again(tmp_path, history, fits):
    policy, path = made(window=4), tmp_path / "end.json"
    spec = {"beta": 0.3, "name": "recserve", "thresholds": None, "window": 4}
    path.write_text(json.dumps({json.dumps(spec, sort_keys=True): {"end": history, "edge": []}}))
    states = lambda: States(path, lambda s: build(s, TIERS, {}), lambda p: p.initial_state(END, None))  # noqa: E731
    if fits:
        assert states().of(policy)["end"] == history
    else:
        with pytest.raises(BadSetting, match="no state that this tier can go on from"):
            states()
