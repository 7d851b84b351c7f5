"""A link that breaks on command: a TCP proxy before a tier, speaking just enough HTTP/1.1 to break it where it hurts.

`Faulty.mode` names the fault; `well` passes everything on. What a proxy cannot do (partition, packet loss, a container
that is paused) a kernel does: `e2e/test_faults.py`.
"""

import asyncio
import gzip
import json
import random
import threading

CRLF = b"\r\n"
LONG = 1400  # bytes of a request or an answer, head and all
BOMB = gzip.compress(gzip.compress(b" " * 50_000_000))
FAULTS = {}  # name -> (what the proxy does to a request, the reasons that may be given)


def fault(name, *reasons):
    def keep(function):
        FAULTS[name] = (function, set(reasons))
        return function

    return keep


def canned(name, status, body=b"{}", headers=b"", *, reasons):
    @fault(name, *reasons)
    async def answer(link, request, writer):
        head = b"HTTP/1.1 %d X\r\ncontent-length: %d\r\n%s\r\n" % (status, len(body), headers)
        writer.write(head + body)


LATE = ("deadline", "upstream_timeout")
GONE = ("upstream_unavailable",)
BAD = ("upstream_invalid",)
NO = ("upstream_refused",)
canned("burst of 500s", 500, reasons=BAD)
canned("502 of a gateway", 502, b"<html>", reasons=BAD)
canned("429 with Retry-After", 429, headers=b"retry-after: 1\r\n", reasons=NO)
canned("503", 503, headers=b"retry-after: 1\r\n", reasons=NO)
canned("wrong key", 401, reasons=NO)
canned("another service", 404, reasons=NO)
canned("a redirect", 302, headers=b"location: http://127.0.0.1:9/\r\n", reasons=BAD)
canned("garbage JSON", 200, b'{"rows": [{]', reasons=BAD)
canned("not UTF-8", 200, b"\xff\xfe\xfd", reasons=BAD)
canned("wrong schema", 200, b'{"version": 2, "call": "c", "rows": "none", "total_ms": 0}', reasons=BAD)
canned("no rows", 200, b'{"version": 2, "call": "c", "rows": [], "total_ms": 0}', reasons=BAD)
canned("nothing", 200, b"", reasons=BAD)


@fault("killed", *GONE)
async def killed(link, request, writer):
    writer.transport.abort()  # the listener is closed, too: see Faulty.set


@fault("black hole", *LATE)
async def black_hole(link, request, writer):
    await asyncio.sleep(3600)


@fault("+5 s delay", *LATE)
async def delay(link, request, writer):
    await asyncio.sleep(5)
    writer.write(await link.ask(request))


@fault("10 kbit/s", *LATE)
async def thin(link, request, writer):
    await drip(await link.ask(request), writer, 125, 0.1)


@fault("slow drip", *LATE)
async def slow_drip(link, request, writer):
    await drip(await link.ask(request), writer, 1, 0.05)


@fault("30 % of calls lost", *LATE)
async def lossy(link, request, writer):
    if link.random.random() < 0.3:
        await asyncio.sleep(3600)
    writer.write(await link.ask(request))


@fault("hangs up", *GONE)
async def hangs_up(link, request, writer):
    writer.close()


@fault("reset before the answer", *GONE)
async def resets(link, request, writer):
    writer.transport.abort()


@fault("reset mid-answer", *GONE)
async def resets_midway(link, request, writer):
    answer = await link.ask(request)
    writer.write(answer[: len(answer) - 40])
    await writer.drain()
    writer.transport.abort()


@fault("truncated body", *GONE)
async def truncates(link, request, writer):
    answer = await link.ask(request)
    writer.write(answer[: len(answer) - 40])
    writer.close()


@fault("endless headers", *GONE)
async def endless(link, request, writer):
    writer.write(b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 50_000)
    await writer.drain()


@fault("not HTTP", *GONE)
async def not_http(link, request, writer):
    writer.write(b"\x16\x03\x01 hello\r\n\r\n")
    writer.close()


@fault("version skew", *BAD)
async def skew(link, request, writer):
    writer.write(altered(await link.ask(request), version=3))


@fault("answers for other texts", *BAD)
async def too_many(link, request, writer):
    answer = await link.ask(request)
    rows = json.loads(answer.partition(CRLF * 2)[2]).get("rows", [])
    writer.write(altered(answer, rows=rows * 2 + rows or [{"hops": []}]))


@fault("every warm connection breaks")
async def breaks_warm(link, request, writer):
    if writer in link.used:
        writer.transport.abort()
        return
    link.used.add(writer)
    writer.write(await link.ask(request))


@fault("warm connections die unannounced")
async def dead_warm(link, request, writer):
    writer.write(await link.ask(request))
    await writer.drain()
    writer.transport.abort()


@fault("answers twice", *BAD)
async def twice(link, request, writer):
    writer.write(2 * await link.ask(request))


@fault("answers twice, late", *BAD)
async def twice_late(link, request, writer):
    answer = await link.ask(request)
    writer.write(answer)
    await asyncio.sleep(0.02)
    writer.write(answer)


@fault("asks twice", *BAD)
async def asks_twice(link, request, writer):
    writer.write(await link.ask(request) + await link.ask(request))


@fault("the answer before", *BAD)
async def stale(link, request, writer):
    answer = await link.ask(request)
    link.kept, answer = answer, link.kept or answer
    writer.write(answer)


@fault("rows in another order", *BAD)
async def reorders(link, request, writer):
    answer = await link.ask(request)
    rows = json.loads(answer.partition(CRLF * 2)[2]).get("rows", [])
    writer.write(altered(answer, rows=rows[::-1]))


@fault("hops of another row", *BAD)
async def swaps_hops(link, request, writer):
    answer = await link.ask(request)
    rows = json.loads(answer.partition(CRLF * 2)[2]).get("rows", [])
    moved = [{**row, "hops": other["hops"]} for row, other in zip(rows, rows[::-1], strict=True)]
    writer.write(altered(answer, rows=moved))


@fault("an old answer under this call's id", *BAD)
async def stale_under_a_new_id(link, request, writer):
    answer = await link.ask(request)
    call = json.loads(answer.partition(CRLF * 2)[2]).get("call")
    link.kept, old = answer, link.kept or answer
    writer.write(altered(old, call=call))


@fault("packed twice", *BAD)
async def bomb(link, request, writer):
    head = b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip, gzip\r\ncontent-length: %d\r\n\r\n" % len(BOMB)
    writer.write(head + BOMB)


@fault("a million rows", *BAD)
async def rows_without_end(link, request, writer):
    _, _, body = (await link.ask(request)).partition(CRLF * 2)
    fields = {**json.loads(body), "rows": []}
    start = json.dumps(fields).encode().replace(b'"rows": []', b'"rows": [')
    many = b'{"index":0,"hops":[]},' * 500_000
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % (len(start) + len(many)) + start + many)
    await writer.drain()


@fault("an answer in chunks of one byte", *BAD)
async def crumbs(link, request, writer):
    writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
    await link.pour(b"1\r\n \r\n" * 10_000, writer)


@fault("early hints without end", *BAD)
async def hints(link, request, writer):
    await link.pour(b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n" * 1000, writer)


@fault("long packets are lost", *LATE)
async def loses_long_requests(link, request, writer):
    if len(request) > LONG:
        await asyncio.sleep(3600)
    writer.write(await link.ask(request))


@fault("long packets are lost on the way back", *LATE)
async def loses_long_answers(link, request, writer):
    answer = await link.ask(request)
    if len(answer) > LONG:
        await asyncio.sleep(3600)
    writer.write(answer)


async def drip(answer, writer, size, pause):
    for at in range(0, len(answer), size):
        writer.write(answer[at : at + size])
        await writer.drain()
        await asyncio.sleep(pause)


def altered(answer, **changes):
    body = json.dumps({**json.loads(answer.partition(CRLF * 2)[2]), **changes}).encode()
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body) + body


async def message(reader):
    """One request or answer, head and body, or nothing at the end of the connection."""
    try:
        head = await reader.readuntil(CRLF * 2)
    except (asyncio.IncompleteReadError, ConnectionError):
        return b""
    size = next((int(h.split(b":")[1]) for h in head.lower().split(CRLF) if h.startswith(b"content-length:")), 0)
    return head + await reader.readexactly(size)


class Faulty:
    """The proxy, in a thread with an event loop of its own; `set` changes its mode, `asked` counts user requests."""

    def __init__(self, port, target):
        self.port, self.target, self.mode, self.random = port, target, "well", random.Random(0)
        self.asked, self.kept, self.used, self.poured = 0, None, set(), 0
        self._open, self._tasks = set(), set()
        self._server = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._do(self._listen())

    def _do(self, work):
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    def set(self, mode):
        self._do(self._set(mode))

    async def _set(self, mode):
        was, self.mode = self.mode, mode
        if mode in ("killed", "hangs up"):
            for writer in list(self._open):
                writer.transport.abort()
        if mode == "killed":
            self._server.close()
        elif was == "killed":
            await self._listen()

    async def _listen(self):
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)

    async def _serve(self, reader, writer):
        self._open.add(writer)
        self._tasks.add(task := asyncio.current_task())  # asyncio itself holds a task by a weak reference alone
        try:
            while request := await message(reader):
                self.asked += b'"texts":[]' not in request
                if self.mode == "well":
                    writer.write(await self.ask(request))
                else:
                    await FAULTS[self.mode][0](self, request, writer)
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._open.discard(writer)
            self._tasks.discard(task)
            writer.close()

    async def ask(self, request):
        reader, writer = await asyncio.open_connection("127.0.0.1", self.target)
        try:
            writer.write(request)
            return await message(reader)
        finally:
            writer.close()

    async def pour(self, block, writer):
        """Write blocks until the other end has had enough; `poured` counts the bytes."""
        self.poured = 0
        while True:
            writer.write(block)
            await writer.drain()
            self.poured += len(block)

    def close(self):
        async def stop():
            self._server.close()
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        self._do(stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()
