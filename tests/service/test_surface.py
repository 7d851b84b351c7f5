"""What a tier offers beside answers: health, facts about itself, metrics that count once, and its own description."""

import asyncio
import re
import shutil

import httpx
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from structlog.testing import capture_logs

from shared import __version__
from shared.policies import names

REASONS = {
    "upstream_timeout",
    "upstream_unavailable",
    "upstream_refused",
    "upstream_invalid",
    "breaker_open",
    "deadline",
}
POLICIES = set(names(["end", "edge", "cloud"]))
STAGES = {"tokenize", "queue", "infer", "prune", "link", "ensemble"}


def values(samples, name):
    """The values of a metric by its label values (the one label's value, or a tuple of them)."""
    return {key[1] if len(key) == 2 else key[1:]: value for key, value in samples.items() if key[0] == name}


def test_a_started_tier_is_alive_and_ready_whatever_its_neighbours_do(serve):
    def down(request):
        raise AssertionError("health asks no neighbour")

    caller = serve(edge=down)
    assert caller.get("/livez").json() == {"status": "alive"}
    assert caller.get("/readyz").json() == {"status": "ready"}


def test_info_says_what_answers(serve, edge, cloud, card):
    info = serve(edge=edge, cloud=cloud, link_profiles={"edge": "lte"}, policy="tabi").get("/info").json()
    assert (info["tier"], info["layers"], info["exits"], info["labels"]) == ("end", 3, 3, ["negative", "positive"])
    assert re.fullmatch("[0-9a-f]{64}", info["card_sha256"])
    assert info["calibrated"] is True
    assert info["policy"]["name"] == "tabi"
    assert info["policy"]["offload_threshold"] == card["policies"]["tabi"]["offload_threshold"]
    assert info["limits"]["max_inputs"] == 32
    assert info["limits"]["max_body_bytes"] == 2_000_000
    assert [(link["to"], link["backend"], link["profile"]) for link in info["links"]] == [
        ("edge", "simulated", "lte"),
        ("cloud", "simulated", "ideal"),
    ]
    assert (info["engine"], info["device"], info["threads"]) == ("openvino", "cpu", 1)
    assert info["versions"]["tierwise"] == __version__
    assert set(info["versions"]) == {"tierwise", "contract", "openvino"}


def test_a_bundle_that_was_never_calibrated_is_told_at_the_start_and_by_info(serve, tiny_bundle, tmp_path):
    folder = shutil.copytree(tiny_bundle, tmp_path / "mine", ignore=shutil.ignore_patterns("card.json"))
    with capture_logs() as logs:
        info = serve(bundle=str(folder)).get("/info").json()
    assert info["calibrated"] is False
    assert (info["policy"]["theta"], info["policy"]["pruning_coefficient"]) == (0, 0)
    assert [line["log_level"] for line in logs if line["event"] == "uncalibrated"] == ["warning"]


def test_an_answer_names_the_model_that_info_describes(alone):
    card, engine = alone.classify("a fine film").json()["model"].split(" ", 1)
    bundle, _, digest = card.partition("@")
    info = alone.get("/info").json()
    assert engine == f"{info['engine']} {info['precision']}"
    assert info["bundle"] == bundle
    assert info["card_sha256"].startswith(digest)


# -- the description ------------------------------------------------------------------------------------------------


def references(node):
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for value in node.values():
            yield from references(value)
    elif isinstance(node, list):
        for value in node:
            yield from references(value)


def test_every_reference_in_the_openapi_document_leads_somewhere(alone):
    document = alone.get("/openapi.json").json()
    found = set(references(document))
    assert found
    for reference in found:
        node = document
        for part in reference.removeprefix("#/").split("/"):
            node = node[part.replace("~1", "/").replace("~0", "~")]


def test_the_openapi_document_describes_both_calls(alone):
    paths = alone.get("/openapi.json").json()["paths"]
    assert {"/v1/classify", "/v1/infer", "/livez", "/readyz", "/info", "/metrics"} <= set(paths)
    for path in ("/v1/classify", "/v1/infer"):
        assert {"200", "400", "413", "415", "422", "429", "503", "504"} <= set(paths[path]["post"]["responses"])
        assert paths[path]["post"]["requestBody"]["required"] is True


def test_the_form_at_docs_loads_everything_from_the_tier_itself(alone):
    page = alone.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'; script-src 'self'" in page.headers["content-security-policy"]
    loaded = re.findall(r'(?:href|src)="([^"]+)"', page.text)
    assert len(loaded) == 4
    for path, kind in zip(loaded, ("image/png", "text/css", "text/javascript", "text/javascript"), strict=True):
        part = alone.get(f"/{path}")
        assert (part.status_code, part.headers["content-type"].partition(";")[0]) == (200, kind)
        assert len(part.content) > 50
    start = alone.get("/docs/start.js").text
    assert '"openapi.json"' in start
    assert "validatorUrl: null" in start  # or it sends the document to another host
    assert "://" not in page.text + start
    assert alone.get("/redoc").status_code == 404


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_tier_whose_model_thread_has_died_is_neither_alive_nor_ready(serve, edge, monkeypatch):
    caller = serve(edge=edge)
    worker = caller.app.state.tier.worker

    def dies(_):
        raise SystemExit  # ends the thread, and says nothing

    monkeypatch.setattr(worker.queue, "take", dies)
    caller.results("a fine film", policy="end-only")  # wakes it
    worker._thread.join(10)
    assert (caller.get("/livez").status_code, caller.get("/readyz").status_code) == (503, 503)


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/health", "/info", "/v1/policies", "/metrics", "/docs"])
def test_head_is_get_without_its_body(alone, path):
    head = asyncio.run(alone.send("HEAD", path))
    assert (head.status_code, head.headers["content-type"]) == (200, alone.get(path).headers["content-type"])


# -- pages of other origins -------------------------------------------------------------------------------------------

PAGE = {"origin": "https://app.example"}
PREFLIGHT = {**PAGE, "access-control-request-method": "POST", "access-control-request-headers": "content-type"}


def test_no_other_page_may_ask_unless_its_origin_is_set(serve, alone):
    asked = asyncio.run(alone.send("OPTIONS", "/v1/classify", headers=PREFLIGHT))
    assert asked.status_code == 405
    assert not [name for name in asked.headers if name.startswith("access-control")]
    caller = serve(policy="end-only", cors_origins=("https://app.example", "http://localhost:5173"))
    asked = asyncio.run(caller.send("OPTIONS", "/v1/classify", headers=PREFLIGHT))
    assert asked.status_code == 200
    assert asked.headers["access-control-allow-origin"] == "https://app.example"
    assert "POST" in asked.headers["access-control-allow-methods"]
    for answer in (caller.classify("a fine film", PAGE), caller.classify(" ", PAGE)):
        assert answer.headers["access-control-allow-origin"] == "https://app.example"
        assert "x-request-id" in answer.headers["access-control-expose-headers"]
    other = {**PREFLIGHT, "origin": "https://evil.example"}
    refused = asyncio.run(caller.send("OPTIONS", "/v1/classify", headers=other))
    assert refused.status_code == 400
    assert "access-control-allow-origin" not in refused.headers


# -- metrics --------------------------------------------------------------------------------------------------------


def test_counters_with_closed_labels_start_at_zero(serve, edge):
    samples = serve(edge=edge).samples()
    reasons = {"policy", "confidence", "curve"}
    refusals = {"bad_request", "too_large", "unsupported_media", "invalid", "queue_full", "draining", "deadline"}
    refusals |= {"unauthorized", "slow_body", "abandoned"}
    for name, labels in (
        ("exits", {"1", "2", "3"}),
        ("offloads", {("end", policy, reason, "edge") for policy in POLICIES for reason in reasons}),
        ("link_bytes", {("up", "end-edge"), ("down", "end-edge")}),
        ("words", {"in", "kept"}),
        ("answers", {"negative", "positive"}),
        ("answered", {(by, policy) for policy in POLICIES for by in ("end", "edge", "cloud")}),
        ("degraded", REASONS),
        ("rejected", refusals),
    ):
        assert values(samples, f"tierwise_{name}_total") == dict.fromkeys(labels, 0.0), name
    assert values(samples, "tierwise_stage_duration_seconds_count") == dict.fromkeys(STAGES, 0.0)
    outcomes = {(outcome, policy) for policy in POLICIES for outcome in ("ok", "degraded")}
    outcomes |= {("rejected", "none"), ("error", "none"), ("probe", "none")}
    assert values(samples, "tierwise_request_duration_seconds_count") == dict.fromkeys(outcomes, 0.0)
    for name in ("inflight", "queue_depth", "confidence_count", "offload_probability_count"):
        assert samples[f"tierwise_{name}",] == 0.0
    assert [key for key in samples if key[0] == "tierwise_build_info"]


def test_every_sample_says_which_tier_it_is_from(alone):
    lines = [line for line in alone.get("/metrics").text.splitlines() if line.startswith("tierwise_")]
    assert lines
    assert all('tier="end"' in line for line in lines)


def test_an_offloaded_batch_is_counted_once(serve, edge, always, long_text):
    caller = serve(edge=edge)
    results = caller.results(["a fine film", long_text], policy={**always, "theta": 0})
    samples = caller.samples()
    hops = [result["hops"][0] for result in results]
    assert values(samples, "tierwise_exits_total") == {"1": 0, "2": 0, "3": 2}
    assert samples["tierwise_offloads_total", "end", "collaborative", "confidence", "edge"] == 2
    assert sum(values(samples, "tierwise_offloads_total").values()) == 2
    assert samples["tierwise_words_total", "in"] == sum(hop["words_in"] for hop in hops)
    assert samples["tierwise_words_total", "kept"] == sum(hop["words_kept"] for hop in hops)
    assert samples["tierwise_link_bytes_total", "up", "end-edge"] == len(edge.requests[0].content)
    assert samples["tierwise_link_bytes_total", "down", "end-edge"] == len(edge.answers[0].content)
    assert sum(values(samples, "tierwise_answers_total").values()) == 2
    assert sum(values(samples, "tierwise_degraded_total").values()) == 0
    requests = values(samples, "tierwise_request_duration_seconds_count")
    assert {key: count for key, count in requests.items() if count} == {("ok", "collaborative"): 1}
    answered = values(samples, "tierwise_answered_total")
    assert {key: count for key, count in answered.items() if count} == {("edge", "collaborative"): 2}
    assert values(samples, "tierwise_stage_duration_seconds_count") == dict.fromkeys(STAGES, 1)
    assert samples["tierwise_confidence_count",] == 2
    assert samples["tierwise_offload_probability_count",] == 2
    assert samples["tierwise_inflight",] == 0


def test_a_policy_that_decides_before_inference_is_counted_as_that(serve, edge):
    caller = serve(edge=edge)
    caller.results(["a fine film"] * 3, policy="edge-only")
    samples = caller.samples()
    assert samples["tierwise_offloads_total", "end", "edge-only", "policy", "edge"] == 3
    assert samples["tierwise_answered_total", "edge", "edge-only"] == 3
    assert samples["tierwise_offload_probability_count",] == 0  # nothing was inferred here
    assert sum(values(samples, "tierwise_exits_total").values()) == 0
    assert samples["tierwise_words_total", "in"] == 9
    assert samples["tierwise_words_total", "kept"] == 0
    assert sum(values(samples, "tierwise_answers_total").values()) == 3


def test_degraded_answers_are_counted_by_reason(serve, always):
    caller = serve(edge=lambda request: httpx.Response(503))
    caller.results(["a fine film"] * 2, policy=always)
    samples = caller.samples()
    assert values(samples, "tierwise_degraded_total") == {**dict.fromkeys(REASONS, 0), "upstream_refused": 2}
    assert samples["tierwise_request_duration_seconds_count", "degraded", "collaborative"] == 1
    assert samples["tierwise_stage_duration_seconds_count", "link"] == 0


@pytest.mark.parametrize(
    ("reason", "content", "media"),
    [
        ("bad_request", b"{", "application/json"),
        ("too_large", b'{"inputs": [' + b'"a",' * 40 + b'"a"]}', "application/json"),
        ("unsupported_media", b'{"inputs": "a"}', "text/plain"),
        ("invalid", b'{"inputs": ""}', "application/json"),
        ("invalid", '{"inputs": "\u200b"}'.encode(), "application/json"),
        ("deadline", b'{"inputs": "a", "options": {"deadline_ms": 1e-6}}', "application/json"),
    ],
)
def test_refusals_are_counted_once_by_reason(serve, reason, content, media):
    caller = serve()
    before = values(caller.samples(), "tierwise_rejected_total")
    caller.post(content, headers={"content-type": media})
    samples = caller.samples()
    assert values(samples, "tierwise_rejected_total") == {**before, reason: 1}
    assert samples["tierwise_request_duration_seconds_count", "rejected", "none"] == 1
    assert sum(values(samples, "tierwise_answers_total").values()) == 0


OPENMETRICS = {"accept": "application/openmetrics-text;version=1.0.0;q=0.6,text/plain;version=0.0.4;q=0.3,*/*;q=0.1"}
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


def exemplars(caller):
    """The traces in OpenMetrics, by the name of their sample."""
    answer = asyncio.run(caller.send("GET", "/metrics", headers=OPENMETRICS))
    assert answer.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    families = list(text_string_to_metric_families(answer.text))
    return [(s.name, s.labels, s.exemplar) for family in families for s in family.samples if s.exemplar]


def test_a_recorded_trace_is_the_exemplar_of_its_request(serve):
    caller = serve(policy="end-only")
    for flags, trace in (("00", "a" * 32), ("01", TRACE)):
        caller.classify("a fine film", {"traceparent": f"00-{trace}-00f067aa0ba902b7-{flags}"})
    ((name, labels, exemplar),) = exemplars(caller)  # a trace that nobody records leads nowhere
    assert name == "tierwise_request_duration_seconds_bucket"
    assert (labels["outcome"], labels["policy"]) == ("ok", "end-only")
    assert exemplar.labels == {"trace_id": TRACE}
    assert 0 < exemplar.value <= float(labels["le"])


def test_both_formats_have_the_same_samples(serve):
    caller = serve(policy="end-only")
    caller.classify("a fine film")
    plain = caller.get("/metrics")
    assert plain.headers["content-type"].startswith("text/plain; version=")
    other = asyncio.run(caller.send("GET", "/metrics", headers=OPENMETRICS)).text
    assert other.endswith("# EOF\n")
    series = [
        {line.rpartition(" ")[0] for line in text.splitlines() if line[:8] == "tierwise"}
        for text in (plain.text, other)
    ]
    assert series[0] == series[1]
