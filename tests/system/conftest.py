"""End, edge and cloud in one process, joined by a transport that hands each call to the app of its host.

triangle, chain   three tiers; in the chain the end has no direct link to the cloud
whole             the triangle, with the whole model on the end
build_tiers       the builder of both
listening         a builder of tiers on real sockets
staying           the same, for all tests of a module
three             the triangle on real sockets, for a module whose tests do not change it: the end's address
"""

import asyncio
import json
import os
import sys
import threading
import time
from contextlib import contextmanager
from types import SimpleNamespace

import httpx
import pytest
import structlog
from typer.testing import CliRunner

from lab.cli import main as command_line
from lab.live.stack import free_ports
from lab.replay.profile import Http
from shared.errors import TierwiseError
from shared.logs import configure_logs
from shared.web.app import create_app
from shared.web.server import Server
from shared.web.settings import Settings

TRIANGLE = {"end": ("edge", "cloud"), "edge": ("cloud",), "cloud": ()}
CHAIN = {"end": ("edge",), "edge": ("cloud",), "cloud": ()}
PATIENT = {"queue_wait_ms": 60_000}  # these tests are not about overload, and a busy machine is none


class Joined(httpx.AsyncBaseTransport):
    """Hands a call to the app of its host; remembers each, and breaks where a test says so."""

    def __init__(self):
        self.apps, self.calls = {}, []
        self.down = set()  # tiers that refuse connections
        self.dies_after = {}  # tier -> calls that it still answers; the next one is cut off

    async def handle_async_request(self, request):
        tier = request.url.host
        if tier in self.down:
            raise httpx.ConnectError(f"{tier} is down", request=request)
        answer = await httpx.ASGITransport(self.apps[tier]).handle_async_request(request)
        body = await answer.aread()
        left = self.dies_after.get(tier)
        if left is not None:
            self.dies_after[tier] = left - 1
            if left <= 0:
                self.down.add(tier)
                raise httpx.ReadError(f"{tier} died", request=request)
        self.calls.append(SimpleNamespace(to=tier, asked=json.loads(request.content), sent=request.content, got=body))
        return httpx.Response(answer.status_code, headers=answer.headers, content=body)

    def to(self, tier):
        return [call for call in self.calls if call.to == tier]


class Tiers:
    """The three apps; `classify` asks one of them over the same transport."""

    def __init__(self, apps, joined):
        self.apps, self.joined = apps, joined

    async def ask(self, inputs, tier="end", headers=None, **options):
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(self.apps[tier]), base_url="http://client"
        ) as client:
            return await client.post("/v1/classify", json={"inputs": inputs, "options": options}, headers=headers)

    def classify(self, inputs, **options):
        response = asyncio.run(self.ask(inputs, **options))
        assert response.status_code == 200, response.text
        return response.json()

    async def change_link(self, tier, to, **change):
        """The link from a tier, changed as an operator changes it."""
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(self.apps[tier]), base_url="http://operator"
        ) as client:
            answer = await client.put(f"/v1/links/{to}", json=change)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def results(self, inputs, **options):
        return self.classify(inputs, **options)["results"]

    def metrics(self, tier):
        async def scrape():
            async with httpx.AsyncClient(
                transport=httpx.ASGITransport(self.apps[tier]), base_url="http://scraper"
            ) as client:
                return (await client.get("/metrics")).text

        lines = [line for line in asyncio.run(scrape()).splitlines() if not line.startswith("#")]
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


@pytest.fixture
def build_tiers(tiny_bundle):
    """A builder: `links` names each tier's upstreams, `profiles` each link's profile by (from, to)."""
    built = []

    def build(links, profiles=None, bundle=tiny_bundle, **settings):
        joined = Joined()
        for tier, upstreams in links.items():
            own = Settings(
                tier=tier,
                bundle=str(bundle),
                upstreams={to: f"http://{to}" for to in upstreams},
                link_profiles={to: (profiles or {}).get((tier, to), "ideal") for to in upstreams},
                **PATIENT,
                **settings,
            )
            joined.apps[tier] = create_app(own, transport=joined)
        built.append(Tiers(joined.apps, joined))
        return built[-1]

    yield build
    for tiers in built:
        for app in tiers.apps.values():
            app.state.tier.worker.close()


@pytest.fixture
def triangle(build_tiers):
    return build_tiers(TRIANGLE)


@pytest.fixture
def whole(build_tiers, whole_bundle):
    """The first tier holds the whole model."""
    return build_tiers(TRIANGLE, bundle=whole_bundle)


@pytest.fixture
def chain(build_tiers):
    return build_tiers(CHAIN)


@pytest.fixture(params=["triangle", "chain"])
def either(request, build_tiers):
    """Both topologies, one after the other."""
    return build_tiers(TRIANGLE if request.param == "triangle" else CHAIN)


@pytest.fixture(scope="session")
def always():
    """A policy that sends every text on."""
    return {"name": "collaborative", "offload_threshold": 1.0}


@pytest.fixture(scope="session")
def long_text(sentences):
    """Over 60 words: long enough to be pruned, and cut by a tier that reads 64 tokens."""
    return " ".join(sentences[:6])


@contextmanager
def sockets(bundle):
    """A builder: a tier on a real socket of this process, with its server; stopped at the end."""
    running = []

    def start(*, tier="end", **settings):
        app = create_app(Settings(tier=tier, bundle=str(bundle), **PATIENT, **settings))
        port = free_ports(1)
        server = Server(app, host="127.0.0.1", port=port, drain_s=10)
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        running.append((server, thread))
        while not server.started:
            assert thread.is_alive(), "it did not start"
            time.sleep(0.01)
        return f"http://127.0.0.1:{port}", server, thread

    yield start
    for server, _ in running:
        server.drain()
    for _, thread in running:
        thread.join(20)
        assert not thread.is_alive()


@pytest.fixture
def listening(tiny_bundle):
    with sockets(tiny_bundle) as start:
        yield start


@pytest.fixture(scope="module")
def staying(tiny_bundle):
    with sockets(tiny_bundle) as start:
        yield start


@pytest.fixture(scope="module")
def three(staying):
    configure_logs("critical", sys.stderr)  # what a command prints is looked at
    cloud, *_ = staying(tier="cloud")
    edge, *_ = staying(tier="edge", upstreams={"cloud": cloud}, link_profiles={"cloud": "ideal"})
    upstreams = {"edge": edge, "cloud": cloud}
    yield staying(upstreams=upstreams, link_profiles=dict.fromkeys(upstreams, "ideal"))[0]
    structlog.reset_defaults()


@pytest.fixture
def quick_profile(monkeypatch):
    """Tables of times are measured without rests, HTTP's share not at all: how long things take is not tested."""
    for pause in ("REST", "SECONDS"):
        monkeypatch.setattr(f"lab.replay.profile.{pause}", 0.0)
    monkeypatch.setattr("lab.replay.times.measure_http", lambda *_, **__: Http(client=0.003, hop=0.002))


@pytest.fixture
def command(tmp_path, monkeypatch, quick_profile):
    """A command in this process: its result, and all that it said."""
    for name in [name for name in os.environ if name.startswith("TIERWISE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("TIERWISE_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        done = CliRunner().invoke(command_line.app, [str(argument) for argument in arguments])
        assert done.exception is None or isinstance(done.exception, (TierwiseError, SystemExit)), done.exception
        return done, " ".join(f"{done.exception or ''} {done.stderr}".replace("│", " ").split())

    return run
