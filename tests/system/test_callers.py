"""Callers as they come, on real sockets: who closes half the connection or all of it, who sends without reading, who
sends in crumbs, and who only holds a connection. Each is answered or dropped, and nobody else waits for it.

TEST_CALLERS=all   1,500 idle connections too
TEST_STOPS         how many stops (3)
"""

import asyncio
import contextlib
import http.client
import json
import os
import resource
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

import httpx
import pytest

from lab.live.stack import free_ports

ALL = os.environ.get("TEST_CALLERS") == "all"
BODY = b'{"inputs": "a fine film"}'
JSON = b"host: tier\r\ncontent-type: application/json\r\n"
KEY = "correct-horse-battery"
LIMIT = 2_000_000
CLEAN = {key: value for key, value in os.environ.items() if not key.startswith("TIERWISE_")}
ALLOWED_S = 1.0  # 100 ms are promised; a busy machine takes longer to wake the loop
STEP_S = 0.05  # of processor time; it takes about 15 ms


def post(body=BODY, *headers, path=b"/v1/classify", version=b"1.1", length=None):
    size = b"content-length: %d\r\n" % (len(body) if length is None else length)
    extra = b"".join(header + b"\r\n" for header in headers)
    return b"POST " + path + b" HTTP/" + version + b"\r\n" + JSON + size + extra + b"\r\n" + body


def chunked(pieces, *headers, end=b"0\r\n\r\n"):
    extra = b"".join(header + b"\r\n" for header in headers)
    head = b"POST /v1/classify HTTP/1.1\r\n" + JSON + b"transfer-encoding: chunked\r\n" + extra + b"\r\n"
    return head + b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + end


def rest(connection):
    """Everything that is said until the other side closes; what a reset takes away is lost."""
    out = b""
    with contextlib.suppress(ConnectionError):
        while part := connection.recv(65536):
            out += part
    return out


def statuses(said):
    """The final ones."""
    lines = [line for line in said.split(b"\r\n") if line.startswith(b"HTTP/1.1 ")]
    lines += [part[part.index(b"HTTP/1.1 ") :] for part in said.split(b"\r\n") if b"}HTTP/1.1 " in part]
    return [int(line[9:12]) for line in lines if not line.startswith(b"HTTP/1.1 1")]


@pytest.fixture(scope="module")
def tier(staying):
    url, server, _ = staying(queue_limit=200)
    url = httpx.URL(url)
    server.address = (url.host, url.port)
    return server


@pytest.fixture
def dial(tier):
    """A builder of connections, closed at the end."""
    with contextlib.ExitStack() as open_:
        yield lambda: open_.enter_context(socket.create_connection(tier.address, timeout=15))


class Held:
    """A classifier whose `run` waits for `go`."""

    def __init__(self, classifier):
        self._classifier, self.go, self.ran = classifier, threading.Event(), 0

    def __getattr__(self, name):
        return getattr(self._classifier, name)

    def run(self, *args, **kwargs):
        assert self.go.wait(20), "the test never let the model go"
        self.ran += 1
        return self._classifier.run(*args, **kwargs)


@pytest.fixture
def held(tier, monkeypatch):
    """The tier's model waits until the test lets it go."""
    worker = tier._app.state.tier.worker
    classifier = Held(worker._classifier)
    monkeypatch.setattr(worker, "_classifier", classifier)
    yield classifier
    classifier.go.set()


def until(condition, seconds=10.0):
    started = time.perf_counter()
    while not condition():
        assert time.perf_counter() - started < seconds, "it never happened"
        time.sleep(0.002)
    return time.perf_counter() - started


def counted(server, name, **labels):
    families = server._app.state.tier.telemetry.registry.collect()
    return sum(
        sample.value
        for family in families
        for sample in family.samples
        if sample.name == f"tierwise_{name}" and labels.items() <= sample.labels.items()
    )


# -- half a connection, and none --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(post(), id="HTTP/1.1"),
        pytest.param(post(version=b"1.0"), id="HTTP/1.0"),
        pytest.param(chunked([BODY]), id="chunked"),
        pytest.param(post(BODY, b"connection: close"), id="connection: close"),
        pytest.param(b"GET /info HTTP/1.1\r\nhost: tier\r\n\r\n", id="a GET"),
    ],
)
def test_who_closes_the_sending_half_is_answered(dial, sent):
    connection = dial()
    connection.sendall(sent)
    connection.shutdown(socket.SHUT_WR)
    assert statuses(rest(connection)) == [200]


@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
def test_who_closes_the_sending_half_is_answered_after_a_long_wait_too(tier, dial, held, version):
    connection = dial()
    connection.sendall(post(version=version))
    connection.shutdown(socket.SHUT_WR)
    time.sleep(0.4)
    assert tier._app.state.tier.worker.queue.busy
    held.go.set()
    said = rest(connection)
    assert statuses(said) == [200]
    assert b"100 Continue" not in said or version == b"1.1"  # HTTP/1.0 knows no interim answers
    assert json.loads(said.rpartition(b"\r\n\r\n")[2])["results"]


def test_two_requests_at_once_and_then_half_a_close_are_both_answered(dial):
    connection = dial()
    connection.sendall(post() * 2)
    connection.shutdown(socket.SHUT_WR)
    assert statuses(rest(connection)) == [200, 200]


@pytest.mark.parametrize("sent", [post(BODY[:9], length=25), chunked([BODY[:9]], end=b"")], ids=["length", "chunked"])
def test_a_body_that_ends_before_its_length_is_told_so(dial, sent):
    connection = dial()
    connection.sendall(sent)
    connection.shutdown(socket.SHUT_WR)
    said = rest(connection)
    assert statuses(said) == [400]
    assert b"ended before" in said


@pytest.mark.parametrize("how", ["close", "reset"])
def test_who_leaves_altogether_is_dropped_at_once_and_never_run(tier, dial, held, how):
    worker = tier._app.state.tier.worker
    before = counted(tier, "rejected_total", reason="abandoned")
    first = dial()
    first.sendall(post(BODY, b"connection: close"))
    until(lambda: worker.queue.busy)
    leavers = [dial() for _ in range(20)]
    for leaver in leavers:
        leaver.sendall(post())
    until(lambda: worker.queue.waiting == 20)
    for leaver in leavers:
        if how == "reset":
            leaver.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        leaver.close()
    assert until(lambda: worker.queue.waiting == 0) < ALLOWED_S
    held.go.set()
    assert statuses(rest(first)) == [200]
    assert held.ran == 1
    until(lambda: counted(tier, "rejected_total", reason="abandoned") == before + 20)


@pytest.mark.parametrize("client", ["http.client", "httpx", "urllib"])
def test_ordinary_clients_read_past_the_interim_answer(tier, held, client, monkeypatch):
    """They do not close half a connection themselves, so their socket does it for them."""
    url, shut = f"http://{tier.address[0]}:{tier.address[1]}/v1/classify", []
    connect = socket.create_connection

    def remember(*args, **kwargs):
        shut.append(connect(*args, **kwargs))
        return shut[-1]

    monkeypatch.setattr(socket, "create_connection", remember)
    ask = {
        "http.client": lambda: _ask_http_client(tier.address),
        "httpx": lambda: httpx.post(url, content=BODY, headers={"content-type": "application/json"}).status_code,
        "urllib": lambda: (
            urllib.request.urlopen(urllib.request.Request(url, BODY, {"content-type": "application/json"})).status
        ),
    }[client]
    out = []
    asking = threading.Thread(target=lambda: out.append(ask()))
    asking.start()
    until(lambda: shut and tier._app.state.tier.worker.queue.busy)
    shut[-1].shutdown(socket.SHUT_WR)
    time.sleep(0.3)
    held.go.set()
    asking.join(10)
    assert out == [200]


def _ask_http_client(address):
    connection = http.client.HTTPConnection(*address, timeout=10)
    connection.request("POST", "/v1/classify", BODY, {"content-type": "application/json"})
    answer = connection.getresponse()
    answer.read()
    return answer.status


# -- refusals that are read by those who still send -------------------------------------------------------------------

LARGE = b" " * 10_000_000
REFUSALS = {
    "413 by its length": (post(LARGE), 413),
    "413 in chunks": (chunked([b" " * 50_000] * 200), 413),
    "415": (post(LARGE).replace(b"application/json", b"text/plain"), 415),
    "404": (post(LARGE, path=b"/nowhere"), 404),
    "405": (post(LARGE, path=b"/livez"), 405),
    "431": (post(LARGE, b"x: " + b"a" * 20_000), 431),
    "400, two lengths": (post(LARGE, b"transfer-encoding: chunked"), 400),
    "400, no host": (post(LARGE).replace(b"host: tier\r\n", b""), 400),
    "400, a bad chunk": (chunked([b" " * 1000], end=b"zz\r\n" + LARGE), 400),
    "413 in crumbs": (chunked([b" "] * 1_000_000), 413),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_caller_who_sends_everything_before_it_reads_gets_its_refusal(dial, case):
    sent, status = REFUSALS[case]
    connection = dial()
    connection.sendall(sent)  # a broken pipe raises
    said = rest(connection)
    assert statuses(said) == [status]
    assert b"application/problem+json" in said
    assert b"connection: close" in said.lower()


def test_the_other_early_refusals_are_read_too(listening, tmp_path):
    (tmp_path / "key").write_text(KEY)
    url, server, _ = listening(door_key_file=tmp_path / "key", body_timeout_ms=300)
    address = (httpx.URL(url).host, httpx.URL(url).port)

    def say(sent):
        with socket.create_connection(address, timeout=15) as connection:
            connection.sendall(sent)
            return statuses(rest(connection))

    authorized = b"authorization: Bearer " + KEY.encode()
    assert say(post(LARGE)) == [401]
    assert say(post(BODY, authorized, length=100)) == [408]
    server.drain()
    assert say(post(LARGE, authorized)) == [503]


@pytest.mark.parametrize("client", ["urllib", "http.client"])
def test_an_ordinary_blocking_client_gets_its_413(tier, client):
    headers = {"content-type": "application/json"}
    if client == "urllib":
        url = f"http://{tier.address[0]}:{tier.address[1]}/v1/classify"
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(urllib.request.Request(url, LARGE, headers), timeout=15)
        status = refused.value.code
        refused.value.close()
    else:
        connection = http.client.HTTPConnection(*tier.address, timeout=15)
        connection.request("POST", "/v1/classify", LARGE, headers)
        status = connection.getresponse().status
        connection.close()
    assert status == 413


def test_who_asks_before_it_sends_gets_the_refusal_instead_of_a_100(dial):
    for sent, status in (
        (post(b"", b"expect: 100-continue", length=10_000_000), 413),
        (post(b"", b"expect: 100-continue", length=9, path=b"/no"), 404),
    ):
        connection = dial()
        connection.sendall(sent)
        said = rest(connection)
        assert (statuses(said), b"100 Continue" in said) == ([status], False)
    connection = dial()
    connection.sendall(post(b"", b"expect: 100-continue", length=len(BODY)))
    assert connection.recv(100).startswith(b"HTTP/1.1 100 ")
    connection.sendall(BODY)
    connection.shutdown(socket.SHUT_WR)
    assert statuses(rest(connection)) == [200]


def test_a_caller_who_never_stops_sending_is_hung_up_on(dial, monkeypatch):
    monkeypatch.setattr("shared.web.http11._LINGER_BYTES", 5_000_000)
    connection = dial()
    connection.sendall(post(b"", length=10**12))
    with pytest.raises(ConnectionError):
        connection.sendall(b" " * 100_000_000)


# -- crumbs -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def longest(monkeypatch):
    """The processor time that the longest step of an event loop took: wall time would measure the machine's load."""
    run, steps = asyncio.Handle._run, [0.0]

    def timed(handle):
        started = time.thread_time()
        run(handle)
        steps[0] = max(steps[0], time.thread_time() - started)

    monkeypatch.setattr(asyncio.Handle, "_run", timed)
    return lambda: steps[0]


def attacked(tier, attack, callers=4, rounds=3):
    """The statuses of so many callers who attack, over and over, while another one is answered."""
    tried = []

    def again():
        for _ in range(rounds):
            with socket.create_connection(tier.address, timeout=15) as connection, contextlib.suppress(OSError):
                connection.sendall(attack)
                tried.extend(statuses(rest(connection)))

    threads = [threading.Thread(target=again) for _ in range(callers)]
    for thread in threads:
        thread.start()
    with httpx.Client(base_url=f"http://{tier.address[0]}:{tier.address[1]}", timeout=15) as client:
        while any(thread.is_alive() for thread in threads):
            assert client.get("/livez").status_code == 200
    return set(tried)


def one_byte_chunks(*headers):
    return chunked([b" "] * 300_000, *headers)


CRUMBS = {
    "300 kB in chunks of a byte": (one_byte_chunks(), {413}),
    "with an unknown path": (one_byte_chunks().replace(b"/v1/classify", b"/v1/elsewher"), {404}),
    "of a type that is refused": (one_byte_chunks().replace(b"application/json", b"text/plain"), {413, 415}),
    "chunk extensions": (chunked([], end=b"1;" + b"a=b;" * 400_000 + b"\r\n \r\n0\r\n\r\n"), {400, 413}),
    "an extension for each chunk": (chunked([], end=b"1;a=b\r\n \r\n" * 150_000 + b"0\r\n\r\n"), {413}),
    "trailers": (chunked([BODY], end=b"0\r\n" + b"t: v\r\n" * 250_000 + b"\r\n"), {431}),
    "headers": (post(BODY, *[b"a: b"] * 200_000), {431}),
    "one header": (post(BODY, b"a: " + b"b" * 2_000_000), {431}),
    "requests in a row": (b"GET /livez HTTP/1.1\r\nhost: tier\r\n\r\n" * 50_000, {200, 400}),
    "empty lines": (b"\r\n" * 900_000 + post(BODY, b"connection: close"), {200, 400, 431}),
    "lists of lists": (post(b"[" + b"[]," * 660_000 + b"[]]"), {413}),
    "numbers": (post(b"[" + b"1," * 900_000 + b"1]"), {413}),
    "keys": (post(b'{"a":1' + b',"":1' * 390_000 + b"}"), {413}),
    "levels": (post(b"[" * 1_990_000, b"connection: close"), {400}),
    "levels of objects": (post(b'{"":' * 490_000), {413}),
    "quotes": (post(b'"' * 1_990_000), {413}),
    "escapes": (post(b'"' + b'\\"' * 990_000, b"connection: close"), {400}),
}


@pytest.mark.parametrize("case", CRUMBS)
def test_what_is_cut_into_crumbs_keeps_nobody_else_waiting(longest, tier, case):
    sent, allowed = CRUMBS[case]
    tried = attacked(tier, sent)
    print(f"the longest step took {longest() * 1e3:.1f} ms")
    assert tried
    assert tried <= allowed
    assert longest() < STEP_S


def test_without_the_key_crumbs_are_not_even_read(longest, listening, tmp_path):
    (tmp_path / "key").write_text(KEY)
    url, server, _ = listening(door_key_file=tmp_path / "key")
    server.address = (httpx.URL(url).host, httpx.URL(url).port)
    assert attacked(server, one_byte_chunks()) == {401}
    assert longest() < STEP_S


def test_a_body_in_ordinary_pieces_is_read(dial):
    text = json.dumps({"inputs": "a fine film " * 20_000}).encode()
    for size in (200, 1400, 65_536):
        connection = dial()
        connection.sendall(chunked([text[at : at + size] for at in range(0, len(text), size)], b"connection: close"))
        assert statuses(rest(connection)) == [200]
    connection = dial()
    connection.sendall(chunked([bytes([byte]) for byte in BODY], b"connection: close"))  # a short one in crumbs
    assert statuses(rest(connection)) == [200]
    connection = dial()
    connection.sendall(chunked([], end=b"19;a=b\r\n" + BODY + b"\r\n0\r\nx-sum: 1\r\n\r\n"))  # framing is read over
    connection.shutdown(socket.SHUT_WR)
    assert statuses(rest(connection)) == [200]


# -- targets ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "status"),
    [
        (b"http://tier:8080/v1/classify", 200),
        (b"HTTP://tier/v1/classify?a=b", 200),
        (b"https://elsewhere/v1/classify", 200),
        (b"http://tier/nowhere", 404),
        (b"http://tier", 200),
        (b"http:///v1/classify", 400),
        (b"ftp://tier/v1/classify", 400),
        (b"*", 400),
        (b"tier:8080", 400),
    ],
)
def test_a_target_may_be_a_whole_url(dial, target, status):
    connection = dial()
    connection.sendall(post(BODY, b"connection: close", path=target))
    said = rest(connection)
    assert statuses(said) == [status]
    assert status == 200 or b"application/problem+json" in said


def test_a_tunnel_is_refused(dial):
    connection = dial()
    connection.sendall(b"CONNECT tier:443 HTTP/1.1\r\nhost: tier\r\n\r\n")
    assert statuses(rest(connection)) == [400]


# -- too many ---------------------------------------------------------------------------------------------------------


def memory(pid):
    with open(f"/proc/{pid}/statm") as pages:
        return int(pages.read().split()[1]) * resource.getpagesize()


@contextlib.contextmanager
def process(bundle, files, **settings):
    """A tier as a process of its own, allowed so many open files; its log as a list of lines at the end."""
    port = free_ports(1)
    env = {"TIERWISE_BUNDLE": str(bundle), "TIERWISE_PORT": str(port), "TIERWISE_UPSTREAMS": "", **settings}
    command = [sys.executable, "-m", "services.end"]
    limit = ["prlimit", f"--nofile={files}:{files}"] if files else []
    with subprocess.Popen([*limit, *command], env={**CLEAN, **env}, stderr=subprocess.PIPE) as child:
        lines = []
        reading = threading.Thread(target=lambda: lines.extend(child.stderr))
        reading.start()
        try:
            until(lambda: any(b'"ready"' in line for line in lines) or child.poll() is not None, 90)
            yield child.pid, ("127.0.0.1", port), lines
        finally:
            child.send_signal(signal.SIGTERM)
            status = child.wait(30)
            reading.join()
    assert status == 0, lines


@pytest.mark.parametrize(("files", "idle"), [(80, 120), *([(1024, 1500)] if ALL else [])])
def test_more_idle_connections_than_files_keep_nobody_from_being_answered(tiny_bundle, files, idle):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < idle + 200:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, idle + 500), hard))
    with contextlib.ExitStack() as open_, process(tiny_bundle, files) as (_, address, lines):
        for at in range(idle):
            connection = open_.enter_context(socket.create_connection(address, timeout=10))
            if at % 3 == 0:
                connection.sendall(b"POST /v1/classify HTTP/1.1\r\n")  # half a head
            if at % 3 == 1:
                connection.sendall(post(b"", length=1000))  # half a request
            if at % 10 == 0:
                started = time.perf_counter()
                answer = httpx.post(
                    f"http://{address[0]}:{address[1]}/v1/classify", json={"inputs": "a film"}, timeout=10
                )
                assert answer.status_code == 200
                assert time.perf_counter() - started < 5  # one that waits for a free file waits for 30 s
    assert all(json.loads(line) for line in lines)
    assert not any(b"Traceback" in line for line in lines)
    assert sum(b"connections_full" in line for line in lines) in range(1, 5)
    assert len(lines) < 200


def test_bodies_that_stop_short_fill_no_more_than_their_shelf(tiny_bundle):
    with contextlib.ExitStack() as open_, process(tiny_bundle, None) as (pid, address, _):
        url = f"http://{address[0]}:{address[1]}/v1/classify"
        assert httpx.post(url, json={"inputs": "a film"}).status_code == 200
        before = memory(pid)
        part, said = b" " * (LIMIT - 10_000), []
        for _ in range(200):
            connection = open_.enter_context(socket.create_connection(address, timeout=10))
            connection.sendall(post(part, length=LIMIT))
            said.append(connection)
        until(lambda: len(select.select(said, [], [], 0)[0]) > 160, 60)  # all but those on the shelf are refused
        grown = memory(pid) - before
        print(f"grown by {grown / 1e6:.0f} MB")
        assert grown < 2.5 * 64e6  # the shelf's 64 MB, and what was copied on the way
        answered = select.select(said, [], [], 0)[0]
        assert {status for connection in answered for status in statuses(connection.recv(65536))} == {429}
        assert httpx.post(url, json={"inputs": "a film"}, timeout=2).status_code == 200
        for connection in said:
            connection.close()
        time.sleep(0.3)
        assert httpx.post(url, content=BODY + part, headers={"content-type": "application/json"}).status_code == 200


# -- stopping ---------------------------------------------------------------------------------------------------------


def test_no_stop_hangs_up_on_a_keep_alive_caller_who_asked(listening):
    stops = int(os.environ.get("TEST_STOPS", "3"))
    hung_up = []
    for _ in range(stops):
        url, server, thread = listening()
        address = (httpx.URL(url).host, httpx.URL(url).port)
        told, asked = [], threading.Event()

        def ask(address=address, told=told, asked=asked):
            connection = socket.create_connection(address, timeout=15)
            with connection:
                while True:
                    connection.sendall(b"GET /livez HTTP/1.1\r\nhost: tier\r\n\r\n" if len(told) % 2 else post())
                    asked.set()
                    said = connection.recv(65536)
                    while said and b"content-length" not in said.lower():
                        said += connection.recv(65536)
                    if not said:
                        hung_up.append("without an answer")
                        return
                    if b"connection: close" in said.lower():
                        told.append(said[9:12])
                        return

        callers = [threading.Thread(target=ask) for _ in range(6)]
        for caller in callers:
            caller.start()
        asked.wait(10)
        time.sleep(0.05)
        server.drain()
        for caller in callers:
            caller.join(20)
        thread.join(20)
        assert len(told) == 6
    assert not hung_up


def test_a_request_that_arrives_as_the_door_closes_is_answered(listening, monkeypatch):
    """Its bytes lie in the socket when connections are closed: the loop has not come to read them."""
    url, server, thread = listening()
    address = (httpx.URL(url).host, httpx.URL(url).port)
    with socket.create_connection(address, timeout=10) as idle, socket.create_connection(address, timeout=10) as used:
        used.sendall(post())
        used.recv(65536)
        close = server._door.close

        async def late():
            used.sendall(post())
            new.append(socket.create_connection(address, timeout=10))
            new[0].sendall(post())
            await close()

        new = []
        monkeypatch.setattr(server._door, "close", late)
        server.drain()
        assert statuses(rest(used)) == [503]
        with new[0]:
            assert statuses(rest(new[0])) == [503]
        assert rest(idle) == b""
    thread.join(10)
