"""Every fault on the edge link and on the cloud link of three tiers in one process: real sockets, tiny random models.

`ledger.py` says what must hold. `make faults` runs all of them with the real pauses between probes, `pytest
tests/faults` a few with short ones; `e2e/test_faults.py` is the half that needs a kernel and containers.
"""

import asyncio
import os
import threading
import time

import pytest

from services.lab.stack import free_ports
from shared.server import Server
from shared.settings import Settings
from shared.web import create_app
from tests.faults.faulty import FAULTS, Faulty
from tests.faults.ledger import Late, story

ALL = os.environ.get("TIERWISE_TEST_FAULTS") == "all"
FEW = ["killed", "black hole", "burst of 500s", "garbage JSON", "truncated body", "warm connections die unannounced"]
PROBE_MS = 2000 if ALL else 100
LINKS = {"edge": ["edge"], "cloud": ["cloud"], "both": ["edge", "cloud"]}
CASES = [(name, link) for name in (FAULTS if ALL else FEW) for link in ("edge", "cloud")]
CASES += [("killed", "both"), ("black hole", "both")] if ALL else [("killed", "both")]


class Stack:
    """End, edge and cloud on real sockets, each link through a proxy: end > edge > cloud."""

    def __init__(self, bundle):
        first = free_ports(5)
        end, edge, cloud, to_edge, to_cloud = range(first, first + 5)
        self.url = f"http://127.0.0.1:{end}"
        self.links = {"edge": Faulty(to_edge, edge), "cloud": Faulty(to_cloud, cloud)}
        chain = {"end": (end, {"edge": to_edge}), "edge": (edge, {"cloud": to_cloud}), "cloud": (cloud, {})}
        self.running = [self._serve(bundle, tier, *place) for tier, place in chain.items()]

    def _serve(self, bundle, tier, port, upstreams):
        settings = Settings(
            tier=tier,
            bundle=str(bundle),
            links="none",
            upstreams={to: f"http://127.0.0.1:{at}" for to, at in upstreams.items()},
            link_profiles=dict.fromkeys(upstreams, "ideal"),
            probe_ms=PROBE_MS,
        )
        server = Server(create_app(settings), host="127.0.0.1", port=port, drain_s=5)
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive(), "it did not start"
            time.sleep(0.01)
        return server, thread

    def set(self, mode, link):
        for name in LINKS[link]:
            self.links[name].set(mode)

    def close(self):
        for server, _ in self.running:
            server.drain()
        for _, thread in self.running:
            thread.join(20)
        for link in self.links.values():
            link.close()


@pytest.fixture(scope="module")
def stack(tiny_bundle):
    out = Stack(tiny_bundle)
    yield out
    out.close()


@pytest.mark.timing(raises=Late)
@pytest.mark.parametrize(("name", "link"), CASES)
def test_every_request_is_answered_once_in_time_and_flagged(stack, name, link):
    def mode(fault):
        return lambda: stack.set(fault, link)

    load = {"deadline_ms": 1000, "users": 4, "each": 6 if ALL else 3}
    case = asyncio.run(story(stack.url, mode(name), mode("well"), **load))
    reasons = FAULTS[name][1]
    case.check(name, link, reasons, must=None if name in ("10 kbit/s", "30 % of calls lost") else bool(reasons))
