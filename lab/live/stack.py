"""The tiers of a bundle as processes of this host, without containers: start, wait until ready, stop cleanly."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import httpx
import psutil
from rich.console import Console

from shared.errors import BadSetting
from shared.links.clients import Client
from shared.links.profile import Backend, profile
from shared.model.bundle import UNCALIBRATED, Bundle, load_bundle
from shared.model.classifier import read_trained
from shared.model.weights import base_folder
from shared.web.parent import FLAG, LAST_S
from shared.web.settings import Role, unread_env_file

ROOT = Path(__file__).resolve().parents[2]
MEMORY_PER_TIER = 1.2e9  # bytes; a tier with MPNet needs about 1 GB
START_S = 120.0
_PER_TIER = {f"TIERWISE_{name}" for name in ("TIER", "BUNDLE", "PORT", "UPSTREAMS", "LINK_PROFILES", "LINKS")}
ACCESS, BACKBONE = "5g-nsa", "metro"  # where only the other one is given, or a tier has no role in services/


def service_of(tier: str) -> str:
    """The module that serves a tier: its own in `services/`, or the one for tiers of any name."""
    service = f"services.{tier}"
    known = tier.isidentifier() and find_spec(service) and find_spec(f"{service}.__main__")
    return service if known else "shared.web.service"


def role_of(tier: str, index: int = 0) -> Role:
    """What a tier is by default; `index` counts the tiers of its bundle, from 0."""
    module = service_of(tier)
    role: Role = Role(tier, 8080 + index) if module == "shared.web.service" else import_module(module).ROLE
    return role


@dataclass(frozen=True)
class Layout:
    """Tiers on this host. What is null is as the tiers' roles say (`services/`)."""

    bundle: str = "collaborative"
    port: int | None = None  # the first tier's; the others follow
    access: str | None = None  # profile of the first tier's links; its link to a deeper tier adds the backbone
    backbone: str | None = None
    threads: Mapping[str, int] = field(default_factory=dict)
    only: str | None = None  # this tier alone is started
    link_control: bool = False  # whether links may be changed while the tiers run

    def ports(self, bundle: Bundle) -> list[int]:
        """Where the tiers listen."""
        roles = [role_of(tier, index) for index, tier in enumerate(bundle.order)]
        return [role.port if self.port is None else self.port + index for index, role in enumerate(roles)]

    @property
    def command(self) -> str:
        """What keeps these tiers up, as a user types it."""
        options = {"--port": self.port, "--link": self.access, "--backbone": self.backbone}
        given = [part for name, value in options.items() if value is not None for part in (name, str(value))]
        if self.bundle != Layout.bundle:
            given += ["--bundle", self.bundle]
        return shlex.join(["tierwise", "serve", *given]) if given else "make serve"

    def environment(self, bundle: Bundle, index: int) -> dict[str, str]:
        """The settings of tier number `index` that its role does not say."""
        order, ports, tier = bundle.order, self.ports(bundle), bundle.order[index]
        usual = {
            "TIERWISE_TIER": tier,
            "TIERWISE_BUNDLE": self.bundle,
            "TIERWISE_LINKS": Backend.SIMULATED.value,
            "TIERWISE_PORT": str(ports[index]),
        }
        if tier in self.threads:
            usual["TIERWISE_THREADS"] = str(self.threads[tier])
        if self.link_control:
            usual["TIERWISE_LINK_CONTROL"] = "true"
        links = self._links(order, index)
        if role_of(tier).upstreams.keys() != links.keys() or self.port is not None:
            usual["TIERWISE_UPSTREAMS"] = ",".join(f"{t}=http://127.0.0.1:{ports[order.index(t)]}" for t in links)
        if role_of(tier).links.keys() != links.keys() or (self.access, self.backbone) != (None, None):
            usual["TIERWISE_LINK_PROFILES"] = ",".join(f"{t}={name}" for t, name in links.items())
        return usual

    def _links(self, order: Sequence[str], index: int) -> dict[str, str]:
        """The profile of the link to each tier that this one reaches: the first tier all, each other the next."""
        access, backbone = self.access or ACCESS, self.backbone or BACKBONE
        reached = range(index + 1, len(order) if index == 0 else min(index + 2, len(order)))
        return {order[to]: "+".join(access if at == 0 else backbone for at in range(index, to)) for to in reached}


@dataclass(frozen=True)
class Process:
    """One tier's process; its logs are read only to say why it stopped."""

    tier: str
    url: str
    child: subprocess.Popen[bytes]
    logs: Path

    def check(self) -> None:
        """Raises `BadSetting` with the last line it logged if it has stopped."""
        if self.child.poll() is not None:
            lines = self.logs.read_text(errors="replace").strip().splitlines()
            why = lines[-1] if lines else f"exit status {self.child.returncode}"
            raise BadSetting(f"tier {self.tier} stopped: {why.removeprefix(f'tierwise {self.tier}: ')}")


@dataclass(frozen=True)
class Stack:
    """The running tiers, first one first."""

    processes: list[Process]

    @property
    def url(self) -> str:
        """Where clients ask."""
        return self.processes[0].url

    def check(self) -> None:
        """Raises `BadSetting` if a tier has stopped."""
        for process in self.processes:
            process.check()

    def reload(self) -> None:
        """Have every tier read its policies again, the deepest first: the others ask it for what they have."""
        for process in reversed(self.processes):
            process.child.send_signal(signal.SIGHUP)


def free_ports(count: int) -> int:
    """The first of `count` consecutive free ports, for tiers that nobody has to find.

    Raises:
        BadSetting: there are none.
    """
    begin = 10 * (os.getpid() % 1000)  # others look for ports of their own at the same time
    for first in (18180 + (begin + step) % 10_000 for step in range(0, 10_000, 10)):
        with ExitStack() as open_ports:
            try:
                for at in range(count):
                    open_ports.enter_context(socket.socket()).bind(("127.0.0.1", first + at))
            except OSError:
                continue
            return first
    raise BadSetting(f"no {count} free ports in a row between 18180 and 28180")


@contextmanager
def running(layout: Layout, console: Console, *, show_logs: bool = False) -> Iterator[Stack]:
    """Start every tier, yield them once all are ready, and stop them on the way out.

    Raises:
        BadSetting: a port that is taken, too little memory, weights that cannot be had, or a tier that stopped.
    """
    bundle = load_bundle(layout.bundle)
    if decided := sorted(os.environ.keys() & _PER_TIER):
        raise BadSetting(
            f"{', '.join(decided)}: these differ by tier and this command sets them (--help); unset them, or start "
            "each tier by itself (`python -m services.end`)"
        )
    if unread := unread_env_file():
        console.print(f"note: {unread}", markup=False, highlight=False, soft_wrap=True)
    if not bundle.card.calibrated:
        console.print(f"note: bundle {bundle.name} was never calibrated: {UNCALIBRATED}", soft_wrap=True)
    with console.status("checking ports, memory and base weights (the first time they are fetched: about 500 MB)"):
        _check(layout, bundle)
    with tempfile.TemporaryDirectory(prefix="tierwise-") as scratch:
        stack, ports = Stack([]), layout.ports(bundle)
        try:
            for index, name in enumerate(bundle.order):
                if layout.only not in (None, name):
                    continue
                # other settings reach every tier, which checks them
                settings = {**os.environ, **layout.environment(bundle, index)}
                command, logs = [service_of(name), FLAG], Path(scratch) / f"{name}.log"
                url = f"http://127.0.0.1:{ports[index]}"
                stack.processes.append(started(name, url, command, settings, logs, show_logs=show_logs))
            with console.status("starting the tiers"):
                wait_ready(stack.processes)
            yield stack
        finally:
            stop(stack.processes)


def started(
    name: str, url: str, command: Sequence[str], settings: Mapping[str, str], logs: Path, *, show_logs: bool = False
) -> Process:
    """A module of ours as a process that ends with this one; modules never come from the working folder (-P)."""
    with logs.open("wb") as out:
        child = subprocess.Popen(
            [sys.executable, "-P", "-m", *command],
            env={**settings, "PYTHONPATH": _modules()},
            stdin=subprocess.PIPE,  # nothing is written: it closes with us
            stdout=out,
            stderr=None if show_logs else out,
            start_new_session=True,  # Ctrl-C reaches us alone; we stop them in order
        )
    return Process(name, url, child, logs)


@contextmanager
def reached(url: str | None, layout: Layout, console: Console) -> Iterator[str]:
    """Where tiers answer: at `url`, or without one those of `layout`, started here."""
    if url:
        yield url
    else:
        with running(layout, console) as stack:
            yield stack.url


def _modules() -> str:
    """Where the tiers find our code first: where this process found it."""
    return os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))


def _check(layout: Layout, bundle: Bundle) -> None:
    """Everything that would stop a tier, told in one line before anything starts."""
    for profile_name in filter(None, (layout.access, layout.backbone)):
        profile(profile_name)
    for name, port in zip(bundle.order, layout.ports(bundle), strict=True):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError as error:
                raise BadSetting(f"port {port} ({name}) is taken: stop what listens there, or choose --port") from error
    free, needed = psutil.virtual_memory().available, MEMORY_PER_TIER * len(bundle.order)
    if free < needed:
        raise BadSetting(f"{free / 1e9:.1f} GB of memory is free; {len(bundle.order)} tiers need {needed / 1e9:.1f} GB")
    for model in bundle.tiers.values():
        meta = bundle.folder / model.network / "network.json"
        if not meta.is_file():
            raise BadSetting(f"{meta} is missing: train the classifier first (`tierwise train --help`)")
        base_folder(read_trained(meta.parent).base)


def wait_ready(processes: Sequence[Process]) -> None:
    """Return once all answer `/readyz`.

    Raises:
        BadSetting: one stopped, or is not ready after `START_S`.
    """
    deadline = time.monotonic() + START_S
    for process in processes:
        with Client(process.url, timeout=2) as client:
            while not _ready(client):
                process.check()
                if time.monotonic() > deadline:
                    raise BadSetting(f"tier {process.tier} was not ready after {START_S:.0f} s")
                time.sleep(0.1)


def _ready(client: Client) -> bool:
    try:
        return client.get("/readyz").status_code == 200
    except httpx.HTTPError:
        return False


def stop(processes: Sequence[Process]) -> None:
    """SIGTERM lets a tier finish what it has accepted; if one does not, or at a second Ctrl-C, all are killed."""
    for process in processes:
        process.child.send_signal(signal.SIGTERM)
    try:
        for process in processes:
            process.child.wait(timeout=LAST_S)
    except (subprocess.TimeoutExpired, KeyboardInterrupt) as error:
        for process in processes:
            process.child.kill()
            process.child.wait()
        if isinstance(error, KeyboardInterrupt):
            raise
    finally:
        for process in processes:
            if process.child.stdin:
                process.child.stdin.close()
