"""Tiers of one network: one goes on from what another has computed, and refuses what it cannot go on from."""

import asyncio
import json
from collections import Counter

import numpy as np
import pytest

from shared.contracts import WAITING
from shared.model.state import STATES_TYPE, Form, frame, pack, unframe, unpack
from shared.policies import POLICIES, STAY, Decision, Policy

HEADERS = {"content-type": STATES_TYPE}


class Onward(Policy):
    """Sends every text on to the next tier, and leaves by no exit before the last."""

    name = "onward"

    def after(self, where, confidence, draw):
        return Decision(where.reachable[0], 1.0, "policy") if where.reachable else STAY

    def may_offload_after(self, where):
        return bool(where.reachable)


@pytest.fixture(autouse=True)
def _onward(monkeypatch):
    monkeypatch.setitem(POLICIES, "onward", Onward)


@pytest.fixture(scope="module")
def cloud_tier(serve):
    """A real cloud: four layers of the network of which the edge has two."""
    return serve(tier="cloud")


class Link:
    """Hands a caller's requests to a tier, changed by `change`, and keeps their paths."""

    def __init__(self, tier, change=lambda request: None):
        self.tier, self.change, self.paths, self.sizes = tier, change, [], []

    async def __call__(self, request):
        self.paths.append(request.url.path)
        self.sizes.append(len(request.content))
        if (changed := self.change(request)) is not None:
            return changed
        return await self.tier.send("POST", request.url.path, content=request.content, headers=request.headers)


def an_edge(serve, cloud_tier, *, change=lambda request: None, **settings):
    link = Link(cloud_tier, change)
    edge = serve(tier="edge", cloud=link, **{"carry": "state", "state_form": "fp32", **settings})
    return edge, link


def asked(texts, **more):
    return {
        "request_id": "r",
        "call": "c",
        "seed": "4",
        "indices": list(range(len(texts))),
        "texts": [{"text": text} for text in texts],
        "policy": {"name": "onward"},
        **more,
    }


def message(tier, texts, *, layer=2, form=Form.FP32, **more):
    """A body of /v1/continue for the cloud, with the state of each text after a layer."""
    classifier = tier.app.state.tier.worker._classifier
    traces = [classifier.run([classifier.encode(text)], None, until=layer, states=True)[0] for text in texts]
    states = [pack(trace.state, classifier.segment, form) for trace in traces]
    return frame(json.dumps(asked(texts, **more)).encode(), states)


def rows(answer):
    assert answer.status_code == 200, answer.text
    return answer.json()["rows"]


def hop_of(answer):
    return {key: value for key, value in answer["hops"][0].items() if key != "timings_ms"}


@pytest.mark.parametrize("carry", ["state", "auto"])
def test_an_answer_by_state_is_that_by_text_and_says_how_it_went(serve, cloud_tier, sentences, carry):
    edge, link = an_edge(serve, cloud_tier, carry=carry)  # over an ideal link: bytes cost nothing
    plain, by_text = an_edge(serve, cloud_tier, carry="text")
    ours = edge.results(sentences[:3], policy="onward", seed=1)
    theirs = plain.results(sentences[:3], policy="onward", seed=1)
    assert (link.paths, by_text.paths) == (["/v1/continue"], ["/v1/infer"])
    for one, other in zip(ours, theirs, strict=True):
        assert [hop["tier"] for hop in one["hops"]] == ["edge", "cloud"]
        way = one["hops"][0]["onward"]
        assert (way["by"], way["layer"]) == ("state", 2)
        assert 0 <= way["state_ms"] < way["text_ms"]
        assert "onward" not in other["hops"][0]
        for key in ("probabilities", "exit_layer", "words_in"):
            assert one["hops"][1][key] == other["hops"][1][key]
        assert one["probabilities"] == other["probabilities"]


def test_by_default_texts_go_as_texts(serve, cloud_tier, sentences):
    link = Link(cloud_tier)
    edge = serve(tier="edge", cloud=link)
    assert edge.results(sentences[0], policy="onward")[0]["tier"] == "cloud"
    assert link.paths == ["/v1/infer"]


def test_the_cheaper_way_is_taken(serve, cloud_tier, sentences):
    edge, link = an_edge(serve, cloud_tier, carry="auto", link_profiles={"cloud": "nbiot"}, links="none")
    [result] = edge.results(sentences[0], policy="onward")
    way = result["hops"][0]["onward"]
    assert way["by"] == "text"
    assert way["text_ms"] < way["state_ms"]
    assert link.paths == ["/v1/infer"]


def test_texts_go_as_text_to_another_network_and_where_they_are_explained(serve, cloud_tier, edge, sentences):
    end = serve(tier="end", edge=edge, carry="state")
    assert "onward" not in end.results(sentences[0], policy="onward")[0]["hops"][0]
    assert [request.url.path for request in edge.requests] == ["/v1/infer"]
    middle, link = an_edge(serve, cloud_tier)
    middle.results(sentences[0], policy="onward", explain=True)
    assert link.paths == ["/v1/infer"]


def test_a_call_has_no_more_states_than_a_body_may_have(serve, cloud_tier, sentences):
    edge, link = an_edge(serve, cloud_tier, max_body_bytes=12_000)
    results = edge.results(sentences[:5], policy="onward")
    assert [result["tier"] for result in results] == ["cloud"] * 5
    assert set(link.paths) == {"/v1/continue"}
    assert 1 < len(link.paths) < 6
    assert max(link.sizes) <= 12_000


@pytest.mark.parametrize("status", [404, 405, 413, 415, 422])
def test_a_tier_that_refuses_states_gets_the_text_and_no_states_for_a_while(serve, cloud_tier, sentences, status):
    import httpx

    def refuse(request):
        return httpx.Response(status) if request.url.path == "/v1/continue" else None

    edge, link = an_edge(serve, cloud_tier, change=refuse)
    first, second = (edge.results(sentences[0], policy="onward", seed=1)[0] for _ in range(2))
    assert link.paths == ["/v1/continue", "/v1/infer", "/v1/infer"]
    assert first["degraded"] is None
    assert first["hops"][0]["onward"]["by"] == "text"
    assert "onward" not in second["hops"][0]
    assert first["probabilities"] == second["probabilities"]


def test_a_state_that_was_altered_on_its_way_changes_no_answer(serve, cloud_tier, sentences):
    answers = []

    async def alter(request):
        body = bytearray(request.content)
        body[-10] ^= 1
        answers.append(await cloud_tier.send("POST", "/v1/continue", content=bytes(body), headers=HEADERS))
        return answers[-1]

    class Altering(Link):
        async def __call__(self, request):
            self.paths.append(request.url.path)
            if request.url.path == "/v1/continue":
                return await alter(request)
            return await self.tier.send("POST", request.url.path, content=request.content, headers=request.headers)

    link = Altering(cloud_tier)
    edge = serve(tier="edge", cloud=link, carry="state")
    [result] = edge.results(sentences[0], policy="onward", seed=1)
    plain, _ = an_edge(serve, cloud_tier, carry="text")
    assert answers[0].json()["type"] == "urn:tierwise:bad-state"
    assert link.paths == ["/v1/continue", "/v1/infer"]
    assert result["probabilities"] == plain.results(sentences[0], policy="onward", seed=1)[0]["probabilities"]


def test_the_receiver_answers_as_if_it_had_run_the_text_whole(cloud_tier, sentences):
    texts = sentences[:2]
    [*whole] = rows(cloud_tier.post(json.dumps(asked(texts)), path="/v1/infer"))
    for layer in (1, 2, 3):
        gone_on = rows(cloud_tier.post(message(cloud_tier, texts, layer=layer), path="/v1/continue", headers=HEADERS))
        assert [hop_of(row) for row in gone_on] == [hop_of(row) for row in whole]


def test_its_answer_says_what_waits_as_that_of_infer_does(cloud_tier, sentences):
    answer = cloud_tier.post(message(cloud_tier, sentences[:1]), path="/v1/continue", headers=HEADERS)
    assert float(answer.headers[WAITING]) >= 0


def test_the_same_message_twice_is_answered_twice_alike(cloud_tier, sentences):
    body = message(cloud_tier, sentences[:1])
    once, twice = (rows(cloud_tier.post(body, path="/v1/continue", headers=HEADERS)) for _ in range(2))
    assert [hop_of(row) for row in once] == [hop_of(row) for row in twice]


def spoiled(tier, sentences, how):
    body = message(tier, sentences[:2])
    head, states = unframe(body)
    segment = tier.app.state.tier.worker._classifier.segment
    whole = message(tier, sentences[:2], layer=4)
    swapped = [bytes(states[1]), bytes(states[0])]
    mixed = [bytes(states[0]), bytes(unframe(message(tier, sentences[:2], layer=1))[1][1])]
    other = bytearray(states[0])
    other[24:28] = b"\1\2\3\4"  # of the network's digest
    assert unpack(states[0], segment).done == 2
    return {
        "empty": b"",
        "cut off": body[:-1],
        "cut off in a length": body[:2],
        "longer": body + b"\0",
        "no states": frame(head, []),
        "a state too few": frame(head, [bytes(states[0])]),
        "of other texts": frame(head, swapped),
        "after different layers": frame(head, mixed),
        "after the last layer": whole,
        "of another network": frame(head, [bytes(other), bytes(states[1])]),
        "not a state": frame(head, [b"x" * 400, bytes(states[1])]),
    }[how]


@pytest.mark.parametrize(
    ("how", "detail"),
    [
        ("empty", "the body is empty"),
        ("cut off", "within part 3"),
        ("cut off in a length", "within part 1"),
        ("longer", "within part 4"),
        ("no states", "0 states for 2 texts"),
        ("a state too few", "1 states for 2 texts"),
        ("of other texts", "other tokens than its text"),
        ("after different layers", "after the same layer"),
        ("after the last layer", "after layer 4; here layers 1 to 4 run"),
        ("of another network", "the state is of network"),
        ("not a state", "not a state"),
    ],
)
def test_what_cannot_be_gone_on_from_is_refused(cloud_tier, sentences, how, detail):
    refused = cloud_tier.post(spoiled(cloud_tier, sentences, how), path="/v1/continue", headers=HEADERS)
    assert refused.status_code == 422
    assert refused.json()["type"] == "urn:tierwise:bad-state"
    assert detail in refused.json()["detail"]


def test_what_is_no_message_of_the_contract_is_refused(cloud_tier, sentences):
    good, states = unframe(message(cloud_tier, sentences[:1]))
    states = [bytes(state) for state in states]
    cases = {
        400: frame(b"{", states),
        422: frame(json.dumps({**json.loads(good), "version": 1}).encode(), states),
        413: b"\0" * 2_000_001,
    }
    for status, body in cases.items():
        assert cloud_tier.post(body, path="/v1/continue", headers=HEADERS).status_code == status
    explained = frame(json.dumps({**json.loads(good), "explain": True}).encode(), states)
    assert "explain" in cloud_tier.post(explained, path="/v1/continue", headers=HEADERS).json()["detail"]
    as_json = cloud_tier.post(b"{}", path="/v1/continue")
    assert as_json.status_code == 415
    assert STATES_TYPE in as_json.json()["detail"]


def test_it_asks_for_the_tiers_key(serve, tmp_path, cloud_tier, sentences):
    (tmp_path / "key").write_text("k" * 20)
    closed = serve(tier="cloud", key_file=tmp_path / "key")
    body = message(cloud_tier, sentences[:1])
    assert closed.post(body, path="/v1/continue", headers=HEADERS).status_code == 401
    opened = {**HEADERS, "authorization": f"Bearer {'k' * 20}"}
    assert closed.post(body, path="/v1/continue", headers=opened).status_code == 200


def test_a_request_is_counted_as_one_of_infer_is(serve, cloud_tier, sentences):
    counted = serve(tier="cloud")
    before = Counter(counted.samples())
    counted.post(message(cloud_tier, sentences[:2]), path="/v1/continue", headers=HEADERS)
    after = Counter(counted.samples()) - before
    assert after["tierwise_exits_total", "4"] == 2
    counts = [name for name in after if name[0] == "tierwise_request_duration_seconds_count"]
    assert len(counts) == 1


def test_a_deadline_holds_and_the_link_s_time_is_taken_off(serve, cloud_tier, sentences):
    edge, link = an_edge(serve, cloud_tier, link_profiles={"cloud": "nbiot"}, links="none")
    [result] = edge.results(sentences[0], policy="onward", deadline_ms=2_000)
    assert result["degraded"] == "deadline"  # kilobytes over 25 kbit/s
    assert link.paths == []


def test_states_of_one_pass_do_not_fail_those_of_another(serve, sentences):
    tier = serve(tier="cloud", batch_texts=8, batch_wait_ms=50)
    good, bad = message(tier, sentences[:2]), spoiled(tier, sentences, "of other texts")

    async def all_at_once():
        sends = [tier.send("POST", "/v1/continue", content=body, headers=HEADERS) for body in (good, bad, good)]
        return await asyncio.gather(*sends)

    assert [answer.status_code for answer in asyncio.run(all_at_once())] == [200, 422, 200]


def test_info_says_what_a_tier_goes_on_with(cloud_tier, alone):
    told = cloud_tier.get("/info").json()
    segment = cloud_tier.app.state.tier.worker._classifier.segment
    assert told["segment"] == {"network": segment.digest, "first": 1, "last": 4}
    assert (told["carry"], told["state_form"]) == ("text", "fp16")
    assert alone.get("/info").json()["segment"]["network"] != segment.digest


def test_any_bytes_are_refused_and_never_fail_inside(cloud_tier, sentences):
    random = np.random.default_rng(5)
    body = message(cloud_tier, sentences[:1])
    for _ in range(40):
        altered = bytearray(body)
        at = random.integers(len(body), size=3)
        for place in at:
            altered[place] = random.integers(256)
        answer = cloud_tier.post(bytes(altered), path="/v1/continue", headers=HEADERS)
        assert answer.status_code in (200, 400, 422), answer.text  # 200: the text's own bytes, or none, changed


def test_a_policy_that_lacks_its_gates_is_refused(cloud_tier, sentences):
    body = message(cloud_tier, sentences[:1], policy={"name": "path-gates", "profiles": []})
    refused = cloud_tier.post(body, path="/v1/continue", headers=HEADERS)
    assert refused.status_code == 422
    assert "needs gates" in refused.json()["detail"]


@pytest.mark.parametrize("value", [3e38, -3e38, 1e20])
def test_huge_values_are_refused(cloud_tier, sentences, value):
    head, [packed] = unframe(message(cloud_tier, sentences[:1]))
    segment = cloud_tier.app.state.tier.worker._classifier.segment
    state = unpack(packed, segment)
    state.hidden[:] = value
    body = frame(head, [pack(state, segment, Form.FP32)])
    refused = cloud_tier.post(body, path="/v1/continue", headers=HEADERS)
    assert (refused.status_code, refused.json()["type"]) == (422, "urn:tierwise:bad-state")
