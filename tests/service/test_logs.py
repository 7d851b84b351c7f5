"""One JSON line a request, with the ids that lead across tiers and no text; spans, where somebody collects them."""

import io
import json
import logging

import httpx
import pytest
import structlog

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


def test_spans_are_exported_as_children_of_the_callers(serve, edge, always):
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    caller = serve(edge=edge, traces=Traces(provider.get_tracer("test")))
    response = caller.classify(
        "a fine film", {"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01", "x-request-id": "r-1"}, policy=always
    )
    caller.classify("a fine film", policy=always)
    first, second = exporter.get_finished_spans()
    assert first.name == "/v1/classify"
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
