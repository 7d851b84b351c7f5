"""Links: the arithmetic of a path, and simulated waits, in virtual time."""

import asyncio
import json
import os
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import BadSetting, UpstreamFailure
from shared.links.profile import UNSHAPED, Backend, Profile, on_the_wire, packets, profile, radio_of
from shared.links.shaped import ShapedLinks
from shared.links.simulated import SimulatedLink
from shared.links.trace import parse
from shared.links.upstream import Upstream
from tests.clocks import now, run

PLAIN = Profile(
    "plain", rate_up_bps=8e5, rate_down_bps=8e6, rtt_s=0.1, jitter_s=0.0, loss_ratio=0.0
)  # 100 kB/s up, 1 MB/s down
PROFILES = st.builds(Profile, st.just("x"), *[st.floats(0, 1e9)] * 2, *[st.floats(0, 2)] * 2, st.floats(0, 1))


def seconds(link, *sends):
    """Run all sends at once; when each one arrived, in seconds from the start."""

    async def timed(size, direction):
        await link.carry(size, direction)
        return now()

    async def all_of_them():
        return await asyncio.gather(*(timed(size, direction) for size, direction in sends))

    return run(all_of_them())


def test_a_profile_is_read_into_bits_and_seconds():
    lte = profile("lte-weak")
    assert (lte.rate_up_bps, lte.rate_down_bps, lte.rtt_s, lte.jitter_s, lte.loss_ratio) == pytest.approx(
        (1e6, 5.4e6, 0.07, 0.015, 0.003)
    )


def test_a_path_adds_delays_takes_the_slower_rate_and_joins_jitter_and_loss():
    path = profile("5g-nsa+metro")
    assert path.name == "5g-nsa+metro"
    assert (path.rate_up_bps, path.rate_down_bps) == (67e6, 127e6)
    assert path.rtt_s == pytest.approx(0.018)
    assert path.jitter_s == pytest.approx((0.004**2 + 0.0002**2) ** 0.5)
    weak = profile("lte-weak+lte-weak")
    assert weak.loss_ratio == pytest.approx(1 - 0.997**2)


def test_an_unlimited_rate_never_wins_over_a_limited_one():
    assert profile("ideal+lte").rate_up_bps == profile("lte+ideal").rate_up_bps == 14e6
    assert profile("ideal+ideal").rate_up_bps == 0


def test_a_path_has_the_power_model_of_its_first_link():
    lte, wifi = profile("lte").radio, profile("wifi").radio
    assert lte != wifi
    assert "MobiSys 2012" in lte.source
    assert lte.joules(up_bytes=1e6, down_bytes=2e6, seconds=3) == pytest.approx(
        3 * 1.28804 + 8 * 0.43839 + 16 * 0.05197
    )
    assert profile("lte+regional").radio == radio_of("lte+regional") == profile("lte-weak").radio == lte
    assert profile("regional+lte").radio is radio_of("metro") is radio_of("no-such") is None


def test_a_path_over_an_outage_is_out():
    assert profile("metro+offline").loss_ratio == 1


@given(PROFILES, PROFILES, PROFILES)
def test_joining_links_does_not_depend_on_how_they_are_grouped(a, b, c):
    left, right = a.then(b).then(c), a.then(b.then(c))
    assert (left.rate_up_bps, left.rate_down_bps) == (right.rate_up_bps, right.rate_down_bps)
    assert (left.rtt_s, left.jitter_s, left.loss_ratio) == pytest.approx(
        (right.rtt_s, right.jitter_s, right.loss_ratio), abs=1e-9
    )


@pytest.mark.parametrize("name", ["6g", "lte+6g", "", "lte+"])
def test_an_unknown_profile_is_refused_with_the_known_ones(name):
    with pytest.raises(BadSetting, match=r"choose from ideal, offline, 5g-nsa.*or join two with"):
        profile(name)


def test_a_message_takes_its_bytes_at_the_rate_plus_half_the_rtt():
    assert (packets(10_000), on_the_wire(10_000)) == (
        8,
        250 + 10_000 + 8 * 66,
    )
    (up,) = seconds(SimulatedLink(PLAIN), (10_000, "up"))
    assert up == pytest.approx(0.05 + 0.10778)
    (down,) = seconds(SimulatedLink(PLAIN), (10_000, "down"))
    assert down == pytest.approx(0.05 + 0.010778)


def test_an_ideal_link_costs_nothing():
    (took,) = seconds(SimulatedLink(profile("ideal")), (10_000_000, "up"))
    assert took == 0


def test_two_sends_at_once_share_the_rate_in_order():
    first, second = seconds(SimulatedLink(PLAIN), (10_000, "up"), (10_000, "up"))
    assert first == pytest.approx(0.05 + 0.10778)
    assert second == pytest.approx(0.05 + 2 * 0.10778)  # behind the first one's bytes, but not behind its delay


def test_directions_do_not_share():
    up, down = seconds(SimulatedLink(PLAIN), (10_000, "up"), (10_000, "down"))
    assert up == pytest.approx(0.15778)
    assert down == pytest.approx(0.060778)


def test_a_message_that_is_cancelled_frees_the_link_as_tcp_does():
    """Four messages of 20 s each are given up at once: the next one waits for what is under way, not 80 s."""
    link = SimulatedLink(PLAIN)

    async def story():
        given_up = [asyncio.ensure_future(link.carry(2_000_000, "up")) for _ in range(4)]
        await asyncio.sleep(0.01)
        for message in given_up:
            message.cancel()
        await asyncio.gather(*given_up, return_exceptions=True)
        started = now()
        await link.carry(100, "up")
        return now() - started

    assert run(story()) < 0.5


def test_a_long_message_takes_as_long_as_its_bytes_and_keeps_its_place():
    long, short = seconds(SimulatedLink(PLAIN), (200_000, "up"), (100, "up"))
    assert long == pytest.approx(0.05 + on_the_wire(200_000) / 1e5)
    assert short == pytest.approx(long + on_the_wire(100) / 1e5)


def test_an_idle_link_has_no_memory():
    link = SimulatedLink(PLAIN)

    async def two_in_turn():
        await link.carry(1000, "up")
        started = now()
        await link.carry(1000, "up")
        return now() - started

    assert run(two_in_turn()) == pytest.approx(0.05 + on_the_wire(1000) / 1e5)


def test_a_machine_that_wakes_late_is_allowed_for(monkeypatch):
    """Sleeps that take 3 ms too long cost nothing once the link has seen some."""
    clock, link = [0.0], SimulatedLink(replace(PLAIN, rate_up_bps=0))

    async def late(delay):
        clock[0] += delay + 0.003

    async def messages():
        monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: clock[0])
        monkeypatch.setattr("shared.links.simulated.asyncio.sleep", late)
        took = []
        for _ in range(100):
            started = clock[0]
            await link.carry(100, "up")
            took.append(clock[0] - started)
        return took

    took = asyncio.run(messages())
    assert took[0] == pytest.approx(0.053)
    assert took[-1] == pytest.approx(0.05, abs=1e-4)


def waits(monkeypatch, link, sizes):
    """What the link would sleep for each size, without sleeping: as if each found it idle."""
    slept = []

    async def note(delay):
        slept.append(delay)

    async def one_by_one():
        for size in sizes:
            link._free["up"] = 0.0
            await link.carry(size, "up")

    monkeypatch.setattr("shared.links.simulated.asyncio.sleep", note)
    asyncio.run(one_by_one())
    return slept


def test_a_message_waits_for_its_slowest_packet_and_jitter_replays_by_seed(monkeypatch):
    jittery = replace(PLAIN, rate_up_bps=0, jitter_s=0.04)
    headers = waits(monkeypatch, SimulatedLink(jittery, seed=7), [0] * 2000)
    assert sum(headers) / 2000 == pytest.approx(0.05, abs=0.003)
    assert (min(headers), max(headers)) == pytest.approx((0, 0.1), abs=1e-4)  # cut off on both sides: the mean stays
    two = waits(monkeypatch, SimulatedLink(jittery, seed=7), [1] * 2000)
    assert sum(two) / 2000 == pytest.approx(0.05 + 0.04 * 0.54, abs=0.003)  # 0.564 of two normal ones, less what is cut
    assert waits(monkeypatch, SimulatedLink(jittery, seed=7), [1] * 20) == pytest.approx(two[:20], abs=1e-3)


def test_a_lost_packet_costs_one_more_rtt(monkeypatch):
    lossy = replace(PLAIN, rate_up_bps=0, loss_ratio=0.25)
    slept = waits(monkeypatch, SimulatedLink(lossy, seed=1), [0] * 2000)
    lost = [round((delay - 0.05) / 0.1) for delay in slept]
    assert set(lost) == {0, 1}
    assert sum(lost) / 2000 == pytest.approx(0.25, abs=0.04)
    (many,) = waits(monkeypatch, SimulatedLink(lossy, seed=1), [1448 * 1000])
    assert (many - 0.05) / 0.1 == pytest.approx(250, abs=55)


def test_an_outage_raises_at_once():
    with pytest.raises(UpstreamFailure, match="link offline is out") as caught:
        seconds(SimulatedLink(profile("offline")), (1, "up"))
    assert caught.value.reason == "upstream_unavailable"


def test_a_message_under_way_takes_the_rate_of_the_link_as_it_becomes():
    """After 1 s of 2 MB at 100 kB/s the link is ten times faster."""
    link = SimulatedLink(PLAIN)

    async def story():
        message = asyncio.ensure_future(link.carry(2_000_000, "up"))
        await asyncio.sleep(1)
        link.set(replace(PLAIN, rate_up_bps=8e6))
        await message
        return now()

    assert run(story()) == pytest.approx(1 + on_the_wire(1_900_000) / 1e6, abs=0.2)


def test_a_cut_link_carries_nothing_until_it_is_healed_not_even_the_rest_of_a_message():
    link = SimulatedLink(PLAIN)

    async def story():
        message = asyncio.ensure_future(link.carry(200_000, "up"))
        await asyncio.sleep(0.5)
        link.cut()
        answer = asyncio.ensure_future(link.carry(0, "down"))
        await asyncio.sleep(60)
        assert not message.done()
        assert not answer.done()
        link.heal()
        await asyncio.gather(message, answer)
        return now()

    assert run(story()) == pytest.approx(60.5 + 1.6, abs=0.3)


# -- what a shaper says ----------------------------------------------------------------------------------------------


def say(folder, mode="profile", **numbers):
    state = {"profile": "lte", "mode": mode, "since": 0, "rate": 14e6, "rtt": 0.037, "jitter": 0.015, "loss": 0.0}
    (folder / "new").write_text(json.dumps({"links": {"end-edge": {**state, **numbers}}}))
    (folder / "new").replace(folder / ShapedLinks.FILE)


def test_a_change_of_the_links_is_seen_at_the_next_look(tmp_path):
    links = ShapedLinks(tmp_path)
    assert links.in_force("end-edge") is None  # no shaper yet
    say(tmp_path)
    assert links.in_force("end-edge") == Profile("lte", 14e6, 14e6, 0.037, 0.015, 0.0, profile("lte").radio)
    say(tmp_path, profile="3g", rtt=0.3)
    assert (links.in_force("end-edge").name, links.in_force("end-edge").rtt_s) == ("3g", 0.3)
    assert links.in_force("end-cloud") is None


def test_the_trace_that_the_shaper_plays_is_told(tmp_path):
    links = ShapedLinks(tmp_path)
    assert links.trace("end-edge") is None
    say(tmp_path, mode="trace", trace="driving")
    assert links.trace("end-edge") == "driving"
    say(tmp_path, trace=None)
    assert links.trace("end-edge") is None


def test_a_link_that_waits_for_its_shape_is_not_in_force(tmp_path):
    say(tmp_path, mode="waiting")
    assert ShapedLinks(tmp_path).in_force("end-edge") is None


GOOD = {"profile": "lte", "mode": "profile", "rate": 14e6, "rtt": 0.037, "jitter": 0.015, "loss": 0.0}
NUMBERS = ["rate", "rtt", "jitter", "loss"]
NO_NUMBERS = [None, "14e6", True, -1, float("nan"), float("inf"), 10**400, [], {}]


def damaged(**changes):
    return json.dumps({"links": {"end-edge": {key: v for key, v in {**GOOD, **changes}.items() if v != "missing"}}})


DAMAGED = [
    *("", "{", "[]", "null", "3", '"links"', "{}", '{"links": []}', '{"links": null}', '{"links": {"end-edge": []}}'),
    *('{"links": {"end-edge": null}}', "[" * 100_000, '{"links":' * 100_000, "\ufffd\0" * 10, " " * 2_000_000),
    *(damaged(**{key: "missing"}) for key in GOOD),
    *(damaged(**{key: value}) for key in NUMBERS for value in NO_NUMBERS),
    *(damaged(profile=value) for value in (None, 3, [])),
    *(damaged(mode=value) for value in (None, 3, [], "nonsense")),
    damaged(loss=1.5),
]


def put(folder, content):
    (folder / "new").write_bytes(content.encode())
    (folder / "new").replace(folder / ShapedLinks.FILE)


@pytest.mark.parametrize("content", DAMAGED)
def test_a_damaged_file_is_one_line_at_the_start_and_later_an_unshaped_link(tmp_path, content, caplog):
    say(tmp_path)
    links = ShapedLinks(tmp_path)
    assert links.in_force("end-edge").name == "lte"
    put(tmp_path, content)
    assert [links.in_force("end-edge") for _ in range(3)] == [None] * 3
    assert len(caplog.records) == 1  # once, not at every request
    with pytest.raises(BadSetting, match=r"links\.json is damaged") as caught:
        ShapedLinks(tmp_path)
    assert "\n" not in str(caught.value)
    say(tmp_path)
    assert links.in_force("end-edge").name == "lte"


@pytest.mark.parametrize("kind", ["not utf-8", "folder", "fifo", "link to itself"])
def test_something_else_in_the_place_of_the_file_is_told_too(tmp_path, kind, caplog):
    say(tmp_path)
    links, path = ShapedLinks(tmp_path), tmp_path / ShapedLinks.FILE
    path.unlink()
    if kind == "not utf-8":
        path.write_bytes(b'{"links": {"\xff": 1}}')
    elif kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path.symlink_to(path)
    assert [links.in_force("end-edge") for _ in range(3)] == [None] * 3
    assert len(caplog.records) == 1
    with pytest.raises(BadSetting, match=r"links\.json is damaged"):
        ShapedLinks(tmp_path)


def test_an_upstream_reports_what_the_shaper_says_and_never_shape_that_is_not_there(tmp_path):
    upstream = Upstream(
        source="end",
        target="edge",
        url="http://edge",
        backend=Backend.NETEM,
        profile_name="lte",
        timeout_s=1,
        shaped=ShapedLinks(tmp_path),
    )
    assert upstream.link == (Backend.NONE, UNSHAPED)
    say(tmp_path)
    assert (upstream.link[0], upstream.link[1].name) == (Backend.NETEM, "lte")
    asyncio.run(upstream.close())


TRACE = parse("t", "0,8e5,100\n1,8e5,300\n2,0,300\n3,8e6,100\n")  # 4 s: slow, slower, out, fast


def test_a_link_follows_its_trace_and_what_is_sent_in_an_outage_goes_on_after_it():
    async def story():
        link, took = SimulatedLink(PLAIN), []
        link.play(TRACE)
        for begins in (0.0, 1.0, 2.25, 3.5, 4.0):  # the last one from the start again
            await asyncio.sleep(begins - now())
            await link.carry(10_000, "up")
            took.append(round(now() - begins, 3))
        return took

    assert run(story()) == [0.158, 0.258, 0.811, 0.061, 0.158]  # half the RTT and 10,778 bytes at 100 kB/s, 1 MB/s


def test_a_profile_ends_a_trace():
    async def story():
        link = SimulatedLink(PLAIN)
        link.play(TRACE)
        link.set(replace(PLAIN, rtt_s=0.02, rate_up_bps=0))
        await link.carry(10_000, "up")
        return now(), link.profile.rtt_s

    assert run(story()) == (pytest.approx(0.01), 0.02)


def test_an_outage_that_never_ends_waits_until_another_profile_is_set():
    async def story():
        link = SimulatedLink(PLAIN)
        link.play(parse("out", "0,0"))
        sending = asyncio.create_task(link.carry(10, "up"))
        await asyncio.sleep(10.2)
        assert not sending.done()
        link.set(replace(PLAIN, rate_up_bps=0))
        await sending
        return now()

    assert run(story()) == pytest.approx(10.55)  # it looks every half second
