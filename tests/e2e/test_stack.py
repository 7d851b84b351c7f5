"""`make up` to `make down`, in order: each test says what a user of the containers may rely on, shaped or not."""

import asyncio
import statistics
import time

import httpx
import pytest

from lab.live.demo import REVIEWS
from tests.e2e.conftest import API, PROJECT, TIERS, backend, container, down, measured, remains

LONG = [" ".join(REVIEWS[at:] + REVIEWS[:at]) for at in range(8)]
pytestmark = pytest.mark.usefixtures("stack")


def test_every_service_is_healthy_and_the_urls_are_told(stack):
    until = time.monotonic() + 180  # one may just have been restarted
    services = [f"{tier}{role}" for tier in TIERS for role in ("", "-shaper")]
    while wrong := {name: health for name in services if (health := container(name).health) != "healthy"}:
        assert time.monotonic() < until, wrong
        time.sleep(1)
    assert f"http://127.0.0.1:{API}/\n" in stack.printed
    assert f"http://127.0.0.1:{API}/docs" in stack.printed
    assert "curl -s" in stack.printed


@pytest.mark.parametrize("tier", TIERS)
def test_a_request_is_answered_at_each_tier(ask, tier):
    result = ask(REVIEWS[0], policy=f"{tier}-only")["results"][0]
    assert (result["tier"], result["degraded"]) == (tier, None)
    link = result["hops"][0]["link"]
    if tier != "end":
        expected = "5g-nsa" if tier == "edge" else "5g-nsa+metro"
        assert (link["from"], link["to"], link["backend"], link["profile"]) == ("end", tier, backend(), expected)


def test_sighup_makes_a_container_load_its_policy_again_and_restarts_nothing():
    since = time.time()
    before = container("end").attrs["State"]["StartedAt"]
    assert container("end").exec_run(["sh", "-c", "kill -HUP 1"]).exit_code == 0
    until = time.monotonic() + 30
    while b'"event": "policy_loaded"' not in container("end").logs(since=since):
        assert time.monotonic() < until
        time.sleep(0.5)
    assert container("end").attrs["State"]["StartedAt"] == before


def test_the_cascade_goes_through_all_three(ask):
    result = ask(REVIEWS[7], policy={"name": "collaborative", "offload_threshold": 1.0})["results"][0]
    assert [hop["tier"] for hop in result["hops"]] == list(TIERS)
    assert [hop["link"]["backend"] for hop in result["hops"][1:]] == [backend()] * 2


def test_containers_answer_what_the_same_tiers_in_one_process_answer(ask):
    from shared.web.app import create_app
    from shared.web.settings import Settings

    apps = {}

    class Joined(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request):
            return await httpx.ASGITransport(apps[request.url.host]).handle_async_request(request)

    for tier, to in (("end", ("edge", "cloud")), ("edge", ("cloud",)), ("cloud", ())):
        ideal = dict.fromkeys(to, "ideal")
        settings = Settings(tier=tier, upstreams={name: f"http://{name}" for name in to}, link_profiles=ideal)
        apps[tier] = create_app(settings, transport=Joined())

    async def here(text, options):
        async with httpx.AsyncClient(transport=httpx.ASGITransport(apps["end"]), base_url="http://end") as client:
            return (await client.post("/v1/classify", json={"inputs": text, "options": options})).json()

    for text in REVIEWS:
        for policy in (
            "collaborative",
            {"name": "collaborative", "pruning_coefficient": 1.0, "offload_threshold": 1.0},
        ):
            options = {"policy": policy, "seed": "e2e"}
            ours, theirs = ask(text, **options)["results"][0], asyncio.run(here(text, options))["results"][0]
            for key in ("tier", "exit_layer", "words_kept", "offloaded_to"):
                assert [hop.get(key) for hop in ours["hops"]] == [hop.get(key) for hop in theirs["hops"]], text
            for label, probability in theirs["probabilities"].items():
                assert ours["probabilities"][label] == pytest.approx(probability, abs=1e-4)
    for app in apps.values():
        app.state.tier.worker.close()


@measured
def test_stages_add_up_to_what_the_client_waited(ask):
    gaps = []
    for text in LONG:
        answer = ask(text, policy={"name": "collaborative", "offload_threshold": 1.0})
        hops = answer["results"][0]["hops"]
        stages = sum(hop["timings_ms"]["total"] for hop in hops) + answer["timings_ms"]["ensemble"]
        stages += sum(hop["link"]["ms"] for hop in hops if hop["link"])
        gaps.append((answer["wall_ms"] - stages, answer["wall_ms"]))
    gap, wall = statistics.median(g for g, _ in gaps), statistics.median(w for _, w in gaps)
    print(f"client {wall:.0f} ms, not in any stage {gap:.1f} ms")
    assert abs(gap) <= max(25, 0.1 * wall)  # 5 ms and a twentieth on an idle host


def test_containers_hold_no_more_than_they_need():
    for service in (*TIERS, "prometheus", *(f"{tier}-shaper" for tier in TIERS)):
        host, shaper = container(service).attrs["HostConfig"], service.endswith("-shaper")
        assert host["ReadonlyRootfs"], service
        assert host["CapDrop"] == ["ALL"], service
        assert [c.removeprefix("CAP_") for c in host["CapAdd"] or []] == (["NET_ADMIN"] if shaper else []), service
        assert "no-new-privileges:true" in host["SecurityOpt"], service
        assert host["LogConfig"]["Config"].keys() == {"max-size", "max-file"}, service
        assert all("size=" in options for options in (host.get("Tmpfs") or {}).values()), service
        published = [p for ports in (host["PortBindings"] or {}).values() for p in ports]
        assert all(p["HostIp"] == "127.0.0.1" for p in published), service
        assert bool(published) == (service in ("end-shaper", "prometheus")), service
    for tier in TIERS:
        effective = container(tier).exec_run(["grep", "-E", "^(Uid|CapEff)", "/proc/1/status"]).output.decode()
        assert effective.split() == ["Uid:", *["10001"] * 4, "CapEff:", "0" * 16]
        assert container(tier).exec_run(["touch", "/app/x"]).exit_code


def test_no_two_tiers_share_an_unshaped_path():
    shared = {}
    for tier in TIERS:
        for network in container(f"{tier}-shaper").attrs["NetworkSettings"]["Networks"]:
            shared.setdefault(network.removeprefix(f"{PROJECT}_"), []).append(tier)
    pairs = {network: tiers for network, tiers in shared.items() if len(tiers) > 1}
    assert pairs == {"end-edge": ["end", "edge"], "end-cloud": ["end", "cloud"], "edge-cloud": ["edge", "cloud"]}


def test_down_leaves_nothing_behind():
    down()
    assert remains() == []
