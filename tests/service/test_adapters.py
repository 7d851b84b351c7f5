"""Other services' APIs on a tier: their shapes, and the same keys, limits, log lines and counts as `/v1/classify`."""

import asyncio
import json
import struct

import httpx
import pytest

from tests.service.conftest import JSON

TEXT, OTHER = "a fine film", "the plot is thin"


def sent(caller, path, body, headers=JSON):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return caller.post(content, path=path, headers=headers)


def scores(result):
    """A result's labels as text-embeddings-inference tells them."""
    ranked = sorted(result["probabilities"].items(), key=lambda pair: -pair[1])
    return [{"label": label, "score": score} for label, score in ranked]


@pytest.fixture(scope="module")
def only(serve):
    """A tier whose answers do not depend on draws."""
    return serve(policy="end-only")


@pytest.fixture(scope="module")
def model(only):
    """The path of its model in the Open Inference Protocol."""
    return f"/v2/models/{only.get('/info').json()['bundle']}"


# -- Hugging Face -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/predict", "/"])
def test_one_text_gets_every_label_likeliest_first(only, path):
    expected = scores(only.results(TEXT)[0])
    assert sent(only, path, {"inputs": TEXT}).json() == (expected if path == "/predict" else [expected])


def test_a_pair_is_one_input_and_a_list_of_lists_a_batch(only):
    one, pair = map(scores, only.results([TEXT, {"text": TEXT, "text_pair": OTHER}]))
    assert sent(only, "/predict", {"inputs": [TEXT, OTHER]}).json() == pair
    assert sent(only, "/predict", {"inputs": [TEXT]}).json() == one
    assert sent(only, "/predict", {"inputs": [[TEXT], [TEXT, OTHER]], "truncate": True}).json() == [one, pair]
    assert sent(only, "/", {"inputs": [TEXT, {"text": TEXT, "text_pair": OTHER}]}).json() == [one, pair]


def test_top_k_keeps_the_likeliest_labels(only):
    asked = {"inputs": TEXT, "parameters": {"top_k": 1, "function_to_apply": "softmax"}}
    assert sent(only, "/", asked).json() == [scores(only.results(TEXT)[0])[:1]]


@pytest.mark.parametrize(
    ("path", "body", "status", "kind", "part"),
    [
        ("/predict", b"{", 400, "validation", "not JSON"),
        ("/predict", {"inputs": ""}, 422, "validation", "empty"),
        ("/predict", {"inputs": []}, 422, "validation", "inputs"),
        ("/predict", {"inputs": 5}, 422, "validation", "inputs: expected a text, a pair as a list of two texts, or"),
        ("/", {"inputs": {"txt": "a"}}, 422, "validation", "inputs.txt: unknown key (did you mean text?)"),
        ("/predict", {"inputs": [["a", "b", "c"]]}, 422, "validation", "inputs.0"),
        ("/predict", {"inputs": [["a"]] * 33}, 413, "validation", "at most 32"),
        ("/predict", {"inputs": "a", "raw_scores": True}, 422, "validation", "raw_scores"),
        ("/predict", {"inputs": "a", "top": 1}, 422, "validation", "top"),
        ("/", {"inputs": "a", "parameters": {"function_to_apply": "none"}}, 422, "validation", "function_to_apply"),
        ("/", {"inputs": "a", "parameters": {"top_k": 0}}, 422, "validation", "top_k"),
    ],
)
def test_what_a_tier_cannot_do_is_refused_as_text_embeddings_inference_does(only, path, body, status, kind, part):
    answer = sent(only, path, body)
    assert (answer.status_code, answer.json()["error_type"]) == (status, kind), answer.text
    assert part in answer.json()["error"]
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"]


def test_a_text_that_would_be_shortened_is_refused_if_the_caller_forbids_it(only, long_text):
    assert sent(only, "/predict", {"inputs": long_text * 3}).status_code == 200
    refused = sent(only, "/predict", {"inputs": [[TEXT], [long_text * 3]], "truncate": False})
    assert refused.status_code == 422
    assert "input 1 is longer" in refused.json()["error"]


# -- the Open Inference Protocol --------------------------------------------------------------------------------------


def infer(caller, model, *texts, headers=JSON, tail=b"", **more):
    tensor = {"name": "text", "shape": [len(texts)], "datatype": "BYTES", "data": list(texts)}
    return sent(caller, f"{model}/infer", {"inputs": [tensor], **more}, headers)


def outputs(answer):
    assert answer.status_code == 200, answer.text
    return {output["name"]: (output["shape"], output.get("data")) for output in answer.json()["outputs"]}


def test_texts_as_json_are_answered_as_json(only, model):
    rows = only.results([TEXT, OTHER])
    answer = infer(only, model, TEXT, OTHER, id="7")
    assert (answer.json()["model_name"], answer.json()["id"]) == (model.removeprefix("/v2/models/"), "7")
    assert outputs(answer) == {
        "label": ([2], [row["label"] for row in rows]),
        "confidence": ([2], [row["confidence"] for row in rows]),
        "probabilities": ([2, 2], [share for row in rows for share in row["probabilities"].values()]),
        "tier": ([2], ["end", "end"]),
        "labels": ([2], ["negative", "positive"]),
    }


def test_texts_as_bytes_are_answered_as_bytes_where_asked(only, model):
    (row,) = only.results({"text": TEXT, "text_pair": OTHER})
    tail = b"".join(struct.pack("<I", len(text)) + text.encode() for text in (TEXT, OTHER))
    inputs = [
        {"name": name, "shape": [1, 1], "datatype": "BYTES", "parameters": {"binary_data_size": 4 + len(text)}}
        for name, text in (("text", TEXT), ("text_pair", OTHER))
    ]
    wanted = [{"name": "confidence", "parameters": {"binary_data": True}}, {"name": "label"}]
    head = json.dumps({"inputs": inputs, "outputs": wanted}).encode()
    answer = sent(only, f"{model}/infer", head + tail, {"inference-header-content-length": str(len(head))})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/octet-stream"
    length = int(answer.headers["inference-header-content-length"])
    confidence, label = json.loads(answer.content[:length])["outputs"]
    assert confidence["parameters"] == {"binary_data_size": 4}
    assert struct.unpack("<f", answer.content[length:]) == (pytest.approx(row["confidence"]),)
    assert label["data"] == [row["label"]]


def test_parameters_of_a_request_are_options(serve, edge):
    caller = serve(edge=edge)
    model = f"/v2/models/{caller.get('/info').json()['bundle']}"
    parameters = {"policy": "edge-only", "seed": 3, "max_tier": "edge", "deadline_ms": 60_000}
    assert outputs(infer(caller, model, TEXT, parameters=parameters))["tier"] == ([1], ["edge"])
    assert edge.bodies[0]["seed"] == "3"
    assert edge.bodies[0]["max_tier"] == "edge"
    assert 0 < edge.bodies[0]["deadline_ms"] <= 60_000


def tensor(**changes):
    return {"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["a"], **changes}]}


@pytest.mark.parametrize(
    ("body", "status", "part"),
    [
        (b"{", 400, "not JSON"),
        (tensor(datatype="FP32"), 422, "expected BYTES"),
        (tensor(shape=[1, 2]), 422, "shape [N]"),
        (tensor(shape=[2]), 422, "expected 2 texts"),
        (tensor(shape=[-1]), 422, "shape [N]"),
        (tensor(shape=[33]), 413, "at most 32"),
        (tensor(shape=[0], data=[]), 422, "at least one"),
        (tensor(data=[7]), 422, "1 texts"),
        (tensor(data=None), 422, "either data or binary_data_size"),
        (tensor(data=None, parameters={"binary_data_size": 9}), 422, "as the body has it"),
        (json.dumps(tensor()).encode() + b"!", 400, "not JSON"),
        (tensor(parameters={"shared_memory_region": "r"}), 422, "no parameter but"),
        (tensor(name="TEXT"), 422, "expected text"),
        ({"inputs": []}, 422, "expected text"),
        ({"inputs": tensor()["inputs"] * 2}, 422, "expected text"),
        ({**tensor(), "outputs": [{"name": "logits"}]}, 422, "outputs: expected label"),
        ({**tensor(), "outputs": [{"name": "label", "parameters": {"classification": True}}]}, 422, "binary_data"),
        ({**tensor(), "parameters": {"explain": True}}, 422, "explain is none of policy"),
        ({**tensor(), "parameters": {"policy": "none-such"}}, 422, "none-such"),
    ],
)
def test_what_is_wrong_is_told_as_the_protocol_does(only, model, body, status, part):
    answer = sent(only, f"{model}/infer", body)
    assert answer.status_code == status, answer.text
    assert answer.json().keys() == {"error"}
    assert part in answer.json()["error"]


def test_bytes_that_no_input_asks_for_are_refused(only, model):
    head = json.dumps(tensor()).encode()
    given = {"inference-header-content-length": str(len(head))}
    assert "more bytes than its inputs" in sent(only, f"{model}/infer", head + b"!", given).json()["error"]


@pytest.mark.parametrize(
    ("raw", "part"),
    [
        (b"\x01\x00\x00\x00", "end within"),
        (b"\x01\x00", "end within"),
        (b"\x01\x00\x00\x00\xff", "not UTF-8"),
        (b"\x01\x00\x00\x00aa", "more bytes than its shape"),
    ],
)
def test_bytes_that_are_no_texts_are_refused(only, model, raw, part):
    head = json.dumps(tensor(data=None, parameters={"binary_data_size": len(raw)})).encode()
    given = {"inference-header-content-length": str(len(head))}
    assert part in sent(only, f"{model}/infer", head + raw, given).json()["error"]
    for length in ("-1", "x", str(len(head) + len(raw) + 1), "9" * 5000):
        assert sent(only, f"{model}/infer", head + raw, {"inference-header-content-length": length}).status_code == 422


def test_a_tier_describes_itself_as_a_server_and_its_bundle_as_a_model(only, model):
    info = only.get("/info").json()
    assert only.get("/v2").json()["extensions"] == ["binary_tensor_data"]
    assert only.get("/v2/health/live").json() == {"live": True}
    assert only.get("/v2/health/ready").json() == {"ready": True}
    assert only.get(f"{model}/ready").json() == {"name": info["bundle"], "ready": True}
    told = only.get(model).json()
    assert told["versions"] == [info["card_sha256"][:12]]
    assert {each["name"]: each["shape"] for each in told["outputs"]}["probabilities"] == [-1, 2]
    assert only.get(f"{model}/versions/{told['versions'][0]}").json() == told
    assert outputs(infer(only, f"{model}/versions/{told['versions'][0]}", TEXT))["label"][0] == [1]


@pytest.mark.parametrize("path", ["/v2/models/other", "/v2/models/other/ready", "/v2/models/NAME/versions/2"])
def test_another_model_is_not_found(only, model, path):
    answer = only.get(path.replace("/v2/models/NAME", model))
    assert (answer.status_code, answer.json().keys()) == (404, {"error"})
    assert "and no other" in infer(only, "/v2/models/other", TEXT).json()["error"]


# -- what all have in common ------------------------------------------------------------------------------------------


def asked(caller):
    """Every path that classifies, with a good request."""
    model = f"/v2/models/{caller.get('/info').json()['bundle']}/infer"
    return {"/predict": {"inputs": TEXT}, "/": {"inputs": TEXT}, model: tensor(data=[TEXT])}


def test_an_adapted_request_is_counted_once_and_has_the_usual_headers(serve):
    caller = serve(policy="end-only")
    for path, body in asked(caller).items():
        answer = caller.post(json.dumps(body), path=path, headers={**JSON, "x-request-id": "r-1"})
        assert answer.headers["x-request-id"] == "r-1"
        assert {"traceparent", "server-timing"} <= set(answer.headers)
    samples = caller.samples()
    assert samples["tierwise_request_duration_seconds_count", "ok", "end-only"] == 3
    assert sum(value for key, value in samples.items() if key[0] == "tierwise_answers_total") == 3


def test_keys_content_types_sizes_and_draining_hold_for_all(serve, tmp_path):
    key = tmp_path / "key"
    key.write_text("sixteen-characters")
    caller = serve(door_key_file=key, max_body_bytes=1024)
    known = {**JSON, "authorization": "Bearer sixteen-characters"}
    for path, body in asked(caller).items():
        assert sent(caller, path, body).status_code == 401
        assert sent(caller, path, body, known).status_code == 200
        assert sent(caller, path, body, {**known, "content-type": "text/plain"}).status_code == 415
        assert sent(caller, path, b" " * 2000, known).status_code == 413
    caller.app.state.draining = True
    for path, body in asked(caller).items():
        refused = sent(caller, path, body, known)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert "shutting down" in refused.json()["error"]
    assert caller.get("/health").status_code == caller.get("/v2/health/ready").status_code == 503


def test_only_a_tensor_may_come_without_a_content_type(only, model):
    assert sent(only, f"{model}/infer", tensor(), {}).status_code == 200
    assert sent(only, "/predict", {"inputs": TEXT}, {}).status_code == 415
    assert (
        sent(only, f"{model}/infer", tensor(), {"origin": "https://evil.example"}).status_code == 415
    )  # not preflighted


def test_an_answer_with_less_than_planned_says_so_in_a_header(serve):
    caller = serve(edge=lambda request: httpx.Response(503), policy="edge-only")
    for path, body in asked(caller).items():
        assert sent(caller, path, body).headers["x-tierwise-degraded"] == "upstream_refused"
    whole = serve(policy="end-only")
    for path, body in asked(whole).items():
        assert "x-tierwise-degraded" not in sent(whole, path, body).headers


async def until(condition):
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


def test_a_full_queue_refuses_before_anything_is_parsed(serve, held_classifier):
    caller = serve(classifier=held_classifier, queue_limit=1)

    async def overload():
        running = asyncio.create_task(caller.ask(TEXT))
        await until(held_classifier.running.is_set)
        waiting = asyncio.create_task(caller.ask(TEXT))
        await until(lambda: caller.app.state.tier.worker.queue.waiting == 1)
        paths = ("/predict", "/", "/v2/models/x/infer")
        refused = [await caller.send("POST", path, content=b"{", headers=JSON) for path in paths]
        held_classifier.go.set()
        await asyncio.gather(running, waiting)
        return refused

    for answer in asyncio.run(overload()):
        assert answer.status_code == 429
        assert answer.headers["retry-after"]
