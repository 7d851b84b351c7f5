"""The planner against brute force, on outcomes made up so that the best setting is known."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest

from lab import choice as chooser
from lab.replay.plan import Measured, Targets, bytes_below, choose, confirm, front, measure, parts, rank_above


def outcomes(accuracy, ms, n=3000, sent=1000.0, seed=0):
    noise = np.random.default_rng([seed, int(1e4 * accuracy), int(ms)])
    return SimpleNamespace(
        right=noise.random(n) < accuracy,
        ms=ms * noise.lognormal(-0.02, 0.2, n),
        sent=np.full(n, sent),
    )


def grid(count=60, n=3000, seed=0):
    """Settings that cost more the better they are, and as many that are merely slow."""
    noise = np.random.default_rng(seed)
    accuracy = noise.uniform(0.8, 0.96, count)
    ms = 20 + 400 * (accuracy - 0.8) + np.where(noise.random(count) < 0.5, 0, noise.uniform(20, 200, count))
    return accuracy, [outcomes(a, t, n, seed=seed) for a, t in zip(accuracy, ms, strict=True)]


def choice(every, targets, n=3000):
    return choose([{"name": str(at)} for at in range(len(every))], every, targets, *parts(n))


def test_the_front_is_what_brute_force_finds():
    _, every = grid()
    measured = {at: measure(own, np.arange(3000)) for at, own in enumerate(every)}
    targets = Targets(accuracy=0.9)

    def beaten(own):
        return any(
            (o.accuracy >= own.accuracy and o.mean_ms < own.mean_ms)
            or (o.accuracy > own.accuracy and o.mean_ms <= own.mean_ms)
            for o in measured.values()
        )

    expected = {at for at, own in measured.items() if not beaten(own)}
    found = front(measured, targets)
    assert set(found) == expected
    assert [measured[at].accuracy for at in found] == sorted((measured[at].accuracy for at in found), reverse=True)


def test_what_is_sent_too_much_does_not_stand_in_the_way_of_what_is_fast_and_small():
    heavy, light = outcomes(0.88, 40, sent=2000.0), outcomes(0.92, 60, sent=500.0)
    home = outcomes(0.85, 20, sent=0.0)
    assert choice([home, heavy, light], Targets(p95_ms=150, bytes=900)).chosen == 2


def test_the_choice_is_the_fastest_that_brute_force_finds_before_the_first_failure():
    _, every = grid()
    found = choice(every, Targets(accuracy=0.88))
    assert found.chosen is not None
    _, rest = parts(3000)
    passes = [confirm(every[at], rest).accuracy_low >= 0.88 for at in found.path]
    place = found.path.index(found.chosen)
    assert all(passes[: place + 1])
    assert place + 1 == len(passes) or not passes[place + 1]
    assert found.nearest == found.chosen


def test_a_setting_that_misses_its_target_is_chosen_in_at_most_5_percent_of_plans():
    """Many settings just below the target: picking the best looking one would nearly always choose one of them."""
    n, wrong, naive = 600, 0, 0
    for seed in range(200):
        noise = np.random.default_rng(seed)
        every = [outcomes(0.895, 50 + at, n, seed=seed) for at in range(20)]
        for own in every:
            own.right = noise.random(n) < 0.895
        found = choice(every, Targets(accuracy=0.90), n)
        wrong += found.chosen is not None
        naive += max(own.right.mean() for own in every) >= 0.90
    assert naive > 150
    assert wrong <= 0.05 * 200 + 2 * math.sqrt(0.05 * 0.95 * 200)


def test_without_an_accuracy_target_the_most_accurate_within_the_limit_is_chosen():
    every = [outcomes(0.80, 30), outcomes(0.90, 80), outcomes(0.96, 300)]
    found = choice(every, Targets(p95_ms=150))
    assert found.chosen == 1
    assert choice(every, Targets(p95_ms=150, bytes=999)).chosen is None
    assert choice(every, Targets(bytes=1001)).chosen == 2  # all send as much: time is no object


def test_the_safe_setting_is_walked_first_so_that_a_lucky_one_hides_nothing():
    safe, lucky, fast = outcomes(0.93, 400), outcomes(0.90, 500), outcomes(0.80, 20)
    search, rest = parts(3000)
    lucky.right[search] = True  # the best of all, by chance: it fails where it is confirmed
    specs = [{"name": name} for name in ("cloud-only", "lucky", "end-only")]
    every, targets = [safe, lucky, fast], Targets(accuracy=0.91)
    assert choose(specs, every, targets, search, rest).chosen is None
    found = choose(specs, every, targets, search, rest, pinned=0)
    assert (found.path[0], found.chosen) == (0, 0)


def test_a_cheap_one_that_is_lucky_where_it_is_searched_hides_no_dearer_one_that_holds():
    safe, good, lucky = outcomes(0.93, 400), outcomes(0.925, 200), outcomes(0.85, 30)
    search, rest = parts(3000)
    lucky.right[search] = True  # on these rows it beats all others: they are not on the front
    specs = [{"name": name} for name in ("cloud-only", "good", "lucky")]
    found = choose(specs, [safe, good, lucky], Targets(accuracy=0.9), search, rest, pinned=0)
    assert (found.path, found.chosen) == ([0, 1, 2], 1)


def test_a_dear_setting_that_is_poor_ends_no_walk():
    safe, poor, good = outcomes(0.93, 400), outcomes(0.70, 300), outcomes(0.925, 200)
    specs = [{"name": name} for name in ("cloud-only", "poor", "good")]
    found = choose(specs, [safe, poor, good], Targets(accuracy=0.9), *parts(3000), pinned=0)
    assert (found.path, found.chosen) == ([0, 2, 1], 2)


def test_an_accuracy_beside_the_deepest_tiers_takes_fewer_texts_to_prove():
    """One text in a hundred is lost: far less than what an accuracy of its own can be known to."""
    deepest, quick = outcomes(0.93, 170), outcomes(0.93, 70)
    quick.right = deepest.right.copy()
    quick.right[np.flatnonzero(quick.right)[::100]] = False
    search, rest = parts(3000)
    about = {"pinned": 0, "deepest": deepest.right}
    specs, every = [{"name": "cloud-only"}, {"name": "quick"}], [deepest, quick]
    assert choose(specs, every, Targets(within=0.02), search, rest, **about).chosen == 1
    assert choose(specs, every, Targets(within=0.005), search, rest, **about).chosen == 0
    beside = float(deepest.right.mean()) - 0.02
    assert choose(specs, every, Targets(accuracy=beside), search, rest, **about).path == [0, 1]
    measured = confirm(quick, rest, deepest.right)
    assert measured.lost == pytest.approx(0.0093, abs=0.002)
    assert measured.lost < measured.lost_high < 0.02
    assert measured.misses(Targets(within=0.01), bounds=True) == {"within": pytest.approx(measured.lost_high - 0.01)}


def test_what_a_search_knows_of_some_rows_is_confirmed_on_all():
    """Outside the rows to search on, its outcomes are void."""
    good, rows = outcomes(0.95, 50), parts(3000)[0]
    some = SimpleNamespace(right=np.zeros(3000, dtype=bool), ms=np.zeros(3000), sent=np.zeros(3000))
    for field in ("right", "ms", "sent"):
        getattr(some, field)[rows] = getattr(good, field)[rows]
    specs, targets = [{"name": "good"}], Targets(accuracy=0.9)
    assert choose(specs, [some], targets, *parts(3000)).chosen is None
    assert choose(specs, [some], targets, *parts(3000), whole=lambda at: good).chosen == 0


def test_of_those_that_pass_the_best_on_all_validation_texts_is_chosen():
    good, lucky = outcomes(0.92, 60), outcomes(0.90, 50)
    search, rest = parts(3000)
    lucky.right[search[:400]] = True
    found = choose([{"name": "good"}, {"name": "lucky"}], [good, lucky], Targets(p95_ms=200), search, rest, pinned=0)
    assert found.path[-1] == 1
    assert found.chosen == 0


def test_p95_can_be_what_is_least():
    steady, spiky = outcomes(0.92, 100), outcomes(0.92, 60)
    spiky.ms[::10] *= 8
    every = [steady, spiky]
    every[1].right = every[0].right
    assert choice(every, Targets(accuracy=0.88)).chosen == int(spiky.ms.mean() < steady.ms.mean())
    assert choice(every, Targets(accuracy=0.88, objective="p95")).chosen == 0


def test_where_nothing_is_feasible_the_nearest_is_named():
    every = [outcomes(0.80, 30), outcomes(0.90, 80), outcomes(0.85, 200)]
    found = choice(every, Targets(accuracy=0.97))
    assert found.chosen is None
    assert found.nearest == 1
    assert found.confirmed[1].misses(Targets(accuracy=0.97), bounds=True)["accuracy"] == pytest.approx(0.08, abs=0.02)


def test_of_settings_that_miss_by_as_much_the_faster_is_the_nearest():
    """The slow one comes first, as the safe one does; their bounds are the same."""
    slow, quick = outcomes(0.90, 170), outcomes(0.90, 70)
    quick.right = slow.right
    search, rest = parts(3000)
    specs = [{"name": "cloud-only"}, {"name": "quick"}]
    found = choose(specs, [slow, quick], Targets(accuracy=0.99), search, rest, pinned=0)
    assert (found.chosen, found.nearest) == (None, 1)
    found = choose(specs, [slow, quick], Targets(accuracy=0.5), search, rest, pinned=0)
    assert found.chosen == 1


def test_of_settings_that_are_alike_in_bytes_and_accuracy_the_faster_is_on_the_front():
    slow, quick = outcomes(0.90, 170), outcomes(0.90, 70)
    quick.right = slow.right
    assert choice([slow, quick], Targets(bytes=2000)).path == [1]
    assert choice([slow, quick], Targets(bytes=2000)).chosen == 1


@pytest.mark.parametrize("seed", range(5))
def test_no_point_of_a_front_is_beaten_by_another(seed):
    """Few values, so that there are ties."""
    noise = np.random.default_rng(seed)
    points = [tuple(pair) for pair in noise.integers(0, 6, (40, 2)).tolist()]

    def beats(a, b):
        return a != b and a[0] <= b[0] and a[1] >= b[1]

    own = [points[at] for at in chooser.front(*map(list, zip(*points, strict=True)))]
    assert not any(beats(a, b) for a in points for b in own)
    assert set(own) == {b for b in points if not any(beats(a, b) for a in points)}
    assert len(own) == len(set(own))


def test_bounds_lie_on_the_safe_side_of_the_figures():
    own = confirm(outcomes(0.9, 100, 400), np.arange(400))
    assert own.accuracy_low < own.accuracy
    assert own.p95_high > own.p95_ms
    assert own.bytes_high == own.bytes == 1000
    few = confirm(outcomes(0.9, 100, 40), np.arange(40))
    assert few.p95_high == math.inf  # 40 texts cannot bound a 95th percentile


def test_the_order_statistic_is_above_the_quantile_as_often_as_it_says():
    noise, n = np.random.default_rng(5), 200
    rank = rank_above(n)
    above = np.mean([np.sort(noise.random(n))[rank] >= 0.95 for _ in range(2000)])
    assert 0.95 <= above <= 0.985
    assert (rank_above(58), rank_above(59)) == (58, 58)


def test_what_is_measured_is_json():
    assert json.dumps(vars(Measured(0.9, 1.0, 2.0, 3.0)))


def test_a_second_limit_that_only_just_holds_does_not_hide_what_meets_both():
    """The most accurate setting sits at the limit of p95: a walk that starts there would end there."""
    at_the_limit, well_within = outcomes(0.94, 92.5), outcomes(0.92, 50)
    targets = Targets(accuracy=0.9, p95_ms=float(np.percentile(at_the_limit.ms[::3], 95)) + 0.01)
    assert choice([at_the_limit, well_within], targets).chosen == 1


def test_a_limit_of_nothing_is_a_limit():
    home, away = outcomes(0.85, 20, sent=0.0), outcomes(0.95, 60, sent=500.0)
    found = choice([home, away], Targets(bytes=0.0))
    assert found.chosen == 0
    assert choice([away], Targets(accuracy=0.9, bytes=0.0)).chosen is None


def test_what_is_hardly_ever_sent_is_not_taken_for_nothing():
    noise = np.random.default_rng(0)
    within = 0
    for _ in range(200):
        sent = np.where(noise.random(400) < 0.01, noise.lognormal(7, 0.3, 400), 0.0)
        within += bytes_below(sent) >= 0.01 * math.exp(7 + 0.045) or not sent.any()
    assert within >= 190
