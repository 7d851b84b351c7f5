"""Three tiers together: where texts go, what travels, and that the parts of an answer add up."""

import asyncio
import hashlib
from collections import Counter

import httpx
import pytest

TIERS = ["end", "edge", "cloud"]
TRIANGLE = {"end": ("edge", "cloud"), "edge": ("cloud",), "cloud": ()}
CHAIN = {"end": ("edge",), "edge": ("cloud",), "cloud": ()}


def path(result):
    return [hop["tier"] for hop in result["hops"]]


# -- where texts go -------------------------------------------------------------------------------------------------


def test_a_threshold_of_one_walks_every_tier(either, always, sentences):
    for result in either.results(sentences, policy=always):
        assert path(result) == TIERS
        assert [hop["offloaded_to"] for hop in result["hops"]] == ["edge", "cloud", None]
        assert [hop["offload_probability"] for hop in result["hops"]] == [1.0, 1.0, 0.0]
        assert (result["tier"], result["degraded"]) == ("cloud", None)
        assert sum(hop["weight"] for hop in result["hops"]) == pytest.approx(1, abs=1e-5)


def test_a_hard_threshold_of_zero_stays_at_the_end(either, sentences):
    policy = {"name": "collaborative", "offload_threshold": 0.0, "curve": "step"}
    assert {tuple(path(result)) for result in either.results(sentences, policy=policy)} == {("end",)}
    assert either.joined.calls == []


@pytest.mark.parametrize("tier", TIERS)
def test_a_tiers_own_policy_is_answered_by_that_tier(either, sentences, tier):
    """In the chain the edge passes texts for the cloud on, and leaves no hop."""
    for result in either.results(sentences, policy=f"{tier}-only"):
        assert path(result) == [tier]
        assert (result["tier"], result["degraded"]) == (tier, None)
        assert result["exit_layer"] == result["hops"][0]["layers"]
        assert result["hops"][0]["weight"] == 1.0


def test_the_cloud_is_asked_directly_where_there_is_a_link(triangle):
    (result,) = triangle.results("a fine film", policy="cloud-only")
    assert [call.to for call in triangle.joined.calls] == ["cloud"]
    assert (result["hops"][0]["link"]["from"], result["hops"][0]["link"]["to"]) == ("end", "cloud")


def test_the_cloud_is_asked_through_the_edge_where_there_is_none(chain):
    (result,) = chain.results("a fine film", policy="cloud-only")
    assert sorted(call.to for call in chain.joined.calls) == ["cloud", "edge"]
    assert (result["hops"][0]["link"]["from"], result["hops"][0]["link"]["to"]) == ("edge", "cloud")
    assert chain.metrics("edge")['tierwise_words_total{kind="in",tier="edge"}'] == 3
    assert chain.metrics("edge")['tierwise_exits_total{layer="2",tier="edge"}'] == 0
    assert chain.metrics("end")['tierwise_link_bytes_total{direction="up",link="end-edge"}'] > 0


def test_every_way_to_the_cloud_gives_the_same_answer(triangle, chain, sentences):
    direct = triangle.results(sentences, policy="cloud-only")
    relayed = chain.results(sentences, policy="cloud-only")
    asked = triangle.results(sentences, tier="cloud", policy="cloud-only")
    for one, other, third in zip(direct, relayed, asked, strict=True):
        assert one["probabilities"] == other["probabilities"] == third["probabilities"]


def test_random_is_spread_over_the_tiers_and_a_seed_replays_it(either):
    def tiers(seed):
        return [result["tier"] for result in either.results(["a fine film"] * 32, policy="random", seed=seed)]

    first = [tiers(seed) for seed in range(4)]
    counts = Counter(tier for part in first for tier in part)
    assert set(counts) == set(TIERS)
    assert all(25 <= count <= 60 for count in counts.values())  # of 128, a third each: about 43, deviation 5
    assert [tiers(seed) for seed in range(4)] == first
    assert first[0] != first[1]


def test_random_leaves_one_hop_each(either):
    results = either.results(["a fine film"] * 32, policy="random", seed=3)
    assert all(path(result) == [result["tier"]] and result["degraded"] is None for result in results)


@pytest.mark.parametrize(
    ("policy", "max_tier", "expected"),
    [
        ("always", "end", ["end"]),
        ("always", "edge", ["end", "edge"]),
        ("always", "cloud", ["end", "edge", "cloud"]),
        ("cloud-only", "end", ["end"]),
        ("cloud-only", "edge", ["edge"]),
        ("cloud-only", "cloud", ["cloud"]),
        ("edge-only", "end", ["end"]),
        ("end-only", "cloud", ["end"]),
    ],
)
def test_max_tier_caps_the_depth(either, always, policy, max_tier, expected):
    (result,) = either.results("a fine film", policy=always if policy == "always" else policy, max_tier=max_tier)
    assert path(result) == expected
    assert result["degraded"] is None
    assert {call.to for call in either.joined.calls} <= set(TIERS[1 : TIERS.index(max_tier) + 1])


def test_max_tier_caps_random(either):
    results = either.results(["a fine film"] * 32, policy="random", max_tier="edge", seed=1)
    assert {result["tier"] for result in results} == {"end", "edge"}


def test_tabi_never_exits_early_and_collaborative_does(triangle, sentences):
    eager = {"name": "collaborative", "offload_threshold": 1.0, "theta": 1.0, "patience": 1}
    exits = [hop for result in triangle.results(sentences, policy=eager) for hop in result["hops"]]
    assert all(hop["exit_layer"] == 2 for hop in exits)  # the first exit that has a neighbour to agree with
    full = [
        hop
        for result in triangle.results(sentences, policy={"name": "tabi", "offload_threshold": 1.0})
        for hop in result["hops"]
    ]
    assert len(full) == 3 * len(sentences)
    assert all(hop["exit_layer"] == hop["layers"] for hop in full)


# -- decisions on record --------------------------------------------------------------------------------------------


def test_chance_draw_and_destination_agree_on_every_hop(triangle, sentences):
    seen = Counter()
    for threshold in (0.0, 0.6, 1.0):
        policy = {"name": "collaborative", "offload_threshold": threshold, "curve": "linear"}
        for result in triangle.results(sentences * 2, policy=policy, seed="s-1"):
            for hop in result["hops"]:
                tier = hop["tier"]
                digest = hashlib.sha256(f"s-1:{result['index']}:{tier}".encode()).digest()
                assert hop["draw"] == int.from_bytes(digest[:8], "big") / 2**64
                chance = 1.0 if hop["confidence"] < threshold else (1 - hop["confidence"]) / (1 - threshold)
                assert hop["offload_probability"] == pytest.approx(0 if tier == "cloud" else chance, abs=1e-5)
                assert (hop["offloaded_to"] is not None) == (hop["draw"] < hop["offload_probability"])
                assert (hop["words_kept"] is not None) == (hop["offloaded_to"] is not None)
                seen[tier, hop["offloaded_to"]] += 1
            for hop, after in zip(result["hops"], result["hops"][1:], strict=False):
                assert hop["offloaded_to"] == after["tier"]
    assert {("end", None), ("end", "edge"), ("edge", "cloud"), ("cloud", None)} <= set(seen)


def test_a_mixed_batch_keeps_its_order(triangle, sentences):
    policy = {"name": "collaborative", "offload_threshold": 0.0, "curve": "linear"}
    texts = [f"{sentence} {'very ' * n}good" for n, sentence in enumerate(sentences)]
    results = triangle.results(texts, policy=policy, seed=2)
    assert len({tuple(path(result)) for result in results}) > 1
    assert [result["index"] for result in results] == list(range(len(texts)))
    assert [result["words_in"] for result in results] == [len(text.split()) for text in texts]


# -- what travels ---------------------------------------------------------------------------------------------------


def test_exactly_the_kept_words_reach_the_next_tier(triangle, always, long_text):
    (result,) = triangle.results(long_text, policy=always, explain=True)
    for hop, after in zip(result["hops"], result["hops"][1:], strict=False):
        kept = [word["word"] for word in hop["words"] if word["kept"]]
        (call,) = triangle.joined.to(after["tier"])
        assert call.asked["texts"] == [{"text": " ".join(kept), "text_pair": None}]
        assert hop["words_kept"] == after["words_in"] == len(kept)
    end, edge, cloud = result["hops"]
    assert end["words_in"] == len(long_text.split()) > end["words_kept"]
    assert end["words_kept"] >= edge["words_kept"]
    assert cloud["words_kept"] is None


def test_without_pruning_the_whole_text_travels(triangle, always, long_text):
    (result,) = triangle.results(long_text, policy={**always, "pruning_coefficient": 0, "unread_words": True})
    assert [hop["words_in"] for hop in result["hops"]] == [len(long_text.split())] * 3
    assert {call.asked["texts"][0]["text"] for call in triangle.joined.calls} == {long_text}


def test_a_text_that_skips_inference_travels_as_written(triangle):
    text = "a  fine\n\u200bfilm "
    triangle.results(text, policy="cloud-only")
    assert triangle.joined.calls[0].asked["texts"][0]["text"] == text


def test_what_is_left_of_the_deadline_shrinks_from_tier_to_tier(chain, always):
    for policy in (always, "cloud-only"):
        chain.joined.calls.clear()
        chain.results("a fine film", policy=policy, deadline_ms=60_000)
        (edge,), (cloud,) = chain.joined.to("edge"), chain.joined.to("cloud")
        assert 60_000 > edge.asked["deadline_ms"] > cloud.asked["deadline_ms"] > 0


def test_a_deadline_stops_a_text_before_a_slow_link(build_tiers, always):
    tiers = build_tiers(CHAIN, {("edge", "cloud"): "nbiot"})
    (result,) = tiers.results("a fine film", policy=always, deadline_ms=1200)  # nbiot: 1.5 s there and back
    assert path(result) == ["end", "edge"]
    assert result["degraded"] == "deadline"
    assert tiers.joined.to("cloud") == []


def test_one_unreadable_text_keeps_no_other_from_travelling(either, sentences):
    for policy in ({"name": "collaborative", "offload_threshold": 1.0}, {"name": "cloud-only"}):
        body = {
            "request_id": "r-1",
            "call": "c-1",
            "seed": "r-1",
            "indices": [0, 1, 2],
            "texts": [{"text": sentences[0]}, {"text": "\u200b"}, {"text": sentences[1]}],
            "policy": policy,
        }
        rows = asyncio.run(infer(either, body))["rows"]
        assert [len(row["hops"]) for row in rows] in ([3, 0, 3], [1, 0, 1])
        assert [rows[row]["hops"][-1]["tier"] for row in (0, 2)] == ["cloud", "cloud"]
        assert [rows[row]["degraded"] for row in (0, 2)] == [None, None]


def test_an_unreadable_text_is_named_whichever_tier_found_it(either):
    for policy in ("end-only", "edge-only", "cloud-only", "tabi"):
        response = asyncio.run(either.ask(["a fine film", "\u200b"], policy=policy))
        assert response.status_code == 422
        assert "input 1" in response.json()["detail"]


async def infer(tiers, body):
    async with httpx.AsyncClient(transport=httpx.ASGITransport(tiers.apps["end"]), base_url="http://end") as client:
        return (await client.post("/v1/infer", json=body)).json()


# -- the parts add up -----------------------------------------------------------------------------------------------


def test_bytes_on_record_are_those_of_the_bodies(chain, always, sentences, long_text):
    results = chain.results([*sentences[:3], long_text], policy=always)
    for depth, (source, target) in enumerate((("end", "edge"), ("edge", "cloud")), start=1):
        (call,) = chain.joined.to(target)
        links = [result["hops"][depth]["link"] for result in results]
        assert {(link["from"], link["to"]) for link in links} == {(source, target)}
        assert sum(link["request_bytes"] for link in links) == len(call.sent)
        assert sum(link["response_bytes"] for link in links) == len(call.got)
        counted = chain.metrics(source)
        for direction, size in (("up", len(call.sent)), ("down", len(call.got))):
            name = f'tierwise_link_bytes_total{{direction="{direction}",link="{source}-{target}"}}'
            assert counted[name] == size


def test_times_of_hops_and_links_add_up_to_the_total(build_tiers, always):
    tiers = build_tiers(CHAIN, {("end", "edge"): "regional", ("edge", "cloud"): "metro"})
    tiers.results("warm up", policy=always)
    answer = tiers.classify("a fine film", policy=always)
    hops = answer["results"][0]["hops"]
    assert [hop["link"] and hop["link"]["profile"] for hop in hops] == [None, "regional", "metro"]
    assert [hop["link"]["backend"] for hop in hops[1:]] == ["simulated", "simulated"]
    assert hops[1]["link"]["ms"] >= 20  # 30 ms there and back, a millisecond of jitter each way
    assert hops[2]["link"]["ms"] >= 0.3  # 2 ms there and back, 0.2 ms of jitter each way
    parts = sum(hop["timings_ms"]["total"] for hop in hops) + sum(hop["link"]["ms"] for hop in hops[1:])
    rest = answer["timings_ms"]["total"] - parts  # parsing, checking and writing JSON on three tiers
    assert rest > -1  # a millisecond of rounding
    for hop in hops:
        times = hop["timings_ms"]
        assert times["total"] >= times["tokenize"] + times["infer"] - 0.01


def test_each_tier_counts_its_own_part_once(chain, always, sentences):
    chain.results(sentences, policy={**always, "theta": 0})
    count = len(sentences)
    end, edge, cloud = (chain.metrics(tier) for tier in TIERS)
    assert end['tierwise_exits_total{layer="3",tier="end"}'] == count
    assert edge['tierwise_exits_total{layer="2",tier="edge"}'] == count
    assert cloud['tierwise_exits_total{layer="4",tier="cloud"}'] == count
    sent = 'tierwise_offloads_total{{from="{}",policy="collaborative",reason="confidence",to="{}"}}'
    assert (end[sent.format("end", "edge")], edge[sent.format("edge", "cloud")]) == (count, count)
    assert end['tierwise_answered_total{by="cloud",policy="collaborative",tier="end"}'] == count
    assert end['tierwise_offload_probability_bucket{le="1.0",tier="end"}'] == count
    answered = [sum(v for k, v in m.items() if k.startswith("tierwise_answers_total")) for m in (end, edge, cloud)]
    assert answered == [count, 0, 0]  # only the first tier of a request answers it


def test_a_pair_walks_every_tier_as_a_pair(triangle, always, long_text):
    (result,) = triangle.results({"text": "a fine film", "text_pair": long_text}, policy=always)
    assert path(result) == TIERS
    for call in triangle.joined.calls:
        (text,) = call.asked["texts"]
        assert text["text"] == "a fine film"
        assert set(text["text_pair"].split()) <= set(long_text.split())


# -- tiers that fail ------------------------------------------------------------------------------------------------


def test_the_cloud_being_down_leaves_end_and_edge(chain, always, sentences):
    chain.joined.down.add("cloud")
    for result in chain.results(sentences, policy=always):
        assert path(result) == ["end", "edge"]
        assert result["degraded"] == "upstream_unavailable"
        assert sum(hop["weight"] for hop in result["hops"]) == pytest.approx(1, abs=1e-5)


def test_cloud_only_in_a_chain_with_the_cloud_down_is_answered_by_the_edge(chain):
    chain.joined.down.add("cloud")
    (result,) = chain.results("a fine film", policy="cloud-only")
    assert path(result) == ["edge"]
    assert result["degraded"] == "upstream_unavailable"


def test_every_other_tier_being_down_leaves_the_end(either, sentences, always):
    either.joined.down |= {"edge", "cloud"}
    for policy in (always, "cloud-only", "edge-only"):
        for result in either.results(sentences, policy=policy):
            assert path(result) == ["end"]
            assert result["degraded"] == "upstream_unavailable"


@pytest.mark.parametrize("policy", ["always", "edge-only"])
def test_the_edge_dies_in_the_middle_and_no_answer_is_lost(build_tiers, sentences, always, policy):
    triangle = build_tiers(TRIANGLE, probe_ms=50)
    chosen = always if policy == "always" else policy
    triangle.joined.dies_after["edge"] = 5

    async def traffic():
        return await asyncio.gather(*(triangle.ask([text], policy=chosen) for text in sentences * 2))

    async def story():
        responses = await traffic()
        triangle.joined.down.clear()
        triangle.joined.dies_after.clear()
        while (await triangle.ask(sentences[:1], policy=chosen)).json()["results"][0]["degraded"]:
            await asyncio.sleep(0.05)
        return responses, await traffic()

    responses, after = asyncio.run(story())
    assert {response.status_code for response in responses} == {200}
    results = [response.json()["results"][0] for response in responses]
    whole = [result for result in results if result["degraded"] is None]
    lost = [result for result in results if result["degraded"] in ("upstream_unavailable", "breaker_open")]
    assert len(whole) == 5
    assert len(lost) == len(results) - 5
    assert all(path(result) == ["end"] for result in lost)
    assert {response.json()["results"][0]["degraded"] for response in after} == {None}  # used again once it is back


def test_a_draining_edge_is_a_refusal_that_the_end_survives(chain, always):
    chain.apps["edge"].state.draining = True
    (result,) = chain.results("a fine film", policy=always)
    assert (path(result), result["degraded"]) == (["end"], "upstream_refused")


def test_tiers_of_other_bundles_do_not_mix(chain, always):
    """An edge with other labels gives an answer that means nothing here."""
    edge = chain.apps["edge"].state.tier
    edge.bundle = type(edge.bundle)(**{**vars(edge.bundle), "labels": ("bad", "good")})
    chain.joined.down.add("cloud")
    (result,) = chain.results("a fine film", policy=always)
    assert (path(result), result["degraded"]) == (["end"], "upstream_invalid")


# -- links that change ----------------------------------------------------------------------------------------------


def test_each_tier_changes_its_own_links_while_it_runs(build_tiers, always):
    chain = build_tiers(CHAIN, link_control=True)

    async def story():
        await chain.change_link("edge", "cloud", profile="3g")
        slow = (await chain.ask("a fine film", policy=always)).json()["results"][0]["hops"]
        await chain.change_link("edge", "cloud", profile="metro")
        return slow, (await chain.ask("a fine film", policy=always)).json()["results"][0]["hops"]

    slow, fast = asyncio.run(story())
    assert [hop["link"]["profile"] for hop in slow[1:]] == ["ideal", "3g"]
    assert [hop["link"]["profile"] for hop in fast[1:]] == ["ideal", "metro"]
    assert slow[2]["link"]["ms"] > 150 > fast[2]["link"]["ms"]  # 300 there and back, 30 of jitter each way; 2
    assert slow[1]["link"]["ms"] < 150  # the edge's waiting is not the first link's


def test_a_link_that_is_cut_leaves_the_tiers_before_it_until_it_is_healed(build_tiers, always):
    chain = build_tiers(CHAIN, link_control=True, upstream_timeout_ms=500, probe_ms=50)

    async def story():
        await chain.change_link("edge", "cloud", cut=True)
        cut = [(await chain.ask("a fine film", policy=always)).json()["results"][0] for _ in range(2)]
        await chain.change_link("edge", "cloud", cut=False)
        async with asyncio.timeout(10):
            while (whole := (await chain.ask("a fine film", policy=always)).json()["results"][0])["degraded"]:
                await asyncio.sleep(0.05)
        return cut, whole

    cut, whole = asyncio.run(story())
    assert all(result["degraded"] for result in cut)
    assert path(whole) == TIERS
