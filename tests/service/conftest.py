"""One tier with its neighbours faked: nothing listens, nothing is downloaded.

serve(tier="end", edge=..., cloud=..., **settings)   a tier as a Caller; a neighbour is a function of the request
Caller                                               post(body), get(path): one event loop a call
Neighbour                                            a faked tier that answers well and remembers what it was asked
held_classifier                                      a model that waits until the test lets it go
slow_classifier                                      a model whose every layer takes `seconds`, by `sleep`
clock                                                a clock that stands still, for `serve` and `slow_classifier`
"""

import asyncio
import inspect
import json
import threading
import time

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from shared.model.bundle import load_bundle
from shared.model.classifier import load_classifier
from shared.policies.base import draw
from shared.web.app import create_app
from shared.web.settings import Settings
from tests.clocks import Clock
from tests.engines import slowed

JSON = {"content-type": "application/json"}


class Caller:
    """Talks to an app in this process; an exception that the app lets out is a 500, as a real server makes it."""

    def __init__(self, app):
        self.app = app

    async def send(self, method, path, **kwargs):
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://tier") as client:
            return await client.request(method, path, **kwargs)

    async def ask(self, inputs, headers=None, **options):
        body = json.dumps({"inputs": inputs, "options": options})
        return await self.send("POST", "/v1/classify", content=body, headers={**JSON, **(headers or {})})

    def classify(self, inputs, headers=None, **options):
        return asyncio.run(self.ask(inputs, headers, **options))

    def results(self, inputs, **options):
        response = self.classify(inputs, **options)
        assert response.status_code == 200, response.text
        return response.json()["results"]

    def post(self, content, path="/v1/classify", headers=JSON):
        return asyncio.run(self.send("POST", path, content=content, headers=headers))

    def get(self, path):
        return asyncio.run(self.send("GET", path))

    def samples(self):
        """Every sample of /metrics: {(name, label values...): value}, labels by name, without the tier."""
        families = text_string_to_metric_families(self.get("/metrics").text)
        return {
            (s.name, *(value for label, value in sorted(s.labels.items()) if label != "tier")): s.value
            for family in families
            for s in family.samples
        }


class Neighbour:
    """Answers every text of /v1/infer with one hop; keeps what it got and gave."""

    def __init__(self, tier="edge", positive=0.9, card="tiny@0"):
        self.tier, self.positive, self.card = tier, positive, card
        self.requests, self.bodies, self.answers = [], [], []

    def hop(self, text, index, seed):
        words = [word for side in (text["text"], text.get("text_pair") or "") for word in side.split()]
        return {
            "tier": self.tier,
            "card": self.card,
            "exit_layer": 2,
            "layers": {"edge": 2, "cloud": 4}[self.tier],
            "label": "positive",
            "probabilities": {"negative": round(1 - self.positive, 6), "positive": self.positive},
            "confidence": self.positive,
            "offload_probability": 0.0,
            "draw": draw(seed, index, self.tier),
            "words_in": len(words),
            "truncated": False,
            "timings_ms": {"tokenize": 0.0, "queue": 0.0, "infer": 0.0, "prune": 0.0, "total": 0.0},
        }

    def answer(self, asked):
        texts = zip(asked["texts"], asked["indices"], strict=True)
        rows = [{"index": at, "hops": [self.hop(text, at, asked["seed"])]} for text, at in texts]
        return {"version": 2, "call": asked["call"], "rows": rows, "total_ms": 0.0}

    def __call__(self, request):
        asked = json.loads(request.content)
        self.requests.append(request)
        self.bodies.append(asked)
        self.answers.append(httpx.Response(200, json=self.answer(asked)))
        return self.answers[-1]


class HeldClassifier:
    """A classifier whose `run` waits for `go`; `running` says that it does."""

    def __init__(self, classifier):
        self._classifier = classifier
        self.go, self.running = threading.Event(), threading.Event()

    def __getattr__(self, name):
        return getattr(self._classifier, name)

    def run(self, *args, **kwargs):
        self.running.set()
        assert self.go.wait(10), "the test never let the model go"
        return self._classifier.run(*args, **kwargs)


@pytest.fixture(scope="session")
def serve(tiny_bundle):
    """A builder of callers; their workers are closed at the end."""
    callers = []

    def start(*, tier="end", edge=None, cloud=None, classifier=None, traces=None, clock=time.perf_counter, **settings):
        neighbours = {name: fake for name, fake in (("edge", edge), ("cloud", cloud)) if fake is not None}

        async def answer(request):
            given = neighbours[request.url.host](request)
            return await given if inspect.isawaitable(given) else given

        chosen = {"precision": "fp32", "upstreams": {name: f"http://{name}" for name in neighbours}, **settings}
        profiles = dict.fromkeys(chosen["upstreams"], "ideal") | chosen.pop("link_profiles", {})
        app = create_app(
            Settings(**{"tier": tier, "bundle": str(tiny_bundle), "link_profiles": profiles, **chosen}),
            classifier=classifier,
            transport=httpx.MockTransport(answer),
            traces=traces,
            clock=clock,
        )
        callers.append(Caller(app))
        return callers[-1]

    yield start
    for caller in callers:
        caller.app.state.tier.worker.close()


@pytest.fixture(scope="session")
def alone(serve):
    """The end tier without links; shared, so no test may count its metrics."""
    return serve(tier="end")


@pytest.fixture
def edge(tiny_bundle):
    return Neighbour("edge", card=load_bundle(str(tiny_bundle)).card_name)


@pytest.fixture
def cloud(tiny_bundle):
    return Neighbour("cloud", card=load_bundle(str(tiny_bundle)).card_name)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def held_classifier(tiny_bundle):
    held = HeldClassifier(load_classifier(tiny_bundle / "bert-3", layers=3, max_tokens=64, precision="fp32"))
    yield held
    held.go.set()


@pytest.fixture
def slow_classifier(tiny_bundle):
    classifier = load_classifier(tiny_bundle / "bert-3", layers=3, max_tokens=64, precision="fp32")
    return slowed(classifier.at([1.3, 1.2, 1.1]))


@pytest.fixture(scope="session")
def long_text(sentences):
    """Over 60 words: long enough to be pruned, and cut by a tier that reads 64 tokens."""
    return " ".join(sentences[:6])


@pytest.fixture(scope="session")
def card(tiny_bundle):
    """The bundle's model card, as calibration wrote it."""
    return json.loads((tiny_bundle / "card.json").read_text())


@pytest.fixture(scope="session")
def always():
    """A policy that sends every text on."""
    return {"name": "collaborative", "offload_threshold": 1.0}


@pytest.fixture(scope="module")
def serve_edge(serve, always):
    """The end tier with an edge that takes every text."""
    return serve(edge=Neighbour("edge"), policy="collaborative")
