"""What a replay says is what the live tiers say: labels, tiers, exits, words, draws and confidences, bit for bit.

On the tiny random bundle, 200 texts of 1 to 8 sentences, asked one at a time, and several in a request beside other
requests. With a real data set, and the bundle that it is for, the same comparison runs on the classifiers themselves:

    REAL_DATA=imdb.parquet REAL_POLICIES="collaborative tabi random" python -m pytest tests/system -k real_bundle -s
"""

import asyncio
import os
import random
import shutil
from functools import partial

import httpx
import numpy as np
import pytest
from rich.console import Console

from lab.data.examples import Example, load
from lab.fit.checks import folders_of
from lab.fit.quantize import quantize_all
from lab.policies import parse_policy
from lab.replay.recorder import Recorders, source_of
from lab.replay.run import NONE
from lab.replay.sizes import Sizes
from lab.replay.trial import links_of
from lab.replay.walk import Replay
from shared.model.bundle import load_bundle
from shared.model.exits import Confidence
from shared.model.openvino_engine import capabilities
from shared.policies import POLICIES as NAMED
from shared.policies import Decision, Policy
from shared.policies.base import draw
from tests.conftest import PATHS, SURE, UNSURE
from tests.system.conftest import TRIANGLE

ALWAYS = {"name": "collaborative", "offload_threshold": 1.0}
AWAY = {"end": [[UNSURE, UNSURE, SURE]] * 3, "edge": [[UNSURE, SURE]] * 2, "cloud": [[SURE]] * 3}
PATH_GATES = {
    "name": "path-gates",
    "profiles": [{"links": "ideal/ideal", "tiers": PATHS}, {"links": "wifi/metro", "tiers": AWAY}],
}
OPENING = {tier: [[8.0, 0, 0, 0, -4.9], [8.0, 0, 0, 0, -5.1]] for tier in ("end", "cloud")}
POLICIES = [
    "collaborative",
    {**ALWAYS, "theta": 0.2, "patience": 1},
    {**ALWAYS, "pruning_coefficient": 0, "weighting": "accuracy"},
    {**ALWAYS, "pruning_coefficient": 0, "unread_words": True},
    {**ALWAYS, "skip_below": 0.62},
    {**ALWAYS, "pruning_coefficient": 0, "speculate_below": 1, "speculate_from": 1, "skip_below": 0.62},
    {"name": "collaborative", "pruning_coefficient": 0, "speculate_below": 1, "speculate_from": 1},
    {**ALWAYS, "max_tokens": 24, "pruning_coefficient": 0},
    {**ALWAYS, "max_tokens": {"end": 16, "cloud": 32}, "pruning_coefficient": 0, "theta": 0.2, "patience": 1},
    {**ALWAYS, "max_tokens": {"edge": 12}, "pruning_coefficient": 0.9},
    {"name": "collaborative", "offload_threshold": 0.5, "curve": "linear", "theta": 0.1, "weighting": "last"},
    {"name": "collaborative", "offload_threshold": {"end": 0.65}, "pruning_coefficient": 0.9},
    {
        **ALWAYS,
        "offload_threshold": 0.62,
        "theta": 0.3,
        "patience": 1,
        "exit_min_confidence": 0.7,
        "exit_when_unsure": True,
    },
    "tabi",
    "end-only",
    "edge-only",
    "cloud-only",
    "random",
    "dimee",
    {"name": "dimee", "signature": "layernorm_mean"},
    {"name": "dimee", "signature": "token_norms"},
    "length-quantile",
    {"name": "deebert", "entropy_threshold": 0.66},
    {"name": "pabee", "patience": 1},
    {"name": "pabee", "patience": 2, "tier": "end"},
    {"name": "jei-dnn", "tier": "end", "gates": OPENING},
    {"name": "jei-dnn", "gates": {"cloud": [*OPENING["cloud"], [0.0, 0, 0, 0, 0]]}},
    PATH_GATES,
    {**PATH_GATES, "unread_words": True, "weighting": "last"},
    {"name": "adaee", "arm": 0.6},
    {"name": "network-aware", "value_ms": 1e9},  # whatever links and queues take
]
LEARNING = [
    "recserve",
    {"name": "recserve", "beta": 0.6, "window": 20},
    {"name": "dimee", "adaptive": True},
    {"name": "dimee", "adaptive": True, "half_life": 20.0},
    {"name": "adaee", "offload_cost": 0.0},
]
WHOLE = [
    {"name": "early-exit", "exit_threshold": 0.6},
    {"name": "splitee", "arm": 2, "exit_threshold": 0.6},
]
WHOLE_LEARNING = [
    {"name": "splitee", "exit_threshold": 0.55, "layer_cost": 0.01},
    {"name": "splitee-s", "exit_threshold": 0.55, "layer_cost": 0.01, "offload_cost": 0.02},
    {"name": "i-splitee", "layer_cost": 0.01, "offload_cost": 0.02},
]


@pytest.fixture(scope="module")
def texts(sentences):
    pick = random.Random(4)
    return [" ".join(pick.choices(sentences, k=pick.randint(1, 8))) for _ in range(200)]


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path_factory):
    if "REAL_DATA" not in os.environ:
        monkeypatch.setenv("TIERWISE_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "replay-cache"))


def ask(tiers, texts, policy, **options):
    """Live results, each text alone, under the seeds of a replay with seed 0."""
    alone = [
        {"inputs": text, "options": {"policy": policy, "seed": f"0-{row}"} | options} for row, text in enumerate(texts)
    ]
    return answers(tiers, alone, together=1)


def answers(tiers, bodies, *, together):
    """What the end says to requests, so many at a time: the results of all of them, in order."""

    async def every():
        transport = httpx.ASGITransport(tiers.apps["end"])
        async with httpx.AsyncClient(transport=transport, base_url="http://client", timeout=60) as client:
            out = []
            for at in range(0, len(bodies), together):
                asked = [client.post("/v1/classify", json=body) for body in bodies[at : at + together]]
                for answer in await asyncio.gather(*asked):
                    assert answer.status_code == 200, answer.text
                    out += answer.json()["results"]
            return out

    return asyncio.run(every())


def replay(bundle, texts, **options):
    recorders = Recorders(Console(quiet=True))
    return Replay(load_bundle(str(bundle)), [Example(text, None, 0) for text in texts], recorders, **options)


def seen(live, labels):
    """A live result as a tuple: the answer, then every hop."""
    return (
        live["label"],
        live["tier"],
        tuple(round(live["probabilities"][label], 6) for label in labels),
        tuple(
            (
                hop["tier"],
                hop["exit_layer"],
                hop["confidence"],
                hop["offload_probability"],
                hop["draw"],
                hop["offloaded_to"],
                hop["words_in"],
                hop["words_kept"],
            )
            for hop in live["hops"]
        ),
    )


def replayed(replay, run, row):
    """The same of a replay."""
    labels, hops = replay.bundle.labels, []
    for at, tier in enumerate(run.tiers):
        if not run.ran[at, row]:
            continue
        to = run.sent_to[at, row]
        kept = None
        if to != NONE:
            (carried,) = (numbers[row] for (a, _), numbers in run.carried.items() if a == at and numbers[row] != NONE)
            kept = replay.corpus.words[carried]
        hops.append(
            (
                tier,
                run.exit_layer[at, row],
                run.confidence[at, row],
                round(run.probability[at, row], 6),
                replay.draws[at][row],
                None if to == NONE else run.tiers[to],
                replay.corpus.words[run.numbers[at, row]],
                kept,
            )
        )
    return (
        labels[run.label[row]],
        run.tiers[run.answered_by[row]],
        tuple(round(value, 6) for value in run.probabilities[row].tolist()),
        tuple(hops),
    )


def differing(tiers, replay, texts, policy):
    """Rows on which a policy's live and replayed answers differ, with both."""
    return compared(replay, ask(tiers, texts, policy), policy)


def compared(replay, results, policy):
    """Rows on which live results differ from a replay of a policy, with both."""
    run = replay.run(replay.policy(policy))
    assert not run.replay_only
    pairs = [(seen(live, replay.bundle.labels), replayed(replay, run, row)) for row, live in enumerate(results)]
    assert len(pairs) == len(replay.examples)
    return [(row, a, b) for row, (a, b) in enumerate(pairs) if a != b]


def in_requests(texts):
    """Texts as requests of 1 to 7 of them, by their seeds."""
    pick, out = random.Random(5), {}
    while (taken := sum(map(len, out.values()))) < len(texts):
        out[f"request-{len(out)}"] = texts[taken : taken + pick.randint(1, 7)]
    return out


def differing_together(tiers, replay, texts, policy):
    """The same for texts in requests, five of which run at a time."""
    requests = in_requests(texts)
    places = [(seed, index) for seed, inside in requests.items() for index in range(len(inside))]
    replay.draws = [[draw(seed, index, tier) for seed, index in places] for tier in replay.order]
    bodies = [{"inputs": inside, "options": {"policy": policy, "seed": seed}} for seed, inside in requests.items()]
    return compared(replay, answers(tiers, bodies, together=5), policy)


@pytest.mark.parametrize("policy", [*POLICIES, *LEARNING], ids=str)
def test_a_replay_equals_the_live_tiers(triangle, tiny_bundle, texts, policy):
    assert differing(triangle, replay(tiny_bundle, texts), texts, policy) == []


def test_the_comparison_compares_something(triangle, tiny_bundle, texts):
    own = replay(tiny_bundle, texts)
    run = own.run(own.policy({**ALWAYS, "theta": 0.2, "patience": 1}))
    words = own.corpus.words[run.numbers]
    assert run.ran.all()
    assert any(there < here for here, there in zip(words[0], words[1], strict=True))  # pruned
    assert len(set(run.exit_layer[0].tolist())) > 1
    run = own.run(own.policy("collaborative"))
    assert set(run.answered_by.tolist()) == {0, 1, 2}
    assert set(run.label.tolist()) == {0, 1}


AWAY_ALONE = {"name": "path-gates", "profiles": PATH_GATES["profiles"][1:]}  # travels whole; the card's, by a digest


@pytest.mark.parametrize(
    "policy",
    [ALWAYS, "random", {"name": "adaee", "arm": 0.9}, "dimee", "path-gates", AWAY_ALONE, "jei-dnn"],
    ids=[*("all", "random", "adaee", "dimee"), "card's gates", "own gates", "jei-dnn"],
)
def test_requests_are_as_long_as_modelled_and_answers_about(triangle, tiny_bundle, texts, policy):
    own = replay(tiny_bundle, texts[:40])
    run, sizes = own.run(own.policy(policy)), Sizes(own)
    crossed = 0
    for row, result in enumerate(ask(triangle, texts[:40], policy)):
        for hop in result["hops"]:
            if hop["link"] is None:
                continue
            ends = tuple(own.order.index(hop["link"][end]) for end in ("from", "to"))
            assert sizes.requests(run, ends, np.array([row])).tolist() == [hop["link"]["request_bytes"]]
            answer = sizes.answers(run, ends[1], np.array([row]))[0]
            assert answer == pytest.approx(hop["link"]["response_bytes"], rel=0.05)
            crossed += 1
    assert crossed > 5


@pytest.mark.parametrize("limits", [None, {"cloud": 20}, {"edge": 12}, {"edge": 40, "cloud": 24}], ids=str)
def test_words_that_no_further_tier_reads_stay_behind_and_change_no_answer(triangle, texts, limits):
    """The edge, whose tokenizer is the cloud's, drops words by what both read under the limits in force."""
    policy = {**ALWAYS, "pruning_coefficient": 0, "theta": 0, "max_tokens": limits}
    without, whole = (ask(triangle, texts, policy | {"unread_words": travel}) for travel in (False, True))
    kept, all_words = ([result["hops"][1]["words_kept"] for result in some] for some in (without, whole))
    cut = [result["hops"][2]["truncated"] for result in whole]
    shorter = [a < b for a, b in zip(kept, all_words, strict=True)]
    assert all(is_cut for is_cut, is_shorter in zip(cut, shorter, strict=True) if is_shorter)
    assert sum(shorter) > 0.9 * sum(cut) > 0  # the gap may lie within one word
    for one, other in zip(without, whole, strict=True):
        for field in ("label", "probabilities", "truncated", "words_in"):
            assert one[field] == other[field]
        assert [hop["probabilities"] for hop in one["hops"]] == [hop["probabilities"] for hop in other["hops"]]


@pytest.mark.parametrize("name", ["collaborative", "tabi"])
def test_texts_that_are_sent_on_ahead_of_an_answer_change_no_answer(build_tiers, tiny_bundle, texts, name):
    spec = {"name": name, "pruning_coefficient": 0, "skip_below": 0.55, "curve": "linear"}
    ahead = {**spec, "speculate_below": 1, "speculate_from": 1}
    tiers, own = build_tiers(TRIANGLE, speculation_budget=1), replay(tiny_bundle, texts, speculation_budget=1)
    without, sent = ask(tiers, texts, spec), ask(tiers, texts, ahead)
    assert [seen(result, own.bundle.labels) for result in sent] == [seen(one, own.bundle.labels) for one in without]
    assert not any("speculation" in hop for result in without for hop in result["hops"])
    run = own.run(own.policy(ahead))
    live = np.array([_ahead(result, tier) for tier in own.order for result in sent]).reshape(len(own.order), -1, 2)
    assert run.ahead_layer.tolist() == live[..., 0].tolist()
    assert run.ahead_used.tolist() == live[..., 1].tolist()
    outcomes = [hop["speculation"] | {"went": hop["offloaded_to"]} for r in sent for hop in r["hops"] if _told(hop)]
    assert {(told["used"], told["went"]) for told in outcomes} >= {(True, "edge"), (False, None), (False, "cloud")}
    vain = [told["request_bytes"] for told in outcomes if not told["used"]]
    sizes = Sizes(own)
    rows = {link: np.flatnonzero(numbers != NONE) for link, (numbers, _) in run.vain.items()}
    assert sum(vain) == sum(sizes.in_vain(run, link, some).sum() for link, some in rows.items())


def _told(hop):
    return hop.get("speculation")


def _ahead(result, tier):
    """By which exit a tier sent a text on ahead of its answer (0: it did not), and whether that was used."""
    told = next((_told(hop) for hop in result["hops"] if hop["tier"] == tier), None)
    return (told["layer"], told["used"]) if told else (0, False)


@pytest.fixture
def company(build_tiers):
    """A builder of tiers whose models take 16 texts of different requests at once."""
    return partial(build_tiers, TRIANGLE, batch_texts=16, upstream_timeout_ms=600_000)


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_so_it_does_where_texts_share_requests_and_requests_the_model(company, tiny_bundle, texts, policy):
    assert differing_together(company(), replay(tiny_bundle, texts[:100]), texts[:100], policy) == []


def test_so_it_does_where_texts_that_are_read_to_different_lengths_share_the_model(company, tiny_bundle, texts):
    policies = [{**ALWAYS, "max_tokens": limits} for limits in (None, {"end": 16}, {"end": 12, "cloud": 24})]
    mixed = [policies[row % 3] for row in range(60)]
    bodies = [
        {"inputs": text, "options": {"policy": policy, "seed": f"0-{row}"}}
        for row, (text, policy) in enumerate(zip(texts, mixed, strict=False))
    ]
    results, own = answers(company(), bodies, together=5), replay(tiny_bundle, texts[:60])
    for at, policy in enumerate(policies):
        run = own.run(own.policy(policy))
        rows = range(at, 60, 3)
        assert [seen(results[row], own.bundle.labels) for row in rows] == [replayed(own, run, row) for row in rows]


@pytest.mark.parametrize("policy", WHOLE, ids=str)
def test_so_it_does_there_where_the_device_holds_the_whole_model(company, whole_bundle, texts, policy):
    tiers = company(bundle=whole_bundle)
    assert differing_together(tiers, replay(whole_bundle, texts[:100]), texts[:100], policy) == []


@pytest.fixture(scope="module")
def quantized_bundle(tiny_bundle, sentences, tmp_path_factory):
    folder = tmp_path_factory.mktemp("quantized") / "tiny"
    shutil.copytree(tiny_bundle, folder)
    bundle = load_bundle(str(folder))
    examples = [Example(text, None, 0) for text in sentences]
    quantize_all(bundle, folders_of(bundle), examples, Console(quiet=True), threads=1)
    return folder


@pytest.mark.skipif("INT8" not in capabilities(), reason="no int8 here")
@pytest.mark.parametrize("pruning", [0, 0.9])
def test_so_it_does_in_int8(company, quantized_bundle, texts, monkeypatch, pruning):
    monkeypatch.setenv("TIERWISE_PRECISION", "int8")
    policy = ALWAYS | {"pruning_coefficient": pruning, "theta": 0.2, "patience": 1}
    own, tiers = replay(quantized_bundle, texts[:100]), company(bundle=quantized_bundle, precision="int8")
    assert {str(source_of(own.bundle, tier).computes) for tier in own.order} == {"openvino int8"}
    assert differing_together(tiers, own, texts[:100], policy) == []


def test_a_policy_that_learns_answers_a_request_with_what_it_knew_before(triangle, tiny_bundle, texts):
    own, learns = replay(tiny_bundle, texts[:30]), {"name": "dimee", "adaptive": True}
    own.draws = [[draw("one", index, tier) for index in range(30)] for tier in own.order]
    results = answers(triangle, [{"inputs": texts[:30], "options": {"policy": learns, "seed": "one"}}], together=1)
    assert compared(own, results, "dimee") == []  # which never learns
    assert compared(own, results, learns) != []  # a replay lets it learn after every text


@pytest.mark.parametrize("policy", ["collaborative", "cloud-only", "random", "dimee"])
def test_a_request_is_refused_for_the_very_texts_that_a_replay_has_no_answer_for(triangle, tiny_bundle, texts, policy):
    some = [*texts[:3], "\u200b", *texts[3:6], " \u200b\u200b", texts[6]]
    run = (own := replay(tiny_bundle, some)).run(own.policy(policy))
    assert np.flatnonzero(run.label == NONE).tolist() == [3, 7]
    refused = asyncio.run(triangle.ask(some, policy=policy))
    assert refused.status_code == 422
    assert refused.json()["detail"].endswith("in input 3, 7")


@pytest.mark.parametrize("policy", [*WHOLE, *WHOLE_LEARNING], ids=str)
def test_so_it_does_where_the_device_holds_the_whole_model(whole, whole_bundle, texts, policy):
    assert differing(whole, replay(whole_bundle, texts), texts, policy) == []


def test_gates_are_those_of_the_links_in_both(build_tiers, tiny_bundle, texts):
    links = links_of(load_bundle(str(tiny_bundle)), "wifi/metro")
    tiers = build_tiers(TRIANGLE, profiles={pair: own.name for pair, own in links.items()})
    own = replay(tiny_bundle, texts[:60], profiles=links)
    assert differing(tiers, own, texts[:60], PATH_GATES) == []
    runs = [one.run(one.policy(PATH_GATES)) for one in (own, replay(tiny_bundle, texts[:60]))]
    assert [profile.links for run in runs for profile in run.bound.profiles] == ["wifi/metro", "ideal/ideal"]
    assert (runs[0].answered_by != runs[1].answered_by).any()


def test_gates_take_texts_by_every_way(tiny_bundle, texts):
    run = (own := replay(tiny_bundle, texts)).run(own.policy(PATH_GATES))
    assert run.carried.keys() == {(0, 1), (0, 2), (1, 2)}
    assert set(run.answered_by.tolist()) == {0, 1, 2}
    assert len(set(run.exit_layer[0].tolist())) > 1


@pytest.mark.parametrize("policy", ["cloud-only", "random", {**ALWAYS, "theta": 0.2}, "dimee", PATH_GATES], ids=str)
def test_so_it_does_without_a_link_from_the_end_to_the_cloud(chain, tiny_bundle, texts, policy):
    links = {"end": ["edge"], "edge": ["cloud"], "cloud": []}
    assert differing(chain, replay(tiny_bundle, texts[:60], links=links), texts[:60], policy) == []


@pytest.mark.parametrize("policy", ["collaborative", "cloud-only", "random", {"name": "adaee", "arm": 0.9}], ids=str)
def test_max_tier_holds_in_a_replay_too(triangle, tiny_bundle, texts, policy):
    own = replay(tiny_bundle, texts[:60], max_tier="edge")
    live = [seen(result, own.bundle.labels) for result in ask(triangle, texts[:60], policy, max_tier="edge")]
    run = own.run(own.policy(policy))
    assert [replayed(own, run, row) for row in range(60)] == live


class Looks(Policy):
    """Decides by all that a replay can see: its chances are made of every number in view."""

    name = "looks"
    carries_visits = True

    def before(self, where, clues, draw):
        assert where.clues == clues
        assert {visit.tier for visit in where.visits} <= {*where.tiers[: where.tiers.index(where.tier)]}
        return self.somewhere(where, draw * clues.words)

    def after(self, where, confidence, draw):
        *before, own = where.visits
        assert own.tier == where.tier
        assert own.confidence == round(confidence, 6) == own.confidences[-1] == max(own.probabilities)
        assert all(len(visit.confidences) == 1 for visit in before)
        return self.somewhere(where, draw)

    def somewhere(self, where, number):
        for at, visit in enumerate(where.visits, 2):
            number += at * (sum(visit.confidences) + at * visit.probabilities[0] + visit.exit_layer / 7)
        chance = (number + where.clues.words / 11) % 1
        to = where.reachable[int(10 * chance) % len(where.reachable)] if where.reachable and chance < 0.5 else None
        return Decision(to, chance, "policy")

    def exit_rule(self, where):
        assert where.visits == ()
        assert where.clues is None
        return Confidence(0.6) if where.tier == "end" else None


@pytest.fixture
def looks(monkeypatch):
    monkeypatch.setitem(NAMED, "looks", Looks)
    return "looks"


def test_a_policy_sees_the_same_in_both_and_what_tiers_said_travels_as_modelled(looks, triangle, tiny_bundle, texts):
    own = replay(tiny_bundle, texts)
    assert differing(triangle, own, texts, looks) == []
    run = own.run(own.policy(looks))
    assert {(0, 1), (1, 2), (0, 2)} == run.carried.keys()
    assert (run.ran[:2].all(0) & (run.answered_by == 2)).any()
    assert request_sizes_differ(triangle, own, run, texts[:60], looks) == []


def test_what_tiers_said_passes_a_tier_that_only_hands_on(looks, chain, tiny_bundle, texts):
    links = {"end": ["edge"], "edge": ["cloud"], "cloud": []}
    assert differing(chain, replay(tiny_bundle, texts[:60], links=links), texts[:60], looks) == []


def request_sizes_differ(tiers, own, run, texts, policy):
    """Requests that were longer or shorter on the wire than modelled."""
    found, sizes = [], Sizes(own)
    for row, result in enumerate(ask(tiers, texts, policy)):
        for use in [hop["link"] for hop in result["hops"] if hop["link"]]:
            ends = tuple(own.order.index(use[end]) for end in ("from", "to"))
            modelled = sizes.requests(run, ends, np.array([row])).tolist()
            found += [(row, ends, modelled, use)] if modelled != [use["request_bytes"]] else []
    return found


@pytest.mark.skipif("REAL_DATA" not in os.environ, reason="no real data set named")
def test_a_real_bundle_too(build_tiers):
    """200 texts; minutes on a CPU. Prints, for each policy, on how many rows it differs, and how."""
    bundle = os.environ.get("REAL_BUNDLE", "collaborative")
    examples = load(os.environ["REAL_DATA"], os.environ.get("REAL_SPLIT", "test"))
    examples = examples[: int(os.environ.get("REAL_N", "200"))]
    order = load_bundle(bundle).order
    upstreams = {tier: order[1:] if at == 0 else order[at + 1 : at + 2] for at, tier in enumerate(order)}
    tiers = build_tiers(upstreams, bundle=bundle, upstream_timeout_ms=600_000)
    recorders = Recorders(Console(width=120))
    own = Replay(load_bundle(bundle), examples, recorders)
    texts = [e.text if e.pair is None else {"text": e.text, "text_pair": e.pair} for e in examples]
    found = {}
    for policy in os.environ.get("REAL_POLICIES", "collaborative tabi cloud-only random").split():
        found[policy] = differing(tiers, own, texts, parse_policy(policy))
        recorders.save()
        print(f"{policy}: {len(found[policy])} of {len(texts)} differ", *found[policy], sep="\n  ")
    assert not any(found.values())
