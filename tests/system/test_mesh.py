"""A mesh of nodes in one process, joined by a transport that hands each call to the app of its host.

The nodes run a tiny network, a few milliseconds a layer, so that their queues fill.
"""

import asyncio
from contextlib import asynccontextmanager
from functools import cache

import httpx
import numpy as np
import pytest

from services.node.app import create_app
from services.node.settings import NodeSettings
from shared.errors import BadSetting
from shared.mesh.runs import Computed
from shared.mesh.topology import held_of, topology
from shared.mesh.wire import BINARY, Going, framed
from shared.model.bundle import load_bundle
from shared.model.classifier import load_classifier
from shared.model.state import Form
from tests.engines import slowed

NO_EXIT, LAYER_S, ENDS = 2.0, 0.004, (1, 2, 3, 4)


class Joined(httpx.AsyncBaseTransport):
    """Hands a call to the app of its host; `dead` ones break every call, also those under way."""

    def __init__(self):
        self.apps, self.dead, self.calls, self.alter = {}, {}, [], lambda path, body: body

    async def handle_async_request(self, request):
        name, path = request.url.host, request.url.path
        if self.dead[name].is_set():
            raise httpx.ConnectError(f"{name} is dead", request=request)
        self.calls.append((name, path))
        body = self.alter(path, request.content)
        changed = httpx.Request(request.method, request.url, headers=request.headers, content=body)
        work = asyncio.ensure_future(httpx.ASGITransport(self.apps[name]).handle_async_request(changed))
        dead = asyncio.ensure_future(self.dead[name].wait())
        done, _ = await asyncio.wait({work, dead}, return_when=asyncio.FIRST_COMPLETED)
        dead.cancel()
        if work not in done:
            work.cancel()
            raise httpx.ReadError(f"{name} died", request=request)
        answer = work.result()
        return httpx.Response(answer.status_code, headers=answer.headers, content=await answer.aread())


class Mesh:
    """Running nodes; `ask` is one text to a node."""

    def __init__(self, joined):
        self.joined, self.apps = joined, joined.apps

    def live(self, name):
        return self.apps[name].state.live

    async def ask(self, text, *, node="n1", name=None, key=None):
        headers = ({"x-request-id": name} if name else {}) | ({"authorization": f"Bearer {key}"} if key else {})
        async with self.client(node) as client:
            return await client.post("/v1/classify", json={"inputs": text}, headers=headers)

    async def all(self, texts):
        answers = await asyncio.gather(*(self.ask(text) for text in texts))
        assert [answer.status_code for answer in answers] == [200] * len(texts)
        return [answer.json() for answer in answers]

    def client(self, node):
        return httpx.AsyncClient(transport=httpx.ASGITransport(self.apps[node]), base_url=f"http://{node}")


def run(work):
    """The result of a coroutine, within 30 s."""
    return asyncio.run(asyncio.wait_for(work, 30))


@pytest.fixture(scope="module")
def load(tiny_bundle):
    """The deepest tier's network with its temperatures, by who uses it: an engine serves one thread."""

    @cache
    def loaded(_user, held="1-4"):
        part = held_of(held, 4)
        bundle = load_bundle(str(tiny_bundle))
        model = bundle.tiers["cloud"]
        read = load_classifier(
            bundle.folder / model.network,
            first=part.start,
            layers=part.stop,
            max_tokens=model.max_tokens,
            engine="openvino",
            precision="fp32",
        )
        return read.at(bundle.card.temperatures["cloud"][: part.stop])

    return loaded


@pytest.fixture(scope="module")
def network(load):
    """The whole network, as tests ask it."""
    return load("test")


@pytest.fixture
def start(tiny_bundle, load):
    """A builder of a mesh, as a context: `async with start("ring3") as mesh`."""

    @asynccontextmanager
    async def build(name, *, threshold=NO_EXIT, link="ideal", form=Form.FP32, held=(), **settings):
        joined = Joined()
        for node, others in topology(name).edges.items():
            own = NodeSettings(
                tier=node,
                bundle=str(tiny_bundle),
                upstreams={other: f"http://{other}" for other in others},
                link_profiles=dict.fromkeys(others, link),
                segments=4,
                exit_threshold=threshold,
                **settings,
                held_segments=dict(held).get(node),
            )
            joined.dead[node] = asyncio.Event()
            ran = load(node, dict(held).get(node, "1-4"))
            runs = Computed(slowed(ran, LAYER_S), ENDS, form)
            joined.apps[node] = create_app(own, runs=runs, transport=joined)
        running = [app.router.lifespan_context(app) for app in joined.apps.values()]
        for context in running:
            await context.__aenter__()
        try:
            yield Mesh(joined)
        finally:
            for context in running:
                await context.__aexit__(None, None, None)

    return build


@pytest.fixture
def texts(sentences):
    """More texts than one node is fast for."""
    return [f"{sentence} {at}" for at, sentence in enumerate(sentences * 6)][:24]


def expected(network, texts):
    """What the whole network says of each text, [N, C]."""
    traces = network.run([network.encode(text) for text in texts], None)
    return np.stack([network.calibrate(trace.logits[-1:], last=4)[0] for trace in traces])


def told(answers):
    return np.array([list(answer["probabilities"].values()) for answer in answers])


def nodes_of(answers):
    return {step["node"] for answer in answers for step in answer["path"]}


@pytest.mark.parametrize("name", ["local", "pair", "ring3", "mesh5"])
def test_spread_over_nodes_a_text_gets_the_answer_of_the_whole_network(start, network, texts, name):
    async def ask():
        async with start(name) as mesh:
            return await mesh.all(texts)

    answers = run(ask())
    np.testing.assert_allclose(told(answers), expected(network, texts), atol=1e-5)
    assert all([step["segment"] for step in answer["path"]] == [1, 2, 3, 4] for answer in answers)
    assert nodes_of(answers) == set(topology(name).nodes)  # all of them worked
    assert {answer["path"][0]["node"] for answer in answers} == {"n1"}  # the source runs the first segment itself


def test_a_sure_exit_answers_at_once(start, texts):
    async def ask():
        async with start("pair", threshold=0.01) as mesh:
            return await mesh.all(texts)

    assert {answer["exit_layer"] for answer in run(ask())} == {1}


def test_in_a_circle_texts_go_to_the_next_node_alone(start, texts):
    async def ask():
        async with start("ring3") as mesh:
            await mesh.all(texts)
            return mesh.joined.calls, {name: mesh.live(name).counts for name in mesh.apps}

    calls, counts = run(ask())
    assert counts["n1"].sent > 0
    assert counts["n2"].taken == counts["n1"].sent
    assert {name for name, path in calls if path == "/v1/continue"} <= {"n1", "n2", "n3"}
    assert sum(count.answered for count in counts.values()) == len(texts)  # each once, at its source


@pytest.mark.parametrize("name", ["pair", "ring3", "mesh3"])
def test_a_killed_node_loses_no_text(start, network, texts, name):
    async def ask():
        async with start(name) as mesh:
            asked = asyncio.ensure_future(mesh.all(texts))
            while not mesh.live("n1")._calls["n2"]:  # it holds some
                await asyncio.sleep(0.001)
            mesh.joined.dead["n2"].set()
            return await asked, mesh.live("n1")

    answers, source = run(ask())
    np.testing.assert_allclose(told(answers), expected(network, texts), atol=1e-5)
    assert source.counts.again > 0
    assert source.counts.answered == len(texts)
    assert source.node.queued == 0
    assert source.node.neighbours["n2"].away


HALVES = {"n1": "1-2", "n2": "3-4"}
THIRD = {"n1": "1-2", "n2": "3-4", "n3": "3-4"}


def test_nodes_that_hold_a_part_each_answer_as_the_whole_network(start, network, texts):
    async def ask():
        async with start("pair", held=HALVES) as mesh, mesh.client("n2") as client:
            wrong = [
                await mesh.ask(texts[0], node="n2"),
                await client.post("/v1/continue", content=body_of(network, 1, 1), headers={"content-type": BINARY}),
            ]
            answers = await mesh.all(texts)
            return (
                answers,
                wrong,
                ((await client.get("/info")).json(), (await mesh.client("n1").get("/v1/mesh")).json()),
            )

    answers, wrong, (info, now) = run(ask())
    np.testing.assert_allclose(told(answers), expected(network, texts), atol=1e-5)
    assert {tuple(step["node"] for step in answer["path"]) for answer in answers} == {("n1", "n1", "n2", "n2")}
    assert [answer.status_code for answer in wrong] == [421, 422]
    assert "ask a node that holds segment 1" in wrong[0].json()["detail"]
    assert (info["held"], now["held"], now["neighbours"]["n2"]["held"]) == ("3-4", "1-2", "3-4")


def test_what_a_lost_node_held_goes_to_another_that_holds_it(start, network, texts):
    async def ask():
        async with start("mesh3", held=THIRD) as mesh:
            asked = asyncio.ensure_future(mesh.all(texts))
            while not mesh.live("n1")._calls["n2"]:
                await asyncio.sleep(0.001)
            mesh.joined.dead["n2"].set()
            return await asked, mesh.live("n1").counts

    answers, counts = run(ask())
    np.testing.assert_allclose(told(answers), expected(network, texts), atol=1e-5)
    assert counts.again > 0
    assert all(answer["path"][-1]["node"] in {"n2", "n3"} for answer in answers)


def test_a_text_waits_for_its_one_holder_until_it_is_back_or_the_caller_leaves(start, texts):
    async def ask():
        async with start("pair", held=HALVES) as mesh:
            await mesh.ask(texts[0])  # n2 has told what it holds
            mesh.joined.dead["n2"].set()
            stays, leaves = (asyncio.ensure_future(mesh.ask(text)) for text in texts[1:3])
            node = mesh.live("n1").node
            while len(node.leaving) < 2:
                await asyncio.sleep(0.001)
            leaves.cancel()
            await asyncio.gather(leaves, return_exceptions=True)
            waits = len(node.leaving)
            assert not stays.done()
            mesh.joined.dead["n2"].clear()
            return waits, await stays

    waits, answer = run(ask())
    assert waits == 1
    assert [step["node"] for step in answer.json()["path"]] == ["n1", "n1", "n2", "n2"]


def test_a_full_holder_is_asked_again(start, texts):
    async def ask():
        async with start("pair", held=HALVES) as mesh:
            mesh.live("n2")._most = 0
            asked = asyncio.ensure_future(mesh.ask(texts[0]))
            while not mesh.live("n1").counts.again:
                await asyncio.sleep(0.001)
            mesh.live("n2")._most = 10
            return await asked, mesh.live("n1").counts

    answer, counts = run(ask())
    assert answer.status_code == 200
    assert (counts.sent, counts.silences) == (2, 0)


@pytest.mark.parametrize(
    ("name", "held"),
    [
        ("pair", {"n1": "1-2", "n2": "1-3"}),
        ("ring3", {"n1": "1-1", "n2": "2-3", "n3": "1-3"}),
    ],  # there n2 finds it
)
def test_where_nobody_holds_the_next_segment_a_text_is_refused(start, texts, name, held):
    async def ask():
        async with start(name, held=held) as mesh:
            return await mesh.ask(texts[0]), [mesh.live(each).node.queued for each in mesh.apps]

    refused, queued = run(ask())
    assert (refused.status_code, refused.json()["type"]) == (421, "urn:tierwise:not-held")
    assert "no node that this text can go to holds it" in refused.json()["detail"]
    assert set(queued) == {0}


def test_a_node_that_holds_all_runs_itself_what_gets_no_further_elsewhere(start, network, texts):
    async def ask():
        async with start("ring3", held={"n2": "1-3", "n3": "1-3"}) as mesh:
            return await mesh.all(texts), mesh.live("n1").counts

    answers, counts = run(ask())
    np.testing.assert_allclose(told(answers), expected(network, texts), atol=1e-5)
    assert {answer["path"][-1]["node"] for answer in answers} == {"n1"}
    assert (counts.again > 0, counts.silences) == (True, 0)


def test_a_node_that_comes_back_joins_again(start, texts):
    async def ask():
        async with start("pair") as mesh:
            mesh.joined.dead["n2"].set()
            assert nodes_of(await mesh.all(texts[:8])) == {"n1"}
            mesh.joined.dead["n2"].clear()
            async with asyncio.timeout(5):
                while mesh.live("n1").node.neighbours["n2"].away:
                    await asyncio.sleep(0.01)
            return await mesh.all(texts)

    assert nodes_of(run(ask())) == {"n1", "n2"}


def test_a_cut_link_is_noticed_by_its_silence_and_loses_no_text(start, network, texts):
    async def ask():
        async with start("pair") as mesh:
            asked = asyncio.ensure_future(mesh.all(texts))
            while not mesh.live("n1")._calls["n2"]:
                await asyncio.sleep(0.001)
            link = mesh.live("n1").ways["n2"].simulated
            link.cut()
            answers = await asked
            away = mesh.live("n1").node.neighbours["n2"].away
            link.heal()
            async with asyncio.timeout(5):
                while mesh.live("n1").node.neighbours["n2"].away:
                    await asyncio.sleep(0.01)
            return answers, away, mesh.live("n1").counts

    answers, away, counts = run(ask())
    np.testing.assert_allclose(told(answers), expected(network, texts), atol=1e-5)
    assert (away, counts.silences, counts.answered) == (True, 1, len(texts))
    assert counts.again > 0


def test_the_same_text_twice_runs_once(start, texts):
    async def ask():
        async with start("pair") as mesh:
            answers = await asyncio.gather(*(mesh.ask(texts[0], name="twice") for _ in range(3)))
            return answers, mesh.live("n1").counts

    answers, counts = run(ask())
    assert len({answer.text.partition('"ms"')[0] for answer in answers}) == 1
    assert (counts.joined, counts.segments, counts.answered) == (2, 4, 1)


def test_a_state_that_is_altered_on_its_way_is_refused_and_its_text_runs_here(start, network, texts):
    def alter(path, body):
        return body[:-1] + bytes([body[-1] ^ 1]) if path == "/v1/continue" else body

    async def ask():
        async with start("pair") as mesh:
            mesh.joined.alter = alter
            return await mesh.all(texts[:12]), mesh.live("n1").counts

    answers, counts = run(ask())
    np.testing.assert_allclose(told(answers), expected(network, texts[:12]), atol=1e-5)
    assert counts.again > 0
    assert nodes_of(answers) == {"n1"}


def going(**change):
    known = {"call": "c", "id": "i", "text_sha256": "0" * 64, "segment": 2, "threshold": 0.9, "sender": "n1"}
    return Going(**(known | change))


def body_of(network, segment=2, layers=2, **change):
    runs = Computed(network, ENDS, Form.FP32)
    item = runs.begin("a fine film about a ferry", None, "0" * 64)
    for at in range(layers):
        _, item = runs.run(item, at)
    return framed(going(segment=segment, **change), runs.packed(item))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda body, network: body_of(network, segment=3), "after layer 2"),  # layer 3 did not run
        (lambda body, network: body_of(network, segment=9), "after layer 2"),
        (lambda body, network: body_of(network, version=2), "mesh version 2"),
        (lambda body, network: body[:-5], "ends at byte"),
        (lambda body, network: body[:-1] + bytes([body[-1] ^ 1]), "altered"),
        (lambda body, network: b"", "empty"),
        (lambda body, network: b"\xff\xff\xff\x7f" + body[4:], "ends at byte"),
        (lambda body, network: body + body, "3 states"),
        (lambda body, network: body.replace(b'"segment":2', b'"segment":0'), "segment"),
        (lambda body, network: framed(going(), b""), "0 bytes"),
    ],
)
def test_a_wrong_state_is_refused_with_its_fault(start, network, wrong, says):
    async def send():
        async with start("pair") as mesh, mesh.client("n2") as client:
            body = body_of(network)
            right = await client.post("/v1/continue", content=body, headers={"content-type": BINARY})
            refused = await client.post("/v1/continue", content=wrong(body, network), headers={"content-type": BINARY})
            return right, refused

    right, refused = run(send())
    assert right.status_code == 200
    assert (refused.status_code, refused.json()["type"]) == (422, "urn:tierwise:bad-state")
    assert says in refused.json()["detail"]


def test_a_caller_that_leaves_takes_its_text_with_it(start, texts):
    async def ask():
        async with start("pair") as mesh:
            asked = [asyncio.ensure_future(mesh.ask(text)) for text in texts]
            while not mesh.live("n1")._calls["n2"]:
                await asyncio.sleep(0.001)
            for job in asked:
                job.cancel()
            await asyncio.gather(*asked, return_exceptions=True)
            async with asyncio.timeout(5):
                while any(mesh.live(name)._under_way for name in mesh.apps):
                    await asyncio.sleep(0.01)
            return [mesh.live(name).node.queued for name in mesh.apps]

    assert run(ask()) == [0, 0]


def test_keys_guard_all_that_costs(start, tmp_path, network, texts):
    (tmp_path / "key").write_text("sixteen-characters-and-more")
    key = "sixteen-characters-and-more"

    async def ask():
        async with start("pair", key_file=tmp_path / "key") as mesh, mesh.client("n2") as client:
            without = [
                await client.post("/v1/classify", json={"inputs": "a"}),
                await client.post("/v1/continue", content=b"", headers={"content-type": BINARY}),
                await client.post("/v1/report", json={}),
            ]
            return without, [await mesh.ask(text, key=key) for text in texts[:2]]

    without, answers = run(ask())
    assert [answer.status_code for answer in without] == [401] * 3
    assert [answer.status_code for answer in answers] == [200] * 2


def test_a_full_node_says_so_and_its_neighbour_keeps_the_text(start, network, texts):
    async def ask():
        async with start("pair") as mesh:
            mesh.live("n2")._most = 0
            answers = await mesh.all(texts[:12])
            refused = await mesh.ask(texts[0], node="n2")
            return answers, refused, mesh.live("n1")

    answers, refused, source = run(ask())
    assert nodes_of(answers) == {"n1"}
    assert source.counts.silences == 0  # it is well, and stays in the set
    assert refused.status_code == 429


def test_a_node_that_drains_takes_nothing_more(start, texts):
    async def ask():
        async with start("pair") as mesh:
            mesh.apps["n2"].state.draining = True
            ready = await mesh.client("n2").get("/readyz")
            return ready, await mesh.ask(texts[0], node="n2"), await mesh.all(texts[:12])

    ready, refused, answers = run(ask())
    assert [ready.status_code, refused.status_code] == [503, 503]
    assert nodes_of(answers) == {"n1"}


def test_a_node_tells_of_itself(start, texts):
    async def ask():
        async with start("pair", adapt="threshold") as mesh, mesh.client("n1") as client:
            await mesh.all(texts[:6])
            return [(await client.get(path)) for path in ("/info", "/v1/mesh", "/metrics", "/livez", "/nowhere")]

    info, now, metrics, alive, nowhere = run(ask())
    assert info.json()["runs"] == "computed"
    assert (info.json()["ends"], info.json()["adapt"]) == ([1, 2, 3, 4], "threshold")
    assert info.json()["links"] == [{"to": "n2", "backend": "simulated", "profile": "ideal"}]
    assert now.json()["admitted"] == now.json()["counts"]["answered"] == 6
    assert 'tierwise_node_answered_total{node="n1"} 6.0' in metrics.text
    assert 'tierwise_node_queue{node="n1",queue="input"} 0.0' in metrics.text
    assert (alive.status_code, nowhere.status_code) == (200, 404)


@pytest.mark.parametrize("inputs", ["", "  ", None, 3, ["a"], {"text": ""}])
def test_what_is_no_text_is_refused(start, inputs):
    async def ask():
        async with start("local") as mesh:
            return await mesh.ask(inputs)

    assert run(ask()).status_code == 422


def test_int8_states_are_a_quarter_of_fp32s(network):
    def bytes_of(form):
        runs = Computed(network, ENDS, form)
        _, item = runs.run(runs.begin("a fine film about a ferry " * 9, None, "0" * 64), 0)
        return len(runs.packed(item)), runs.size(item)

    (whole, _), (small, estimate) = bytes_of(Form.FP32), bytes_of(Form.INT8)
    assert small < whole / 2
    assert estimate == pytest.approx(small, rel=0.35)  # a tiny network's header counts


def test_temperatures_are_the_cards(tiny_bundle, start, network):
    """`create_app` loads what the fixture loads."""
    app = create_app(NodeSettings(tier="n1", bundle=str(tiny_bundle), segments=2, engine="openvino", precision="fp32"))
    runs = app.state.live.runs
    said, _ = runs.run(runs.begin("a fine film", None, "0" * 64), 0)
    trace = network.run([network.encode("a fine film")], None, until=2)[0]
    np.testing.assert_allclose(said, network.calibrate(trace.logits[-1:], last=2)[0], atol=1e-6)


def test_a_node_loads_the_layers_of_its_segments_alone(tiny_bundle, network):
    def app(**settings):
        own = {"tier": "n1", "bundle": str(tiny_bundle), "segments": 2, "engine": "openvino", "precision": "fp32"}
        return create_app(NodeSettings(**own, **settings))

    joined = {"upstreams": {"n2": "http://n2"}, "link_profiles": {"n2": "ideal"}}
    first, last = app(held_segments="1-1", **joined), app(held_segments="2-2", **joined)
    runs = [each.state.live.runs for each in (first, last)]
    assert [(run._classifier.segment.first, run._classifier.segment.last) for run in runs] == [(0, 2), (2, 4)]
    _, item = runs[0].run(runs[0].begin("a fine film", None, "0" * 64), 0)
    there = runs[1].unpacked(memoryview(runs[0].packed(item)), "0" * 64, 1)
    said, _ = runs[1].run(there, 1)
    np.testing.assert_allclose(said, expected(network, ["a fine film"])[0], atol=0.02)  # int8 on its way
    with pytest.raises(BadSetting, match="segment 2: not held here, and there is no neighbour"):
        app(held_segments="1-1")
    with pytest.raises(BadSetting, match="expected FIRST-LAST"):
        app(held_segments="2-3")
