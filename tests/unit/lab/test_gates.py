"""Fitting gates, on made-up texts whose exits say more than how sure they are: some waver, and those are hard.

The acceptance tests of the gates: they reproduce what was best better than a threshold on the confidence does, and
where labels are random those of a path fold to a single exit. `tests/unit/model/test_gates.py` says what they cost.
"""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from lab.fit import gates as lab
from lab.fit import prices
from shared.model.exits import exit_taken
from shared.model.gates import FEATURES, JeiDnn, Path, features, scores

LAYERS = {"end": 4, "cloud": 6}
N = 3000


def texts(seed=0, *, shuffled=False):
    """Two labels. A steady text is told right the surer the deeper; a wavering one, only by the cloud's last exits.

    With shuffled labels every tier is calibrated anew, as `calibrate` would: it can only say that it does not know.
    """
    rng = np.random.default_rng(seed)
    label, wavers = rng.integers(0, 2, N), rng.random(N) < 0.4
    given = rng.permutation(label) if shuffled else label
    side, ease = 2 * label - 1, rng.gamma(3.0, 0.7, N)
    x, right, exits_of = {}, {}, {}
    for tier, exits in LAYERS.items():
        depth = np.arange(1, exits + 1) / exits
        steady = side[:, None] * ease[:, None] * depth + 0.6 * rng.normal(size=(N, 1))
        unsteady = 1.8 * rng.normal(size=(N, exits))
        if tier == "cloud":
            unsteady[:, -3:] += 4 * side[:, None]
        z = np.where(wavers[:, None], unsteady, steady) * (0.02 if shuffled else 1.0)  # [N, E]
        positive = 1 / (1 + np.exp(-2 * z))
        exits_of[tier] = np.stack([1 - positive, positive], -1)
        x[tier] = features(exits_of[tier].swapaxes(0, 1)).swapaxes(0, 1)
        right[tier] = np.where(given[:, None] == 1, positive, 1 - positive)
    until = {tier: np.tile(0.01 * np.arange(1, exits + 1), (N, 1)) for tier, exits in LAYERS.items()}
    return lab.Recorded(LAYERS, x, right, until, {("end", "cloud"): np.full(N, 0.03)}), exits_of


@pytest.fixture(scope="module")
def known():
    return texts(0)[0]


@pytest.fixture(scope="module")
def fresh():
    return texts(1)


def as_rule(gates):
    return JeiDnn(tuple(map(tuple, gates)))


def left(exits, rule):
    """The exit of each text, [N]."""
    return exit_taken(exits.swapaxes(0, 1), rule)


@pytest.mark.parametrize("tier", LAYERS)
@pytest.mark.parametrize("price", [0.2, 1.0, 5.0])
def test_gates_reproduce_what_was_best_better_than_any_threshold_on_the_confidence(known, fresh, tier, price):
    data, gates = fresh[0], np.array(lab.fit_jei_dnn(known, tier, price))
    best, x = lab.first_best(data, tier, price), data.features[tier][:, :-1]
    opens = best[:, None] <= np.arange(LAYERS[tier] - 1)  # [N, E - 1]
    scored = (x[..., :4] * gates[:, :-1]).sum(-1) + gates[:, -1]
    by_gates, by_confidence = (roc_auc_score(opens.ravel(), score.ravel()) for score in (scored, x[..., 0]))
    assert by_gates > by_confidence + 0.005


def test_wavering_tells_the_gates_of_a_path_what_the_confidence_does_not(known, fresh):
    data, price, last = fresh[0], 1.0, LAYERS["end"] - 1
    x, gates = data.features["end"][:, last], np.array(lab.fit_path(known, price)["end"][last])
    sent = price * (0.03 + 0.06) + 1 - data.right["cloud"][:, -1]
    stays = 1 - data.right["end"][:, last] < sent
    scored = scores(x, gates)
    by_gates, by_confidence = (roc_auc_score(stays, score) for score in (scored[:, 0] - scored[:, 1], x[:, 0]))
    assert by_gates > by_confidence + 0.02


def test_with_random_labels_a_path_folds_to_its_first_exit():
    """Nothing can be known, and each further exit costs."""
    data, exits = texts(0, shuffled=True)
    gates = lab.fit_path(data, 1.0)
    for tier in LAYERS:
        every = Path(tuple(tuple(map(tuple, exit_)) for exit_ in gates[tier][: LAYERS[tier] - 1]))
        assert (left(exits[tier], every) == 1).mean() > 0.99
    assert (scores(data.features["end"][:, 0], np.array(gates["end"][0])).argmax(-1) == 0).mean() > 0.99  # and answer


def test_jei_dnn_folds_to_its_first_two_where_chance_is_small_against_time_to_one():
    """It learns what was best in hindsight, where chance has a pattern: the next exit may happen to be right.

    So it folds to one exit only where what chance can win is less than what an exit costs.
    """
    data, exits = texts(0, shuffled=True)
    for tier in LAYERS:
        exit_of = {price: left(exits[tier], as_rule(lab.fit_jei_dnn(data, tier, price))) for price in (1.0, 20.0)}
        assert set(exit_of[1.0].tolist()) == {1, 2}
        assert set(exit_of[20.0].tolist()) == {1}


def test_with_true_ones_they_do_not(known, fresh):
    exits = fresh[1]
    for tier in LAYERS:
        shares = np.bincount(left(exits[tier], as_rule(lab.fit_jei_dnn(known, tier, 1.0)))) / N
        assert (shares > 0.05).sum() >= 2
    scored = scores(fresh[0].features["end"][:, -1], np.array(lab.fit_path(known, 1.0)["end"][-1]))
    assert 0.1 < (scored.argmax(-1) == 1).mean() < 0.9


def way(data, gates):
    """What a text costs that the gates take through both tiers: error, seconds, and whether it was sent, [N]."""
    error, seconds, sent = np.ones(N), np.zeros(N), np.zeros(N, dtype=bool)
    for row in range(N):
        tier, exit_ = "end", 0
        while True:
            own = gates[tier][exit_] if exit_ < len(gates[tier]) else None
            scored = [0.0] if own is None else scores(data.features[tier][row, exit_], np.array(own)).tolist()
            if max(scored) > 0 or exit_ == LAYERS[tier] - 1:
                seconds[row] += data.until[tier][row, exit_]
                if tier == "end" and scored[1] > scored[0]:
                    seconds[row] += data.links["end", "cloud"][row]
                    tier, exit_, sent[row] = "cloud", 0, True
                    continue
                error[row] = 1 - data.right[tier][row, exit_]
                break
            exit_ += 1
    return error, seconds, sent


def test_a_dearer_second_buys_less_time_and_more_errors(known, fresh):
    found = [way(fresh[0], lab.fit_path(known, price)) for price in (0.05, 2.0, 20.0)]
    errors, seconds = ([own[at].mean() for own in found] for at in (0, 1))
    assert errors == sorted(errors)
    assert seconds == sorted(seconds, reverse=True)
    assert seconds[0] > 2 * seconds[-1]


def test_gates_are_better_than_any_one_way_for_all_texts(known, fresh):
    """What they are fitted for: errors and the price of time together, on texts that they did not see."""
    data, price = fresh[0], 0.5
    error, seconds, _ = way(data, lab.fit_path(known, price))
    fixed = [1 - data.right["end"][:, e] + price * data.until["end"][:, e] for e in range(4)]
    fixed += [1 - data.right["cloud"][:, e] + price * (0.01 + 0.03 + data.until["cloud"][:, e]) for e in range(6)]
    assert (error + price * seconds).mean() < min(cost.mean() for cost in fixed) - 0.01


def test_nothing_is_sent_to_a_tier_that_is_mostly_wrong(known):
    useless = {**known.right, "cloud": np.full((N, 6), 0.3)}
    assert not way(known, lab.fit_path(lab.Recorded(**{**vars(known), "right": useless}), 0.5))[2].any()


def test_a_tier_that_cannot_be_reached_is_barred(known):
    gates = lab.fit_path(lab.Recorded(**{**vars(known), "links": {}}), 0.5)
    assert not way(known, gates)[2].any()
    assert {tuple(map(len, exits)) for exits in gates.values()} == {(2,) * 4, (1,) * 5}
    assert all(len(gate) == len(FEATURES) + 1 for exits in gates.values() for exit_ in exits for gate in exit_)


def test_of_two_gates_the_one_for_the_greater_stake_counts():
    """Nine texts lose .01 by staying, one loses .9 by being sent: alike in all that is seen, so all stay."""
    x = np.zeros((10, 6))
    stay, sent = np.array([0.1] * 9 + [0.0]), np.array([0.09] * 9 + [0.9])
    (one, other) = lab._of_actions(x, 2, {0: stay, 1: sent}, None)
    assert one[-1] > other[-1]


# -- choosing a price -------------------------------------------------------------------------------------------------


def row(price, lost, se=0.001):
    return {"price": price, "lost": lost, "lost_se": se, "ms": 100 - price}


def test_the_fastest_price_within_the_loss_allowed_is_kept():
    rows = [row(price, lost) for price, lost in enumerate([0.0, 0.001, 0.002, 0.004, 0.02])]
    assert prices.choice(rows, 0.003) == 2  # half a standard error is added
    assert prices.choice(rows, 0.0021) == 1


def test_a_price_that_is_lucky_among_worse_ones_is_not():
    """The sixth loses as little as the second by chance: those before it lose more, and can only lose less in truth."""
    lost = [0.0, 0.001, 0.002, 0.006, 0.009, 0.001, 0.02]
    assert prices.choice([row(price, own) for price, own in enumerate(lost)], 0.003) == 2


def test_few_texts_make_for_caution():
    rows = [row(price, lost, se=0.004) for price, lost in enumerate([0.0, 0.001, 0.002, 0.004])]
    assert prices.choice(rows, 0.003) == 1
    assert prices.choice(rows, -0.01) == 0  # none is within it: the one that loses least


def test_a_lucky_price_is_kept_less_often_than_by_the_figures_alone():
    """True losses grow with the price, and each is measured on 2,500 texts: how often is more lost than .3 points?"""
    rng, true = np.random.default_rng(0), np.array([0, 0.0005, 0.001, 0.002, 0.003, 0.0045, 0.0075, 0.012])
    se, beyond = 0.002, np.zeros((300, 2), dtype=bool)
    for turn in range(len(beyond)):
        lost = true + se * (0.7 * rng.normal() + 0.7 * rng.normal(size=len(true)))
        fastest = max([at for at, own in enumerate(lost) if own <= 0.003], default=0)
        kept = prices.choice([row(at, own, se) for at, own in enumerate(lost)], 0.003)
        beyond[turn] = true[fastest] > 0.003, true[kept] > 0.003
    by_figures, by_choice = beyond.mean(0)
    assert by_choice < 0.15
    assert by_choice < 0.4 * by_figures


def test_prices_are_relative_to_what_the_deepest_tier_takes():
    near, far = (np.array(prices.prices(np.full(10, seconds))) for seconds in (0.07, 3.5))
    assert near == pytest.approx(50 * far, rel=0.01)
    assert (near * 0.07).tolist() == pytest.approx(prices.STAKES, rel=0.01)


def test_every_text_is_judged_once_by_gates_that_have_not_seen_it():
    every = prices.folds(11)
    assert sorted(np.concatenate([rows for _, rows in every]).tolist()) == list(range(11))
    assert all(set(fit.tolist()).isdisjoint(rows.tolist()) and len(fit) + len(rows) == 11 for fit, rows in every)
