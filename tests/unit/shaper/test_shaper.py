"""The shaper without a kernel: what each end does, what commands change, what the shaper answers."""

import asyncio
import json
import math
import os
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.live.links import Links
from services.shaper.config import load_config
from services.shaper.daemon import Shaper
from services.shaper.netlink import _normal
from services.shaper.probe import train_for
from services.shaper.shape import Direction, Reading, Shape, shape_of
from services.shaper.state import link_between
from services.shaper.verify import judge_probe
from shared.errors import BadSetting
from shared.links.profile import PROFILES, SHAPER_SOCKET, profile
from shared.links.shaped import ShapedLinks, ask_shaper

LTE = profile("lte")


class FakeKernel:
    """Interfaces by address; keeps what was applied."""

    def __init__(self, routes):
        self.routes, self.applied, self.flushed, self.backlog, self.gone = routes, {}, [], 0, False

    def route(self, address):
        return self.routes[address]

    def prepare(self, interface):
        return []

    def apply(self, interface, shape, *, flush=False):
        if self.gone:
            raise OSError(19, "No such device")
        self.applied[interface] = shape
        self.flushed.append(flush)

    def read(self, interface):
        shape = self.applied.get(interface)
        settings = shape and (shape.delay_s, shape.jitter_s, shape.loss_ratio, shape.bytes_per_s, shape.limit)
        return Reading(*settings, sent_bytes=1000, sent_packets=2, drops=1, backlog=self.backlog) if shape else None


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


ADDRESSES = {"edge": "10.0.0.2", "cloud": "10.0.1.2", "end": "10.0.0.1"}


@pytest.fixture
def build(tmp_path):
    """A builder: (shaper of a tier, its kernel, its clock), attached to all its peers unless told not to."""

    def build(tier="end", links="end-edge=5g-nsa,end-cloud=5g-nsa+metro", *, attach=True, **more):
        folder = tmp_path / tier
        folder.mkdir(exist_ok=True)
        settings = {"TIERWISE_TIER": tier, "TIERWISE_SHAPED_LINKS": links, "TIERWISE_LINK_STATE_DIR": str(folder)}
        kernel, clock = FakeKernel({address: at for at, address in enumerate(ADDRESSES.values(), start=2)}), Clock()
        shaper = Shaper(load_config(settings | more), kernel, clock)
        if attach:
            for link in shaper.links.values():
                shaper.attach(link, ADDRESSES[link.peer])
        return shaper, kernel, clock

    return build


def ask(shaper, **request):
    return asyncio.run(shaper.answer(request))


def sample(shaper, name, **labels):
    return shaper.metrics.registry.get_sample_value(f"tierwise_link_{name}", labels)


# -- what one end does


def test_each_end_takes_half_the_rtt_and_its_own_rate():
    up, down = (shape_of(LTE, direction) for direction in Direction)
    assert (up.delay_s, up.rate_bps) == (0.0185, 14e6)
    assert (down.delay_s, down.rate_bps) == (0.0185, 35e6)
    assert up.jitter_s == down.jitter_s == 0.015


@pytest.mark.parametrize(
    ("shape", "limit"),
    [
        (Shape(delay_s=0.008, jitter_s=0.004, loss_ratio=0, rate_bps=67e6), 1161),  # 67e6 x 0.208 s / 12,000 bits
        (Shape(delay_s=0.75, jitter_s=0.5, loss_ratio=0, rate_bps=25e3), 100),  # never fewer
        (Shape(delay_s=0.001, jitter_s=0, loss_ratio=0, rate_bps=1e9), 16750),
        (Shape(delay_s=0.0, jitter_s=0, loss_ratio=0, rate_bps=0), 16667),  # unlimited: as for 1 Gbit/s
    ],
)
def test_the_queue_holds_the_delay_and_200_ms_of_the_rate(shape, limit):
    assert shape.limit == limit


def test_jitter_without_a_rate_gets_one_that_keeps_packets_in_order():
    assert Shape(delay_s=0.01, jitter_s=0.001, loss_ratio=0, rate_bps=0).bytes_per_s == 1_250_000_000
    assert Shape(delay_s=0.01, jitter_s=0, loss_ratio=0, rate_bps=0).bytes_per_s == 0


@given(st.floats(0, 5))
def test_jitter_is_symmetric_and_never_below_no_delay(cut):
    table = struct.unpack("=4096h", _normal(cut))
    assert abs(sum(table)) <= 1
    assert max(table) <= round(8192 * cut)


def test_jitter_far_from_the_cut_has_its_standard_deviation():
    table = struct.unpack("=4096h", _normal(10.0))
    assert math.sqrt(sum(value**2 for value in table) / 4096) / 8192 == pytest.approx(1, abs=0.005)


@pytest.mark.parametrize(
    ("name", "tier", "expected"),
    [("end-edge", "end", ("edge", "up")), ("end-edge", "edge", ("end", "down")), ("a-b-c", "a-b", ("c", "up"))],
)
def test_a_tier_finds_its_end_of_a_link(name, tier, expected):
    link = link_between(name, tier, "lte", Clock())
    assert (link.peer, link.direction.value) == expected


@pytest.mark.parametrize("name", ["edge-cloud", "end", "end-", "-end", "end-edge=x"])
def test_a_link_that_is_not_the_tiers_is_refused(name):
    if name == "end-edge=x":
        with pytest.raises(BadSetting, match="choose from"):
            link_between("end-edge", "end", "x", Clock())
    else:
        with pytest.raises(BadSetting, match="expected SOURCE-TARGET"):
            link_between(name, "end", "lte", Clock())


def test_two_links_on_one_interface_are_refused(build):
    shaper, _, _ = build(attach=False)
    first, second = shaper.links.values()
    shaper.attach(first, "10.0.0.2")
    with pytest.raises(BadSetting, match="share an interface"):
        shaper.attach(second, "10.0.0.2")


# -- commands


def test_set_changes_the_kernel_once_and_says_so(build):
    shaper, kernel, _ = build()
    for _ in range(2):
        answer = ask(shaper, do="set", link="end-edge", profile="lte")
    assert (answer["profile"], answer["mode"], answer["rate"]) == ("lte", "profile", 14e6)
    assert kernel.applied[2] == shape_of(LTE, Direction.UP)
    assert kernel.applied[3] == shape_of(profile("5g-nsa+metro"), Direction.UP)
    assert len(kernel.flushed) == 3  # two links, one change
    assert sample(shaper, "changes_total", link="end-edge", kind="profile") == 1
    assert sample(shaper, "config_rate_bytes_per_second", link="end-edge", direction="up") == 1.75e6


def test_heal_goes_back_to_what_was_before_the_cut(build):
    shaper, kernel, clock = build()
    ask(shaper, do="trace", link="end-edge", text="0,1e6\n1,2e6\n", name="t.csv")
    for _ in range(2):
        assert ask(shaper, do="cut", link="end-edge")["mode"] == "cut"
    assert kernel.applied[2].loss_ratio == 1
    clock.now += 1
    for _ in range(2):
        assert ask(shaper, do="heal", link="end-edge")["mode"] == "trace"
    assert (kernel.applied[2].loss_ratio, kernel.applied[2].rate_bps) == (0, 2e6)
    assert [sample(shaper, "changes_total", link="end-edge", kind=kind) for kind in ("trace", "cut", "heal")] == [
        1,
        1,
        1,
    ]
    assert ask(shaper, do="set", link="end-edge", profile="5g-nsa")["mode"] == "profile"


def test_a_profile_ends_a_cut(build):
    shaper, kernel, _ = build()
    ask(shaper, do="cut", link="end-edge")
    assert ask(shaper, do="set", link="end-edge", profile="lte")["mode"] == "profile"
    assert kernel.applied[2].loss_ratio == 0


def test_a_queue_that_would_hold_up_the_next_profile_is_dropped(build):
    shaper, kernel, _ = build()
    ask(shaper, do="set", link="end-edge", profile="nbiot")
    kernel.backlog = 3000
    ask(shaper, do="set", link="end-edge", profile="lte")
    assert kernel.flushed[-2:] == [False, True]
    kernel.backlog = 3000  # 2 ms at 14 Mbit/s
    ask(shaper, do="set", link="end-edge", profile="5g-nsa")
    assert kernel.flushed[-1] is False


def test_an_unshaped_link_waits_whatever_was_asked_and_takes_it_later(build):
    shaper, kernel, _ = build(attach=False)
    assert ask(shaper, do="set", link="end-edge", profile="lte")["mode"] == "waiting"
    assert not (shaper.config.state_dir / "ready").exists()
    assert math.isnan(sample(shaper, "config_delay_seconds", link="end-edge", direction="up"))
    for link in shaper.links.values():
        shaper.attach(link, ADDRESSES[link.peer])
    assert (shaper.config.state_dir / "ready").exists()
    assert kernel.applied[2] == shape_of(LTE, Direction.UP)


def test_a_lost_interface_is_looked_for_again(build):
    shaper, kernel, _ = build()
    kernel.gone = True
    assert ask(shaper, do="set", link="end-edge", profile="lte")["mode"] == "waiting"


def test_settings_that_somebody_changed_are_put_back(build):
    shaper, kernel, _ = build()
    kernel.applied[2] = shape_of(LTE, Direction.UP)
    assert ask(shaper, do="show")["links"]["end-edge"]["held"] is False  # as it was found
    assert kernel.applied[2] == shape_of(profile("5g-nsa"), Direction.UP)
    assert ask(shaper, do="show")["links"]["end-edge"]["held"] is True


@pytest.mark.parametrize(
    ("request_", "complaint"),
    [
        ({"do": "set", "link": "end-moon", "profile": "lte"}, "this end shapes end-edge, end-cloud"),
        ({"do": "set", "link": "end-edge", "profile": "6g"}, "choose from"),
        ({"do": "set", "link": "end-edge"}, "choose from"),
        ({"do": "fly", "link": "end-edge"}, "unknown command 'fly'"),
        ({"do": "trace", "link": "end-edge", "text": "x", "name": "t"}, "trace t, line 1"),
    ],
)
def test_a_command_that_makes_no_sense_is_refused_with_the_reason(build, request_, complaint):
    shaper, kernel, _ = build()
    before = dict(kernel.applied)
    with pytest.raises(BadSetting, match=complaint):
        ask(shaper, **request_)
    assert kernel.applied == before


def test_commands_travel_as_lines_and_errors_as_answers(build, tmp_path):
    from services.shaper import ctl

    shaper, _, _ = build()
    path = str(tmp_path / "c.sock")

    async def converse():
        server = await asyncio.start_unix_server(shaper._converse, path)
        reader, writer = await asyncio.open_unix_connection(path)
        answers = []
        for line in (b'{"do":"cut","link":"end-edge"}', b'{"do":"counters","link":"end-edge"}', b"{", b"[1]"):
            writer.write(line + b"\n")
            answers.append(json.loads(await reader.readline()))
        writer.close()
        await asyncio.sleep(0.05)  # the server sees it and closes its side
        server.close()
        await server.wait_closed()
        return answers

    cut, counters, *errors = asyncio.run(converse())
    assert cut["mode"] == "cut"
    assert counters == {"sent_bytes": 1000, "sent_packets": 2, "drops": 1, "backlog": 0}
    assert all("error" in answer for answer in errors)
    assert str(shaper.config.control) == ctl.CONTROL


def test_a_tier_may_change_links_over_a_socket_of_its_own_and_nothing_else(build):
    shaper, _, _ = build(TIERWISE_LINK_CONTROL="true")
    folder = shaper.config.state_dir

    async def story():
        server = await shaper.listen_to_tier()
        assert (folder / SHAPER_SOCKET).stat().st_mode & 0o777 == 0o666  # the tier is another user
        await ask_shaper(folder, do="set", link="end-edge", profile="lte")
        await ask_shaper(folder, do="cut", link="end-edge")
        links = ShapedLinks(folder)
        assert (links.in_force("end-edge").name, links.is_cut("end-edge")) == ("lte", True)
        assert (links.is_cut("end-cloud"), links.is_cut("moon-sun")) == (False, False)
        await ask_shaper(folder, do="heal", link="end-edge")
        assert links.is_cut("end-edge") is False
        refused = (
            {"do": "trace", "path": "/etc/passwd"},
            {"do": "probe"},
            {"do": "show"},
            {"do": "set", "profile": "6g"},
        )
        for command in refused:
            with pytest.raises(BadSetting, match=r"a tier may cut, heal, set|choose from ideal"):
                await ask_shaper(folder, link="end-edge", **command)
        await asyncio.sleep(0.05)  # the server sees that its callers are gone
        server.close()

    asyncio.run(story())


def test_a_shaper_takes_no_changes_from_its_tier_unless_a_setting_says_so(build):
    shaper, _, _ = build()
    folder = shaper.config.state_dir
    (folder / SHAPER_SOCKET).touch()  # of one that did

    async def story():
        assert await shaper.listen_to_tier() is None
        assert not (folder / SHAPER_SOCKET).exists()
        with pytest.raises(BadSetting, match="TIERWISE_LINK_CONTROL=true"):
            await ask_shaper(folder, do="cut", link="end-edge")

    asyncio.run(story())


@pytest.mark.parametrize("value", ["yes", "1", ""])
def test_a_shaper_s_link_control_is_true_or_false(build, value):
    with pytest.raises(BadSetting, match="TIERWISE_LINK_CONTROL"):
        build(TIERWISE_LINK_CONTROL=value)


def test_the_state_file_is_whole_and_says_what_is_in_force(build):
    shaper, _, clock = build()
    clock.now = 200.0
    ask(shaper, do="set", link="end-edge", profile="lte")
    folder = shaper.config.state_dir
    state = json.loads((folder / "links.json").read_text())["links"]["end-edge"]
    numbers = {"rate": 14e6, "rtt": 0.037, "jitter": 0.015, "loss": 0.0}
    assert state == {"profile": "lte", "mode": "profile", "trace": None, "since": 200.0, **numbers}
    assert sorted(path.name for path in folder.iterdir()) == ["links.json", "ready"]


def test_while_the_state_file_cannot_be_written_there_is_none_and_the_links_stay_shaped(build, monkeypatch):
    shaper, kernel, _ = build()
    folder, link = shaper.config.state_dir, shaper.links["end-edge"]
    with monkeypatch.context() as full:
        full.setattr(Path, "write_text", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        assert ask(shaper, do="set", link="end-edge", profile="lte")["profile"] == "lte"
        shaper.look(link)
        assert kernel.applied[link.interface].rate_bps == 14e6
        assert list(folder.glob("*")) == []  # neither an old one, nor ready
    shaper.look(link)
    assert json.loads((folder / "links.json").read_text())["links"]["end-edge"]["profile"] == "lte"
    assert (folder / "ready").exists()


# -- settings and metrics


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"TIERWISE_SHAPED_LINKS": "a-b=lte"}, "TIERWISE_TIER is not set"),
        ({"TIERWISE_TIER": "a"}, "TIERWISE_SHAPED_LINKS is not set"),
        ({"TIERWISE_TIER": "a", "TIERWISE_SHAPED_LINKS": "a-b"}, "expected NAME=VALUE"),
        (
            {"TIERWISE_TIER": "a", "TIERWISE_SHAPED_LINKS": "a-b=lte", "TIERWISE_LINK": "x"},
            "unknown setting TIERWISE_LINK",
        ),
        ({"TIERWISE_TIER": "a", "TIERWISE_SHAPED_LINKS": "a-b=lte", "TIERWISE_LINKS": "x"}, "TIERWISE_LINKS='x'"),
        (
            {"TIERWISE_TIER": "a", "TIERWISE_SHAPED_LINKS": "a-b=lte", "TIERWISE_SHAPER_PROBE_PORT": "0"},
            "expected a port",
        ),
    ],
)
def test_a_bad_setting_is_named(settings, complaint):
    with pytest.raises(BadSetting, match=complaint):
        load_config(settings)


def test_with_simulated_links_the_shaper_only_holds_the_namespace(build):
    shaper, _, _ = build(TIERWISE_LINKS="simulated")
    assert shaper.links == {}
    shaper.publish()
    assert (shaper.config.state_dir / "ready").exists()


def test_the_process_serves_commands_until_it_is_stopped(tmp_path):
    with socket.socket() as one, socket.socket() as other:
        one.bind(("", 0))
        other.bind(("", 0))
        metrics, probe = (str(free.getsockname()[1]) for free in (one, other))
    settings = {
        "TIERWISE_TIER": "end",
        "TIERWISE_LINKS": "simulated",
        "TIERWISE_SHAPED_LINKS": "end-edge=lte",
        "TIERWISE_LINK_STATE_DIR": str(tmp_path),
        "TIERWISE_SHAPER_CONTROL": str(tmp_path / "c.sock"),
        "TIERWISE_SHAPER_METRICS_PORT": metrics,
        "TIERWISE_SHAPER_PROBE_PORT": probe,
    }
    others = {key: value for key, value in os.environ.items() if not key.startswith("TIERWISE_")}
    run = {"env": others | settings, "cwd": PROFILES.parents[2]}
    with subprocess.Popen([sys.executable, "-m", "services.shaper"], **run) as shaper:
        while not (tmp_path / "c.sock").exists():
            assert shaper.poll() is None
            time.sleep(0.05)
        ask_it = [sys.executable, "-S", "-m", "services.shaper.ctl"]
        shown = subprocess.run([*ask_it, '{"do": "show"}'], capture_output=True, text=True, **run)
        refused = subprocess.run([*ask_it, '{"do": "cut", "link": "end-edge"}'], capture_output=True, text=True, **run)
        shaper.terminate()
    assert (tmp_path / "ready").exists()
    assert (shown.returncode, json.loads(shown.stdout)) == (0, {"tier": "end", "links": {}})
    assert refused.returncode == 2
    assert "this end shapes none" in json.loads(refused.stdout)["error"]
    assert shaper.returncode == 0


def test_metrics_have_their_names_and_start_at_zero(build):
    shaper, _, _ = build()
    names = {metric.name for metric in shaper.metrics.registry.collect()}
    units = ("config_rate_bytes_per_second", "config_delay_seconds", "config_jitter_seconds", "config_loss_ratio")
    assert names == {f"tierwise_link_{name}" for name in (*units, "rtt_seconds", "sent_bytes", "drops", "changes")}
    for kind in ("profile", "trace", "cut", "heal"):
        assert sample(shaper, "changes_total", link="end-cloud", kind=kind) == 0
    assert sample(shaper, "sent_bytes_total", link="end-edge") == 0
    ask(shaper, do="show")
    ask(shaper, do="show")
    assert sample(shaper, "sent_bytes_total", link="end-edge") == 1000
    assert sample(shaper, "drops_total", link="end-edge") == 1


def test_counters_go_on_when_a_queue_is_replaced(build):
    shaper, _, _ = build()
    link = shaper.links["end-edge"]
    for sent in (1000, 1500, 200):
        shaper.metrics.counted(link, Reading(0, 0, 0, 0, 0, sent_bytes=sent))
    assert sample(shaper, "sent_bytes_total", link="end-edge") == 1700


# -- both ends, as the command line sees them


class Direct:
    """A shaper asked in the same process; `probe` answers what it was given."""

    def __init__(self, shaper, measured):
        self.shaper, self.measured = shaper, measured

    def ask(self, request):
        if request["do"] == "probe":
            return self.measured
        return asyncio.run(self.shaper.answer(request))


def good(name, rtt=None):
    path = profile(name)
    train = {"in_time": True, "sent": 1000, "received": round(1000 * (1 - path.loss_ratio))}
    at = path.rtt_s if rtt is None else rtt
    exchange = {"median": at, "mean": at, "sd": 0.0, "n": 20}
    return {"rtt": exchange, "up": train | {"rate": path.rate_up_bps}, "down": train | {"rate": path.rate_down_bps}}


@pytest.fixture
def two(build):
    def two(measured):
        end, edge = build(links="end-edge=lte")[0], build("edge", "end-edge=lte")[0]
        return Links({"end": Direct(end, measured), "edge": Direct(edge, measured)})

    return two


def test_a_change_is_made_at_both_ends(two):
    links = two(good("lte"))
    answers = links.change("end-edge", {"do": "set", "profile": "3g"})
    assert [answer["rate"] for answer in answers.values()] == [0.77e6, 1.6e6]
    assert [end["tier"] for end in links.show()["end-edge"].values()] == ["end", "edge"]


def test_a_link_whose_other_end_is_elsewhere_is_changed_only_when_asked(two):
    links = Links({"end": two(good("lte"))._shapers["end"]})
    for wrong in ("end-edge", "moon-sun"):
        with pytest.raises(BadSetting, match="tiers that run here: end"):
            links.change(wrong, {"do": "cut"})
    assert list(links.change("end-edge", {"do": "cut"}, one_end=True)) == ["up"]
    with pytest.raises(BadSetting, match="running links are end-edge"):
        links.verify(["edge-end"])


def test_a_link_that_does_what_it_says_is_verified(two):
    (report,) = two(good("lte")).verify()
    assert report.ok, report.reason
    assert [check.name for check in report.checks] == [
        "settings up", "settings down", "both ends", "rtt", "rate up", "loss up", "rate down", "loss down",
    ]  # fmt: skip


def test_a_probe_that_fails_by_chance_is_made_once_more(two):
    links = two(good("lte"))
    answers = [good("lte", rtt=0.06), good("lte")]
    end = links._shapers["end"]
    shaper_ask, end.ask = end.ask, lambda request: answers.pop(0) if request["do"] == "probe" else shaper_ask(request)
    (report,) = links.verify()
    assert report.ok
    assert report.measured["first"]["rtt"]["median"] == 0.06


@pytest.mark.parametrize(
    ("change", "failed"),
    [
        ({"rtt": {"median": 0.055, "mean": 0.055, "sd": 0, "n": 20}}, "rtt"),
        ({"up": {"rate": 0.84 * 14e6, "in_time": True, "sent": 100, "received": 100}}, "rate up"),
        ({"down": {"rate": 1.02 * 35e6, "in_time": True, "sent": 100, "received": 100}}, "rate down"),
        ({"down": {"rate": 35e6, "in_time": True, "sent": 100, "received": 98}}, "loss down"),
        ({"out": True}, "outage"),
    ],
)
def test_what_does_not_hold_is_named(two, change, failed):
    (report,) = two(good("lte") | change).verify()
    assert not report.ok
    assert [check.name for check in report.checks if not check.held] == [failed]
    assert report.reason.startswith(f"{failed}: expected")


def test_ends_that_differ_are_named(two):
    links = two(good("lte"))
    links._shapers["edge"].ask({"do": "set", "link": "end-edge", "profile": "3g"})
    (report,) = links.verify()
    assert [check.name for check in report.checks if not check.held] == ["settings down", "both ends"]


def test_a_cut_holds_when_nothing_gets_through():
    assert judge_probe(LTE, "cut", {"out": True})[0].held
    assert not judge_probe(LTE, "cut", good("lte"))[0].held
    assert judge_probe(profile("offline"), "profile", {"out": True})[0].held


@pytest.mark.parametrize("name", ["nbiot", "3g", "lte-weak", "lte", "5g-sa", "5g-nsa"])
def test_a_train_fits_into_the_queue_and_fills_the_link_past_its_jitter(name):
    for direction in Direction:
        shape = shape_of(profile(name), direction)
        train = train_for(shape)
        waiting = (
            shape.rate_bps * (2 * shape.delay_s) / 8 / train.size + train.burst
        )  # if the first were held up longest
        assert train.burst < waiting
        assert waiting * max(1, train.size / 1514) < shape.limit
        counted = 8 * train.size * (train.packets - train.burst) / shape.rate_bps - train.skip
        assert counted > 0.99 or counted * shape.rate_bps / 8 / 1514 > 3900  # seconds, frames


def test_a_link_too_fast_or_unlimited_gets_no_train():
    assert train_for(shape_of(profile("metro"), Direction.UP)) is None
    assert train_for(shape_of(profile("ideal"), Direction.UP)) is None


def test_a_rate_that_the_host_cannot_send_is_said_not_judged(two):
    late = good("lte")
    late["up"] |= {"in_time": False, "rate": 1e6, "received": 500}
    (report,) = two(late).verify()
    (rate,) = [check for check in report.checks if check.name == "rate up"]
    assert report.ok
    assert "cannot send so fast" in rate.measured
