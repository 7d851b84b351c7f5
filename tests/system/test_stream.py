"""Streams on real sockets: an event leaves while the model runs, who leaves ends the work, a stop waits for it."""

import json
import socket
import struct
import threading
import time
from dataclasses import replace

import httpx
import pytest

from shared.contracts import ClassifyResponse

ACCEPT = {"accept": "text/event-stream"}
NEVER = {"name": "collaborative", "theta": 1e-9}  # every exit is evaluated, none is taken early


class Stepped:
    """A real engine that waits before each layer until a test lets it go on."""

    def __init__(self, engine):
        self._engine, self.steps, self.ran = engine, threading.Semaphore(0), 0

    def __getattr__(self, name):
        return getattr(self._engine, name)

    def layer(self, n, state):
        assert self.steps.acquire(timeout=20), "the test never let the model go on"
        self.ran += 1
        return self._engine.layer(n, state)


@pytest.fixture
def stepped(listening):
    """A tier on a socket, and the engine of its model."""
    url, server, thread = listening()
    worker = server._app.state.tier.worker
    engine = Stepped(worker._classifier.engine)
    worker._classifier = replace(worker._classifier, engine=engine)
    yield url, server, thread, engine
    engine.steps.release(1000)


def until(condition, seconds=10.0):
    started = time.perf_counter()
    while not condition():
        assert time.perf_counter() - started < seconds, "it never happened"
        time.sleep(0.002)


def asked(url):
    """A socket on which a stream was asked for."""
    address = httpx.URL(url)
    body = json.dumps({"inputs": "a fine film", "options": {"policy": NEVER}}).encode()
    connection = socket.create_connection((address.host, address.port), timeout=15)
    head = "POST /v1/classify HTTP/1.1\r\nhost: tier\r\ncontent-type: application/json\r\naccept: text/event-stream\r\n"
    connection.sendall(head.encode() + b"content-length: %d\r\n\r\n" % len(body) + body)
    return connection


def read_until(connection, mark):
    said = b""
    while mark not in said:
        part = connection.recv(65536)
        assert part, said
        said += part
    return said


def counted(server, name, **labels):
    return sum(
        sample.value
        for family in server._app.state.tier.telemetry.registry.collect()
        for sample in family.samples
        if sample.name == f"tierwise_{name}" and labels.items() <= sample.labels.items()
    )


def test_an_exit_is_told_while_the_model_waits_before_the_next_layer(stepped):
    url, _, _, engine = stepped
    with asked(url) as connection:
        for n in (1, 2):
            engine.steps.release()
            said = read_until(connection, b"\n\n")
            assert b"event: exit" in said
            assert b'"exit":%d' % n in said
            assert engine.ran == n
        engine.steps.release()
        said = read_until(connection, b"0\r\n\r\n")
    assert [part.split(b"\n")[0] for part in said.split(b"event: ")[1:]] == [b"exit", b"hop", b"final"]


@pytest.mark.parametrize("how", ["closes", "resets", "closes its sending half, then all"])
def test_a_reader_who_leaves_ends_the_work(stepped, how):
    url, server, _, engine = stepped
    connection = asked(url)
    engine.steps.release()
    read_until(connection, b"\n\n")
    if how == "resets":
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    if how.startswith("closes its"):
        connection.shutdown(socket.SHUT_WR)
        time.sleep(0.1)
        assert counted(server, "rejected_total", reason="abandoned") == 0  # it may still read
    connection.close()
    until(lambda: counted(server, "rejected_total", reason="abandoned") == 1)
    assert counted(server, "inflight") == 0
    engine.steps.release()  # the layer that it stands before; none follows
    until(lambda: not server._app.state.tier.worker.queue.busy)
    assert engine.ran == 2


def test_a_reader_who_closed_its_sending_half_gets_every_event(stepped):
    url, _, _, engine = stepped
    with asked(url) as connection:
        connection.shutdown(socket.SHUT_WR)
        engine.steps.release(3)
        assert b"event: final" in read_until(connection, b"0\r\n\r\n")


def test_a_stop_waits_for_the_stream(stepped):
    url, server, thread, engine = stepped
    with asked(url) as connection:
        engine.steps.release()
        read_until(connection, b"\n\n")
        server.drain()
        refused = httpx.post(f"{url}/v1/classify", json={"inputs": "a film"}, headers=ACCEPT)
        assert (refused.status_code, refused.json()["title"]) == (503, "Shutting down")
        engine.steps.release(2)
        assert b"event: final" in read_until(connection, b"0\r\n\r\n")
    thread.join(20)
    assert not thread.is_alive()


def test_http_1_0_gets_the_plain_answer(three):
    address = httpx.URL(three)
    body = b'{"inputs": "a fine film"}'
    with socket.create_connection((address.host, address.port), timeout=15) as connection:
        connection.sendall(
            b"POST /v1/classify HTTP/1.0\r\ncontent-type: application/json\r\naccept: text/event-stream\r\n"
            b"content-length: %d\r\n\r\n" % len(body) + body
        )
        said = b""
        while part := connection.recv(65536):
            said += part
    ClassifyResponse.model_validate_json(said.partition(b"\r\n\r\n")[2])


def test_three_tiers_tell_of_every_exit_before_its_hop(three, always, sentences):
    """Exits of every tier, in order, and the answer is the plain one's but for times and bytes."""
    asked_for = {"inputs": sentences[:3], "options": {"policy": always, "seed": 2, "explain": True}}
    with httpx.Client(base_url=three, timeout=30) as client:
        said = client.post("/v1/classify", json=asked_for, headers=ACCEPT).text
        plain = ClassifyResponse.model_validate(client.post("/v1/classify", json=asked_for).json(), strict=False)
    events = [block.split("\n") for block in said.split("\n\n")[:-1] if not block.startswith(":")]
    events = [(kind.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for kind, data in events]
    final = ClassifyResponse.model_validate(events[-1][1], strict=False)
    for result, alike in zip(final.results, plain.results, strict=True):
        own = [(kind, data) for kind, data in events[:-1] if data["index"] == result.index]
        expected = [
            step
            for hop in result.hops
            for step in [*(("exit", hop.tier, said.exit) for said in hop.exits), ("hop", hop.tier, hop.exit_layer)]
        ]
        told = [
            ("exit", data["tier"], data["exit"])
            if kind == "exit"
            else ("hop", data["hop"]["tier"], data["hop"]["exit_layer"])
            for kind, data in own
        ]
        assert told == expected
        assert [hop.tier for hop in result.hops] == ["end", "edge", "cloud"]
        assert (result.probabilities, result.why, result.ensemble) == (alike.probabilities, alike.why, alike.ensemble)
