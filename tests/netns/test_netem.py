"""Two shapers in two network namespaces, on a real netem. Needs root and `sch_netem`; takes about three minutes."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from statistics import median

import pytest
import yaml

from lab.live.links import Links
from shared.links.profile import PROFILES, profile

ROOT = Path(__file__).resolve().parents[2]
SIDES = {"end": ("tw-end", "10.91.0.1"), "edge": ("tw-edge", "10.91.0.2")}
CHECK = subprocess.run([sys.executable, "-m", "services.shaper", "--check"], cwd=ROOT, capture_output=True, text=True)
pytestmark = [
    pytest.mark.skipif(CHECK.returncode != 0, reason=CHECK.stderr.strip()),
    pytest.mark.skipif(shutil.which("ip") is None, reason="needs iproute2 to make namespaces"),
]


def sh(*words):
    return subprocess.run(words, check=True, capture_output=True, text=True, cwd=ROOT).stdout


def within(namespace, *words, **options):
    return subprocess.Popen(["ip", "netns", "exec", namespace, *words], cwd=ROOT, **options)


class Local:
    """A shaper behind its control socket."""

    def __init__(self, path):
        self.path = path

    def ask(self, request):
        with socket.socket(socket.AF_UNIX) as control:
            control.connect(str(self.path))
            control.sendall(json.dumps(request).encode() + b"\n")
            with control.makefile() as lines:
                answer = json.loads(lines.readline())
        assert "error" not in answer, answer
        return answer


@pytest.fixture(scope="module")
def stack():
    """Both shapers on end-edge=5g-nsa; the edge's starts a second late, as containers do."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        for namespace, _ in SIDES.values():
            subprocess.run(["ip", "netns", "del", namespace], capture_output=True, check=False)
            sh("ip", "netns", "add", namespace)
        sh("ip", "link", "add", "to-edge", "netns", "tw-end", "type", "veth", "peer", "to-end", "netns", "tw-edge")
        daemons, shapers = {}, {}
        for tier, (namespace, address) in SIDES.items():
            other = next(name for name in SIDES if name != tier)
            device = f"to-{other}"
            sh("ip", "-n", namespace, "addr", "add", f"{address}/24", "dev", device)
            sh("ip", "-n", namespace, "link", "set", device, "up")
            sh("ip", "-n", namespace, "link", "set", "lo", "up")
            state = Path(folder) / tier
            state.mkdir()
            settings = {
                "TIERWISE_TIER": tier,
                "TIERWISE_SHAPED_LINKS": "end-edge=5g-nsa",
                "TIERWISE_PEERS": f"{other}={SIDES[other][1]}",
                "TIERWISE_LINK_STATE_DIR": str(state),
                "TIERWISE_SHAPER_CONTROL": str(state / "control.sock"),
            }
            daemons[tier] = within(namespace, sys.executable, "-m", "services.shaper", env=os.environ | settings)
            shapers[tier] = Local(state / "control.sock")
        for shaper in shapers.values():
            until = time.monotonic() + 30
            while not shaper.path.exists():
                assert time.monotonic() < until, "the shaper did not start"
                time.sleep(0.1)
            while any(link["mode"] == "waiting" for link in shaper.ask({"do": "show"})["links"].values()):
                time.sleep(0.1)
        yield Links(shapers), Path(folder)
        for daemon in daemons.values():
            daemon.terminate()
        assert [daemon.wait(5) for daemon in daemons.values()] == [0, 0]
        for namespace, _ in SIDES.values():
            sh("ip", "netns", "del", namespace)


@pytest.fixture
def links(stack):
    """Unshaped, whatever the test before left."""
    change(stack[0], "set", profile="ideal")
    return stack[0]


def change(links, do, **more):
    return links.change("end-edge", {"do": do, **more})


class Pings:
    """Round trips from the end to the edge, one every 20 ms."""

    def __enter__(self):
        command = [sys.executable, "-u", "-m", "tests.netns.udp"]
        self._echo = within("tw-edge", *command, "echo", "7000")
        self._ping = within("tw-end", *command, "ping", SIDES["edge"][1], "7000", stdout=subprocess.PIPE, text=True)
        self._seen = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        until = time.monotonic() + 20
        while not self._seen:
            assert time.monotonic() < until, "no ping came back"
            time.sleep(0.05)
        return self

    def _read(self):
        for line in self._ping.stdout:
            self._seen.append(tuple(map(float, line.split())))

    def between(self, start, end):
        """RTTs of datagrams sent in an interval of the monotonic clock."""
        return [rtt for sent, rtt in self._seen if start <= sent < end]

    def __exit__(self, *_):
        for process in (self._ping, self._echo):
            process.kill()
            process.wait()
        self._reader.join()
        self._ping.stdout.close()


@pytest.mark.parametrize("name", [*yaml.safe_load(PROFILES.read_text()), "5g-nsa+metro"])
def test_every_profile_is_what_it_claims(links, name):
    change(links, "set", profile=name)
    (report,) = links.verify(["end-edge"])
    print(json.dumps(report.as_dict()))
    assert report.ok, report.reason


def test_a_link_that_does_not_hold_is_named(links):
    change(links, "set", profile="5g-nsa")
    sides = {tier: shaper for tier, shaper in links._shapers.items()}
    sides["edge"].ask({"do": "set", "link": "end-edge", "profile": "3g"})
    (report,) = links.verify()
    assert not report.ok
    assert all(check in report.reason for check in ("settings down", "both ends", "rtt", "rate down"))


def test_a_change_a_cut_and_a_heal_take_effect_within_a_second(links):
    with Pings() as pings:
        for do, more, low, high in (
            ("set", {"profile": "regional"}, 0.028, 0.036),
            ("set", {"profile": "3g"}, 0.25, 0.4),
            ("cut", {}, None, None),
            ("heal", {}, 0.25, 0.4),
            ("set", {"profile": "ideal"}, 0, 0.01),
        ):
            change(links, do, **more)
            changed = time.monotonic()
            time.sleep(2.6)
            rtts = pings.between(changed + 1, changed + 2)
            if low is None:
                assert rtts == []
            else:
                assert len(rtts) > 20, (do, more, len(rtts))
                assert low <= median(rtts) <= high, (do, more, rtts)


def test_a_slow_links_queue_does_not_hold_up_the_next_profile(links):
    change(links, "set", profile="nbiot")
    with Pings() as pings:  # 50 datagrams of 55 bytes a second nearly fill it: seconds of them wait
        time.sleep(2)
        change(links, "set", profile="metro")
        changed = time.monotonic()
        time.sleep(2.2)
        rtts = pings.between(changed + 1, changed + 2)
        assert len(rtts) > 20
        assert median(rtts) < 0.01, rtts


def test_a_trace_is_followed_and_wraps_around(links):
    text = "0,50000000,20,0\n1,50000000,120,0\n2,0,20,0\n3,50000000,60,0\n"  # the third second is an outage
    with Pings() as pings:
        change(links, "trace", text=text, name="levels.csv")
        started = time.monotonic()
        time.sleep(8.5)
        for lap in (0, 4):
            for second, low, high in ((0, 0.02, 0.035), (1, 0.12, 0.135), (3, 0.06, 0.075)):
                rtts = pings.between(started + lap + second + 0.2, started + lap + second + 0.8)
                assert len(rtts) > 20
                assert low <= median(rtts) <= high, (lap, second, rtts)
            assert pings.between(started + lap + 2.2, started + lap + 2.8) == []
    assert {end["mode"] for end in links.show()["end-edge"].values()} == {"trace"}


def test_what_somebody_takes_away_is_put_back(links):
    change(links, "set", profile="lte")
    sh("ip", "netns", "exec", "tw-end", "tc", "qdisc", "del", "dev", "to-edge", "root")
    time.sleep(1.5)
    shown = sh("ip", "netns", "exec", "tw-end", "tc", "qdisc", "show", "dev", "to-edge")
    assert "netem" in shown
    assert "rate 14Mbit" in shown


def test_the_state_file_says_what_is_in_force(stack, links):
    change(links, "set", profile="lte")
    for tier, rate in (("end", profile("lte").rate_up_bps), ("edge", profile("lte").rate_down_bps)):
        state = json.loads((stack[1] / tier / "links.json").read_text())["links"]["end-edge"]
        assert (state["profile"], state["mode"], state["rate"]) == ("lte", "profile", rate)
        assert (state["rtt"], state["jitter"], state["loss"]) == (0.037, 0.015, 0)
