"""A missing, late or broken next tier is never an error: the answer at hand, and why it is less than planned."""

import asyncio
import itertools
import json
import threading
import time

import httpx
import pytest

GOOD = {"version": 2, "call": "c", "rows": [], "total_ms": 0.0}
POLICIES = [
    pytest.param({"name": "collaborative", "offload_threshold": 1.0}, id="after inference"),
    pytest.param("edge-only", id="before inference"),
]


def breaks(error):
    def fail(request):
        raise error("gone", request=request)

    return fail


def answers(status=200, content=b"", **headers):
    return lambda request: httpx.Response(status, content=content, headers=headers)


def altered(edge, change):
    """A good answer, changed."""

    def answer(request):
        edge(request)
        return httpx.Response(200, content=json.dumps(change(edge.answer(edge.bodies[-1]))))

    return answer


async def sleeps(request):
    await asyncio.sleep(30)


def assert_answered_here(caller, policy, reason):
    asked = time.perf_counter()
    (result,) = caller.results("a fine film", policy=policy)
    assert time.perf_counter() - asked < 5
    assert result["degraded"] == reason
    assert result["tier"] == "end"
    assert [hop["tier"] for hop in result["hops"]] == ["end"]
    assert result["hops"][0]["weight"] == 1.0
    (alone,) = caller.results("a fine film", policy="end-only")
    assert alone["degraded"] is None
    if isinstance(policy, str):  # at full depth, as end-only
        assert result["probabilities"] == alone["probabilities"]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(
    ("edge", "reason"),
    [
        pytest.param(breaks(httpx.ConnectError), "upstream_unavailable", id="refuses the connection"),
        pytest.param(breaks(httpx.ReadError), "upstream_unavailable", id="resets the connection"),
        pytest.param(breaks(httpx.RemoteProtocolError), "upstream_unavailable", id="hangs up in the middle"),
        pytest.param(sleeps, "upstream_timeout", id="never answers"),
        pytest.param(answers(429), "upstream_refused", id="429"),
        pytest.param(answers(503), "upstream_refused", id="503"),
        pytest.param(answers(413), "upstream_refused", id="413"),
        pytest.param(answers(422), "upstream_refused", id="422"),
        pytest.param(answers(404), "upstream_refused", id="404"),
        pytest.param(answers(500), "upstream_invalid", id="500"),
        pytest.param(answers(302, location="http://elsewhere"), "upstream_invalid", id="302"),
        pytest.param(answers(200, b"<html>"), "upstream_invalid", id="a web page"),
        pytest.param(answers(200, b""), "upstream_invalid", id="nothing"),
        pytest.param(answers(200, b"\xff\xfe"), "upstream_invalid", id="bytes"),
        pytest.param(answers(200, b'{"rows": []}'), "upstream_invalid", id="a field is missing"),
        pytest.param(answers(200, json.dumps({**GOOD, "more": 1}).encode()), "upstream_invalid", id="a field too many"),
        pytest.param(answers(200, json.dumps(GOOD).encode()), "upstream_invalid", id="a row is missing"),
    ],
)
def test_a_broken_edge_leaves_the_ends_answer(serve, edge, reason, policy):
    assert_answered_here(serve(edge=edge, upstream_timeout_ms=100), policy, reason)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        pytest.param(lambda a: {**a, "version": 3}, "upstream_invalid", id="another contract version"),
        pytest.param(lambda a: {**a, "rows": a["rows"] * 2}, "upstream_invalid", id="a row too many"),
        pytest.param(lambda a: {**a, "rows": []}, "upstream_invalid", id="no rows"),
        pytest.param(lambda a: {**a, "call": "0123456789abcdef"}, "upstream_invalid", id="an answer to another call"),
        pytest.param(lambda a: {**a, "rows": [{**a["rows"][0], "index": 1}]}, "upstream_invalid", id="another index"),
        pytest.param(
            lambda a: {**a, "rows": [{"index": 0, "hops": "none"}]}, "upstream_invalid", id="hops of a wrong type"
        ),
        pytest.param(lambda a: {**a, "total_ms": float("nan")}, "upstream_invalid", id="NaN"),
        pytest.param(
            lambda a: {
                **a,
                "rows": [{"index": 0, "hops": [{**a["rows"][0]["hops"][0], "probabilities": {"good": 1.0}}]}],
            },
            "upstream_invalid",
            id="other labels",
        ),
        *(
            pytest.param(
                lambda a, wrong=wrong: {**a, "rows": [{"index": 0, "hops": [{**a["rows"][0]["hops"][0], **wrong}]}]},
                "upstream_invalid",
                id=f"a hop with {wrong}"[:60],
            )
            for wrong in (
                {"confidence": 99.0},
                {"confidence": 0.2},
                {"label": "<b>"},
                {"label": "negative"},
                {"exit_layer": 0},
                {"exit_layer": 10**30},
                {"layers": 7, "exit_layer": 7},
                {"words_in": -1},
                {"tier": "end"},
                {"tier": "moon"},
                {"offloaded_to": "moon"},
                {"offload_probability": 2.0},
                {"exits": [{"good": 1.0}]},
                {"timings_ms": {"infer": -1.0}},
                {"draw": 0.123},  # of another text, or of another request
                {"draw": None},
                {"words_in": 4},
                {"words": [{"word": word, "importance": 0.1, "kept": True} for word in ("a", "strange", "film")]},
            )
        ),
        pytest.param(
            lambda a: {**a, "rows": [{"index": 0, "hops": a["rows"][0]["hops"] * 100}]},
            "upstream_invalid",
            id="100 times the same",
        ),
        pytest.param(lambda a: {**a, "total_ms": -1e9}, "upstream_invalid", id="less than no time"),
        pytest.param(
            lambda a: {**a, "rows": [{"index": 0, "hops": []}]}, "upstream_refused", id="it could not read the text"
        ),
        pytest.param(
            lambda a: {**a, "rows": [{"index": 0, "hops": [], "degraded": "upstream_timeout"}]},
            "upstream_timeout",
            id="it only relays, and its own next tier was late",
        ),
    ],
)
def test_a_wrong_answer_leaves_the_ends_own(serve, edge, change, reason, policy):
    assert_answered_here(serve(edge=altered(edge, change)), policy, reason)


def test_cloud_only_with_the_cloud_down_is_answered_by_the_end(serve, edge):
    caller = serve(edge=edge, cloud=breaks(httpx.ConnectError))
    assert_answered_here(caller, "cloud-only", "upstream_unavailable")
    assert edge.requests == []


def test_random_with_every_neighbour_down_loses_no_text(serve):
    caller = serve(edge=breaks(httpx.ConnectError), cloud=answers(500))
    results = caller.results(["a fine film"] * 32, policy="random", seed=1)
    assert {result["degraded"] for result in results} == {None, "upstream_unavailable", "upstream_invalid"}
    assert {result["tier"] for result in results} == {"end"}


def test_an_answer_degraded_further_on_keeps_its_reason(serve, edge, always):
    def degrade(answer):
        return {**answer, "rows": [{**row, "degraded": "upstream_refused"} for row in answer["rows"]]}

    (result,) = serve(edge=altered(edge, degrade)).results("a fine film", policy=always)
    assert [hop["tier"] for hop in result["hops"]] == ["end", "edge"]
    assert result["degraded"] == "upstream_refused"


def test_a_text_that_the_edge_cannot_read_leaves_the_others_alone(serve, edge, always):
    def skip_second(answer):
        return {**answer, "rows": [row if i != 1 else {**row, "hops": []} for i, row in enumerate(answer["rows"])]}

    results = serve(edge=altered(edge, skip_second)).results(["a film", "a plot", "a story"], policy=always)
    assert [result["degraded"] for result in results] == [None, "upstream_refused", None]
    assert [result["tier"] for result in results] == ["edge", "end", "edge"]


# -- deadline and timeout -------------------------------------------------------------------------------------------


def test_a_deadline_cuts_the_call_short_and_the_answer_at_hand_goes_out(serve, always):
    caller = serve(edge=sleeps)
    asked = time.perf_counter()
    (result,) = caller.results("a fine film", policy=always, deadline_ms=1000)
    assert time.perf_counter() - asked > 0.9
    assert result["degraded"] == "deadline"
    assert result["tier"] == "end"


def test_nothing_is_sent_over_a_link_that_takes_longer_than_the_deadline_leaves(serve, edge, always):
    caller = serve(edge=edge, link_profiles={"edge": "nbiot"})  # 1.5 s there and back
    (result,) = caller.results("a fine film", policy=always, deadline_ms=1000)
    assert result["degraded"] == "deadline"
    assert edge.requests == []


def test_a_policy_that_waits_for_a_late_tier_before_any_inference_is_answered_here_in_time(serve):
    """What the model here is measured to take is kept back; before anything is measured, half of what is left."""
    caller = serve(edge=sleeps)
    for _ in range(3):
        (result,) = caller.results("a fine film", policy="edge-only", deadline_ms=1000)
        assert (result["tier"], result["degraded"]) == ("end", "deadline")
        assert result["exit_layer"] == 3


def test_time_is_kept_back_for_all_that_are_away_at_once(serve, slow_classifier):
    """They come back together, and the model takes one after another."""

    async def sleeps(request):
        await asyncio.sleep(30)

    caller = serve(edge=sleeps, classifier=slow_classifier)
    slow_classifier.engine.seconds = 0.02
    for _ in range(3):
        caller.results("a fine film", policy="end-only")

    async def story():
        return await asyncio.gather(
            *(caller.ask("a fine film", policy="edge-only", deadline_ms=3000) for _ in range(8))
        )

    answers = asyncio.run(story())
    assert {answer.status_code for answer in answers} == {200}
    assert {answer.json()["results"][0]["degraded"] for answer in answers} == {"deadline"}


def test_a_late_call_is_cancelled(serve):
    cancelled = []

    async def late(request):
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            cancelled.append(request)
            raise

    serve(edge=late).results("a fine film", policy="edge-only", deadline_ms=300)
    assert len(cancelled) == 1


def test_the_link_s_time_is_taken_off_the_deadline(serve, edge, always):
    """Its profile's until it is measured, then what it took."""
    caller = serve(edge=edge, links="none", link_profiles={"edge": "nbiot"})  # 1.5 s there and back, it says
    for _ in range(2):
        caller.results("a fine film", policy=always, deadline_ms=60_000)
    assert 57_000 < edge.bodies[0]["deadline_ms"] < 58_500
    assert 59_000 < edge.bodies[1]["deadline_ms"] < 60_000


def test_a_service_may_have_a_deadline_of_its_own(serve, edge, always):
    caller = serve(edge=edge, deadline_ms=20_000)
    caller.results("a fine film", policy=always)
    caller.results("a fine film", policy=always, deadline_ms=5_000)
    assert [4_000 < body["deadline_ms"] < upto for body, upto in zip(edge.bodies, (20_000, 5_000), strict=True)]
    assert edge.bodies[0]["deadline_ms"] > 15_000


def test_an_upstream_that_cannot_answer_in_time_says_so_as_the_deadline(serve, always):
    (result,) = serve(edge=answers(504)).results("a fine film", policy=always, deadline_ms=5_000)
    assert result["degraded"] == "deadline"


@pytest.mark.parametrize("policy", POLICIES)
def test_time_that_runs_out_between_layers_leaves_the_deepest_exit_reached(serve, edge, slow_classifier, clock, policy):
    """A layer takes 20 s: 50 s are enough for two."""
    edge_or_none = edge if isinstance(policy, dict) else breaks(httpx.ConnectError)
    caller = serve(edge=edge_or_none, classifier=slow_classifier, clock=clock)
    slow_classifier.engine.seconds, slow_classifier.engine.sleep = 20.0, clock.sleep
    response = caller.classify(["a fine film", "a plot"], policy=policy, deadline_ms=50_000, explain=True)
    for result in response.json()["results"]:
        assert (result["tier"], result["exit_layer"]) == ("end", 2)
        assert result["degraded"] == ("deadline" if isinstance(policy, dict) else "upstream_unavailable")
        assert len(result["hops"][0]["exits"]) == 2
    assert edge.bodies == []


def test_a_cut_pass_is_calibrated_as_the_exit_it_left_by(serve, slow_classifier, clock):
    """Without an exit rule only the last exit is looked at: here the second, with its own temperature."""
    caller = serve(classifier=slow_classifier, clock=clock)
    (whole,) = caller.results("a fine film", policy="end-only", explain=True)
    slow_classifier.engine.seconds, slow_classifier.engine.sleep = 20.0, clock.sleep
    (cut,) = caller.results("a fine film", policy="end-only", deadline_ms=50_000)
    assert cut["exit_layer"] == 2
    assert cut["probabilities"] == pytest.approx(whole["hops"][0]["exits"][1]["probabilities"], abs=1e-5)


@pytest.fixture
def hangs_in_layer(slow_classifier):
    """From now on the model hangs in its layer `n`, and in every later one, until the test is over."""
    go = threading.Event()

    def begin(n):
        layers = itertools.count(1)
        slow_classifier.engine.sleep = lambda _: next(layers) < n or go.wait(30)

    yield begin
    go.set()


@pytest.mark.parametrize("explain", [False, True])
@pytest.mark.parametrize("policy", ["end-only", {"name": "collaborative", "theta": 1e-9}])
def test_a_layer_that_outlasts_the_deadline_leaves_the_deepest_exit_reached(
    serve, slow_classifier, hangs_in_layer, clock, policy, explain
):
    caller = serve(classifier=slow_classifier, clock=clock)
    asked = {"inputs": ["a fine film", "a plot"], "policy": policy}
    whole = caller.results(**asked, explain=True)
    hangs_in_layer(3)
    cut = caller.results(**asked, explain=explain, deadline_ms=1000)
    assert [result["exit_layer"] for result in cut] == [2, 2]
    for result, full in zip(cut, whole, strict=True):
        assert result["degraded"] == "deadline"
        assert result["probabilities"] == full["hops"][0]["exits"][1]["probabilities"]
        assert not explain or len(result["hops"][0]["exits"]) == 2


def test_a_stream_whose_deadline_passes_within_a_layer_ends_with_the_exits_it_told(
    serve, slow_classifier, hangs_in_layer, clock
):
    caller = serve(classifier=slow_classifier, clock=clock)
    hangs_in_layer(3)
    policy, accept = {"name": "collaborative", "theta": 1e-9}, {"accept": "text/event-stream"}
    stream = caller.classify("a fine film", accept, policy=policy, deadline_ms=1000).text
    told = [line.removeprefix("event: ") for line in stream.splitlines() if line.startswith("event: ")]
    assert told == ["exit", "exit", "hop", "final"]
    assert json.loads(stream.rpartition("data: ")[2])["results"][0]["degraded"] == "deadline"


def test_a_first_layer_that_outlasts_the_deadline_leaves_no_answer(serve, slow_classifier, hangs_in_layer, clock):
    caller = serve(classifier=slow_classifier, clock=clock)
    hangs_in_layer(1)
    assert caller.classify(["a fine film", "a plot"], policy="end-only", deadline_ms=300).status_code == 504


# -- breaker --------------------------------------------------------------------------------------------------------


def test_an_upstream_that_fails_again_and_again_is_left_alone_and_probed_until_it_is_well(serve, edge, always):
    broken = [True]
    asked = []

    def answer(request):
        asked.append(json.loads(request.content))
        return httpx.Response(500) if broken[0] else edge(request)

    caller = serve(edge=answer, probe_ms=50)

    async def story():
        reasons = []
        for _ in range(8):
            reasons.append((await caller.ask("a fine film", policy=always)).json()["results"][0]["degraded"])
        assert reasons == ["upstream_invalid"] * 5 + ["breaker_open"] * 3
        assert (await caller.send("GET", "/info")).json()["links"][0]["breaker"] == "open"
        assert "breaker_open{" in (await caller.send("GET", "/metrics")).text
        while len(asked) < 7:  # probes after 50, 150 and 350 ms
            await asyncio.sleep(0.01)
        assert {len(body["texts"]) for body in asked[5:]} == {0}  # no user's request is a probe
        assert (await caller.ask("a fine film", policy=always)).json()["results"][0]["degraded"] == "breaker_open"
        broken[0] = False
        while (await caller.send("GET", "/info")).json()["links"][0]["breaker"] == "open":
            await asyncio.sleep(0.01)
        return (await caller.ask("a fine film", policy=always)).json()["results"][0], await caller.send("GET", "/info")

    result, info = asyncio.run(story())
    assert (result["degraded"], result["tier"]) == (None, "edge")
    assert info.json()["links"][0]["breaker"] == "closed"
    assert caller.samples()["tierwise_breaker_open", "end-edge"] == 0


def test_an_unsure_text_that_cannot_be_sent_on_runs_all_layers(serve, always):
    unsure = {**always, "theta": 1.0, "patience": 1, "exit_min_confidence": 1.0, "exit_when_unsure": True}
    caller = serve(edge=answers(500), probe_ms=60_000)
    assert caller.results("a fine film", policy=unsure, max_tier="end")[0]["exit_layer"] == 3
    layers = [caller.results("a fine film", policy=unsure)[0]["exit_layer"] for _ in range(7)]
    assert layers == [2] * 5 + [3] * 2  # once the breaker is open


@pytest.mark.parametrize("status", [413, 422, 429])
def test_what_is_a_requests_own_fault_opens_no_breaker(serve, always, status):
    caller = serve(edge=answers(status))
    assert {caller.results("a film", policy=always)[0]["degraded"] for _ in range(8)} == {"upstream_refused"}


def test_a_deadline_shorter_than_the_upstream_usually_takes_opens_no_breaker(serve, edge, always):
    async def slow(request):
        await asyncio.sleep(0.8)
        return edge(request)

    caller = serve(edge=slow)
    assert caller.results("a film", policy=always)[0]["degraded"] is None
    assert {caller.results("a film", policy=always, deadline_ms=400)[0]["degraded"] for _ in range(6)} == {"deadline"}
    assert caller.results("a film", policy=always)[0]["degraded"] is None


def test_what_is_left_of_the_deadline_travels(serve, edge, always):
    caller = serve(edge=edge)
    caller.results("a fine film", policy=always, deadline_ms=5000)
    assert 0 < edge.bodies[0]["deadline_ms"] < 5000
    caller.results("a fine film", policy=always)
    assert edge.bodies[1]["deadline_ms"] is None


def test_an_outage_of_the_simulated_link_is_an_unavailable_tier(serve, edge, always):
    caller = serve(edge=edge, link_profiles={"edge": "offline"})
    assert_answered_here(caller, always, "upstream_unavailable")
    assert edge.requests == []
