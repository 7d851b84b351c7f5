"""The nodes of a live run as containers: the Compose file of their topology, whose shapers shape each link.

    file        deploy/mesh/TOPOLOGY.yml, as a stack of its own; started for each run, removed after it
    override    what a run needs besides, written for it: the cell's settings, the recording, and each node published on
                a network of its own (else only the source is), so that its queues are read past the shaped links
    before      the round trip of the first link is measured, and must be its profile's

It needs Docker, its Compose, and a kernel with netem (TIERWISE_LINKS=simulated does without). TIERWISE_BUILD=0 takes
the images as they are.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import httpx

from lab.live.links import running_links
from lab.live.stack import ROOT, free_ports
from lab.mesh.nodes import Mesh, settings_of
from lab.mesh.outcome import Cell
from shared.errors import BadSetting
from shared.links.clients import Client
from shared.links.profile import Backend

START_S = 600  # seconds: a slow kernel takes a minute for a node
TRIES = 3  # measurements of a link
LOOK = 10  # tries after which a node that does not answer is looked at: that costs a slow kernel more than a try
SHAPED = "until test -e /run/tierwise/ready; do sleep 1; done"
RECORDING = "/recorded.safetensors"


def backend() -> Backend:
    """What the links of these containers are."""
    return Backend(os.environ.get("TIERWISE_LINKS") or Backend.NETEM)


@dataclass
class Containers:
    """A running Compose stack of nodes. `command` begins every command to it."""

    command: list[str]
    project: str
    urls: Mapping[str, str]
    environment: Mapping[str, str]
    verified: dict[str, Any] = field(default_factory=dict)  # what was measured of the first link

    def compose(self, *words: str) -> str:
        """Raises BadSetting with Compose's last lines."""
        try:
            done = subprocess.run(
                [*self.command, *words], cwd=ROOT, env=dict(self.environment), capture_output=True, text=True
            )
        except OSError as error:
            raise BadSetting(f"--compose needs Docker and its Compose: {error}") from error
        if done.returncode:
            last = "\n".join(done.stderr.strip().splitlines()[-3:])
            raise BadSetting(f"docker compose {words[0]}: {last or f'exit status {done.returncode}'}")
        return done.stdout

    def kill(self, name: str) -> None:
        self.compose("kill", name)

    def cut(self, link: str, *, cut: bool) -> None:
        links = running_links(self.project)
        (links.cut if cut else links.heal)(link)

    def check(self, name: str) -> None:
        if name not in self.compose("ps", "--services", "--status", "running").split():
            raise BadSetting(f"node {name} stopped: {self.compose('logs', '--tail', '1', name).strip()}")

    def start(self, nodes: Sequence[str]) -> None:
        """Start shapers, then nodes, without health checks; return once all are ready. Raises BadSetting."""
        build = "--no-build" if os.environ.get("TIERWISE_BUILD") == "0" else "--build"
        shapers = [f"{node}-shaper" for node in nodes]
        self.compose("up", "-d", build, *shapers)
        for shaper in shapers:
            self.compose("exec", "-T", shaper, "timeout", str(START_S), "sh", "-c", SHAPED)
        self.compose("up", "-d", build, "--no-deps", *nodes)
        self._wait_ready()

    def _wait_ready(self) -> None:
        """Return once all answer `/readyz`; raises BadSetting after `START_S`."""
        until = time.monotonic() + START_S
        for name, url in self.urls.items():
            with Client(url, timeout=10) as client:
                for tries in count(1):
                    with suppress(httpx.HTTPError):
                        if client.get("/readyz").status_code == 200:
                            break
                    if tries % LOOK == 0:
                        self.check(name)
                    if time.monotonic() > until:
                        raise BadSetting(f"node {name} is not ready: {self.compose('logs', '--tail', '3', name)}")
                    time.sleep(1)

    def verify(self, cell: Cell) -> None:
        """Measure the first link between two nodes; raises BadSetting where it is not what its profile says."""
        link = next((f"{a}-{b}" for a, others in cell.topology.edges.items() for b in others), None)
        if link is None or backend() is not Backend.NETEM:
            return
        for _ in range(TRIES):  # what a busy host delays fails one try, a wrong shape all
            report = running_links(self.project).verify([link])[0]
            if report.ok:
                break
        else:
            raise BadSetting(f"link {link} is not {report.profile}: {report.reason}")
        self.verified = {"link": link, **{check.name: check.measured for check in report.checks}}


@contextmanager
def running(cell: Cell, mesh: Mesh) -> Iterator[Containers]:
    """The nodes of a cell, ready; removed on the way out.

    Raises:
        BadSetting: no Docker, a node that does not get ready, or a link that is not what its profile says.
    """
    topology = cell.topology
    first = free_ports(len(topology.nodes))
    ports = {name: first + at for at, name in enumerate(topology.nodes)}
    with tempfile.TemporaryDirectory(prefix="tierwise-mesh-") as scratch:
        if mesh.recorded:
            mesh.recorded.chmod(0o644)  # a node's user is not ours
        override = Path(scratch) / "override.json"
        override.write_text(json.dumps(overridden(cell, mesh, ports)))
        project = f"tierwise-measured-{topology.name}"
        files = ["-f", f"deploy/mesh/{topology.name}.yml", "-f", str(override)]
        stack = Containers(
            ["docker", "compose", "--project-name", project, "--project-directory", str(ROOT), *files],
            project,
            {name: f"http://127.0.0.1:{port}" for name, port in ports.items()},
            {
                **os.environ,
                "TIERWISE_BUNDLE": mesh.bundle.folder.name,
                "TIERWISE_MESH_TIER": mesh.bundle.order[-1],
                "TIERWISE_MESH_LINK": cell.link,
                "TIERWISE_BIND": f"127.0.0.1:{ports[topology.nodes[0]]}",
            },
        )
        try:
            stack.start(list(ports))
            stack.verify(cell)
            yield stack
        finally:
            stack.compose("down", "--volumes", "--timeout", "2")


def overridden(cell: Cell, mesh: Mesh, ports: Mapping[str, int]) -> dict[str, Any]:
    """What a run needs besides its topology's file, as a Compose file."""
    services: dict[str, Any] = {}
    recording = [f"{mesh.recorded.absolute()}:{RECORDING}:ro"] if mesh.recorded else []
    for at, (name, port) in enumerate(ports.items()):
        services[name] = {
            "environment": settings_of(cell, mesh, name) | {"TIERWISE_RECORDED": RECORDING if recording else ""},
            "volumes": recording,
            "healthcheck": {"disable": True},  # each check is a process beside the nodes
            "restart": "no",
        }
        services[f"{name}-shaper"] = {"healthcheck": {"disable": True}}
        if at:  # the source's file publishes it already
            services[f"{name}-shaper"] |= {"ports": [f"127.0.0.1:{port}:8080"], "networks": {f"{name}-client": {}}}
    networks: dict[str, Any] = {f"{name}-client": {} for name in list(ports)[1:]}
    return {"services": services, "networks": networks}
