"""About 200 ways of not speaking HTTP, over a raw socket: a refusal of the 400s or a closed connection, never a 500 or
502, and the tier answers the next caller at once."""

import itertools
import json
import select
import socket
import time

import httpx
import pytest

BODY = b'{"inputs": "a fine film"}'
POST = b"POST /v1/classify HTTP/1.1\r\n"
HOST = b"host: tier\r\n"
TYPE = b"content-type: application/json\r\n"


def post(*headers, body=BODY, line=POST, host=HOST, length=True):
    size = b"content-length: %d\r\n" % len(body) if length else b""
    return line + host + TYPE + size + b"".join(h + b"\r\n" for h in headers) + b"\r\n" + body


def corpus():
    yield from request_lines()
    yield from headers()
    yield from lengths()
    yield from chunks()
    yield from cut_short()
    yield from bodies()


def request_lines():
    methods = [b"", b"post", b"P@ST", b"POST\x00", b"\xff\xfe", b"POST" * 50, b"CONNECT", b"TRACE", b"PRI", b" POST"]
    targets = [b"", b"/v1/classify/../infer", b"*", b"//", b"/\x00", b"/\xff", b"http://elsewhere/v1/classify", b"/a b"]
    targets += [b"/" + b"a" * 20_000, b"/%", b"/%zz", b"/%00", b"/?" + b"q=1&" * 3000, b"/v1/classify?x=\x00"]
    versions = [b"", b"HTTP/0.9", b"HTTP/2.0", b"HTTP/1.2", b"HTTP/9.9", b"HTTP/1", b"http/1.1", b"HTTQ/1.1", b"\xff"]
    for method in methods:
        yield f"method {method[:12]!r}", post(line=method + b" /v1/classify HTTP/1.1\r\n")
    for target in targets:
        yield f"target {target[:12]!r}", post(line=b"POST " + target + b" HTTP/1.1\r\n")
    for version in versions:
        yield f"version {version!r}", post(line=b"POST /v1/classify " + version + b"\r\n")
    for junk in (
        b"\r\n\r\n",
        b"\n",
        b"\x00" * 100,
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"GET",
        b"a" * 70_000,
        b"\xff" * 50,
    ):
        yield f"junk {junk[:8]!r}", junk + b"\r\n\r\n"
    yield "line ends with LF", post().replace(b"\r\n", b"\n")
    yield "line ends with CR", post().replace(b"\r\n", b"\r")
    yield "HTTP/2 preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def headers():
    bad = [
        b"no colon",
        b": no name",
        b"na me: v",
        b"name : v",
        b"n\x00: v",
        b"n: \x00",
        b"n: \x0b",
        b"\xff: v",
        b"n\t: v",
    ]
    bad += [b" folded: v", b"\tfolded", b"n: " + b"v" * 20_000, b"n" * 20_000 + b": v", b"n:\rv", b"n: a\x7f", b"(): v"]
    odd = [
        b"host: other",
        b"host:",
        b"host: a\x00b",
        b"connection: \xff",
        b"connection: close, close",
        b"upgrade: websocket",
    ]
    odd += [b"upgrade: h2c\r\nconnection: upgrade", b"expect: 100-continue", b"expect: 200-ok", b"te: trailers"]
    odd += [
        b"content-type: text/html",
        b"content-type:",
        b"content-type: application/json\xff",
        b"content-encoding: gzip",
    ]
    odd += [b"x-request-id: \xff\xfe", b"x-request-id: " + b"a" * 200, b"traceparent: \xe9", b"authorization: \xff"]
    odd += [b"accept: nothing/at-all", b"range: bytes=5-1", b"cookie: " + b"a=b;" * 500, b"forwarded: for=\x22"]
    for header in (*bad, *odd):
        yield f"header {header[:14]!r}", post(header)
    yield "no host", post(host=b"")
    yield "two hosts", post(HOST.strip())
    yield "5,000 headers", post(*(b"a%d: b" % n for n in range(5000)))
    yield "100 headers", post(*(b"a%d: b" % n for n in range(100)))


def lengths():
    values = [b"", b"-1", b"+5", b"0x10", b"1e3", b"5.0", b"abc", b"5 5", b"5, 5", b"5, 6", b"\xb2", b"9" * 400, b"1_0"]
    for value in values:
        yield f"length {value[:8]!r}", post(b"content-length: " + value, length=False)
    yield "no length", post(length=False)
    yield "two equal lengths", post(b"content-length: %d" % len(BODY))
    yield "two lengths", post(b"content-length: 3")
    yield "length over the limit", post(b"content-length: 2000001", length=False)
    yield "length and chunks", post(b"transfer-encoding: chunked")
    yield "chunks, then a length", post(b"transfer-encoding: chunked", b"content-length: 5", length=False)
    for encoding in (
        b"gzip",
        b"chunked, chunked",
        b"chunked, gzip",
        b"identity",
        b"CHUNKED",
        b"",
        b"\x0bchunked",
        b"xchunked",
    ):
        yield f"transfer {encoding!r}", post(b"transfer-encoding: " + encoding, length=False)


def chunks():
    size = b"%x" % len(BODY)
    sent = [
        b"",
        b"0\r\n\r\n",
        b"-1\r\n",
        b"zz\r\n",
        b"\r\n",
        b"0x5\r\nabcde\r\n0\r\n\r\n",
        b"f" * 40 + b"\r\n",
        b"5\r\nabc",
    ]
    sent += [size + b"\r\n" + BODY, size + b"\r\n" + BODY + b"0\r\n\r\n", size + b"\n" + BODY + b"\n0\n\n"]
    sent += [size + b";" + b"a" * 20_000 + b"\r\n" + BODY + b"\r\n0\r\n\r\n", b"1\r\n{\r\n" * 50 + b"0\r\n\r\n"]
    sent += [
        size + b"\r\n" + BODY + b"\r\n0\r\n" + b"t: v\r\n" * 3000 + b"\r\n",
        size + b" \r\n" + BODY + b"\r\n0\r\n\r\n",
    ]
    sent += [size + b"\r\n" + BODY + b"\r\n0\r\nbad trailer\r\n\r\n", b"1ffffffff\r\n{", b"\x00\r\n\r\n"]
    for chunk in sent:
        yield f"chunk {chunk[:12]!r}", post(b"transfer-encoding: chunked", body=chunk, length=False)


def cut_short():
    whole = post()
    for upto in range(1, len(whole), 4):
        yield f"cut after {upto} bytes", whole[:upto]


def bodies():
    sent = [
        b"",
        b"\x00",
        b"\xff\xfe",
        b"\x1f\x8b\x08\x00",
        b"{" * 5000,
        b"[" * 900_000,
        b'"' + b"\\" * 10_001,
        b"nul",
        b"NaN",
    ]
    sent += [
        b'{"inputs": "\xed\xa0\x80"}',
        b'{"inputs": "\\ud800"}',
        BODY * 2,
        BODY + b"\x00",
        b"inputs=a",
        b"1" * 10_000,
    ]
    sent += [
        b'{"inputs": "a", "inputs": 5}',
        b'{"inputs": ["a"], "options": []}',
        b'{"\\u0000": 1}',
        b"\r\n" * 100,
        b"{}",
    ]
    for path, body in itertools.product((b"/v1/classify", b"/v1/infer"), sent):
        yield f"{path.decode()} {body[:14]!r}", post(body=body, line=b"POST " + path + b" HTTP/1.1\r\n")
    yield "two requests at once, the second broken", post() + b"\x00\x01\x02\r\n\r\n"
    yield "an answer instead of a request", b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"


CASES = list(corpus())


def said(url, sent, *, seconds=5.0):
    """Everything that comes back until the tier hangs up, or has nothing more to say.

    We hang up only once it has spoken, or waits for more: a caller who hangs up before its answer gets none.
    """
    with socket.create_connection((url.host, url.port), timeout=seconds) as connection:
        try:
            connection.sendall(sent)
            select.select([connection], [], [], 0.1)
            connection.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # it hung up before the end: what it said still counts
        out = b""
        try:
            while part := connection.recv(65536):
                out += part
        except ConnectionResetError:
            pass
        return out


@pytest.fixture(scope="module")
def tier(staying):
    return httpx.URL(staying()[0])


def test_malformed_http_is_refused_and_the_tier_lives_on(tier):
    assert len(CASES) >= 200
    wrong, statuses = {}, {}
    with httpx.Client(base_url=tier, timeout=2) as client:
        for name, sent in CASES:
            started = time.perf_counter()
            try:
                answer = said(tier, sent)
            except TimeoutError:
                wrong[name] = "it neither answered nor hung up"
                continue
            status = answer[9:12].decode(errors="replace") if answer.startswith(b"HTTP/1.1 ") else "closed"
            statuses[status] = statuses.get(status, 0) + 1
            if status not in ("closed", "200", "100") and not status.startswith("4"):
                wrong[name] = answer[:80]
            if time.perf_counter() - started > 5:
                wrong[name] = "slow"
            alive = client.post("/v1/classify", json={"inputs": "a fine film"})
            if alive.status_code != 200:
                wrong[name] = f"the next caller got {alive.status_code}"
    assert not wrong
    assert statuses["400"] > 80, statuses
    assert statuses.get("200", 0) < len(CASES) / 3


@pytest.mark.parametrize(
    ("sent", "status", "kind"),
    [
        (post(host=b""), 400, "bad-request"),
        (post(b"content-length: two", length=False), 400, "bad-request"),
        (post(b"content-length: 4", b"transfer-encoding: chunked", length=False), 400, "bad-request"),
        (b"GET / HTTP/1.1\r\nhost: tier\r\nx: " + b"a" * 17_000 + b"\r\n\r\n", 431, "headers-too-large"),
        (b"GET /" + b"a" * 17_000 + b" HTTP/1.1\r\nhost: tier\r\n\r\n", 431, "headers-too-large"),
    ],
    ids=["no host", "no length", "two lengths", "a long header", "a long target"],
)
def test_what_is_not_http_gets_a_problem_document_too(tier, sent, status, kind):
    head, _, content = said(tier, sent).partition(b"\r\n\r\n")
    problem = json.loads(content)
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert b"content-type: application/problem+json" in head.lower()
    assert (problem["status"], problem["type"]) == (status, f"urn:tierwise:{kind}")


def test_a_long_header_within_the_limit_is_read(tier):
    assert said(tier, post(b"x-much: " + b"a" * 15_000)).startswith(b"HTTP/1.1 200 ")


def test_headers_without_an_end_are_hung_up_on(listening, monkeypatch):
    monkeypatch.setattr("shared.web.http11.HEAD_S", 0.3)
    url = httpx.URL(listening()[0])
    for start in (b"", b"POST /v1/classify HTTP/1.1\r\nhost: tier\r\nx: "):
        with socket.create_connection((url.host, url.port), timeout=5) as connection:
            connection.sendall(start)
            opened = time.perf_counter()
            assert connection.recv(1024) == b""
            assert time.perf_counter() - opened < 3
    with httpx.Client(base_url=url) as client:  # and one that is merely idle between two requests is not
        for _ in range(2):
            assert client.post("/v1/classify", json={"inputs": "a film"}).status_code == 200
            time.sleep(0.5)
