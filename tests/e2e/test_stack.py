"""`make up` to `make down`, in order: each test says what a user of the containers may rely on."""

import asyncio
import statistics
import time

import httpx
import pytest
import yaml

from services.lab import dashboards, links
from services.lab.demo import REVIEWS
from services.lab.stats import Z
from shared.link import profile
from tests.e2e.conftest import API, PROJECT, PROMETHEUS, ROOT, TIERS, container, down, left

KINDS = ("ideal", "offline", "5g-nsa", "5g-mmwave", "lte-weak", "3g")  # `make netns` verifies every one
LONG = [" ".join(REVIEWS[at:] + REVIEWS[:at]) for at in range(8)]
pytestmark = pytest.mark.usefixtures("stack")


def link_ms(answer):
    """Link time of the first hop that was sent to, per request."""
    return answer["results"][0]["hops"][0]["link"]["ms"]


@pytest.fixture
def nsa():
    """The default on the link that these tests change, whatever the one before left."""
    links.set_profile("end-edge", "5g-nsa")


def test_every_service_is_healthy_and_the_urls_are_told(stack):
    check = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["x-tier"]["healthcheck"]["test"]
    for tier in TIERS:
        assert container(tier).exec_run(check[1:]).exit_code == 0
        assert container(f"{tier}-shaper").health == "healthy"
    assert f"http://127.0.0.1:{API}/docs" in stack.said
    assert "curl -s" in stack.said


@pytest.mark.parametrize("tier", TIERS)
def test_a_request_is_answered_at_each_tier(ask, tier):
    result = ask(REVIEWS[0], policy=f"{tier}-only")["results"][0]
    assert (result["tier"], result["degraded"]) == (tier, None)
    link = result["hops"][0]["link"]
    if tier != "end":
        expected = "5g-nsa" if tier == "edge" else "5g-nsa+metro"
        assert (link["from"], link["to"], link["backend"], link["profile"]) == ("end", tier, "netem", expected)


def test_the_cascade_goes_through_all_three(ask):
    result = ask(REVIEWS[7], policy={"name": "collaborative", "offload_threshold": 1.0})["results"][0]
    assert [hop["tier"] for hop in result["hops"]] == list(TIERS)
    assert [hop["link"]["backend"] for hop in result["hops"][1:]] == ["netem", "netem"]


def test_containers_answer_what_the_same_tiers_in_one_process_answer(ask):
    from shared.settings import Settings
    from shared.web import create_app

    apps = {}

    class Joined(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request):
            return await httpx.ASGITransport(apps[request.url.host]).handle_async_request(request)

    for tier, to in (("end", ("edge", "cloud")), ("edge", ("cloud",)), ("cloud", ())):
        ideal = dict.fromkeys(to, "ideal")
        own = Settings(tier=tier, upstreams={name: f"http://{name}" for name in to}, link_profiles=ideal)
        apps[tier] = create_app(own, transport=Joined())

    async def here(text, options):
        async with httpx.AsyncClient(transport=httpx.ASGITransport(apps["end"]), base_url="http://end") as client:
            return (await client.post("/v1/classify", json={"inputs": text, "options": options})).json()

    for text in REVIEWS[::3]:  # each is dear where the processor is slow
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


@pytest.mark.timing
@pytest.mark.parametrize("name", KINDS)
def test_a_profile_is_what_it_claims(name):
    links.set_profile("end-edge", name)
    report = links.verify(["end-edge"])[0]
    assert report.ok, report


@pytest.mark.timing
def test_a_live_change_shows_in_the_measured_link_time(ask, nsa):
    medians = {}
    for name in ("5g-nsa", "3g"):
        links.set_profile("end-edge", name)  # in force when it returns
        answers = [ask(REVIEWS[0], policy="edge-only") for _ in range(23)][3:]  # TCP takes the first for lost packets
        assert {a["results"][0]["hops"][0]["link"]["profile"] for a in answers} == {name}
        medians[name] = statistics.median(map(link_ms, answers))
    expected = 1e3 * (profile("3g").rtt - profile("5g-nsa").rtt)
    jitter = 1e3 * profile("3g").jitter * 2**0.5
    room = 0.1 * expected + 1.25 * Z * jitter / 20**0.5  # a tenth for the bytes' own time at 3g's rate
    assert medians["3g"] - medians["5g-nsa"] == pytest.approx(expected, abs=room)


@pytest.mark.timing
def test_a_trace_is_followed(ask, nsa, tmp_path):
    trace = tmp_path / "steps.csv"
    rows = ("0,20000000,20,0", "4,20000000,220,0", "8,20000000,20,0")  # two levels of RTT, 4 s each
    trace.write_text("\n".join(("seconds,bits_per_second,rtt_ms,loss", *rows)))
    links.play_trace("end-edge", trace)
    seen, until = [], time.monotonic() + 24
    while time.monotonic() < until:
        seen.append(link_ms(ask(REVIEWS[0], policy="edge-only")))
    low, high = [ms for ms in seen if ms < 110], [ms for ms in seen if ms > 190]
    assert len(low) >= 3, seen
    assert len(high) >= 3, seen


def test_a_cut_link_degrades_in_time_and_heals(ask, nsa):
    links.cut("end-edge")
    for _ in range(3):
        answer = ask(REVIEWS[7], policy={"name": "collaborative", "offload_threshold": 1.0}, deadline_ms=1500)
        result = answer["results"][0]
        assert result["degraded"] in ("deadline", "upstream_timeout", "upstream_unavailable")
        assert result["tier"] == "end"
        assert answer["wall_ms"] < 2500  # the deadline and a second: a busy host wakes late, a lost deadline takes many
    links.heal("end-edge")
    until = time.monotonic() + 10
    while ask(REVIEWS[0], policy="edge-only", deadline_ms=1500)["results"][0]["degraded"]:
        assert time.monotonic() < until, "no recovery within 10 s"


@pytest.mark.timing
def test_stages_add_up_to_what_the_client_waited(ask, nsa):
    gaps = []
    for text in LONG:
        answer = ask(text, policy={"name": "collaborative", "offload_threshold": 1.0})
        hops = answer["results"][0]["hops"]
        stages = sum(hop["timings_ms"]["total"] for hop in hops) + answer["timings_ms"]["ensemble"]
        stages += sum(hop["link"]["ms"] for hop in hops if hop["link"])
        gaps.append((answer["wall_ms"] - stages, answer["wall_ms"]))
    gap, wall = statistics.median(g for g, _ in gaps), statistics.median(w for _, w in gaps)
    print(f"client {wall:.0f} ms, not in any stage {gap:.1f} ms")
    assert abs(gap) <= max(5, 0.05 * wall)


def test_link_bytes_are_the_interfaces_bytes_less_headers(ask, nsa):
    big = " ".join(LONG)  # about 20 kB, of which the edge reads its 256 tokens
    ask(big, policy="edge-only")
    time.sleep(2)  # counters are read once a second
    before, counted = links.counters("end-edge"), _counted("end-edge")
    for _ in range(10):
        assert ask(big, policy="edge-only")["results"][0]["degraded"] is None
    time.sleep(2)
    after = links.counters("end-edge")
    body = {way: value - counted[way] for way, value in _counted("end-edge").items()}
    for way in ("up", "down"):
        wire = after[way]["sent_bytes"] - before[way]["sent_bytes"]
        packets = after[way]["sent_packets"] - before[way]["sent_packets"]
        payload = wire - packets * (14 + 20 + 32) - 10 * 250  # Ethernet, IP, TCP with timestamps; about 250 B of HTTP
        print(f"{way}: {wire} B on the wire in {packets} packets, {body[way]:.0f} B of bodies, {payload} after headers")
        assert body[way] == pytest.approx(payload, rel=0.05, abs=1000)  # ten requests' headers vary by a kilobyte


def _counted(link):
    text = httpx.get(f"http://127.0.0.1:{API}/metrics").text
    return {
        way: float(next(line for line in text.splitlines() if f'direction="{way}",link="{link}"' in line).split()[-1])
        for way in ("up", "down")
    }


def test_containers_hold_no_more_than_they_need():
    for service in (*TIERS, "prometheus", *(f"{tier}-shaper" for tier in TIERS)):
        host, shaper = container(service).attrs["HostConfig"], service.endswith("-shaper")
        assert host["ReadonlyRootfs"], service
        assert host["CapDrop"] == ["ALL"], service
        assert [c.removeprefix("CAP_") for c in host["CapAdd"] or []] == (["NET_ADMIN"] if shaper else []), service
        assert "no-new-privileges:true" in host["SecurityOpt"], service
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


def test_a_tier_restarts_without_losing_its_links(ask, nsa):
    links.set_profile("end-edge", "lte")
    container("edge").restart()
    until = time.monotonic() + 180
    while ask(REVIEWS[0], policy="edge-only")["results"][0]["degraded"]:
        assert time.monotonic() < until
        time.sleep(1)
    result = ask(REVIEWS[0], policy="edge-only")["results"][0]
    assert (result["hops"][0]["link"]["profile"], result["hops"][0]["link"]["backend"]) == ("lte", "netem")
    assert link_ms(ask(REVIEWS[0], policy="edge-only")) > 15


def test_every_query_of_every_dashboard_returns_data(ask, nsa):
    for policy in ("collaborative", "edge-only", "cloud-only", "random"):
        for text in REVIEWS:
            ask(text, policy=policy)
    time.sleep(12)  # a few scrapes
    assert dashboards.check(f"http://127.0.0.1:{PROMETHEUS}") == []


def test_down_leaves_nothing_behind():
    down()
    assert left() == []
