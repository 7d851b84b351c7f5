"""Links that an operator changes while the tier runs: off by default, behind the door's key, in force at once."""

import asyncio
import json

import httpx
import pytest
from structlog.testing import capture_logs

from shared.links.profile import profile_names
from shared.links.trace import parse

KEY = "0123456789abcdef"
ON = {"link_control": True}


async def change(caller, body, to="edge", **headers):
    content = body if isinstance(body, bytes) else json.dumps(body)
    headers = {"content-type": "application/json", **headers}
    return await caller.send("PUT", f"/v1/links/{to}", content=content, headers=headers)


def changed(caller, body, to="edge", **headers):
    return asyncio.run(change(caller, body, to, **headers))


async def asked(caller, **options):
    (result,) = (await caller.ask("a fine film", policy="edge-only", **options)).json()["results"]
    return result


async def link(caller):
    return (await caller.send("GET", "/info")).json()["links"][0]


def test_links_are_fixed_unless_a_setting_says_otherwise(serve, edge):
    caller = serve(edge=edge)
    answer = changed(caller, {"profile": "lte"})
    assert answer.status_code == 404
    assert "TIERWISE_LINK_CONTROL=true" in answer.json()["detail"]
    info = caller.get("/info").json()
    assert (info["link_control"], info["link_profiles"]) == (False, [])
    assert (info["links"][0]["profile"], info["links"][0]["cut"]) == ("ideal", False)


def test_a_changed_profile_is_in_force_at_the_next_call_and_told(serve, edge):
    caller = serve(edge=edge, **ON)

    async def story():
        answer = await change(caller, {"profile": "3g+metro"})
        assert answer.status_code == 200
        assert answer.json() == await link(caller)
        slow = (await asked(caller))["hops"][0]["link"]
        await change(caller, {"profile": "ideal"})
        return answer.json(), slow, (await asked(caller))["hops"][0]["link"]

    told, slow, fast = asyncio.run(story())
    assert told == {
        "to": "edge",
        "url": "http://edge",
        "backend": "simulated",
        "profile": "3g+metro",
        "cut": False,
        "breaker": "closed",
    }
    assert (slow["profile"], fast["profile"]) == ("3g+metro", "ideal")
    assert slow["ms"] > 150  # 302 there and back, 30 of jitter each way
    assert fast["ms"] < 150
    assert caller.get("/info").json()["link_profiles"] == profile_names()


def test_a_simulated_link_follows_a_trace_until_it_is_set_again(serve, edge, monkeypatch):
    moving = parse("moving", "0,1e9,200\n60,0\n61,1e9,0\n")
    monkeypatch.setattr("shared.links.enforced.known_trace", lambda name: moving)
    caller = serve(edge=edge, **ON)

    async def story():
        assert "trace" not in await link(caller)
        told = (await change(caller, {"trace": "moving"})).json()
        assert told == await link(caller)
        slow = (await asked(caller))["hops"][0]["link"]
        assert "trace" not in (await change(caller, {"profile": "ideal"})).json()
        return told, slow, (await asked(caller))["hops"][0]["link"]

    told, slow, fast = asyncio.run(story())
    assert (told["profile"], told["trace"]) == ("ideal", "moving")
    assert (slow["profile"], slow["backend"]) == ("ideal", "simulated")
    assert slow["ms"] > 150
    assert fast["ms"] < 150


def test_only_a_simulated_link_plays_a_trace(serve, edge):
    answer = changed(serve(edge=edge, links="none", **ON), {"trace": "driving"})
    assert (answer.status_code, "tierwise link trace" in answer.json()["detail"]) == (422, True)


def test_a_cut_link_degrades_in_time_until_it_is_healed_and_probed(serve, edge):
    caller = serve(edge=edge, probe_ms=50, upstream_timeout_ms=300, **ON)

    async def story():
        assert (await change(caller, {"cut": True})).json()["cut"] is True
        reasons = [(await asked(caller))["degraded"] for _ in range(6)]
        assert reasons == ["upstream_timeout"] * 5 + ["breaker_open"]
        assert edge.requests == []
        await asyncio.sleep(0.2)
        assert (await link(caller))["breaker"] == "open"  # probes vanish too
        assert (await change(caller, {"cut": False})).json()["cut"] is False
        async with asyncio.timeout(5):
            while (await link(caller))["breaker"] == "open":
                await asyncio.sleep(0.01)
        return await asked(caller)

    result = asyncio.run(story())
    assert (result["tier"], result["degraded"]) == ("edge", None)


def test_a_deadline_holds_on_a_cut_link(serve, edge):
    caller = serve(edge=edge, **ON)

    async def story():
        await change(caller, {"cut": True})
        return await asyncio.wait_for(asked(caller, deadline_ms=1000), 3)

    assert asyncio.run(story())["degraded"] == "deadline"


def test_a_profile_ends_a_cut(serve, edge):
    caller = serve(edge=edge, **ON)
    assert changed(caller, {"cut": True}).json()["cut"] is True
    assert changed(caller, {"profile": "wifi"}).json()["cut"] is False
    assert caller.results("a fine film", policy="edge-only")[0]["degraded"] is None


@pytest.mark.parametrize(
    ("to", "body", "named"),
    [
        ("cloud", {"profile": "lte"}, "no link of this tier leads to 'cloud': it has edge"),
        ("edge", {"profile": "6g"}, "link profile '6g': choose from ideal, offline"),
        ("edge", {"profile": "lte+"}, "link profile '': choose from"),
        ("edge", {}, "expected either"),
        ("edge", {"profile": "lte", "cut": True}, "expected either"),
        ("edge", {"profile": None}, "expected either"),
        ("edge", {"profile": "lte", "trace": "driving"}, "expected either"),
        ("edge", {"trace": "dirving"}, "trace 'dirving': choose from driving"),
        ("edge", {"cut": 1}, "cut: "),
        ("edge", {"profile": "lte", "rtt": 3}, "rtt: "),
        ("edge", [], "expected a JSON object"),
    ],
)
def test_a_change_that_makes_no_sense_changes_nothing_and_says_why(serve, edge, to, body, named):
    caller = serve(edge=edge, **ON)
    answer = changed(caller, body, to)
    problem = answer.json()
    assert (answer.status_code, problem["type"]) == (422, "urn:tierwise:bad-link-change")
    assert problem["title"] == "Cannot change this link"
    assert named in problem["detail"]
    assert asyncio.run(link(caller))["profile"] == "ideal"


def test_links_that_nothing_enforces_cannot_be_changed(serve, edge):
    answer = changed(serve(edge=edge, links="none", **ON), {"cut": True})
    assert answer.status_code == 422
    assert "TIERWISE_LINKS=none" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"{", {}, 400),
        (b'{"profile": "lte"}', {"content-type": "text/plain"}, 415),
        (b'{"profile": "' + b"l" * 2000 + b'"}', {}, 413),
    ],
)
def test_what_is_no_short_json_is_refused_with_a_problem_document(serve, edge, body, headers, status):
    answer = changed(serve(edge=edge, **ON), body, **headers)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"


def test_a_tier_that_stops_changes_no_link(serve, edge):
    caller = serve(edge=edge, **ON)
    caller.app.state.draining = True
    assert changed(caller, {"cut": True}).status_code == 503


@pytest.mark.parametrize("on", [True, False])
def test_a_change_needs_the_door_s_key(serve, edge, tmp_path, on):
    for name, key in (("door", KEY), ("tier", KEY[::-1])):
        (tmp_path / name).write_text(key)
    files = {"door_key_file": tmp_path / "door", "key_file": tmp_path / "tier"}
    caller = serve(edge=edge, link_control=on, **files)
    body = {"profile": "lte"}
    for headers in ({}, {"authorization": f"Bearer {KEY[::-1]}"}):
        assert changed(caller, body, **headers).status_code == 401
    assert changed(caller, body, authorization=f"Bearer {KEY}").status_code == (200 if on else 404)


def test_a_change_is_logged_once_with_who_made_it_and_without_the_key(serve, edge, tmp_path):
    (tmp_path / "key").write_text(KEY)
    caller = serve(edge=edge, door_key_file=tmp_path / "key", **ON)
    with capture_logs() as logs:
        for body in ({"profile": "lte"}, {"cut": True}, {"profile": "6g"}):
            changed(caller, body, authorization=f"Bearer {KEY}")
    assert [line for line in logs if line["event"] == "link_changed"] == [
        {"event": "link_changed", "log_level": "warning", "tier": "end", "to": "edge", "by": "127.0.0.1", **change}
        for change in ({"profile": "lte"}, {"cut": True})
    ]
    assert KEY not in str(logs)


def test_the_openapi_document_describes_a_change_with_examples(serve, edge):
    document = serve(edge=edge).get("/openapi.json").json()
    put = document["paths"]["/v1/links/{to}"]["put"]
    assert put["parameters"][0]["name"] == "to"
    assert {"200", "401", "404", "422"} <= set(put["responses"])
    assert document["components"]["schemas"]["LinkChange"]["examples"] == [{"profile": "lte"}, {"cut": True}]


def test_replicas_are_listed_and_counted_and_one_that_fails_is_told(serve, edge):
    """Both stand for one neighbour; the double of the second one's address fails."""

    def second_is_down(request):
        if request.url.port == 8082:
            raise httpx.ConnectError("down", request=request)
        return edge(request)

    settings = {"upstreams": {"edge": "http://edge:8081|http://edge:8082"}, "probe_ms": 600_000}
    caller = serve(edge=second_is_down, **settings)
    for _ in range(4):
        assert caller.results("a fine film", policy="edge-only")[0]["degraded"] is None
    link = next(link for link in caller.get("/info").json()["links"] if link["to"] == "edge")
    assert [(one["address"], one["breaker"]) for one in link["replicas"]] == [
        ("http://edge:8081", "closed"),
        ("http://edge:8082", "open"),
    ]
    assert link["breaker"] == "closed"
    samples = caller.samples()
    assert samples["tierwise_replicas", "end-edge", "in"] == samples["tierwise_replicas", "end-edge", "out"] == 1
