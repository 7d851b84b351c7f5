"""Calls to the next tier: what a good answer carries, and the reason of every bad one."""

import asyncio
import gzip
import json

import httpx
import pytest

from shared.contracts import InferredRow, InferRequest, InferResponse, TextPair
from shared.errors import UpstreamFailure
from shared.links.profile import Backend
from shared.links.upstream import Upstream
from tests.clocks import now, run
from tests.hops import a_hop

TEXTS = [TextPair(text="a fine film"), TextPair(text="a claim", text_pair="its ground")]
REQUEST = InferRequest(
    request_id="r1", call="c0", seed="s", indices=[0, 1], texts=TEXTS, policy={"name": "collaborative"}
)
HOP = a_hop()
GOOD = InferResponse(call="c0", rows=[InferredRow(index=at, hops=[HOP]) for at in (0, 1)], total_ms=0.0)


def call(
    handler, *, request=REQUEST, timeout_s=5.0, backend=Backend.NONE, profile="ideal", headers=None, within_s=None
):
    async def once():
        upstream = Upstream(
            source="end",
            target="edge",
            url="http://edge:8081",
            backend=backend,
            profile_name=profile,
            timeout_s=timeout_s,
            transport=httpx.MockTransport(handler),
            clock=now,
        )
        try:
            return await upstream.infer(request, headers or {}, within_s=within_s)
        finally:
            await upstream.close()

    return run(once())


def altered(request, **changes):
    """The good answer to a request, changed."""
    return json.dumps({**GOOD.model_dump(mode="json"), "call": json.loads(request.content)["call"], **changes})


def good(request, **changes):
    return httpx.Response(200, content=altered(request, **changes))


def test_an_answer_comes_back_with_its_bytes_and_its_time_on_the_link():
    seen = []

    def handler(request):
        seen.append(request)
        return good(request)

    carried = call(handler, headers={"x-request-id": "r1"})
    asked = InferRequest.model_validate_json(seen[0].content)
    for row, given in zip(carried.rows, GOOD.rows, strict=True):
        link = row.hops[0].link
        assert row == given.model_copy(update={"hops": [HOP.model_copy(update={"link": link})]})
        assert (link.source, link.target, link.profile) == ("end", "edge", "ideal")
    assert (seen[0].method, seen[0].url) == ("POST", "http://edge:8081/v1/infer")
    assert seen[0].headers["content-type"] == "application/json"
    assert seen[0].headers["x-request-id"] == "r1"
    assert asked == REQUEST.model_copy(update={"call": asked.call})
    assert carried.request_bytes == len(seen[0].content)
    assert carried.response_bytes == len(altered(seen[0]))
    assert carried.link_s == 0


def test_link_time_is_the_wait_less_what_the_callee_reports():
    async def slow(request):
        await asyncio.sleep(0.1)
        return good(request, total_ms=80.0)

    assert call(slow).link_s == pytest.approx(0.02)
    assert call(lambda request: good(request, total_ms=1e6)).link_s == 0  # a lying clock: never < 0


def test_a_simulated_link_waits_both_ways():
    carried = call(good, backend=Backend.SIMULATED, profile="continental")  # 30 +- 2 ms each way
    assert 0.045 <= carried.link_s <= 0.075
    assert call(good, backend=Backend.NETEM, profile="continental").link_s == 0  # the kernel would wait, not we


def raising(error):
    def handler(request):
        raise error("no", request=request)

    return handler


async def never(_request):
    await asyncio.sleep(30)


def answering(status, body="{}"):
    return lambda _request: httpx.Response(status, content=body)


def answering_with(**changes):
    return lambda request: good(request, **changes)


REASONS = {
    "connect error": (raising(httpx.ConnectError), "upstream_unavailable"),
    "broken connection": (raising(httpx.RemoteProtocolError), "upstream_unavailable"),
    "reset while reading": (raising(httpx.ReadError), "upstream_unavailable"),
    "no answer in time": (never, "upstream_timeout"),
    "no connection in time": (raising(httpx.ConnectTimeout), "upstream_timeout"),
    "no bytes in time": (raising(httpx.ReadTimeout), "upstream_timeout"),
    "status 429": (answering(429), "upstream_refused"),
    "status 422": (answering(422), "upstream_refused"),
    "status 503": (answering(503), "upstream_refused"),
    "status 504": (answering(504), "upstream_refused"),
    "status 500": (answering(500), "upstream_invalid"),
    "status 204": (answering(204, ""), "upstream_invalid"),
    "a redirect": (answering(302), "upstream_invalid"),
    "garbage": (answering(200, "<html>"), "upstream_invalid"),
    "no bytes": (answering(200, ""), "upstream_invalid"),
    "not UTF-8": (answering(200, b"\xff\xfe"), "upstream_invalid"),
    "another schema": (answering(200, '{"rows": "two"}'), "upstream_invalid"),
    "an unknown field": (answering_with(extra=1), "upstream_invalid"),
    "NaN": (answering_with(total_ms=float("nan")), "upstream_invalid"),
    "too few rows": (answering_with(rows=[]), "upstream_invalid"),
    "too many rows": (answering_with(rows=[{"index": at, "hops": []} for at in (0, 1, 2)]), "upstream_invalid"),
    "no id of the call": (lambda request: httpx.Response(200, content=GOOD.model_dump_json()), "upstream_invalid"),
    "another call's id": (answering_with(call="0123456789abcdef"), "upstream_invalid"),
    "rows in another order": (answering_with(rows=[{"index": at, "hops": []} for at in (1, 0)]), "upstream_invalid"),
    "a content encoding": (
        lambda request: httpx.Response(
            200, content=gzip.compress(altered(request).encode()), headers={"content-encoding": "gzip"}
        ),
        "upstream_invalid",
    ),
    "another contract": (answering_with(version=3), "upstream_invalid"),
}


@pytest.mark.parametrize("failure", REASONS)
def test_every_failure_has_its_reason(failure):
    handler, reason = REASONS[failure]
    with pytest.raises(UpstreamFailure) as caught:
        call(handler, timeout_s=5.0)
    assert caught.value.reason == reason
    assert str(caught.value).startswith(f"{reason}: edge ") or str(caught.value).startswith(f"{reason}: edge: ")


def test_an_outage_of_the_link_makes_the_tier_unavailable():
    with pytest.raises(UpstreamFailure) as caught:
        call(good, backend=Backend.SIMULATED, profile="offline")
    assert caught.value.reason == "upstream_unavailable"


def test_what_is_left_cuts_a_longer_timeout():
    with pytest.raises(UpstreamFailure, match="edge took over 100 ms") as caught:
        call(never, within_s=0.1, timeout_s=20.0)
    assert caught.value.reason == "deadline"


# -- retries --------------------------------------------------------------------------------------------------------


def calls(handlers, count):
    """`count` calls one after the other; how often the upstream was asked, and the reasons."""

    async def story():
        asked, retries, reasons = [], [], []

        def handler(request):
            asked.append(request)
            return handlers(len(asked), request)

        upstream = Upstream(
            source="end",
            target="edge",
            url="http://edge:8081",
            backend=Backend.NONE,
            profile_name="ideal",
            timeout_s=5,
            transport=httpx.MockTransport(handler),
            count_retry=lambda: retries.append(1),
        )
        upstream.replicas.all[0].breaker.count = lambda *, failed: None  # the breaker would end the story early
        for _ in range(count):
            try:
                await upstream.infer(REQUEST, {})
                reasons.append(None)
            except UpstreamFailure as failure:
                reasons.append(failure.reason)
        await upstream.close()
        return len(asked), len(retries), reasons

    return asyncio.run(story())


def test_an_upstream_that_is_down_sees_at_most_a_tenth_more():
    asked, retries, reasons = calls(lambda _, request: raising(httpx.ConnectError)(request), 200)
    assert set(reasons) == {"upstream_unavailable"}
    assert (asked, retries) == (220, 20)


@pytest.mark.parametrize("handler", [answering(500), answering(429), answering(503), answering(200, "<html>")])
def test_an_answer_of_any_kind_is_not_asked_for_twice(handler):
    assert calls(lambda _, request: handler(request), 20)[:2] == (20, 0)


def test_a_body_that_breaks_off_is_not_asked_for_twice():
    class Broken(httpx.AsyncByteStream):
        async def __aiter__(self):
            yield b"{"
            raise httpx.ReadError("reset")

    asked, retries, reasons = calls(lambda *_: httpx.Response(200, stream=Broken()), 20)
    assert (asked, retries, set(reasons)) == (20, 0, {"upstream_unavailable"})


def test_an_answer_without_end_is_cut_off():
    class Endless(httpx.AsyncByteStream):
        async def __aiter__(self):
            while True:
                yield b" " * 1_000_000

    assert calls(lambda *_: httpx.Response(200, stream=Endless()), 1)[2] == ["upstream_invalid"]


def test_a_row_that_the_next_tier_could_not_read_is_a_good_answer():
    hop = HOP.model_dump(mode="json")
    carried = call(
        answering_with(rows=[{"index": 0, "hops": []}, {"index": 1, "hops": [hop], "degraded": "breaker_open"}])
    )
    assert [len(row.hops) for row in carried.rows] == [0, 1]
    assert carried.rows[1].degraded == "breaker_open"


def test_the_link_that_a_hop_came_by_survives_the_wire():
    link = {
        "from": "edge",
        "to": "cloud",
        "backend": "none",
        "profile": "metro",
        "request_bytes": 1,
        "response_bytes": 2,
    }
    hop = {**HOP.model_dump(mode="json"), "link": {**link, "ms": 0.5}}
    rows = call(answering_with(rows=[{"index": at, "hops": [hop]} for at in (0, 1)])).rows
    assert json.loads(rows[0].model_dump_json())["hops"][0]["link"] == {**link, "ms": 0.5}


def simulated(profile="3g"):
    """An upstream over a simulated link, on which a call costs nothing else."""
    return Upstream(
        source="end",
        target="edge",
        url="http://edge:8081",
        backend=Backend.SIMULATED,
        profile_name=profile,
        timeout_s=5.0,
        transport=httpx.MockTransport(good),
        clock=now,
    )


def test_what_was_measured_is_forgotten_with_the_link_that_it_was_measured_on():
    """A call that was under way at the change does not count for the new link either."""

    async def story():
        upstream = simulated("3g")
        await upstream.infer(REQUEST, {})
        slow = upstream.round_trip_s
        under_way = asyncio.ensure_future(upstream.infer(REQUEST, {}))
        await asyncio.sleep(0.01)
        await upstream.set_profile("wifi")
        await under_way
        changed = upstream.round_trip_s
        await upstream.infer(REQUEST, {})
        await upstream.close()
        return slow, changed, upstream.round_trip_s

    slow, changed, measured = run(story())
    assert 0.1 < slow < 1  # jitter is drawn
    assert changed == 0.005  # as the profile says: nothing was measured yet
    assert 0 < measured < 0.03


def test_a_call_that_waited_for_a_cut_link_is_answered_once_it_is_healed_and_not_measured():
    async def story():
        upstream = simulated("wifi")
        await upstream.cut(cut=True)
        call = asyncio.ensure_future(upstream.infer(REQUEST, {}))
        await asyncio.sleep(3)
        assert not call.done()
        await upstream.cut(cut=False)
        await call
        took = now()
        await upstream.close()
        return took, upstream.round_trip_s

    took, round_trip_s = run(story())
    assert took == pytest.approx(3, abs=0.03)
    assert round_trip_s == 0.005
