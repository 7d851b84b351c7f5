"""An answer that grows: its events, its end, and what it is where it cannot begin."""

import asyncio
import json

import httpx
import pytest
from fastapi import Response
from structlog.testing import capture_logs

from shared.contracts import Exit, ExitEvent, Hop, HopEvent
from shared.pipeline.watch import Watch
from shared.web.http11 import ABORT
from shared.web.stream import BEAT_S, READ_S, WAITING, Events
from tests.clocks import now, run

ACCEPT = {"accept": "text/event-stream"}
UNREADABLE = "\u0e01\u0e02\u0e03"  # the tiny tokenizer knows none of these letters


def events_of(response):
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    return parsed(response.text)


def parsed(stream):
    found = []
    for block in stream.split("\n\n")[:-1]:
        if not block.startswith(":"):
            kind, data = block.split("\n")
            found.append((kind.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return found


def of(kind, events):
    return [data for each, data in events if each == kind]


def timeless(answer):
    """An answer without its times."""
    if isinstance(answer, dict):
        return {key: timeless(value) for key, value in answer.items() if key not in ("timings_ms", "ms")}
    return [timeless(value) for value in answer] if isinstance(answer, list) else answer


# -- events ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("explain", [False, True])
def test_the_last_event_is_the_plain_answer(serve, edge, always, sentences, explain):
    caller = serve(edge=edge)
    asked = {"inputs": sentences[:3], "policy": always, "seed": 3, "explain": explain}
    plain = caller.classify(**asked, headers={"x-request-id": "r-1"}).json()
    events = events_of(caller.classify(**asked, headers={"x-request-id": "r-1", **ACCEPT}))
    assert [kind for kind, _ in events].count("final") == 1
    assert events[-1][0] == "final"
    sizes = ("request_bytes", "response_bytes")  # the call's own id and times differ in length
    final, plain = (json.loads(json.dumps(timeless(answer))) for answer in (events[-1][1], plain))
    for answer in (final, plain):
        for result in answer["results"]:
            for size in sizes:
                result["hops"][1]["link"].pop(size)
    assert final == plain


def test_every_exit_comes_before_its_hop_and_as_the_answer_has_it(alone, sentences):
    events = events_of(alone.classify(sentences[:4], ACCEPT, explain=True, seed=1))
    final = events[-1][1]
    for result in final["results"]:
        own = [(kind, data) for kind, data in events if data.get("index") == result["index"]]
        assert [kind for kind, _ in own] == ["exit"] * result["exit_layer"] + ["hop"]
        told = [{key: data[key] for key in ("exit", "probabilities", "confidence")} for _, data in own[:-1]]
        assert told == result["hops"][0]["exits"]
        assert own[-1][1]["hop"] == {**result["hops"][0], "weight": 0.0}
    for kind, model in (("exit", ExitEvent), ("hop", HopEvent)):
        for data in of(kind, events):
            model.model_validate_json(json.dumps(data))


def test_times_never_go_back(alone, sentences):
    times = [data["ms"] for kind, data in events_of(alone.classify(sentences[:4], ACCEPT)) if kind != "final"]
    assert times == sorted(times)
    assert times[0] > 0


def test_an_exit_says_whether_the_rule_was_met(alone):
    policy = {"name": "collaborative", "theta": 1.0, "patience": 1}  # met as soon as two exits are there
    assert [e["met"] for e in of("exit", events_of(alone.classify("a fine film", ACCEPT, policy=policy)))] == [
        False,
        True,
    ]
    never = {**policy, "theta": 1e-9}
    events = events_of(alone.classify("a fine film", ACCEPT, policy=never))
    assert [e["met"] for e in of("exit", events)] == [False, False, None]
    (only,) = of("exit", events_of(alone.classify("a fine film", ACCEPT, policy="end-only")))
    assert (only["exit"], only["met"]) == (3, None)


def test_exits_of_further_tiers_come_with_their_hop_if_explained(serve, edge, always):
    hop = edge.hop

    def explained(text, index, seed):
        exits = [{"exit": n, "probabilities": {"negative": 0.25, "positive": 0.75}, "confidence": 0.75} for n in (1, 2)]
        return {**hop(text, index, seed), "exits": exits}

    caller = serve(edge=edge)
    plain = events_of(caller.classify("a fine film", ACCEPT, policy=always))
    assert {e["tier"] for e in of("exit", plain)} == {"end"}
    assert [e["hop"]["tier"] for e in of("hop", plain)] == ["end", "edge"]
    edge.hop = explained
    events = events_of(caller.classify("a fine film", ACCEPT, policy=always, explain=True))
    afar = [(kind, data.get("exit"), data.get("met")) for kind, data in events[-4:]]
    assert afar == [("exit", 1, False), ("exit", 2, None), ("hop", None, None), ("final", None, None)]


def test_a_streamed_request_is_counted_and_logged_once(serve):
    caller = serve()
    with capture_logs() as logs:
        events_of(caller.classify("a fine film", ACCEPT))
    assert [(line["outcome"], line["status"]) for line in logs if line["event"] == "request"] == [("ok", 200)]
    samples = caller.samples()
    counts = {key: value for key, value in samples.items() if key[0] == "tierwise_request_duration_seconds_count"}
    assert sum(counts.values()) == 1
    assert samples["tierwise_inflight",] == 0


@pytest.mark.parametrize(
    "accept",
    [
        "application/json",
        "*/*",
        "text/html, application/json",
        "text/event-stream;q=0, application/json",
        "application/json, text/event-stream; Q=0.000",
    ],
)
def test_who_does_not_ask_for_events_gets_none(alone, accept):
    assert alone.classify("a fine film", {"accept": accept}).json()["results"]


@pytest.mark.parametrize(
    "accept", ["application/json, text/event-stream;q=0.9", "Text/Event-Stream", "text/event-stream;q=0.01"]
)
def test_events_may_be_one_of_several_kinds(alone, accept):
    events_of(alone.classify("a fine film", {"accept": accept}))


# -- refusals and failures --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("inputs", "options", "status"),
    [
        pytest.param([], {}, 422, id="no texts"),
        pytest.param("a film", {"policy": "none"}, 422, id="an unknown policy"),
        pytest.param(UNREADABLE, {}, 422, id="a text that cannot be read"),
        pytest.param("a film", {"deadline_ms": 1e-6}, 504, id="a deadline that has passed"),
    ],
)
def test_what_is_refused_before_the_first_event_keeps_its_status(alone, inputs, options, status):
    response = alone.classify(inputs, ACCEPT, **options)
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["status"] == status


def test_what_fails_after_the_first_event_ends_with_the_problem(alone):
    events = events_of(alone.classify(["a fine film", UNREADABLE], {**ACCEPT, "x-request-id": "r-1"}))
    assert {kind for kind, _ in events[:-1]} == {"exit", "hop"}
    kind, problem = events[-1]
    assert (kind, problem["status"], problem["request_id"]) == ("error", 422, "r-1")


def test_an_upstream_that_fails_makes_no_hop_and_the_answer_says_so(serve, always):
    def fails(request):
        raise httpx.ConnectError("gone", request=request)

    events = events_of(serve(edge=fails).classify("a fine film", ACCEPT, policy=always))
    assert [e["hop"]["tier"] for e in of("hop", events)] == ["end"]
    assert events[-1][1]["results"][0]["degraded"] == "upstream_unavailable"


def test_a_deadline_holds_during_a_stream(serve, slow_classifier, clock):
    slow_classifier.engine.seconds, slow_classifier.engine.sleep = 0.1, clock.sleep
    caller = serve(classifier=slow_classifier, clock=clock)
    policy = {"name": "collaborative", "theta": 1e-9}
    events = events_of(caller.classify("a fine film", ACCEPT, policy=policy, deadline_ms=250))
    assert [(e["exit"], e["ms"]) for e in of("exit", events)] == [(1, 100.0), (2, 200.0)]
    (result,) = events[-1][1]["results"]
    assert (result["degraded"], result["exit_layer"]) == ("deadline", 2)


def test_nobody_is_told_where_nobody_watches(serve, monkeypatch):
    caller = serve()
    seen = []
    worker = caller.app.state.tier.worker
    run_ = worker._classifier.run

    class Spy:
        def __getattr__(self, name):
            return getattr(worker_classifier, name)

        def run(self, *args, **options):
            seen.append(options["tell"])
            return run_(*args, **options)

    worker_classifier = worker._classifier
    monkeypatch.setattr(worker, "_classifier", Spy())
    caller.classify("a fine film")
    caller.classify("a fine film", ACCEPT)
    assert seen[0] is None
    assert seen[1] is not None


# -- the channel ------------------------------------------------------------------------------------------------------


class Reader:
    """What ASGI's `send` hands over; it takes nothing until `reads` is set."""

    def __init__(self, *, reads=True):
        self.messages, self.reads = [], asyncio.Event()
        if reads:
            self.reads.set()

    async def __call__(self, message):
        if message != ABORT:
            await self.reads.wait()
        self.messages.append(message)

    @property
    def body(self):
        return b"".join(message.get("body", b"") for message in self.messages).decode()


SAID = Exit(exit=1, probabilities={"a": 1.0}, confidence=1.0)
HOP = Hop(
    tier="end",
    card="tiny@0",
    exit_layer=1,
    layers=1,
    label="a",
    probabilities={"a": 1.0},
    confidence=1.0,
    offload_probability=0.0,
    words_in=1,
    truncated=False,
    timings_ms={},
)


def answer():
    return Response("{}", 200)


def test_a_reader_who_does_not_read_holds_nobody_and_loses_exits_alone():
    async def story():
        reader = Reader(reads=False)
        events = Events(reader)
        watch = events.watch({})
        for _ in range(3 * WAITING):
            watch.exit(0, "end", SAID, None)
        await asyncio.sleep(0)  # the loop takes them all
        watch.hop(0, HOP)
        ending = asyncio.create_task(events.end(answer()))
        await asyncio.sleep(0)
        reader.reads.set()
        await ending
        kinds = [kind for kind, _ in parsed(reader.body)]
        assert kinds == ["exit"] * kinds.count("exit") + ["hop", "final"]
        assert WAITING <= kinds.count("exit") <= WAITING + 1
        assert reader.messages[-1].get("more_body", False) is False

    run(story())


def test_a_reader_who_never_reads_ends_the_stream():
    async def story():
        reader = Reader(reads=False)
        events = Events(reader)
        events.watch({}).hop(0, HOP)
        began = now()
        await events.end(answer())
        assert now() - began == READ_S
        assert reader.messages == [ABORT]

    run(story())


def test_silence_is_broken_by_comments():
    async def story():
        reader = Reader()
        events = Events(reader)
        watch = events.watch({"x-request-id": "r-1"})
        await asyncio.sleep(10 * BEAT_S)
        assert reader.messages == []  # the answer may still be refused
        watch.hop(0, HOP)
        await asyncio.sleep(2.5 * BEAT_S)
        assert reader.body.endswith("\n\n:\n\n:\n\n")
        await events.end(answer())
        assert dict(reader.messages[0]["headers"])[b"x-request-id"] == b"r-1"
        assert [kind for kind, _ in parsed(reader.body)] == ["hop", "final"]

    run(story())


def test_the_models_thread_outlives_the_loop():
    async def made():
        return Watch(lambda event: None)

    asyncio.run(made()).exit(0, "end", SAID, None)  # nobody is left to hear it
