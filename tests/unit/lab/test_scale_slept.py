"""Replicas whose time is slept: the layers, what a closed loop counts, and the autoscaler over replicas that answer."""

import asyncio
import contextlib
import json
import time
from types import SimpleNamespace

import httpx
import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from lab.cli.main import app
from lab.scale import live as module
from lab.scale import slept
from lab.scale.demand import Stop
from lab.scale.hpa import Rule, Spec, Way
from lab.scale.live import Live, slices
from lab.scale.replica import SleptEngine, SleptSettings, create_app
from lab.scale.report import draw, show_live
from lab.scale.simulate import Outcome
from lab.scale.slept import Caller, Plan, busy
from lab.scale.step import Read
from lab.scale.throughput import _row, windows
from shared.errors import BadSetting


def test_a_text_sleeps_as_long_as_was_measured_whatever_its_wake_ups():
    engine = SleptEngine(Stop("cloud", 1.0, 1.0, (0.05,), (1,)), layers=5, classes=2)
    began = time.monotonic()
    state = engine.start([None, None], importance=False)  # two texts, one after the other
    for n in range(5):
        time.sleep(0.004)  # late, each time
        state = engine.layer(n, state)
    assert time.monotonic() - began == pytest.approx(0.1, abs=0.03)
    assert engine.exits(4, state).tolist() == [[1.0, 0.0]] * 2
    assert engine.keep(state, [1]).seconds == (0.05,)
    assert engine.received(state, 0) is None


def demand(path, ms):
    """What `tierwise bench` writes, as far as it is read: the cloud's four layers take `ms`."""
    told = {
        "exits": {"cloud": {"4": 9}},
        "ran_by_tier": {"cloud": 1.0},
        "stages_ms": {"infer": ms, "tokenize": 0.0},
        "bytes_per_request": {"up": 1, "down": 1},
    }
    first = {"tier": "end", "tiers": [{"name": name} for name in ("end", "edge", "cloud")]}
    path.write_text(json.dumps({"policies": {"cloud-only": told}, "first_tier": first}))
    return path


@pytest.fixture
def replica(tiny_bundle, tmp_path):
    """The cloud of the tiny bundle, slept: 60 ms a text."""
    settings = SleptSettings(
        tier="cloud",
        bundle=str(tiny_bundle),
        policy="cloud-only",
        demand=demand(tmp_path / "bench.json", 60.0),
        demand_policy="cloud-only",
    )
    return create_app(settings)


def test_a_slept_replica_is_a_tier_that_says_what_it_is(replica):
    async def look():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(replica), base_url="http://cloud") as client:
            began = time.monotonic()
            said = [
                (await client.post("/v1/classify", json={"inputs": "A joy."})).json()["results"][0]["degraded"]
                for _ in range(3)
            ]
            took = time.monotonic() - began
            return said, took, (await client.get("/info")).json(), (await client.get("/metrics")).text

    said, took, info, page = asyncio.run(look())
    replica.state.tier.worker.close()
    assert said == [None] * 3
    assert 0.18 <= took < 1.0
    assert info["engine"] == "slept"
    assert 'engine="slept fp32"' in page
    assert float(module._METRICS["cpu"].findall(page)[0]) == pytest.approx(0.18, abs=0.06)
    assert float(module._METRICS["wait"].findall(page)[0]) == 0.0


def test_a_replica_without_what_it_sleeps_for_does_not_start(tiny_bundle, tmp_path):
    path = demand(tmp_path / "bench.json", 60.0)
    settings = SleptSettings(tier="edge", bundle=str(tiny_bundle), demand=path, demand_policy="cloud-only")
    with pytest.raises(BadSetting, match="no text of cloud-only comes to 'edge': cloud"):
        create_app(settings)


def served(handler):
    """Runs `work(url)` beside a server whose connections `handler(reader, writer)` takes."""

    async def run(work):
        async with await asyncio.start_server(handler, "127.0.0.1", 0) as server:
            return await work(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")

    return lambda work: asyncio.run(run(work))


def says(status, told, seconds=0.0):
    """A server that reads requests and answers each so; a connection that it closes says so."""

    async def handler(reader, writer):
        while head := await reader.readuntil(b"\r\n\r\n"):
            length = int(head.lower().partition(b"content-length: ")[2].split()[0])
            assert json.loads(await reader.readexactly(length))["inputs"]
            await asyncio.sleep(seconds)
            body = json.dumps(told).encode()
            writer.write(f"HTTP/1.1 {status} x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)

    async def closing(reader, writer):
        with contextlib.suppress(asyncio.IncompleteReadError, asyncio.CancelledError):
            await handler(reader, writer)
        writer.close()

    return served(closing)


@pytest.mark.parametrize(
    ("status", "told", "said"),
    [
        (200, {"results": [{"degraded": None}]}, "ok"),
        (200, {"results": [{"degraded": "upstream_refused"}]}, "refused"),
        (200, {"results": [{"degraded": "upstream_unavailable"}]}, "upstream_unavailable"),
        (429, {}, "refused"),
        (503, {}, "lost: status 503"),
    ],
)
def test_what_becomes_of_a_text(status, told, said):
    async def twice(url):
        async with contextlib.aclosing(Caller(url)) as caller:
            return [await caller.ask(0), await caller.ask(1), len(caller._free)]

    assert says(status, told)(twice) == [said, said, 1]  # over one connection


def test_a_connection_that_was_idle_for_long_is_not_used_again(monkeypatch):
    async def twice(url):
        async with contextlib.aclosing(Caller(url)) as caller:
            await caller.ask(0)
            (first,) = caller._free
            monkeypatch.setattr(slept, "IDLE_S", -1.0)
            assert await caller.ask(1) == "ok"
            (second,) = caller._free
            return first[2] is second[2], first[2].is_closing()

    assert says(200, {"results": [{"degraded": None}]})(twice) == (False, True)


def test_a_text_that_gets_no_answer_is_lost():
    async def breaks(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.close()

    async def one(url):
        return await Caller(url).ask(0)

    assert served(breaks)(one) == "lost: IncompleteReadError"
    assert asyncio.run(Caller("http://127.0.0.1:9").ask(0)) == "lost: ConnectionRefusedError"


def test_a_closed_loop_asks_again_once_it_was_answered():
    done, became = says(200, {"results": [{"degraded": None}]}, 0.05)(lambda url: busy(url, 4, 0.5))
    assert len(done) == became["ok"] == pytest.approx(40, abs=12)


def test_windows_and_their_share_of_linear_by_hand():
    assert windows([2.5, 3.0, 8.0, 11.9, 12.5], 2.0, 12.0) == [0.4, 0.4]
    row = _row(4, [78.0, 82.0], slept.Counter(ok=800, refused=2), np.array([24.0, 26.0]))
    assert row["rate"][0] == 80.0
    assert row["of_linear"][0] == pytest.approx(80 / 25 / 4)
    assert row["others"] == {"refused": 2}
    assert row["of_linear"][1] < 0.8 < row["of_linear"][2]


class Fake:
    """Replicas in memory: those that run answer; each says that `wait` seconds of work wait there."""

    def __init__(self):
        self.plan = SimpleNamespace(most=4)
        self.urls = [f"http://replica-{at}" for at in range(4)]
        self.ends = {4: "http://end"}
        self.running, self.statuses, self.wait, self.most = {self.urls[0]: None}, [], 0.01, 1

    def start(self, url):
        self.running[url] = None
        self.most = max(self.most, len(self.running))

    async def stop(self, url):
        del self.running[url]
        self.statuses.append(0)

    def check(self):
        pass

    def answer(self, request):
        if f"http://{request.url.host}" not in self.running:
            raise httpx.ConnectError("refused")
        if request.url.path == "/readyz":
            return httpx.Response(200)
        return httpx.Response(200, text=f'tierwise_wait_seconds{{tier="cloud"}} {self.wait}\n')


class Answers(Caller):
    """The end, which answers every text."""

    async def ask(self, number):
        return "ok"


def mocked(monkeypatch, fake):
    def client(url, **options):
        return httpx.AsyncClient(transport=httpx.MockTransport(fake.answer), base_url=url)

    monkeypatch.setattr(module, "AsyncClient", client)
    monkeypatch.setattr(module, "Caller", Answers)


AT_ONCE = Way(0, (Rule(True, 100, 0.1),))


def test_the_autoscaler_starts_replicas_and_drains_them(monkeypatch):
    fake = Fake()
    mocked(monkeypatch, fake)
    monkeypatch.setattr(module, "SYNC_S", 0.2)
    monkeypatch.setattr(module, "READY_S", 0.02)
    spec = Spec(target=0.05, least=1, most=9, up=AT_ONCE, down=AT_ONCE)
    run = Live(fake, Read("wait", 0.05, 2), spec, [(1.0, 20.0), (2.0, 60.0)])

    async def loaded():
        task = asyncio.create_task(run.run(0))
        for wait in (0.01, 0.06, 0.01):  # seconds: 1 replica is enough; one more is asked for; too many
            fake.wait = wait
            await asyncio.sleep(1.0)
        await task

    asyncio.run(loaded())
    counts = [count for _, count, _ in run.out.replicas]
    assert counts[0] == 1
    assert max(counts) == fake.most == 4  # `most` holds
    assert counts[-1] == len(fake.running) == 1
    assert fake.statuses == [0, 0, 0]
    assert run.told.became == {"ok": len(run.out.answered)}
    assert len(run.out.answered) == pytest.approx(140, abs=40)
    assert all(latency >= 0 for _, latency in run.out.answered)
    assert all(ready <= count for _, count, ready in run.out.replicas)


def test_what_the_controller_raises_ends_the_run(monkeypatch):
    fake = Fake()
    mocked(monkeypatch, fake)

    def stopped():
        raise BadSetting("tier cloud stopped: out of memory")

    fake.check = stopped
    spec = Spec(target=0.05, least=1, most=9, up=AT_ONCE, down=AT_ONCE)
    run = Live(fake, Read("wait", 0.05, 2), spec, [(5.0, 20.0)])
    with pytest.RaisesGroup(BadSetting, allow_unwrapped=True, flatten_subgroups=True):
        asyncio.run(run.run(0))


def test_the_share_of_time_in_which_a_model_ran(monkeypatch):
    pages, values = iter(("1.0", "1.25")), []
    one = module.Seen("u", None, module.deque(maxlen=6), ready=True, total=None)

    async def read():
        async with httpx.AsyncClient(
            transport=httpx.MockTransport(
                lambda request: httpx.Response(
                    200, text=f'tierwise_stage_duration_seconds_sum{{stage="infer",tier="cloud"}} {next(pages)}\n'
                )
            ),
            base_url="http://r",
        ) as one.client:
            run = Live(Fake(), Read("cpu", 5, 6), Spec(1, 1, 4, AT_ONCE, AT_ONCE), [])
            await run._scrape(one)
            values.extend(one.values)  # nothing yet: a share needs two scrapes
            one.total = (one.total[0] - 0.5, one.total[1])
            await run._scrape(one)

    asyncio.run(read())
    assert values == []
    assert one.values[0] == pytest.approx(0.5, abs=0.02)


def test_slices_of_time_by_hand():
    out = Outcome(answered=[(1.0, 0.1), (14.0, 0.3), (31.0, 0.2)], refused=[2.0, 3.0, 46.0])
    found = slices(out, -30.0, 30.0)
    assert found["at_s"] == [-30.0, -15.0, 0.0, 15.0]
    assert found["p99_ms"] == [pytest.approx(298.0), None, pytest.approx(200.0), None]
    assert found["refused"] == [0.5, 0.0, 0.0, 1.0]


def test_what_a_live_run_prints_and_draws(tmp_path):
    console = Console(width=150, record=True)
    spread = [1, 1, 1]
    keys = ("reached_s", "at_rest", "reversals", "p99_ratio", "refused", "replica_hours")
    row = {"signal": "wait", "runs": 1, "held": 1, "first": {"replicas": [(0.0, 1, 1)]}, **dict.fromkeys(keys, spread)}
    show_live([{**row, "became": {"ok": 9}, "drained": 2, "ended_otherwise": 0, "late_p99_ms": 3.0}], console)
    told = console.export_text()
    assert "slept" in told
    assert "texts ok 9; 2 replicas drained, 0 ended otherwise" in told
    over_time = {"at_s": [-15.0, 0.0], "p99_ms": [200.0, None], "refused": [0.0, 0.1]}
    given = {"tier": "cloud", "policy": "some", "rate": 16.8, "times": 3.0, "step_s": 15.0}
    draw({"given": given, "signals": [{**row, "over_time": over_time}] * 2}, tmp_path / "live.png")
    assert (tmp_path / "live.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    "words", [["--counts", "2,4"], ["--counts", "1,1"], ["--counts", "1,65"], ["--seconds", "10", "--rounds", "3"]]
)
def test_numbers_of_replicas_that_cannot_be_compared_are_refused(words, tmp_path):
    path = demand(tmp_path / "bench.json", 60.0)
    assert CliRunner().invoke(app, ["scale", "replicas", str(path), *words]).exit_code == 2


def test_only_a_tier_behind_the_first_one_is_scaled(tmp_path):
    with pytest.raises(BadSetting, match="no tier 'end' behind the first one: edge, cloud"):
        _ = Plan(tmp_path / "bench.json", "cloud-only", "end", 2, 100.0).first
