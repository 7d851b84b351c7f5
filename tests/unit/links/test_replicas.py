"""Several replicas of one tier: which is asked, which is left out, and what a call does that got no answer."""

import asyncio
import json
from collections import Counter
from types import SimpleNamespace

import httpx
import pytest

from shared.contracts import WAITING, InferRequest
from shared.errors import UpstreamFailure
from shared.links.http import MOST, UpstreamHttp
from shared.links.profile import Backend
from shared.links.upstream import MOVES, Upstream
from tests.clocks import now, run
from tests.hops import a_hop

REQUEST = InferRequest(
    request_id="r", call="c", seed="s", indices=[0], texts=[{"text": "a fine film"}], policy={"name": "collaborative"}
)
URLS = [f"http://cloud{n}:8082" for n in range(4)]


class Tier:
    """Replicas by host. `does[host]` is a status or an error instead of an answer, `waits[host]` what it reports."""

    def __init__(self, urls=URLS, lookup=None, **options):
        self.does, self.waits, self.takes_s, self.asked, self.probed, self.seen = {}, {}, {}, [], [], []
        self.retries = 0
        self.upstream = Upstream(
            source="end",
            target="cloud",
            url="|".join(urls),
            backend=Backend.NONE,
            profile_name="ideal",
            transport=httpx.MockTransport(self.answer),
            clock=now,
            lookup=lookup,
            count_retry=self.retry,
            **{"timeout_s": 5.0, "probe_s": 600.0, **options},
        )

    def retry(self):
        self.retries += 1

    async def answer(self, request):
        host, asked = request.url.host, json.loads(request.content)
        (self.asked if asked["indices"] else self.probed).append(host)
        self.seen.append(request)
        await asyncio.sleep(self.takes_s.get(host, 0))
        does = self.does.get(host)
        headers = {WAITING: str(self.waits[host])} if host in self.waits else {}
        if isinstance(does, int):
            return httpx.Response(does, headers=headers, content=b"{}")
        if does is not None:
            raise does("gone", request=request)
        rows = [{"index": at, "hops": [a_hop().model_dump(mode="json")]} for at in asked["indices"]]
        answer = {"version": asked["version"], "call": asked["call"], "rows": rows, "total_ms": 0.0}
        return httpx.Response(200, headers=headers, json=answer)

    async def call(self, **options):
        return await self.upstream.infer(REQUEST, {}, **options)

    async def failure(self, **options):
        with pytest.raises(UpstreamFailure) as caught:
            await self.call(**options)
        return caught.value.reason


def told(story, *given, **options):
    """Run a story about a tier, in virtual time; the tier afterwards."""

    async def all_of_it():
        tier = Tier(*given, **options)
        await story(tier)
        await tier.upstream.close()
        return tier

    return run(all_of_it())


async def times(tier, count):
    for _ in range(count):
        await tier.call()


def test_equal_replicas_take_turns():
    tier = told(lambda tier: times(tier, 8))
    assert Counter(tier.asked) == dict.fromkeys(["cloud0", "cloud1", "cloud2", "cloud3"], 2)


def test_the_one_that_reports_the_least_work_is_asked():
    async def story(tier):
        tier.waits = {"cloud0": 3.0, "cloud1": 1.0}
        await times(tier, 2)  # both have said so now
        await times(tier, 3)
        await asyncio.sleep(2.5)  # by now cloud1 has worked it off, and cloud0 has not
        await tier.call()

    assert told(story, URLS[:2]).asked == ["cloud0", "cloud1", "cloud1", "cloud1", "cloud1", "cloud1"]


def test_calls_under_way_are_load():
    async def story(tier):
        tier.takes_s = {"cloud0": 10.0}
        slow = asyncio.ensure_future(tier.call())
        await asyncio.sleep(0.1)
        await times(tier, 3)
        assert tier.upstream.under_way_s == 0  # a replica that hangs is no link that hangs
        slow.cancel()

    assert told(story, URLS[:2]).asked == ["cloud0", "cloud1", "cloud1", "cloud1"]


@pytest.mark.parametrize(
    ("error", "there"),
    [(httpx.ConnectError, 1), (httpx.ReadError, 2), (httpx.RemoteProtocolError, 2)],  # a warm connection may be dead
)
def test_a_call_that_gets_no_answer_goes_to_another_replica_and_the_first_one_is_left_out(error, there):
    async def story(tier):
        tier.does["cloud0"] = error
        await times(tier, 6)

    tier = told(story, URLS[:3])
    assert Counter(tier.asked) == {"cloud0": there, "cloud1": 3, "cloud2": 3}
    assert tier.retries == there


def test_a_call_that_would_wait_for_a_connection_is_refused_at_once_and_blames_nobody():
    async def story(tier):
        tier.takes_s = dict.fromkeys(["cloud0", "cloud1"], 1.0)
        calls = [asyncio.ensure_future(tier.call()) for _ in range(2 * MOST)]
        await asyncio.sleep(0.1)
        assert await tier.failure() == "upstream_refused"
        assert now() == pytest.approx(0.1)
        await asyncio.gather(*calls)
        await tier.call()
        assert not any(one.breaker.open for one in tier.upstream.replicas.all)

    told(story, URLS[:2])


def test_a_replica_that_hangs_costs_one_call():
    async def story(tier):
        tier.takes_s = {"cloud0": 60.0}
        assert await tier.failure() == "upstream_timeout"
        await times(tier, 5)

    assert Counter(told(story, URLS[:2]).asked) == {"cloud0": 1, "cloud1": 5}


@pytest.mark.parametrize(("status", "left_out"), [(429, False), (503, True), (401, True)])
def test_a_call_that_is_refused_for_now_goes_to_another_replica(status, left_out):
    async def story(tier):
        tier.does["cloud0"] = status
        await times(tier, 4)

    tier = told(story, URLS[:2])
    assert tier.upstream.replicas.all[0].breaker.open == left_out
    assert Counter(tier.asked) == {"cloud0": 1 if left_out else 4, "cloud1": 4}


@pytest.mark.parametrize(("status", "reason"), [(500, "upstream_invalid"), (422, "upstream_refused")])
def test_an_answer_of_another_kind_is_an_answer(status, reason):
    async def story(tier):
        tier.does["cloud0"] = status
        assert await tier.failure() == reason

    assert told(story).asked == ["cloud0"]


def test_a_call_moves_a_bounded_number_of_times():
    async def story(tier):
        tier.does = {f"cloud{n}": 503 for n in range(4)}
        assert await tier.failure() == "upstream_refused"

    assert len(told(story).asked) == 1 + MOVES


def test_a_call_passes_all_replicas_that_are_not_there():
    async def story(tier):
        tier.does = dict.fromkeys(["cloud0", "cloud1", "cloud2"], httpx.ConnectError)
        await tier.call()

    assert told(story).asked == ["cloud0", "cloud1", "cloud2", "cloud3"]


def test_the_last_replica_is_left_out_only_once_it_failed_again_and_again():
    async def story(tier):
        tier.does = dict.fromkeys(["cloud0", "cloud1"], httpx.ConnectError)
        assert [await tier.failure() for _ in range(6)] == 5 * ["upstream_unavailable"] + ["breaker_open"]
        assert tier.upstream.is_down
        await asyncio.sleep(600)
        tier.does = {}
        await asyncio.sleep(1200)  # both were probed, without texts
        assert not tier.upstream.is_down
        await times(tier, 2)

    tier = told(story, URLS[:2])
    assert Counter(tier.asked)["cloud0"] == 2  # ejected at once, and asked again once it was well
    assert set(tier.probed) == {"cloud0", "cloud1"}


def test_a_deadline_holds_for_all_of_a_call():
    async def story(tier):
        tier.does, tier.takes_s = {"cloud0": httpx.ReadError}, {"cloud0": 0.2, "cloud1": 0.2}
        assert await tier.failure(within_s=0.3) == "deadline"
        assert now() == pytest.approx(0.3)

    told(story, URLS[:2])


def test_each_replica_is_told_the_time_that_is_left():
    async def story(tier):
        tier.does, tier.takes_s = {"cloud0": httpx.ReadError}, {"cloud0": 0.2}
        await tier.call(within_s=2.0)
        told_s = [json.loads(request.content)["deadline_ms"] / 1e3 for request in tier.seen]
        assert now() > 0.1
        assert told_s[0] - told_s[-1] == pytest.approx(now())

    told(story, URLS[:2])


def test_a_call_does_not_move_where_no_time_is_left():
    async def story(tier):
        tier.takes_s = {"cloud0": 0.25, "cloud1": 0.2}
        await tier.call()  # so it is known what the link takes
        tier.does["cloud1"] = httpx.ConnectError
        assert await tier.failure(within_s=tier.upstream.link_s + 0.1) == "upstream_unavailable"

    tier = told(story, URLS[:2])
    assert tier.retries == 0
    assert Counter(tier.asked)["cloud0"] == 1


def test_a_deadline_that_is_too_short_takes_no_turn():
    async def story(tier):
        for _ in range(3):
            await tier.call()
            assert await tier.failure(within_s=-1.0) == "deadline"

    assert told(story, URLS[:2]).asked == ["cloud0", "cloud1", "cloud0"]


def test_the_time_on_the_link_is_that_of_the_call_that_was_answered():
    async def story(tier):
        tier.does, tier.takes_s = {"cloud0": httpx.ReadError}, {"cloud0": 2.0, "cloud1": 0.25}
        assert (await tier.call()).link_s == pytest.approx(0.25)

    told(story, URLS[:2])


# -- a name that stands for several -----------------------------------------------------------------------------------


def named(*found):
    """A lookup with these results, one after the other; then the last one for ever."""
    left = list(found)

    async def lookup(host, port):
        assert (host, port) == ("cloud", 8082)
        result = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(result, Exception):
            raise result
        return result

    return lookup


def test_a_name_is_looked_up_again_and_again():
    async def story(tier):
        await tier.call()  # by name, as nothing is known yet
        await asyncio.sleep(0)
        await times(tier, 4)
        await asyncio.sleep(6)
        await tier.call()  # begins the second lookup
        await asyncio.sleep(0)
        await times(tier, 4)
        await asyncio.sleep(6)
        await tier.call()  # the third one fails
        await asyncio.sleep(0)
        await times(tier, 2)

    lookup = named(["10.0.0.1", "10.0.0.2"], ["10.0.0.2", "10.0.0.3"], OSError("no answer"))
    tier = told(story, ["http://cloud:8082"], lookup)
    assert tier.asked[0] == "cloud"
    assert tier.asked[1:5] == ["10.0.0.1", "10.0.0.2"] * 2
    assert set(tier.asked[6:]) == {"10.0.0.2", "10.0.0.3"}
    assert {request.headers["host"] for request in tier.seen} == {"cloud:8082"}


def test_one_address_is_connected_to_by_name():
    async def story(tier):
        await tier.call()
        await asyncio.sleep(6)
        await tier.call()

    assert told(story, ["http://cloud:8082"], named(["10.0.0.1"])).asked == ["cloud", "cloud"]


def test_calls_to_a_replica_that_is_gone_are_answered():
    async def story(tier):
        tier.takes_s = {"10.0.0.1": 30.0}
        await tier.call()
        await asyncio.sleep(0)
        slow = asyncio.ensure_future(tier.call())
        await asyncio.sleep(6)
        await tier.call()  # the name no longer stands for 10.0.0.1
        await asyncio.sleep(1)
        assert not slow.done()
        assert (await slow).rows

    told(story, ["http://cloud:8082"], named(["10.0.0.1", "10.0.0.2"], ["10.0.0.2"]), timeout_s=60.0)


@pytest.mark.parametrize("url", ["http://127.0.0.1:8082", "http://[::1]:8082", "http://localhost:8082"])
def test_an_address_is_not_looked_up(url):
    async def lookup(host, port):
        pytest.fail(f"{host} is looked up")

    told(lambda tier: times(tier, 2), [url], lookup)


def test_certificates_hold_for_the_name():
    seen = SimpleNamespace()

    def handler(request):
        seen.request = request
        return httpx.Response(200, content=b"c0")

    async def story():
        http = UpstreamHttp(
            target="cloud",
            url="https://cloud.example/tier",
            at="fd00::1",
            link=None,
            timeout_s=1,
            transport=httpx.MockTransport(handler),
        )
        await http.post(b"", {}, call="c0", limit_bytes=10)

    asyncio.run(story())
    assert seen.request.url == "https://[fd00::1]/tier/v1/infer"
    assert seen.request.headers["host"] == "cloud.example"
    assert seen.request.extensions["sni_hostname"] == "cloud.example"
