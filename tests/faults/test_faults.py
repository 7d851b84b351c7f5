"""Every fault on the edge link and on the cloud link of three tiers in one process: real sockets, tiny random models.

`stream.py` says what must hold. `make faults` runs all of them with the real pauses between probes, `pytest
tests/faults` a few with short ones; `e2e/test_faults.py` is the half that needs a kernel and containers.
"""

import asyncio
import os
import threading
import time

import pytest

from lab.live.client import connect
from lab.live.stack import free_ports
from shared.web.app import create_app
from shared.web.server import Server
from shared.web.settings import Settings
from tests.faults.faulty import FAULTS, Faulty
from tests.faults.stream import ALWAYS, story

ALL = os.environ.get("TEST_FAULTS") == "all"
MIXED = ["answers twice", "answers twice, late", "asks twice", "the answer before", "rows in another order"]
MIXED += ["hops of another row", "an old answer under this call's id"]
FEW = [
    "a million rows",
    "early hints without end",
    "an answer in chunks of one byte",
    "packed twice",
    "killed",
    "black hole",
    "burst of 500s",
    "garbage JSON",
    "truncated body",
    "warm connections die unannounced",
]
PROBE_MS = 2000 if ALL else 100
LINKS = {"edge": ["edge"], "cloud": ["cloud"], "both": ["edge", "cloud"]}
CASES = [(name, link) for name in (FAULTS if ALL else FEW) for link in ("edge", "cloud")]
CASES += [("killed", "both"), ("black hole", "both")] if ALL else [("killed", "both")]


class Stack:
    """End, edge and cloud on real sockets, each link through a proxy: end > edge > cloud."""

    def __init__(self, bundle):
        first = free_ports(5)
        end, edge, cloud, to_edge, to_cloud = range(first, first + 5)
        self.url = f"http://127.0.0.1:{end}"
        self.links = {"edge": Faulty(to_edge, edge), "cloud": Faulty(to_cloud, cloud)}
        chain = {"end": (end, {"edge": to_edge}), "edge": (edge, {"cloud": to_cloud}), "cloud": (cloud, {})}
        self.running = [self._serve(bundle, tier, *place) for tier, place in chain.items()]

    def _serve(self, bundle, tier, port, upstreams):
        settings = Settings(
            tier=tier,
            bundle=str(bundle),
            links="none",
            upstreams={to: f"http://127.0.0.1:{at}" for to, at in upstreams.items()},
            link_profiles=dict.fromkeys(upstreams, "ideal"),
            probe_ms=PROBE_MS,
        )
        server = Server(create_app(settings), host="127.0.0.1", port=port, drain_s=5)
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive(), "it did not start"
            time.sleep(0.01)
        return server, thread

    def set(self, mode, link):
        for name in LINKS[link]:
            self.links[name].set(mode)

    def close(self):
        for server, _ in self.running:
            server.drain()
        for _, thread in self.running:
            thread.join(20)
        for link in self.links.values():
            link.close()


@pytest.fixture(scope="module")
def stack(tiny_bundle):
    out = Stack(tiny_bundle)
    yield out
    out.close()


@pytest.mark.parametrize(("name", "link"), CASES)
def test_every_request_is_answered_once_in_time_and_flagged(stack, name, link):
    def mode(fault):
        return lambda: stack.set(fault, link)

    load = {"deadline_ms": 1000, "users": 4, "each": 6 if ALL else 3}
    case = asyncio.run(story(stack.url, mode(name), mode("well"), **load))
    reasons = FAULTS[name][1]
    case.check(name, link, reasons, must=None if name in ("10 kbit/s", "30 % of calls lost") else bool(reasons))


@pytest.mark.parametrize("name", MIXED)
def test_no_caller_gets_an_answer_to_anothers_text(stack, name):
    """With `explain` an answer lists its text's words: each must be the caller's own, in the fault and after it."""

    async def ask(client, number):
        texts = [f"film {number} {part} and its plot {number}" for part in "ab"]
        body = {"inputs": texts, "options": {"policy": ALWAYS, "explain": True, "deadline_ms": 5000}}
        answer = await client.post("/v1/classify", json=body)
        for text, result in zip(texts, answer.json()["results"], strict=True):
            read = {word["word"] for hop in result["hops"] for word in hop["words"] or ()}
            assert read <= set(text.split()), (text, result["degraded"])
            assert result["degraded"] or [hop["tier"] for hop in result["hops"]] == ["end", "edge", "cloud"]
        return {result["degraded"] for result in answer.json()["results"]}

    async def stream(numbers):
        async with connect(stack.url, timeout=30) as client:
            return [await ask(client, number) for number in numbers]

    try:
        stack.set(name, "edge")
        during = asyncio.run(stream(range(20)))
        assert set.union(*during) <= {None, "upstream_invalid", "breaker_open"}
    finally:
        stack.set("well", "edge")
    time.sleep(2 * PROBE_MS / 1e3)
    after = asyncio.run(stream(range(20, 30)))
    assert after[-5:] == [{None}] * 5


def results(stack, count, **options):
    """What becomes of `count` requests at once."""

    async def all_at_once():
        async with connect(stack.url, timeout=30) as client:
            body = {"inputs": "a fine film with a strong cast " * 60, "options": options}
            answers = await asyncio.gather(*(client.post("/v1/classify", json=body) for _ in range(count)))
            return [answer.json()["results"][0] for answer in answers]

    return asyncio.run(all_at_once())


@pytest.fixture
def edge_link(stack):
    yield stack.links["edge"]
    stack.set("well", "edge")
    deadline = time.monotonic() + 20
    while results(stack, 1, policy="edge-only")[0]["degraded"]:
        assert time.monotonic() < deadline, "the edge link did not come back"
        time.sleep(0.1)


@pytest.mark.parametrize("name", ["an answer in chunks of one byte", "early hints without end"])
def test_an_answer_without_end_is_given_up_after_a_few_bytes(stack, edge_link, name):
    """What the socket buffers hold comes on top of what is read: megabytes, not hundreds of them."""
    stack.set(name, "edge")
    (result,) = results(stack, 1, policy="edge-only", deadline_ms=20_000)
    assert result["degraded"] == "upstream_invalid"
    assert edge_link.poured < 20_000_000


def test_an_upstream_that_breaks_every_warm_connection_sees_at_most_a_tenth_more_calls(stack, edge_link):
    stack.set("every warm connection breaks", "edge")
    edge_link.asked = 0
    assert [results(stack, 1, policy="edge-only")[0]["degraded"] for _ in range(100)] == [None] * 100
    assert edge_link.asked <= 110


@pytest.mark.parametrize("name", ["long packets are lost", "long packets are lost on the way back"])
def test_a_path_that_carries_only_short_packets_is_not_taken_for_well(stack, edge_link, name):
    results(stack, 1, policy="edge-only", explain=True)
    stack.set(name, "edge")
    assert all(result["degraded"] for result in results(stack, 6, policy="edge-only", explain=True, deadline_ms=1500))
    time.sleep(20 * PROBE_MS / 1e3)
    (result,) = results(stack, 1, policy="edge-only", explain=True, deadline_ms=1500)
    assert result["degraded"] == "breaker_open"
