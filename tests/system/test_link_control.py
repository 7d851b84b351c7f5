"""A link that a tier has its shaper change: both ends, by two shapers whose kernel is faked."""

import asyncio
import json
from contextlib import asynccontextmanager

import httpx
import pytest

from services.shaper.config import load_config
from services.shaper.daemon import Shaper
from services.shaper.shape import Reading
from shared.web.app import create_app
from shared.web.settings import Settings

DOOR, TIER = "0123456789abcdef", "fedcba9876543210"


class Kernel:
    """One interface; keeps its shape."""

    shape = None

    def route(self, address):
        return 2

    def prepare(self, interface):
        return []

    def apply(self, interface, shape, *, flush=False):
        self.shape = shape

    def read(self, interface):
        shape = self.shape
        return shape and Reading(shape.delay_s, shape.jitter_s, shape.loss_ratio, shape.bytes_per_s, shape.limit)


class Pair:
    """End and edge, each with its shaper; what they send each other goes from app to app."""

    def __init__(self, folder, bundle, keys, *, edge_takes_changes=True):
        self.shapers, self.apps, self.puts = {}, {}, []
        for tier in ("edge", "end"):
            on = tier == "end" or edge_takes_changes
            state = folder / tier
            state.mkdir()
            given = {
                "TIERWISE_TIER": tier,
                "TIERWISE_SHAPED_LINKS": "end-edge=wifi",
                "TIERWISE_LINK_CONTROL": str(on).lower(),
            }
            self.shapers[tier] = Shaper(load_config(given | {"TIERWISE_LINK_STATE_DIR": str(state)}), Kernel())
            self.shapers[tier].attach(self.shapers[tier].links["end-edge"], "10.0.0.1")
            upstreams = {"edge": "http://edge"} if tier == "end" else {}
            settings = Settings(
                tier=tier,
                bundle=str(bundle),
                upstreams=upstreams,
                link_profiles=dict.fromkeys(upstreams, "wifi"),
                links="netem",
                link_state_dir=state,
                link_control=on,
                **keys,
            )
            self.apps[tier] = create_app(settings, transport=httpx.MockTransport(self.carry))

    async def carry(self, request):
        self.puts.append((request.method, request.url.path, json.loads(request.content)))
        return await httpx.ASGITransport(self.apps[request.url.host]).handle_async_request(request)

    @asynccontextmanager
    async def listening(self):
        servers = [await shaper.listen_to_tier() for shaper in self.shapers.values()]
        yield
        await asyncio.sleep(0.05)  # the servers see that their callers are gone
        for server in filter(None, servers):
            server.close()

    async def change(self, body, tier="end", to="edge", key=DOOR):
        async with self.client(tier) as client:
            return await client.put(f"/v1/links/{to}", json=body, headers={"authorization": f"Bearer {key}"})

    def client(self, tier):
        return httpx.AsyncClient(transport=httpx.ASGITransport(self.apps[tier]), base_url="http://operator")

    async def link(self):
        async with self.client("end") as client:
            return (await client.get("/info")).json()["links"][0]

    def rates(self):
        return [self.shapers[tier].kernel.shape.rate_bps for tier in ("end", "edge")]

    def losses(self):
        return [self.shapers[tier].kernel.shape.loss_ratio for tier in ("end", "edge")]


@pytest.fixture
def build(tmp_path, tiny_bundle):
    built = []
    for name, key in (("door", DOOR), ("tier", TIER)):
        (tmp_path / name).write_text(key)
    keys = {"door_key_file": tmp_path / "door", "key_file": tmp_path / "tier"}

    def build(**more):
        built.append(Pair(tmp_path, tiny_bundle, keys, **more))
        return built[-1]

    yield build
    for pair in built:
        for app in pair.apps.values():
            app.state.tier.worker.close()


def test_a_profile_is_changed_at_both_ends(build):
    pair = build()

    async def story():
        async with pair.listening():
            answer = await pair.change({"profile": "lte"})
            assert answer.status_code == 200, answer.text
            assert answer.json() == await pair.link()
            return answer.json()

    link = asyncio.run(story())
    assert (link["backend"], link["profile"], link["cut"]) == ("netem", "lte", False)
    assert pair.rates() == [14e6, 35e6]
    assert pair.puts == [("PUT", "/v1/links/end", {"profile": "lte"})]


def test_a_cut_is_made_at_the_source_alone_and_healed_there(build):
    """What the tier at the other end cannot be told over a link that is out needs no telling."""
    pair = build()

    async def story():
        async with pair.listening():
            cut = (await pair.change({"cut": True})).json()
            losses = pair.losses()
            assert await pair.link() == cut
            healed = (await pair.change({"cut": False})).json()
            out = (await pair.change({"profile": "offline"})).json()
            return cut, losses, healed, out

    cut, losses, healed, out = asyncio.run(story())
    assert (cut["cut"], cut["profile"], losses) == (True, "wifi", [1.0, 0.0])
    assert (healed["cut"], healed["profile"]) == (False, "wifi")
    assert (out["profile"], pair.losses()) == ("offline", [1.0, 0.0])
    assert pair.puts == []


def test_a_way_back_that_cannot_be_changed_is_told(build):
    pair = build(edge_takes_changes=False)

    async def story():
        async with pair.listening():
            return await pair.change({"profile": "lte"}), await pair.link()

    answer, link = asyncio.run(story())
    assert answer.status_code == 422
    assert "the way to edge is lte now, but the way back is what it was" in answer.json()["detail"]
    assert "edge answered 404" in answer.json()["detail"]
    assert link["profile"] == "lte"
    assert pair.rates() == [14e6, 100e6]


def test_the_way_back_asks_for_the_tiers_key_and_takes_profiles_alone(build):
    pair = build()

    async def story():
        async with pair.listening():
            way_back = {"tier": "edge", "to": "end"}
            return [
                await pair.change({"profile": "lte"}, **way_back),
                await pair.change({"cut": True}, **way_back, key=TIER),
                await pair.change({"profile": "lte"}, **way_back, key=TIER),
            ]

    assert [answer.status_code for answer in asyncio.run(story())] == [401, 422, 204]
    assert pair.rates() == [50e6, 35e6]


def test_a_shaper_that_takes_no_changes_is_named(build):
    pair = build()
    answer = asyncio.run(pair.change({"profile": "lte"}))  # nobody listens
    assert answer.status_code == 422
    assert "no shaper takes changes at" in answer.json()["detail"]
    assert pair.rates() == [50e6, 100e6]
    assert pair.puts == []
