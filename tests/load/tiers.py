"""End, edge and cloud on real sockets of this process; their links may pass through proxies that break on command."""

import sys
import threading
import time

import structlog

from lab.live.stack import free_ports
from shared.logs import configure_logs
from shared.web.app import create_app
from shared.web.server import Server
from shared.web.settings import Settings
from tests.faults.faulty import Faulty


class Tiers:
    """The chain end > edge > cloud. `classifiers` replaces models by tier; `end` are settings of the end alone.

    `faulty`: each link has a proxy, in `links`. Logs below `critical` are off: they would fill the test's memory.
    """

    def __init__(self, bundle, *, faulty=False, classifiers=None, end=None, **settings):
        configure_logs("critical", sys.stderr)
        self.links, self.running, self.apps = {}, [], {}
        ports = dict(zip(("end", "edge", "cloud"), range(free_ports(5), 2**16), strict=False))
        self.url = f"http://127.0.0.1:{ports['end']}"
        for tier, to in (("cloud", None), ("edge", "cloud"), ("end", "edge")):
            upstreams = {to: self._way(ports, to, faulty)} if to else {}
            own = {**settings, **((end or {}) if tier == "end" else {})}
            chosen = Settings(
                tier=tier,
                bundle=str(bundle),
                links="none",
                upstreams=upstreams,
                link_profiles=dict.fromkeys(upstreams, "ideal"),
                **own,
            )
            self.apps[tier] = create_app(chosen, classifier=(classifiers or {}).get(tier))
            self._serve(self.apps[tier], ports[tier])

    def _way(self, ports, to, faulty):
        port = ports[to]
        if faulty:
            port = ports["cloud"] + 1 + len(self.links)
            self.links[to] = Faulty(port, ports[to])
        return f"http://127.0.0.1:{port}"

    def _serve(self, app, port):
        server = Server(app, host="127.0.0.1", port=port, drain_s=10)
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        self.running.insert(0, (server, thread))
        while not server.started:
            assert thread.is_alive(), "it did not start"
            time.sleep(0.01)

    def close(self):
        """Drain, the end first; whatever its ledger holds is on disk afterwards."""
        for link in self.links.values():
            link.set("well")
        for server, thread in self.running:
            server.drain()
            thread.join(30)
            assert not thread.is_alive()
        for link in self.links.values():
            link.close()
        structlog.reset_defaults()
