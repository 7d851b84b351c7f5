"""Callers on real sockets who read nothing of their answer, or read it slowly."""

import asyncio
import socket
from contextlib import asynccontextmanager, suppress

import pytest
from structlog.testing import capture_logs
from uvicorn.config import Config
from uvicorn.server import ServerState

from shared.web import unread
from shared.web.door import Door
from shared.web.http11 import ABORT, Http11

SIZE = 20_000_000  # bytes of an answer: more than both ends' kernels take
ASK = b"GET / HTTP/1.1\r\nhost: tier\r\n%s\r\n"
CLOSE = b"connection: close\r\n"


async def plain(scope, receive, send):
    headers = [(b"content-length", b"%d" % SIZE)]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": bytes(SIZE)})


async def stream(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for _ in range(SIZE // 100_000):
        await send({"type": "http.response.body", "body": bytes(100_000), "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def gives_up(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": bytes(SIZE), "more_body": True})
    await send(ABORT)


@asynccontextmanager
async def served(app, most=4):
    """A door that lets `most` connections in to `app`: its address, and what the server knows of them."""
    config, state = Config(app, log_config=None, lifespan="off"), ServerState()
    config.load()
    door = Door(lambda: Http11(config, state, {}, door, lambda: False), most=most)
    listener = socket.create_server(("127.0.0.1", 0))
    door.open([listener])
    try:
        yield listener.getsockname(), state
    finally:
        await door.close()
        for connection in list(state.connections):
            connection.transport.abort()
        await asyncio.sleep(0)


async def ask(address, more=b""):
    """A socket that takes little, on which a request was sent."""
    caller = socket.socket()
    caller.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    caller.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(caller, address)
    await loop.sock_sendall(caller, ASK % more)
    return caller


async def until(condition):
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("more", [b"", CLOSE], ids=["kept alive", "closed"])
@pytest.mark.parametrize("app", [plain, stream])
def test_a_caller_who_reads_nothing_of_its_answer_loses_the_connection(monkeypatch, app, more):
    monkeypatch.setattr(unread, "READ_S", 0.2)

    async def story():
        async with served(app) as (address, state):
            with await ask(address, more):
                await until(lambda: state.connections)
                await until(lambda: not state.connections)

    with capture_logs() as logs:
        asyncio.run(story())
    assert [line["event"] for line in logs] == ["reader_too_slow"]


@pytest.mark.parametrize("app", [plain, stream])
def test_a_caller_who_reads_slowly_gets_its_whole_answer(monkeypatch, app):
    monkeypatch.setattr(unread, "READ_S", 0.5)

    async def story():
        async with served(app) as (address, _):
            with await ask(address, CLOSE) as caller:
                got = 0
                while part := await asyncio.get_running_loop().sock_recv(caller, 1_000_000):
                    got += len(part)
                    if got < 2_000_000:
                        await asyncio.sleep(0.002)
                return got

    with capture_logs() as logs:
        assert asyncio.run(story()) >= SIZE
    assert logs == []


@pytest.mark.parametrize("more", [b"", CLOSE], ids=["kept alive", "closed"])
@pytest.mark.parametrize("app", [plain, stream])
def test_a_caller_who_does_not_read_makes_room_for_another(app, more):
    async def story():
        async with served(app, most=1) as (address, state):
            with await ask(address, more):
                await until(lambda: any(c.transport.get_write_buffer_size() for c in state.connections))
                with await ask(address) as another:
                    return await asyncio.get_running_loop().sock_recv(another, 12)

    assert asyncio.run(story()) == b"HTTP/1.1 200"


def test_an_answer_that_is_given_up_ends_its_connection_at_once_and_is_no_error(caplog):
    async def story():
        async with served(gives_up) as (address, state):
            with await ask(address) as caller, suppress(ConnectionResetError):
                while await asyncio.get_running_loop().sock_recv(caller, 1_000_000):
                    pass
            assert not state.connections

    asyncio.run(asyncio.wait_for(story(), 10))
    assert caplog.records == []
