"""Modelled times, bytes, unit costs and chance controls, by hand."""

import numpy as np
import pytest
from rich.console import Console

from lab.data.examples import Example
from lab.fit.gains import network_aware
from lab.replay.chance import chance
from lab.replay.costs import references, unit_costs
from lab.replay.profile import Http, Table
from lab.replay.recorder import Kernel, Recorders
from lab.replay.report import figures
from lab.replay.times import Times, round_trip
from lab.replay.walk import Replay
from shared.errors import UnknownPolicy
from shared.links.measured import by_profile
from shared.links.profile import Profile, profile
from shared.links.simulated import SimulatedLink
from shared.model.bundle import load_bundle
from tests.clocks import now
from tests.clocks import run as run_virtually

HTTP = Http(client=0.003, hop=0.002)
SLOW = Profile("slow", rate_up_bps=8e3, rate_down_bps=8e4, rtt_s=0.5, jitter_s=0.0, loss_ratio=0.0)


@pytest.fixture
def replay(tiny_bundle, monkeypatch, tmp_path, sentences):
    monkeypatch.setenv("TIERWISE_CACHE_DIR", str(tmp_path))
    examples = [Example(text, None, row % 2) for row, text in enumerate(sentences)]
    return Replay(load_bundle(str(tiny_bundle)), examples, Recorders(Console(quiet=True)))


@pytest.fixture
def times(replay):
    tables = {
        (station.recorder.digest, 1): Table(
            lengths=[8, 64],
            infer={  # a layer takes 1 ms, with importance 2; the heads on the way a tenth of it
                kernel: [[layer * cost * 1.1e-3] * 2 for layer in range(1, station.recorder.source.layers + 1)]
                for kernel, cost in ((Kernel.PLAIN, 1), (Kernel.COUNTED, 2))
            },
            whole={
                kernel: [station.recorder.source.layers * cost * 1e-3] * 2
                for kernel, cost in ((Kernel.PLAIN, 1), (Kernel.COUNTED, 2))
            },
            words=[0, 100],
            tokenize=[0.0, 0.1],
            prune=[0.01, 0.01],
            spread=1.0,
        )
        for station in replay.stations
    }
    links = {(a, b): SLOW for a in replay.order for b in replay.order}
    return Times(replay, dict.fromkeys(replay.order, 1), links, Console(quiet=True), tables=tables, http=HTTP)


def test_the_advice_to_measure_again_is_a_whole_command(replay, times):
    assert times.notes == []
    busy = {key: table.model_copy(update={"spread": 1.5}) for key, table in times._tables.items()}
    threads = dict.fromkeys(replay.order, 1)
    rows = "/somewhere/my rows.csv"
    anew = Times(replay, threads, times._links, Console(quiet=True), tables=busy, http=HTTP, data=rows)
    (note,) = anew.notes
    assert note.endswith(f"`tierwise replay --profile --data 'my rows.csv' --bundle {replay.bundle.folder}`")


def test_a_text_that_stays_takes_its_layers_and_its_words(replay, times):
    modelled = times.of(replay.run(replay.policy("end-only")))
    words = np.array([len(example.text.split()) for example in replay.examples])
    assert modelled.seconds == pytest.approx(0.003 + 3e-3 + words * 1e-3)
    assert not modelled.link.any()
    assert not modelled.bytes_up.any()


def test_a_text_that_leaves_pays_for_importance_heads_pruning_and_links(replay, times):
    spec = {"name": "collaborative", "offload_threshold": 1.0, "theta": 1.0, "patience": 1, "pruning_coefficient": 1.0}
    run = replay.run(replay.policy(spec))
    modelled = times.of(run)
    assert run.exit_layer.tolist() == [[2] * 12] * 3
    assert modelled.infer == pytest.approx(2 * 1.1e-3 * (2 + 2 + 1))  # the cloud cannot offload: nothing is counted
    words = run.words[run.numbers].sum(0)
    rest = modelled.seconds - modelled.infer - modelled.link
    assert rest == pytest.approx(0.003 + words * 1e-3 + 2 * 0.01)
    headers = 2 * (250 + 2 * 66)  # two links; on each HTTP's headers, and a packet for them and one for the body
    up, down = modelled.bytes_up + headers, modelled.bytes_down + headers
    assert modelled.link == pytest.approx(2 * (0.002 + 0.5) + up * 8 / 8e3 + down * 8 / 8e4)


AHEAD = {"name": "collaborative", "offload_threshold": {"end": 1.0}, "theta": 0, "pruning_coefficient": 0}


def test_a_call_that_began_early_saves_the_rest_of_its_tiers_pass(replay, times):
    plain, ahead = (
        times.of(replay.run(replay.policy({**AHEAD, **more})))
        for more in ({}, {"speculate_below": {"end": 1.0}, "speculate_from": 1})
    )
    heads = 3 * 0.1e-3  # each head on the way is evaluated, which costs a tenth of its layer
    more = (ahead.bytes_up - plain.bytes_up) * 8 / 8e3  # the policy's parameters travel
    assert (ahead.infer - plain.infer).tolist() == pytest.approx([heads] * 12)
    assert plain.seconds - ahead.seconds == pytest.approx(2 * 1.1e-3 - heads - more)


def test_no_more_is_saved_than_what_is_behind_takes(replay, times):
    run = replay.run(replay.policy({**AHEAD, "speculate_below": 1.0, "speculate_from": 1}))
    times._links = {key: profile("ideal") for key in times._links}
    times.http = Http(client=0.0, hop=0.0)
    run.exit_layer[1] = 0  # as if the edge took no time
    run.numbers[1] = -1
    modelled = times.of(run)
    words = run.words[run.numbers[0]]
    assert modelled.seconds == pytest.approx(3.3e-3 + words * 1e-3, abs=1e-9)


def test_what_was_sent_in_vain_is_counted_and_bounded_by_the_budget(replay, times):
    spec = {"name": "collaborative", "offload_threshold": 0.58, "curve": "step", "theta": 0, "pruning_coefficient": 0}
    reference = replay.run(replay.policy("cloud-only"))
    plain = replay.run(replay.policy(spec))
    wasted = []
    for replay.speculation_budget in (0.0, 0.01, 1.0):
        run = replay.run(replay.policy({**spec, "speculate_below": {"end": 1.0}, "speculate_from": 1}))
        assert run.probabilities.tolist() == plain.probabilities.tolist()
        told = figures(replay, run, reference, times)["speculation"]["end"]
        ahead, used = run.ahead_layer[0] > 0, run.ahead_used[0]
        assert told == {"sent_ahead": ahead.mean(), "in_vain": (ahead & ~used).mean()}
        assert (run.sent_to[0][used] > 0).all()
        wasted.append(int((ahead & ~used).sum()))
        if not wasted[-1]:
            bytes_up = times.of(run).bytes_up
    assert wasted[:2] == [0, 1]
    assert wasted[2] > 1
    extra = times.of(run).bytes_up - bytes_up
    assert (extra > 100).tolist() == (ahead & ~used).tolist()
    assert extra[~(ahead & ~used)].tolist() == [0] * (12 - wasted[2])


def test_a_link_takes_its_delay_its_rate_and_its_losses():
    lossy = Profile("lossy", rate_up_bps=8e6, rate_down_bps=0.0, rtt_s=0.1, jitter_s=0.0, loss_ratio=0.01)
    wire = 250 + 1448 + 2 * 66  # HTTP's headers in a packet of their own, 66 bytes around each
    assert round_trip(lossy, np.array([1448.0]), np.array([1449.0])) == pytest.approx(
        0.1 + wire / 1e6 + 2 * 0.001 + 3 * 0.001
    )


@pytest.mark.parametrize("name", ["3g", "lte", "nbiot", "lte-weak"])
def test_a_link_takes_what_the_simulated_one_takes_on_average(name):
    link, sizes = profile(name), (700, 1900)
    simulated = SimulatedLink(link, seed=3)

    async def there_and_back():
        for _ in range(2000):
            for size, direction in zip(sizes, ("up", "down"), strict=True):
                await simulated.carry(size, direction)
        return now() / 2000

    took = run_virtually(there_and_back())
    (modelled,) = round_trip(link, *(np.array([float(size)]) for size in sizes))
    assert modelled == pytest.approx(took, rel=0.07 if name == "nbiot" else 0.03)
    assert modelled > link.rtt_s + link.jitter_s  # two packets or more each way: the slower one counts


def test_unit_costs_are_those_of_the_table_that_they_were_fitted_to(whole_bundle, replay):
    """Layers 4, 2, 4 of one classifier: 2 per layer here, 5 and 1 per layer at the edge, 10 and 18 at the cloud."""
    whole = Replay(load_bundle(str(whole_bundle)), replay.examples, Recorders(Console(quiet=True)))
    expected = {"end-only": 8, "edge-only": 7, "cloud-only": 28}
    for policy, cost in expected.items():
        assert unit_costs(whole, whole.run(whole.policy(policy))).tolist() == [cost] * 12
    always = whole.policy({"name": "collaborative", "offload_threshold": 1.0, "theta": 0.0})
    assert unit_costs(whole, whole.run(always)).tolist() == [8 + 2 + 10 + 18] * 12  # the deepest link is paid once
    assert (references(whole).device, references(whole).cloud) == (8, 28)


def test_a_method_that_needs_the_whole_model_is_replayed_with_it(replay, times):
    run = replay.run(replay.policy("early-exit"))
    assert run.replay_only
    assert run.layers == (4, 2, 4)
    report = figures(replay, run, replay.run(replay.policy("cloud-only")), times)
    assert report["replay_only"]
    assert report["answered_by_tier"] == {"end": 1.0}


def test_the_oracle_is_right_where_any_tier_is_and_cheapest_otherwise(replay):
    oracle = replay.run(replay.policy("oracle"))
    alone = np.stack([replay.run(replay.policy(f"{tier}-only")).label for tier in replay.order])
    right = alone == replay.labels
    assert (oracle.label == replay.labels).tolist() == right.any(0).tolist()
    assert oracle.answered_by.tolist() == [int(row.argmax()) if row.any() else 0 for row in right.T]


def test_what_a_bundle_lacks_is_said(whole_bundle, replay):
    whole = Replay(load_bundle(str(whole_bundle)), replay.examples, Recorders(Console(quiet=True)))
    for policy in ("dimee", "length-quantile"):
        with pytest.raises(UnknownPolicy, match="calibrate"):
            whole.run(whole.policy(policy))


def test_figures_are_those_of_the_run(replay, times):
    run, reference = (replay.run(replay.policy(name)) for name in ("collaborative", "cloud-only"))
    long = figures(replay, run, reference, times)
    assert long["accuracy"] == run_accuracy(replay, run)
    assert long["modelled_ms"]["mean"] == pytest.approx(1e3 * times.of(run).seconds.mean())
    assert long["unit_cost"]["mean"] == pytest.approx(unit_costs(replay, run).mean())
    assert sum(long["answered_by_tier"].values()) == pytest.approx(1, abs=1e-3)
    assert long["accuracy_minus_reference"][0] == pytest.approx(
        run_accuracy(replay, run) - run_accuracy(replay, reference)
    )


def run_accuracy(replay, run):
    return float((run.label == replay.labels).mean())


def test_a_text_that_no_tier_can_read_is_left_out(replay, times):
    examples = [*replay.examples, Example("\u200b", None, 0)]
    own = Replay(replay.bundle, examples, Recorders(Console(quiet=True)))
    for name in ("collaborative", "cloud-only", "splitee", "oracle"):
        run = own.run(own.policy(name))
        assert run.label[-1] == -1
        assert (run.label[:-1] >= 0).all()


def by_chance(replay, run, times, places, alone, draws=3000):
    """Mean accuracy and ms of random orders of the places that a run gives its texts; `alone`: a run for each place."""
    noise, rows = np.random.default_rng(5), np.arange(len(places))
    order = list(alone)
    right = np.stack([one.label == replay.labels for one in alone.values()])
    ms = np.stack([times.of(one).seconds * 1e3 for one in alone.values()])
    drawn = np.array([[order.index(place) for place in noise.permutation(places)] for _ in range(draws)])
    return right[drawn, rows].mean(), ms[drawn, rows].mean()


@pytest.mark.parametrize("name", ["random", "collaborative", "length-quantile", "oracle"])
def test_the_chance_control_is_what_as_many_texts_per_tier_give_when_they_are_drawn(replay, times, name):
    spec = {"name": "length-quantile", "edges": [10, 12]} if name == "length-quantile" else name
    run, everything = replay.run(replay.policy(spec)), np.ones(12, bool)
    drawn = chance(replay, run, times, everything)
    assert drawn["drawn_per"] == "tier"
    assert sum(drawn["shares"].values()) == pytest.approx(1)
    alone = {at: replay.run(replay.policy(f"{replay.order[at]}-only")) for at in set(run.answered_by.tolist())}
    accuracy, ms = by_chance(replay, run, times, run.answered_by, alone)
    assert drawn["accuracy"] == pytest.approx(accuracy, abs=0.01)
    assert drawn["modelled_ms"] == pytest.approx(ms, rel=0.01)
    gain, low, high = drawn["accuracy_over_chance"]
    assert gain == pytest.approx(run_accuracy(replay, run) - drawn["accuracy"])
    assert low <= gain <= high
    more = 1e3 * times.of(run).seconds.mean() - drawn["modelled_ms"]
    assert drawn["modelled_ms_over_chance"][0] == pytest.approx(more)


def test_where_one_tier_runs_its_exits_are_drawn(replay, times):
    spec = {"name": "pabee", "patience": 1}
    run, everything = replay.run(replay.policy(spec)), np.ones(12, bool)
    left = run.exit_layer[-1]
    assert len(set(left.tolist())) > 1
    drawn = chance(replay, run, times, everything)
    assert (drawn["drawn_per"], drawn["n"]) == ("exit", 12)
    assert drawn["shares"] == {str(layer): (left == layer).mean() for layer in sorted(set(left.tolist()))}
    exits = replay.stations[-1].table(replay.numbers, Kernel.PLAIN).exits[replay.numbers]  # [N, E, C]
    right = exits.argmax(-1) == replay.labels[:, None]
    assert drawn["accuracy"] == pytest.approx(right.mean(0)[left - 1].mean())
    # a layer is 1.1 ms whoever leaves after it, and nothing else depends on the exit
    assert drawn["modelled_ms"] == pytest.approx(1e3 * times.of(run).seconds.mean())


@pytest.mark.parametrize("name", ["end-only", "cloud-only"])
def test_one_tier_alone_is_its_own_chance_control(replay, times, name):
    drawn = chance(replay, replay.run(replay.policy(name)), times, np.ones(12, bool))
    assert drawn["accuracy_over_chance"] == drawn["modelled_ms_over_chance"] == (0.0, 0.0, 0.0)


def test_the_chance_control_of_a_method_that_needs_the_whole_model_draws_from_it(replay, times):
    run = replay.run(replay.policy({"name": "splitee", "arm": 2, "exit_threshold": 0.9}))
    drawn = chance(replay, run, times, np.ones(12, bool))
    assert set(drawn["shares"]) == {"end", "cloud"}
    cloud = run_accuracy(replay, replay.run(replay.policy("cloud-only")))
    assert drawn["accuracy"] == pytest.approx(cloud)  # the same whole network at either place


def test_a_text_that_a_drawn_tier_cannot_read_does_not_count(replay, times):
    own = Replay(replay.bundle, [*replay.examples, Example("\u200b", None, 0)], Recorders(Console(quiet=True)))
    drawn = chance(own, own.run(own.policy("random")), times, np.arange(13) < 12)
    assert drawn["n"] == 12


def test_what_an_answer_is_worth_is_chosen_by_replays(replay, times):
    found, report = network_aware(replay, times, target=0.0)
    assert found["compute_ms"].keys() == set(replay.order)
    assert set(found["gains"]["end"]) == {"edge", "cloud"}
    replay.policy({"name": "network-aware", **found}).check(replay.where(0, replay.stations))
    cheapest = min(report["tried"], key=lambda one: one["modelled_ms"])
    assert found["value_ms"] == cheapest["value_ms"]  # any accuracy will do
    dearest, report = network_aware(replay, times, target=1.0)
    best = max(one["accuracy"] for one in report["tried"])
    (chosen,) = (one for one in report["tried"] if one["value_ms"] == dearest["value_ms"])
    assert chosen["accuracy"] == best


def test_a_replay_shows_links_as_their_profiles_say_and_no_queue(replay):
    replay.profiles = {("end", "edge"): profile("lte"), ("end", "cloud"): profile("lte+metro")}
    sight = replay.where(0, replay.stations).sight
    link = sight.link("cloud")
    assert (link.takes_s(0), link.round_trip_s) == (pytest.approx(by_profile(profile("lte+metro")).fixed_s), 0.039)
    assert (link.waiting_s, link.compute_s, link.under_way_s) == (None, None, 0.0)
    assert link.joules(0, 0, 1.0) == profile("lte").radio.base_w
    assert sight.steady("x", 2.0, 0.5) == 2.0
    assert sight.steady("x", 2.1, 0.5) == 2.1
