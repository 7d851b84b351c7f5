"""When a request is put on record: after its answer, once, and whatever becomes of the answer."""

import asyncio

import pytest
from fastapi import Response
from structlog.testing import capture_logs

from shared.telemetry import Telemetry
from shared.web.record import Record, Then
from shared.web.tracing import Span


@pytest.fixture
def telemetry():
    return Telemetry(tier="end", tiers=["end"], policies=["end-only"], layers=1, labels=["a"], upstreams=[])


def counted(telemetry, outcome, policy):
    labels = {"tier": "end", "outcome": outcome, "policy": policy}
    return telemetry.registry.get_sample_value("tierwise_request_duration_seconds_count", labels)


def inflight(telemetry):
    return telemetry.registry.get_sample_value("tierwise_inflight", {"tier": "end"})


def test_a_request_is_in_flight_until_its_end_is_counted_and_logged_with_its_facts(telemetry):
    span = Span("1" * 32, "2" * 16, "00")
    record = Record(telemetry, "/v1/classify", span, "an-id")
    assert inflight(telemetry) == 1
    span.facts.update(policy="end-only", outcome="ok", status=200, texts=1)
    with capture_logs() as lines:
        record.end()
    assert (inflight(telemetry), counted(telemetry, "ok", "end-only")) == (0, 1)
    (line,) = lines
    assert line.pop("ms") >= 0
    assert line == {
        "event": "request",
        "log_level": "info",
        "trace_id": "1" * 32,
        "request_id": "an-id",
        "path": "/v1/classify",
        "tier": "end",
        "policy": "end-only",
        "outcome": "ok",
        "status": 200,
        "texts": 1,
    }


def test_a_request_that_nothing_is_known_of_is_an_error(telemetry):
    Record(telemetry, "/v1/classify", Span("1" * 32, "2" * 16, "00"), "an-id").end()
    assert counted(telemetry, "error", "none") == 1


def test_what_is_to_be_done_comes_after_the_whole_answer():
    order = []

    async def send(message):
        order.append(message["type"])

    asyncio.run(Then(Response("{}"), lambda: order.append("then"))({"type": "http"}, None, send))
    assert order == ["http.response.start", "http.response.body", "then"]


def test_it_is_done_once_where_the_answer_cannot_be_sent():
    done = []

    async def send(message):
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(Then(Response("{}"), lambda: done.append(1))({"type": "http"}, None, send))
    assert done == [1]
