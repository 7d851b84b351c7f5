"""The links between the containers, shaped by a real netem."""

import statistics
import time

import httpx
import pytest

from lab.live.demo import REVIEWS
from lab.live.links import running_links
from shared.links.profile import profile
from tests import dashboards
from tests.e2e.conftest import API, PROMETHEUS, TIERS, container, measured

KINDS = ("ideal", "offline", "5g-nsa", "5g-mmwave", "lte-weak", "3g")  # `make netns` verifies every one
LONG = " ".join(REVIEWS * 8)  # about 20 kB, of which the edge reads its 256 tokens
pytestmark = [pytest.mark.netem, pytest.mark.usefixtures("stack")]


@pytest.fixture(scope="module", autouse=True)
def default_afterwards(stack):
    yield
    running_links().set_profile("end-edge", "5g-nsa")


def link_ms(answer):
    """Link time of the first hop that was sent to, per request."""
    return answer["results"][0]["hops"][0]["link"]["ms"]


@pytest.fixture
def nsa():
    """The default on the link that these tests change, whatever the one before left."""
    running_links().set_profile("end-edge", "5g-nsa")


def test_the_cascade_goes_through_all_three_on_shaped_links(ask, nsa):
    result = ask(REVIEWS[7], policy={"name": "collaborative", "offload_threshold": 1.0})["results"][0]
    assert [hop["tier"] for hop in result["hops"]] == list(TIERS)
    used = [(hop["link"]["backend"], hop["link"]["profile"]) for hop in result["hops"][1:]]
    assert used == [("netem", "5g-nsa"), ("netem", "metro")]


@pytest.mark.parametrize("name", KINDS)
@measured
def test_a_profile_is_what_it_claims(name):
    running_links().set_profile("end-edge", name)
    report = running_links().verify(["end-edge"])[0]
    assert report.ok, report


@measured
def test_a_live_change_shows_in_the_measured_link_time(ask, nsa):
    medians = {}
    for name in ("5g-nsa", "3g"):
        running_links().set_profile("end-edge", name)  # in force when it returns
        answers = [ask(REVIEWS[0], policy="edge-only") for _ in range(23)][3:]  # TCP takes the first for lost packets
        assert {a["results"][0]["hops"][0]["link"]["profile"] for a in answers} == {name}
        medians[name] = statistics.median(map(link_ms, answers))
    expected = 1e3 * (profile("3g").rtt_s - profile("5g-nsa").rtt_s)
    jitter = 1e3 * profile("3g").jitter_s * 2**0.5
    room = 0.1 * expected + 1.25 * 1.96 * jitter / 20**0.5  # a tenth for the bytes' own time at 3g's rate
    assert medians["3g"] - medians["5g-nsa"] == pytest.approx(expected, abs=room)


@measured
def test_a_trace_is_followed(ask, nsa, tmp_path):
    trace = tmp_path / "steps.csv"
    rows = ("0,20000000,20,0", "4,20000000,220,0", "8,20000000,20,0")  # two levels of RTT, 4 s each
    trace.write_text("\n".join(("seconds,bits_per_second,rtt_ms,loss", *rows)))
    running_links().play_trace("end-edge", trace)
    seen, until = [], time.monotonic() + 24
    while time.monotonic() < until:
        seen.append(link_ms(ask(REVIEWS[0], policy="edge-only")))
    low, high = [ms for ms in seen if ms < 110], [ms for ms in seen if ms > 190]
    assert len(low) >= 3, seen
    assert len(high) >= 3, seen


def test_a_cut_link_degrades_in_time_and_heals(ask, nsa):
    running_links().cut("end-edge")
    for _ in range(3):
        answer = ask(REVIEWS[7], policy={"name": "collaborative", "offload_threshold": 1.0}, deadline_ms=1500)
        result = answer["results"][0]
        assert result["degraded"] in ("deadline", "upstream_timeout", "upstream_unavailable")
        assert result["tier"] == "end"
        assert answer["wall_ms"] < 2500  # the deadline and a second: a busy host wakes late, a lost deadline takes many
    running_links().heal("end-edge")
    until = time.monotonic() + 10
    while ask(REVIEWS[0], policy="edge-only", deadline_ms=1500)["results"][0]["degraded"]:
        assert time.monotonic() < until, "no recovery within 10 s"


def put(stack, body):
    """The end's link to the edge, changed through the end itself."""
    answer = stack.client.put("/v1/links/edge", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_a_tier_changes_its_link_at_both_ends(stack, nsa):
    link = put(stack, {"profile": "lte"})
    assert (link["backend"], link["profile"], link["cut"]) == ("netem", "lte", False)
    ends = running_links().show()["end-edge"]
    assert {end["profile"] for end in ends.values()} == {"lte"}
    assert {way: end["rate"] for way, end in ends.items()} == {"up": 14e6, "down": 35e6}


def test_a_link_that_a_tier_cuts_degrades_in_time_and_heals(stack, ask, nsa):
    assert put(stack, {"cut": True})["cut"] is True
    result = ask(REVIEWS[7], policy={"name": "collaborative", "offload_threshold": 1.0}, deadline_ms=1500)["results"][0]
    assert result["degraded"] in ("deadline", "upstream_timeout", "upstream_unavailable")
    assert put(stack, {"cut": False})["cut"] is False
    until = time.monotonic() + 10
    while ask(REVIEWS[0], policy="edge-only", deadline_ms=1500)["results"][0]["degraded"]:
        assert time.monotonic() < until, "no recovery within 10 s"


@measured
def test_link_bytes_are_the_interfaces_bytes_less_headers(ask, nsa):
    ask(LONG, policy="edge-only")
    time.sleep(2)  # counters are read once a second
    before, counted = running_links().change("end-edge", {"do": "counters"}), _counted("end-edge")
    for _ in range(10):
        assert ask(LONG, policy="edge-only")["results"][0]["degraded"] is None
    time.sleep(2)
    after = running_links().change("end-edge", {"do": "counters"})
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


def test_every_query_of_every_dashboard_returns_data(ask, nsa):
    for policy in ("collaborative", "edge-only", "cloud-only", "random"):
        for text in REVIEWS:
            ask(text, policy=policy)
    time.sleep(12)  # a few scrapes
    assert dashboards.check(f"http://127.0.0.1:{PROMETHEUS}") == []


def test_a_tier_restarts_without_losing_its_links(nsa):
    running_links().set_profile("end-edge", "lte")
    container("edge").restart()  # its shaper holds the links
    report = running_links().verify(["end-edge"])[0]
    assert report.profile == "lte"
    assert [check.held for check in report.checks if check.name.startswith(("settings", "both"))] == [True] * 3, report
