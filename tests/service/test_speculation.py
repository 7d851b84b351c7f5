"""A text that leaves ahead of a tier's answer: the call begins early, is used or cancelled, and changes no answer."""

import asyncio
import itertools
import json
import threading

import httpx
import pytest

from shared.policies import POLICIES, STAY, Decision, Policy

MODEL_S = 10  # that a held model waits at most


class Guesses(Policy):
    """Sends a text to `guess` at its first exit, and decides on `to`."""

    name = "guesses"
    guess: str | None = "edge"
    to: str | None = "edge"

    def speculates_at(self, where):
        return self.guess is not None

    def speculate(self, where, layer, confidence, draw):
        return STAY if self.guess is None else Decision(self.guess, 1.0, "policy")

    def after(self, where, confidence, draw):
        return STAY if self.to is None else Decision(self.to, 1.0, "policy")

    def may_offload_after(self, where):
        return bool(where.reachable)


@pytest.fixture(autouse=True)
def _guesses(monkeypatch):
    monkeypatch.setitem(POLICIES, "guesses", Guesses)


@pytest.fixture
def asked():
    """Set once an upstream got a call."""
    return threading.Event()


class Held:
    """A model that calls `before` with the number of each layer, from 1, before that runs."""

    def __init__(self, classifier):
        self.classifier = classifier

    def hold(self, before):
        """From now on; what ran to warm up does not count."""
        numbers = itertools.count()
        self.classifier.engine.sleep = lambda _: before(1 + next(numbers) % 3)

    def hold_for(self, event):
        """Let no text past its second layer before an event."""
        self.hold(lambda layer: layer < 3 or event.wait(MODEL_S) or pytest.fail("no call began while the model ran"))


@pytest.fixture
def held(slow_classifier):
    return Held(slow_classifier)


class Upstream:
    """Tells `asked`, then answers as a neighbour does; `never`: it never answers, and knows that it was cancelled."""

    def __init__(self, neighbour, asked, *, never=False):
        self.neighbour, self.asked, self.never, self.cancelled = neighbour, asked, never, 0

    async def __call__(self, request):
        self.asked.set()
        try:
            if self.never:
                self.neighbour.bodies.append(json.loads(request.content))
                await asyncio.sleep(60)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return self.neighbour(request)


def answer_of(result):
    """What a caller gets, but for times and how it came about."""
    hops = [(hop["tier"], hop["probabilities"], hop["offloaded_to"], hop["words_kept"]) for hop in result["hops"]]
    return result["label"], result["probabilities"], result["tier"], result["degraded"], result["why"], hops


def guesses(guess, to):
    return {"name": "guesses", "guess": guess, "to": to}


def outcomes(caller):
    """{(to, outcome): texts} of those that were sent ahead."""
    found = {key: value for key, value in caller.samples().items() if key[0] == "tierwise_speculations_total"}
    return {(to, outcome): value for (_, _, outcome, to), value in found.items() if value}


def test_a_call_begins_while_the_model_runs_and_is_used(serve, edge, held, asked):
    caller = serve(edge=Upstream(edge, asked), classifier=held.classifier)
    (plain,) = caller.results("a fine film", policy=guesses(None, "edge"), seed=1)
    asked.clear()
    held.hold_for(asked)
    (result,) = caller.results("a fine film", policy=guesses("edge", "edge"), seed=1)
    assert answer_of(result) == answer_of(plain)
    size = len(edge.requests[1].content)
    assert result["hops"][0]["speculation"] == {"to": "edge", "layer": 1, "used": True, "request_bytes": size}
    assert "speculation" not in plain["hops"][0]
    first, second = ({**body, "call": 0, "request_id": 0, "policy": 0} for body in edge.bodies)
    assert first == second
    assert outcomes(caller) == {("edge", "used"): 1}
    samples = caller.samples()
    assert samples["tierwise_link_bytes_total", "up", "end-edge"] == sum(len(r.content) for r in edge.requests)
    assert samples["tierwise_speculation_wasted_bytes_total", "up", "end-edge"] == 0


def test_a_call_whose_text_stays_is_cancelled_and_its_bytes_are_counted(serve, edge, held, asked):
    upstream = Upstream(edge, asked, never=True)
    caller = serve(edge=upstream, classifier=held.classifier)
    (plain,) = caller.results("a fine film", policy=guesses(None, None), seed=1)
    held.hold_for(asked)
    (result,) = caller.results("a fine film", policy=guesses("edge", None), seed=1)
    assert answer_of(result) == answer_of(plain)
    assert upstream.cancelled == 1
    told = result["hops"][0]["speculation"]
    assert (told["to"], told["used"]) == ("edge", False)
    assert outcomes(caller) == {("edge", "wasted"): 1}
    samples = caller.samples()
    for name in ("link_bytes", "speculation_wasted_bytes"):
        assert samples[f"tierwise_{name}_total", "up", "end-edge"] == told["request_bytes"] > 100
        assert samples[f"tierwise_{name}_total", "down", "end-edge"] == 0


def test_an_answer_that_came_and_is_not_used_was_carried_too(serve, edge, held):
    came = threading.Event()

    async def answers(request):
        asyncio.get_running_loop().call_later(0.05, came.set)
        return edge(request)

    caller = serve(edge=answers, classifier=held.classifier)
    held.hold_for(came)
    caller.results("a fine film", policy=guesses("edge", None))
    wasted = caller.samples()["tierwise_speculation_wasted_bytes_total", "down", "end-edge"]
    assert wasted == len(edge.answers[0].content)


def test_a_text_that_goes_elsewhere_is_sent_anew(serve, edge, cloud, held, asked):
    upstream = Upstream(edge, asked, never=True)
    caller = serve(edge=upstream, cloud=cloud, classifier=held.classifier)
    (plain,) = caller.results("a fine film", policy=guesses(None, "cloud"), seed=1)
    held.hold_for(asked)
    (result,) = caller.results("a fine film", policy=guesses("edge", "cloud"), seed=1)
    assert answer_of(result) == answer_of(plain)
    assert (upstream.cancelled, len(cloud.bodies)) == (1, 2)
    assert outcomes(caller) == {("edge", "moved"): 1}


def test_an_upstream_that_fails_fails_as_it_would_have_later(serve, cloud, held, asked):
    def refuses(request):
        asked.set()
        raise httpx.ConnectError("gone", request=request)

    caller = serve(edge=refuses, cloud=cloud, classifier=held.classifier)
    (plain,) = caller.results("a fine film", policy=guesses(None, "edge"), seed=1)
    (sent,) = caller.results("a fine film", policy=guesses("edge", "edge"), seed=1)
    assert answer_of(sent) == answer_of(plain)
    assert sent["degraded"] == "upstream_unavailable"
    (stays,) = caller.results("a fine film", policy=guesses("edge", None), seed=1)
    assert stays["degraded"] is None
    (moved,) = caller.results("a fine film", policy=guesses("edge", "cloud"), seed=1)
    assert (moved["degraded"], moved["tier"]) == (None, "cloud")


def test_nothing_is_sent_ahead_to_a_tier_that_is_known_to_be_down(serve, edge):
    caller = serve(edge=edge, probe_ms=600_000)
    for _ in range(5):
        caller.app.state.tier.upstreams["edge"].replicas.all[0].breaker.count(failed=True)
    (result,) = caller.results("a fine film", policy=guesses("edge", None))
    assert (outcomes(caller), edge.bodies, result["degraded"]) == ({}, [], None)


def test_the_budget_bounds_what_is_sent_in_vain(serve, edge):
    caller = serve(edge=edge, speculation_budget=0.02)
    for _ in range(5):
        caller.results("a fine film", policy=guesses("edge", None))
    assert outcomes(caller) == {("edge", "wasted"): 2}
    assert caller.results("a fine film", policy=guesses("edge", "edge"))[0]["tier"] == "edge"
    assert outcomes(caller) == {("edge", "wasted"): 2}


def test_a_call_is_cancelled_where_the_deadline_ends_the_pass(serve, edge, held, asked, clock):
    upstream = Upstream(edge, asked, never=True)
    caller = serve(edge=upstream, classifier=held.classifier, clock=clock)
    held.hold(lambda layer: layer == 2 and asked.wait(MODEL_S) and clock.sleep(1.0))
    (result,) = caller.results("a fine film", policy=guesses("edge", "edge"), deadline_ms=1500)
    assert (result["degraded"], result["tier"], result["exit_layer"]) == ("deadline", "end", 2)
    assert upstream.cancelled == 1
    assert outcomes(caller) == {("edge", "wasted"): 1}
    assert edge.bodies[0]["deadline_ms"] == pytest.approx(1495)


def test_a_caller_who_leaves_takes_the_call_along(serve, edge, held, asked):
    upstream = Upstream(edge, asked, never=True)
    caller = serve(edge=upstream, classifier=held.classifier)

    async def leave():
        request = asyncio.create_task(caller.ask("a fine film", policy=guesses("edge", "edge")))
        while not asked.is_set():
            await asyncio.sleep(0.001)
        request.cancel()
        await asyncio.gather(request, return_exceptions=True)
        await asyncio.sleep(0)
        return upstream.cancelled

    assert asyncio.run(leave()) == 1


def test_several_texts_share_one_call_and_leave_with_their_answers(serve, edge):
    caller = serve(edge=edge)
    caller.results(["a fine film", "a plot"], policy=guesses("edge", "edge"))
    assert [len(body["texts"]) for body in edge.bodies] == [2]
    assert outcomes(caller) == {}


def test_a_text_leaves_with_its_answer_where_words_or_visits_follow_from_it(serve, edge, always, monkeypatch):
    caller = serve(edge=edge)
    ahead = {**always, "speculate_below": 1.0, "speculate_from": 1}
    caller.results("a fine film", policy={**ahead, "pruning_coefficient": 1.0})
    monkeypatch.setattr(Guesses, "carries_visits", True)
    caller.results("a fine film", policy=guesses("edge", "edge"))
    assert outcomes(caller) == {}
    caller.results("a fine film", policy={**ahead, "pruning_coefficient": 0.0})
    assert outcomes(caller) == {("edge", "used"): 1}


def test_words_that_nobody_reads_stay_behind_ahead_of_an_answer_too(serve, cloud, always, long_text):
    caller = serve(tier="edge", cloud=cloud)
    spec = {**always, "pruning_coefficient": 0.0, "speculate_from": 1}
    for below in (0.0, 1.0):
        (result,) = caller.results(f"{long_text} {long_text}", policy={**spec, "speculate_below": below}, seed=1)
        assert result["hops"][0]["words_kept"] < result["hops"][0]["words_in"]
    assert cloud.bodies[0]["texts"] == cloud.bodies[1]["texts"]
    assert outcomes(caller) == {("cloud", "used"): 1}


def test_an_explained_answer_is_the_same(serve, edge, always):
    caller = serve(edge=edge)
    spec = {**always, "pruning_coefficient": 0.0, "speculate_from": 1}
    plain, sent = (
        caller.results("a fine film", policy={**spec, "speculate_below": below}, seed=1, explain=True)[0]
        for below in (0.0, 1.0)
    )
    assert answer_of(sent) == answer_of(plain)
    assert outcomes(caller) == {("edge", "used"): 1}
    for field in ("exits", "words", "explained"):
        assert sent["hops"][0][field] == plain["hops"][0][field]


def test_max_tier_holds_for_what_is_sent_ahead(serve, edge, cloud, always):
    caller = serve(edge=edge, cloud=cloud)
    spec = {**always, "pruning_coefficient": 0.0, "speculate_below": 1.0, "speculate_from": 1, "skip_below": 1.0}
    (result,) = caller.results("a fine film", policy=spec, max_tier="edge")
    assert (result["tier"], result["hops"][0]["speculation"]["used"], cloud.bodies) == ("edge", True, [])


@pytest.mark.parametrize("mistake", [ZeroDivisionError, SystemExit, asyncio.CancelledError, KeyboardInterrupt])
def test_a_policy_that_raises_ahead_of_its_answer_fails_its_own_request(serve, edge, monkeypatch, mistake):
    def speculate(*_):
        raise mistake

    caller = serve(edge=edge)
    with monkeypatch.context() as patch:
        patch.setattr(Guesses, "speculate", speculate)
        assert caller.classify("a fine film", policy="guesses").status_code == 500
    assert caller.classify("a fine film", policy="guesses").status_code == 200


def test_a_stream_tells_of_every_exit_and_hop_as_without(serve, edge):
    caller = serve(edge=edge)
    events = []
    for guess in (None, "edge"):
        body = json.dumps({"inputs": "a fine film", "options": {"policy": guesses(guess, "edge"), "seed": 1}})
        headers = {"content-type": "application/json", "accept": "text/event-stream"}
        text = caller.post(body, headers=headers).text
        events.append([line for line in text.splitlines() if line.startswith("event: ")])
    assert events[0] == ["event: exit", "event: hop", "event: hop", "event: final"]
    assert events[1] == ["event: exit"] * 2 + events[0]  # there every exit is asked where the text will go
