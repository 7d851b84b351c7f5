"""Every fault that needs a kernel or real processes, on the edge's and on the cloud's link: containers.

`faults/stream.py` says what must hold. `make faults` runs all of them, `make e2e` a few. Two links lead to the cloud:
the end's own and the edge's. A tier that died imports torch again: it counts as repaired once it is ready.
"""

import asyncio
import os
import time
from threading import Thread

import docker
import pytest

from lab.live.links import running_links
from tests.e2e.conftest import API, PROJECT, ROOT, container, wait_until_ready
from tests.faults.stream import story

ALL = os.environ.get("TEST_FAULTS") == "all"
ON = {"edge": ["edge"], "cloud": ["cloud"], "both": ["edge", "cloud"]}
LINKS = {"edge": ["end-edge"], "cloud": ["edge-cloud", "end-cloud"], "both": ["end-edge", "edge-cloud", "end-cloud"]}
WELL = {"end-edge": "5g-nsa", "edge-cloud": "metro", "end-cloud": "5g-nsa+metro"}
DRIVING = ROOT / "deploy/netem/traces/driving.csv"
OUTAGE = 80  # second of that trace; it lasts 20 s
RESTARTS = []
LOST = ["upstream_timeout", "upstream_unavailable"]


def each(do, *options):
    def change(where):
        for tier in ON[where]:
            getattr(container(tier), do)(*options)

    return change


def ask_shapers(up, down=None):
    def change(where):
        for link in LINKS[where]:
            running_links().change(link, up, down)

    return change


def impaired(bits_per_second, rtt_ms, loss):
    """A trace of one row, which holds for ever."""
    return ask_shapers({"do": "trace", "name": "fault", "text": f"0,{bits_per_second:.0f},{rtt_ms},{loss}"})


def drive(where):
    """The driving trace from 5 s before its outage."""
    rows = [row.split(",") for row in DRIVING.read_text().splitlines()[2:]]
    later = [[f"{float(at) - OUTAGE + 5:.1f}", *rest] for at, *rest in rows if float(at) >= OUTAGE - 5]
    ask_shapers({"do": "trace", "name": "driving", "text": "\n".join(map(",".join, later))})(where)


def restart(where):
    """Does not wait: the stream goes on meanwhile."""
    RESTARTS.append((Thread(target=each("restart"), args=[where]), time.time()))
    RESTARTS[-1][0].start()


def restarted(where):
    thread, began = RESTARTS.pop()
    thread.join(180)
    wait_until_ready(ON[where], began)


def unplug(where):
    """Takes the tier off its networks, and so its name away."""
    for link in LINKS[where]:
        network(link).disconnect(container(f"{where}-shaper"))


def plug_in(where):
    for link in LINKS[where]:
        network(link).connect(container(f"{where}-shaper"), aliases=[where])


def network(link):
    return docker.from_env().networks.get(f"{PROJECT}_{link}")


def revive(where):
    began = time.time()
    each("start")(where)
    wait_until_ready(ON[where], began)


def well(where):
    for link in LINKS[where]:
        running_links().set_profile(link, WELL[link])


FAULTS = {  # name -> cause, repair, the reasons that may be given, whether something must be degraded
    "killed": (each("kill"), revive, LOST, True),
    "stopped": (each("pause"), each("unpause"), LOST, True),
    "restarting": (restart, restarted, [*LOST, "upstream_refused"], True),
    "partition": (ask_shapers({"do": "cut"}), ask_shapers({"do": "heal"}), LOST, True),
    "black hole": (ask_shapers({"do": "heal"}, {"do": "cut"}), ask_shapers({"do": "heal"}), LOST, True),
    "name failure": (unplug, plug_in, LOST, True),
    "30 % loss": (impaired(67e6, 16, 30), well, LOST, None),
    "+5 s delay": (impaired(67e6, 5016, 0), well, LOST, True),
    "10 kbit/s": (impaired(1e4, 16, 0), well, LOST, None),
    "driving trace": (drive, lambda where: None, LOST, True),  # its outage ends by itself
}
CASES = [(name, where) for name in FAULTS if name != "driving trace" for where in ("edge", "cloud")]
CASES += [("killed", "both"), ("partition", "both"), ("driving trace", "edge")]
FEW = [("stopped", "edge"), ("killed", "cloud"), ("partition", "cloud"), ("name failure", "edge")]
PROCESSES = {"killed", "stopped", "restarting", "name failure"}  # the others are the kernel's doing


@pytest.mark.usefixtures("stack")
@pytest.mark.parametrize(
    ("name", "where"),
    [pytest.param(*case, marks=[] if case[0] in PROCESSES else pytest.mark.netem) for case in (CASES if ALL else FEW)],
)
def test_every_request_is_answered_once_in_time_and_flagged(name, where):
    cause, repair, reasons, must = FAULTS[name]
    load = {"deadline_ms": 2000, "users": 2, "each": 12, "pace_s": 0.5}
    if name == "driving trace":
        load |= {"each": 60, "lasts_s": 27}  # to the end of the outage, which began 5 s after the trace did
    case = asyncio.run(story(f"http://127.0.0.1:{API}", lambda: cause(where), lambda: repair(where), **load))
    case.check(f"{name} (containers)", where, reasons, must=must)
