"""States over a link: what they tell of its rate, what they do not change, and when no more are sent."""

import asyncio
import json

import httpx
import pytest

from shared.contracts import InferRequest, TextPair
from shared.errors import UpstreamFailure
from shared.links.profile import Backend, on_the_wire
from shared.links.upstream import Upstream
from shared.model.state import STATES_TYPE, unframe
from tests.clocks import now, run

REQUEST = InferRequest(
    request_id="r1",
    call="c0",
    seed="s",
    indices=[0],
    texts=[TextPair(text="a fine film")],
    policy={"name": "collaborative"},
)
STATE = b"s" * 100_000


def over(link, work, *, profile="lte"):
    async def once():
        upstream = Upstream(
            source="end",
            target="edge",
            url="http://edge:8081",
            backend=Backend.NONE,
            profile_name=profile,
            timeout_s=60.0,
            transport=httpx.MockTransport(link),
            clock=now,
        )
        try:
            return await work(upstream)
        finally:
            await upstream.close()

    return run(once())


def answered(message):
    call = json.loads(message)["call"]
    return httpx.Response(200, json={"version": 2, "call": call, "rows": [{"index": 0, "hops": []}], "total_ms": 0.0})


async def slow(request):
    """50 ms, and a microsecond for each byte on the wire."""
    states = request.headers["content-type"] == STATES_TYPE
    await asyncio.sleep(0.05 + (on_the_wire(len(request.content)) * 1e-6 if states else 0))
    return answered(unframe(request.content)[0] if states else request.content)


def test_a_state_tells_the_rate_and_leaves_the_round_trip_of_short_calls_alone():
    async def work(upstream):
        assert upstream.byte_s == 8 / 14e6  # the profile's
        await upstream.infer(REQUEST, {})
        assert upstream.byte_s == 8 / 14e6  # a short call tells no rate
        carried = await upstream.infer(REQUEST, {}, states=[STATE])
        assert carried.request_bytes > len(STATE)
        assert upstream.byte_s == pytest.approx(8 / 14e6)  # one that was slow may be a mishap
        await upstream.infer(REQUEST, {}, states=[STATE])
        assert upstream.byte_s == pytest.approx(1e-6, rel=0.01)
        assert upstream.round_trip_s == pytest.approx(0.05)
        await asyncio.sleep(61)
        assert upstream.byte_s == 8 / 14e6  # too old to be held against it

    over(slow, work)


def test_a_state_s_time_on_the_link_is_taken_off_its_deadline():
    asked = []

    async def note(request):
        asked.append(json.loads(unframe(request.content)[0])["deadline_ms"])
        return await slow(request)

    async def work(upstream):
        with pytest.raises(UpstreamFailure, match="deadline"):
            await upstream.infer(REQUEST, {}, states=[STATE], within_s=0.09)
        assert asked == []
        await upstream.infer(REQUEST, {}, states=[STATE], within_s=1.0)
        sent_s = on_the_wire(len(STATE)) * 8 / 14e6
        assert asked == [pytest.approx((1.0 - 0.037 - sent_s) * 1e3)]  # less the profile's round trip

    over(note, work)


@pytest.mark.parametrize("status", [404, 405, 413, 415, 422])
def test_a_tier_that_refuses_states_is_sent_none_for_a_minute(status):
    async def work(upstream):
        with pytest.raises(UpstreamFailure) as failure:
            await upstream.infer(REQUEST, {}, states=[STATE])
        assert upstream.refuses_states(failure.value)
        assert not upstream.takes_states
        await asyncio.sleep(61)
        assert upstream.takes_states

    over(lambda request: httpx.Response(status), work)


@pytest.mark.parametrize("status", [401, 429, 500, 503, 504])
def test_a_tier_that_is_busy_or_broken_may_take_states(status):
    async def work(upstream):
        with pytest.raises(UpstreamFailure) as failure:
            await upstream.infer(REQUEST, {}, states=[STATE])
        assert not upstream.refuses_states(failure.value)
        assert upstream.takes_states

    over(lambda request: httpx.Response(status), work)
