"""One JSON line a request, with the ids that lead across tiers and no text; spans, where somebody collects them."""

import io
import json
import logging
from itertools import pairwise

import httpx
import pytest
import structlog
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from shared.logs import configure_logs
from shared.web.tracing import Traces, exporting

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


@pytest.fixture
def lines():
    """What was logged since, as the service itself logs."""
    out = io.StringIO()
    configure_logs("info", out)

    def read():
        said = out.getvalue().splitlines()
        out.seek(0)
        out.truncate()
        return [json.loads(line) for line in said]

    yield read
    structlog.reset_defaults()


def test_a_request_is_one_line_with_its_ids_and_without_its_text(serve, edge, always, lines):
    caller = serve(edge=edge)
    lines()
    given = {"x-request-id": "r-1", "traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"}
    caller.classify(["a fine film", "a plot"], given, policy=always)
    (line,) = lines()
    assert (line["request_id"], line["trace_id"]) == ("r-1", TRACE)
    assert (line["tier"], line["path"], line["status"], line["outcome"]) == ("end", "/v1/classify", 200, "ok")
    assert (line["texts"], line["tiers"], line["degraded"]) == (2, ["end", "edge"], [])
    assert line["policy"] == "collaborative"
    assert line["ms"] > 0
    assert line["level"] == "info"
    assert "film" not in json.dumps(line)


def test_a_refusal_is_one_line_too(serve, lines):
    caller = serve()
    lines()
    caller.post(b'{"inputs": "a secret')
    (line,) = lines()
    assert (line["status"], line["outcome"]) == (400, "rejected")
    assert "secret" not in json.dumps(line)


def test_a_failed_upstream_is_logged_under_the_same_ids(serve, always, lines):
    def broken(request):
        raise httpx.ConnectError("gone", request=request)

    caller = serve(edge=broken)
    lines()
    caller.classify("a fine film", {"x-request-id": "r-2"}, policy=always)
    failed, request = lines()
    assert (failed["event"], request["event"]) == ("upstream_failed", "request")
    assert failed["request_id"] == request["request_id"] == "r-2"
    assert failed["trace_id"] == request["trace_id"]
    assert request["degraded"] == ["upstream_unavailable"]


@pytest.fixture
def exported():
    """Traces, and the spans that they exported."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return Traces(provider.get_tracer("test")), exporter.get_finished_spans


def test_spans_are_exported_as_children_of_the_callers(serve, edge, always, exported):
    traces, spans = exported
    caller = serve(edge=edge, traces=traces)
    response = caller.classify(
        "a fine film", {"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01", "x-request-id": "r-1"}, policy=always
    )
    caller.classify("a fine film", policy=always)
    first, second = (span for span in spans() if span.kind is SpanKind.SERVER)
    assert first.name == "POST /v1/classify"
    assert f"{first.context.trace_id:032x}" == TRACE
    assert f"{first.parent.span_id:016x}" == "00f067aa0ba902b7"
    own = f"00-{TRACE}-{first.context.span_id:016x}-01"
    assert response.headers["traceparent"] == edge.requests[0].headers["traceparent"] == own
    assert first.attributes["tierwise.request_id"] == "r-1"
    assert first.attributes["tierwise.tiers"] == ("end", "edge")
    assert (first.attributes["tierwise.status"], first.attributes["tierwise.outcome"]) == (200, "ok")
    assert "film" not in str(dict(first.attributes))
    assert second.parent is None
    assert second.context.trace_id != first.context.trace_id


def test_a_span_describes_its_request_as_opentelemetry_does(serve, exported):
    traces, spans = exported
    caller = serve(traces=traces, policy="end-only")
    caller.classify("a fine film")
    caller.classify(" ")
    caller.post(b"{}", path="/v2/models/other/infer")
    ok, refused, other = (span for span in spans() if span.kind is SpanKind.SERVER)
    told = {key: value for key, value in ok.attributes.items() if not key.startswith("tierwise.")}
    assert told == {
        "http.request.method": "POST",
        "http.route": "/v1/classify",
        "http.response.status_code": 200,
        "url.path": "/v1/classify",
        "url.scheme": "http",
        "network.protocol.version": "1.1",
    }
    assert refused.attributes["http.response.status_code"] == 422
    assert refused.status.status_code is StatusCode.UNSET  # the caller's error, not this tier's
    assert (other.name, other.attributes["url.path"]) == ("POST /v2/models/{name}/infer", "/v2/models/other/infer")


def test_an_answer_that_failed_inside_is_an_error_of_its_span(serve, exported, monkeypatch):
    traces, spans = exported
    caller = serve(traces=traces)
    monkeypatch.setattr(caller.app.state.front, "classify", None)
    assert caller.classify("a fine film").status_code == 500
    (span,) = spans()
    assert (span.status.status_code, span.attributes["error.type"]) == (StatusCode.ERROR, "500")


def test_stages_are_children_as_long_as_they_were_measured(serve, edge, always, exported):
    traces, spans = exported
    caller = serve(edge=edge, traces=traces)
    answer = caller.classify("a fine film", policy=always).json()
    *stages, request = spans()
    assert [stage.name for stage in stages] == ["tokenize", "queue", "infer", "prune", "link", "ensemble"]
    assert all(stage.parent.span_id == request.context.span_id for stage in stages)
    end, beyond = answer["results"][0]["hops"]
    expected = {**end["timings_ms"], "link": beyond["link"]["ms"], "ensemble": answer["timings_ms"]["ensemble"]}
    took = {stage.name: (stage.end_time - stage.start_time) / 1e6 for stage in stages}
    assert took == pytest.approx({name: expected[name] for name in took}, abs=1e-5)
    assert all(before.end_time == after.start_time for before, after in pairwise(stages))


def test_a_text_that_was_sent_on_at_once_has_no_stage_of_the_model(serve, edge, exported):
    traces, spans = exported
    serve(edge=edge, traces=traces).classify("a fine film", policy="edge-only")
    assert [span.name for span in spans()][:-1] == ["link", "ensemble"]


def test_nothing_is_exported_unless_an_endpoint_is_set():
    assert exporting(None, "end")._tracer is None
    traces = exporting("http://127.0.0.1:9/v1/traces", "end")
    assert traces._tracer is not None


@pytest.mark.parametrize(
    ("given", "followed"),
    [
        (f"00-{TRACE}-00f067aa0ba902b7-01", True),
        (f"01-{TRACE}-00f067aa0ba902b7-01", True),
        (f"01-{TRACE}-00f067aa0ba902b7-01-what-comes-later", True),
        (f"00-{TRACE}-00f067aa0ba902b7-01-more", False),
        (f"ff-{TRACE}-00f067aa0ba902b7-01", False),
        (f"00-{'0' * 32}-00f067aa0ba902b7-01", False),
    ],
)
def test_a_trace_is_followed_if_its_parent_is_well_formed(serve, lines, given, followed):
    caller = serve()
    lines()
    caller.classify("a film", {"traceparent": given}, policy="end-only")
    assert (lines()[-1]["trace_id"] == TRACE) is followed


def test_what_the_http_server_says_is_json_too(lines):
    logging.getLogger("uvicorn.error").warning("Invalid HTTP request received.")
    try:
        raise ValueError("no text of a request")
    except ValueError:
        logging.getLogger("uvicorn.error").exception("Exception in ASGI application")
    warning, error = lines()
    assert (warning["event"], warning["level"]) == ("Invalid HTTP request received.", "warning")
    assert error["exception"].endswith("ValueError: no text of a request")
