"""The shape of an answer, hop by hop, with an edge that is faked and therefore known to the last digit."""

import asyncio
import hashlib
import json
import re

import httpx
import pytest

from shared.contracts import ClassifyResponse, Why

STAGES = {"tokenize", "queue", "infer", "prune", "total"}


def test_an_answer_has_the_contracts_fields(alone):
    answer = alone.classify(["a fine film", "the plot is thin"]).json()
    assert set(answer) == {"id", "model", "policy", "results", "timings_ms"}
    assert set(answer["timings_ms"]) == {"ensemble", "total"}
    assert [result["index"] for result in answer["results"]] == [0, 1]
    for result in answer["results"]:
        assert set(result) == {
            *("index", "label", "probabilities", "confidence", "tier", "exit_layer", "words_in", "truncated"),
            *("degraded", "card_skew", "hops", "why", "ensemble"),
        }
        (hop,) = result["hops"]
        assert set(hop) == {
            *(
                "tier",
                "card",
                "exit_layer",
                "layers",
                "label",
                "probabilities",
                "confidence",
                "offload_probability",
                "draw",
            ),
            *("offloaded_to", "words_in", "words_kept", "weight", "truncated", "link", "timings_ms", "exits", "words"),
        }
        assert (hop["tier"], hop["layers"], hop["link"], hop["words_kept"]) == ("end", 3, None, None)
        assert set(hop["timings_ms"]) == STAGES
    ClassifyResponse.model_validate_json(json.dumps(answer))


def test_a_tier_with_another_model_card_is_flagged_counted_and_named(serve, edge, always):
    edge.card = "collaborative@0123456789ab"
    caller = serve(edge=edge)
    (result,) = caller.results("a fine film", policy=always)
    assert result["card_skew"]
    own, theirs = (hop["card"] for hop in result["hops"])
    assert (own, theirs) == (caller.classify("a film", policy="end-only").json()["model"].split()[0], edge.card)
    assert caller.results("a fine film", policy="end-only")[0]["card_skew"] is False
    assert caller.samples()["tierwise_card_skew_total", "edge"] == 1


def test_tiers_with_one_card_are_not_flagged(serve, edge, always):
    caller = serve(edge=edge)
    assert caller.results("a fine film", policy=always)[0]["card_skew"] is False
    assert caller.samples()["tierwise_card_skew_total", "edge"] == 0


@pytest.mark.parametrize(
    "inputs", ["a fine film", {"text": "a fine film"}, {"text": "a fine film", "text_pair": "a plot"}]
)
def test_one_input_is_one_result(alone, inputs):
    assert len(alone.results(inputs)) == 1


def test_probabilities_name_every_label_and_the_likeliest_is_the_label(alone, sentences):
    for result in alone.results(sentences):
        assert set(result["probabilities"]) == {"negative", "positive"}
        assert sum(result["probabilities"].values()) == pytest.approx(1, abs=1e-5)
        assert result["confidence"] == max(result["probabilities"].values())
        assert result["probabilities"][result["label"]] == result["confidence"]


def test_two_tiers_are_two_hops_and_their_weighted_mean(serve, edge, always, card):
    (result,) = serve(edge=edge).results("a fine film", policy={**always, "weighting": "fitted"})
    first, second = result["hops"]
    assert (first["tier"], first["offloaded_to"]) == ("end", "edge")
    assert (second["tier"], second["offloaded_to"]) == ("edge", None)
    assert (result["tier"], result["exit_layer"]) == ("edge", 2)
    ours, theirs = (hop["weight"] for hop in result["hops"])
    assert [ours, theirs] == card["fitted_weights"]["end+edge"]
    for label in ("negative", "positive"):
        mean = ours * first["probabilities"][label] + theirs * second["probabilities"][label]
        assert result["probabilities"][label] == pytest.approx(mean, abs=2e-6)


@pytest.mark.parametrize("weighting", ["fitted", "accuracy", "last"])
def test_weights_sum_to_one(serve, edge, always, card, weighting):
    good = card["accuracy"]
    first = {
        "fitted": card["fitted_weights"]["end+edge"][0],
        "accuracy": good["end"] / (good["end"] + good["edge"]),
        "last": 0.0,
    }[weighting]
    (result,) = serve(edge=edge).results("a fine film", policy={**always, "weighting": weighting})
    weights = [hop["weight"] for hop in result["hops"]]
    assert sum(weights) == pytest.approx(1, abs=1e-5)
    assert weights[0] == pytest.approx(first, abs=1e-5)


def test_a_link_is_on_record_with_the_bodies_real_sizes(serve, edge, always):
    caller = serve(edge=edge, link_profiles={"edge": "regional"})
    (result,) = caller.results("a fine film", policy=always)
    link = result["hops"][1]["link"]
    assert result["hops"][0]["link"] is None
    assert (link["from"], link["to"]) == ("end", "edge")
    assert (link["backend"], link["profile"]) == ("simulated", "regional")
    assert link["request_bytes"] == len(edge.requests[0].content)
    assert link["response_bytes"] == len(edge.answers[0].content)
    assert link["ms"] >= 20  # 30 ms there and back, a millisecond of jitter each way


def test_rows_of_a_batch_share_its_bytes(serve, edge, always, long_text):
    results = serve(edge=edge).results(["a fine film", long_text, "a plot"], policy=always)
    links = [result["hops"][1]["link"] for result in results]
    assert sum(link["request_bytes"] for link in links) == len(edge.requests[0].content)
    assert sum(link["response_bytes"] for link in links) == len(edge.answers[0].content)
    assert links[1]["request_bytes"] > links[0]["request_bytes"]


def test_words_kept_counts_the_words_that_were_sent(serve, edge, always, long_text):
    caller = serve(edge=edge)
    (result,) = caller.results(long_text, policy=always)
    sent = edge.bodies[0]["texts"][0]["text"].split()
    assert result["hops"][0]["words_kept"] == len(sent) < len(long_text.split())
    assert result["hops"][0]["words_in"] == result["words_in"] == len(long_text.split())
    assert caller.results(long_text, policy="end-only")[0]["hops"][0]["words_kept"] is None


def test_the_next_tier_gets_what_it_needs_to_decide_as_the_first_would(serve, edge, always, card):
    caller = serve(edge=edge)
    caller.classify(["a film", "a plot"], {"x-request-id": "r-1"}, policy=always, max_tier="edge", seed=7, explain=True)
    (body,) = edge.bodies
    assert (body["version"], body["request_id"], body["seed"]) == (2, "r-1", "7")
    assert body["indices"] == [0, 1]
    assert [text["text"] for text in body["texts"]] == ["a film", "a plot"]
    assert (body["max_tier"], body["target"], body["explain"]) == ("edge", None, True)
    assert body["policy"]["name"] == "collaborative"
    assert body["policy"]["offload_threshold"] == 1.0
    assert body["policy"]["theta"] == card["policies"]["collaborative"]["theta"]  # spelled out


# -- explain --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["end-only", "collaborative", "tabi"])
def test_explain_adds_every_exit_and_every_word(serve, edge, long_text, policy):
    caller = serve(edge=edge)
    (plain,) = caller.results(long_text, policy=policy, seed=3)
    (result,) = caller.results(long_text, policy=policy, seed=3, explain=True)
    hop = result["hops"][0]
    assert (plain["hops"][0]["exits"], plain["hops"][0]["words"]) == (None, None)
    assert len(hop["exits"]) == hop["exit_layer"]
    assert [exit_["exit"] for exit_ in hop["exits"]] == list(range(1, hop["exit_layer"] + 1))
    assert hop["exits"][-1]["probabilities"] == hop["probabilities"]
    assert [word["word"] for word in hop["words"]] == long_text.split()
    assert any(word["importance"] is None for word in hop["words"]) == hop["truncated"]
    assert all(word["kept"] for word in hop["words"] if word["importance"] is None)
    for label, value in plain["hops"][0]["probabilities"].items():
        assert hop["probabilities"][label] == pytest.approx(value, abs=1e-4)


@pytest.mark.parametrize("inputs", ["a fine film", {"text": "a fine film", "text_pair": "the plot is thin"}])
def test_the_shares_of_words_special_tokens_and_bias_add_up_to_the_decision(alone, inputs):
    (result,) = alone.results(inputs, explain=True)
    (hop,) = result["hops"]
    told = hop["explained"]
    shares = [word["share"] for word in hop["words"]] + [told["special_share"], told["bias_share"]]
    assert sum(map(abs, shares)) == pytest.approx(1, abs=1e-5)
    assert sum(shares) > 0  # their sum is the margin of the hop's label


def test_explain_names_the_rules_in_force(serve, edge, card):
    caller = serve(edge=edge)
    given = card["policies"]["collaborative"]
    (result,) = caller.results("a fine film", explain=True)
    told = result["hops"][0]["explained"]
    parameters = {"theta": given["theta"], "patience": given["patience"], "min_confidence": 0.0, "unsure": 0.0}
    assert told["exit_rule"] == {"name": "similarity", "parameters": parameters}
    assert told["offload_rule"] == {"name": "sigmoid", "parameters": {"threshold": 0.6, "steepness": 10.0}}
    (result,) = caller.results("a fine film", explain=True, policy="end-only")
    assert (result["hops"][0]["explained"]["exit_rule"], result["hops"][0]["explained"]["offload_rule"]) == (None, None)
    (result,) = caller.results("a fine film", explain=True, policy={"name": "adaee", "arm": 0.2})
    assert result["hops"][0]["explained"]["offload_rule"] == {"name": "step", "parameters": {"threshold": 0.2}}


def test_explain_tells_what_each_gate_gave_and_not_the_gates(serve, edge):
    caller = serve(edge=edge)
    (result,) = caller.results("a fine film", explain=True, policy="path-gates")
    hop = result["hops"][0]
    assert hop["explained"]["exit_rule"] == {"name": "path", "parameters": {}}
    assert all(exit_["scores"].keys() == {"answer", "edge", "cloud"} for exit_ in hop["exits"])
    last = hop["exits"][-1]["scores"]
    assert hop["offloaded_to"] == max(last, key=last.__getitem__) == "cloud"  # by way of the edge, which answered
    assert result["why"] == Why.GATED_NEXT
    (result,) = caller.results("a fine film", policy="path-gates")
    assert result["hops"][0]["exits"] is None


def test_the_gates_of_the_card_stay_and_those_of_a_request_travel(serve, edge, card):
    caller = serve(edge=edge)
    own = card["policies"]["path-gates"]["profiles"][0]
    (answered,) = caller.classify("a fine film", policy="path-gates").json()["policy"]["profiles"]
    assert answered == json.loads(json.dumps(own), parse_int=float)  # who asked sees them all
    (sent,) = edge.bodies[-1]["policy"]["profiles"]
    assert sent.startswith("ideal/ideal@")
    caller.classify("a fine film", policy={"name": "path-gates", "profiles": [{**own, "links": "any/any"}]})
    assert edge.bodies[-1]["policy"]["profiles"] == [{**answered, "links": "any/any"}]


def test_an_answer_without_explain_has_no_rules(alone):
    assert "explained" not in alone.results("a fine film")[0]["hops"][0]


# -- the policy, the ensemble, why ------------------------------------------------------------------------------------


def test_an_answer_names_the_policy_with_all_its_parameters(alone, card):
    answer = alone.classify("a fine film", policy={"name": "collaborative", "patience": 2}).json()
    assert answer["policy"] == {
        **{"name": "collaborative", "steepness": 10.0, "curve": "sigmoid", "weighting": "fitted"},
        **{"exit_min_confidence": 0.0, "exit_when_unsure": False, "pruning_coefficient": 1.0},
        **{"skip_below": 0.0, "unread_words": False, "speculate_below": 0.0, "speculate_from": 3, "max_tokens": None},
        **{**card["policies"]["collaborative"], "patience": 2},
    }


def test_an_answer_says_that_the_ensemble_overruled_its_last_tier(serve, edge, always, sentences):
    """The end says negative; the edge says positive with .51 and a weight of .7: (.3 * n + .7 * .49) is over a half."""
    edge.positive = 0.51
    caller = serve(edge=edge)
    results = caller.results(sentences, policy={**always, "weighting": "fitted"})
    for result in results:
        assert result["ensemble"]["weights"] == {"end": 0.3, "edge": 0.7}
        assert result["ensemble"]["overruled"] == (result["label"] != result["hops"][1]["label"])
    assert {result["ensemble"]["overruled"] for result in results} == {True, False}


@pytest.mark.parametrize(
    ("options", "why"),
    [
        pytest.param({"policy": {"name": "collaborative", "offload_threshold": 0.0, "curve": "step"}}, Why.SURE),
        pytest.param({"max_tier": "end"}, Why.DEEPEST),
        pytest.param({"policy": "edge-only"}, Why.POLICY),
        pytest.param({"policy": {"name": "collaborative", "offload_threshold": {"end": 1.0}}}, Why.UNSURE_DEEPEST),
    ],
)
def test_why_is_told(serve, edge, options, why):
    (result,) = serve(edge=edge).results("a fine film", **options)
    assert result["why"] == why


def test_why_says_that_the_upstream_failed(serve, always):
    def fails(request):
        raise httpx.ConnectError("gone", request=request)

    (result,) = serve(edge=fails).results("a fine film", policy=always)
    assert result["why"] == Why.FAILED


# -- draws ----------------------------------------------------------------------------------------------------------


def expected_draw(seed, index, tier):
    return int.from_bytes(hashlib.sha256(f"{seed}:{index}:{tier}".encode()).digest()[:8], "big") / 2**64


def test_draws_follow_the_contracts_formula(alone):
    hops = [result["hops"][0] for result in alone.results(["a film", "a plot", "a story"], seed="s-1")]
    assert [hop["draw"] for hop in hops] == [expected_draw("s-1", index, "end") for index in range(3)]


def test_a_seed_replays_and_another_does_not(serve, edge):
    caller = serve(edge=edge)
    policy = {"name": "collaborative", "offload_threshold": 0.0, "curve": "linear"}  # chances well inside (0, 1)

    def offloads(seed):
        hops = [result["hops"][0] for result in caller.results(["a fine film"] * 32, policy=policy, seed=seed)]
        assert all((hop["draw"] < hop["offload_probability"]) == (hop["offloaded_to"] == "edge") for hop in hops)
        return [hop["offloaded_to"] for hop in hops]

    assert set(offloads(1)) == {None, "edge"}
    assert offloads(1) == offloads(1)
    assert offloads(1) != offloads(2)


def test_without_a_seed_the_request_id_is_the_seed(alone):
    answer = alone.classify("a fine film", {"x-request-id": "again"}).json()
    assert answer["results"][0]["hops"][0]["draw"] == expected_draw("again", 0, "end")


def test_random_puts_its_chance_on_record(serve, edge, cloud):
    results = serve(edge=edge, cloud=cloud).results(["a film"] * 32, policy="random", seed=5)
    assert {result["tier"] for result in results} == {"end", "edge", "cloud"}
    here = [result["hops"][0] for result in results if result["tier"] == "end"]
    assert all(hop["offload_probability"] == pytest.approx(2 / 3, abs=1e-6) for hop in here)
    assert all(hop["draw"] < 1 / 3 and hop["offloaded_to"] is None for hop in here)


# -- headers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", ["abc-1.2_3", "x" * 64])
def test_a_request_id_is_echoed(alone, given):
    response = alone.classify("a fine film", {"x-request-id": given})
    assert response.headers["x-request-id"] == response.json()["id"] == given


@pytest.mark.parametrize("given", [None, "", "x" * 65, "a b", "a:b", "<script>"])
def test_a_request_id_is_made_where_none_fits(alone, given):
    response = alone.classify("a fine film", {} if given is None else {"x-request-id": given})
    assert len(response.headers["x-request-id"]) == 32
    assert response.headers["x-request-id"] == response.json()["id"] != given


def test_traceparent_goes_in_through_and_out(serve, edge, always):
    """Every tier answers and sends on with a span of its own in the caller's trace."""
    caller = serve(edge=edge)
    trace, parent = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    given = {"traceparent": f"00-{trace}-{parent}-01", "x-request-id": "r-1"}
    response = caller.classify("a fine film", given, policy=always)
    assert response.headers["traceparent"] == edge.requests[0].headers["traceparent"]
    version, same, span, flags = response.headers["traceparent"].split("-")
    assert (version, same, flags) == ("00", trace, "01")
    assert len(span) == 16
    assert span != parent
    assert edge.requests[0].headers["x-request-id"] == "r-1"


@pytest.mark.parametrize(
    "given",
    [None, "00-xyz", f"00-{'0' * 32}-{'1' * 16}-01", f"00-{'1' * 32}-{'0' * 16}-01", f"ff-{'1' * 32}-{'1' * 16}-01"],
)
def test_a_request_without_a_valid_traceparent_starts_a_trace(serve, edge, always, given):
    headers = {} if given is None else {"traceparent": given}
    response = serve(edge=edge).classify("a fine film", headers, policy=always)
    sent = response.headers["traceparent"]
    assert sent != given
    assert re.fullmatch("00-[0-9a-f]{32}-[0-9a-f]{16}-00", sent)
    assert edge.requests[0].headers["traceparent"] == sent


def test_server_timing_names_the_stages(alone):
    header = alone.classify("a fine film").headers["server-timing"]
    durations = {
        stage: float(rest.removeprefix("dur=")) for stage, _, rest in (p.partition(";") for p in header.split(", "))
    }
    assert set(durations) == STAGES | {"ensemble"}
    assert all(value >= 0 for value in durations.values())


# -- texts, pairs, batches ------------------------------------------------------------------------------------------


def test_a_list_of_two_strings_is_two_texts_never_a_pair(alone):
    pair = {"text": "a fine film", "text_pair": "the plot is thin"}
    both, one, two, joined = (
        alone.results(["a fine film", "the plot is thin"]),
        alone.results("a fine film")[0],
        alone.results("the plot is thin")[0],
        alone.results([pair])[0],
    )
    assert [result["words_in"] for result in both] == [3, 4]
    for result, single in zip(both, (one, two), strict=True):
        assert result["probabilities"]["positive"] == pytest.approx(single["probabilities"]["positive"], abs=1e-4)
    assert joined["words_in"] == 7
    assert joined["probabilities"] != one["probabilities"]


def test_a_pair_travels_as_a_pair(serve, edge, always, long_text):
    caller = serve(edge=edge)
    (result,) = caller.results({"text": "a fine film", "text_pair": long_text}, policy=always)
    (sent,) = edge.bodies[0]["texts"]
    assert sent["text"] == "a fine film"
    assert set(sent["text_pair"].split()) <= set(long_text.split())
    assert result["hops"][0]["words_kept"] == 3 + len(sent["text_pair"].split())


@pytest.mark.parametrize("policy", ["end-only", "collaborative"])
def test_a_batch_equals_its_texts_one_by_one(alone, sentences, long_text, policy):
    texts = [*sentences, long_text, {"text": "a fine film", "text_pair": long_text}]
    batch = alone.results(texts, policy=policy)
    for text, together in zip(texts, batch, strict=True):
        (single,) = alone.results(text, policy=policy)
        assert together["exit_layer"] == single["exit_layer"]
        assert together["probabilities"]["positive"] == pytest.approx(single["probabilities"]["positive"], abs=1e-4)


def test_concurrent_requests_get_their_own_answers(alone, sentences):
    expected = [alone.results(text)[0]["probabilities"] for text in sentences]

    async def together():
        return await asyncio.gather(*(alone.ask(text) for text in sentences))

    got = [response.json()["results"][0]["probabilities"] for response in asyncio.run(together())]
    assert got == expected
