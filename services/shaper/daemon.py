"""The shaper's process: finds each link's interface, keeps it shaped, answers commands, writes `links.json`.

Every link has one task that looks for its peer, applies the shape that its state asks for, and looks once a second
whether the kernel still has it. Everything runs on one event loop; probes and name lookups block, so they run in
threads, which never touch the kernel's settings.
"""

from __future__ import annotations

import asyncio
import json
import math
import socket
import threading
import time
from collections.abc import Callable, Collection
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import structlog
from prometheus_client import start_http_server

from services.shaper.config import Config
from services.shaper.metrics import Metrics
from services.shaper.probe import Peer, Responder, measure
from services.shaper.shape import Direction, Reading, Shape, shape_of
from services.shaper.state import Link, Mode, link_between
from shared.errors import BadSetting, TierwiseError
from shared.links.profile import SHAPER_SOCKET
from shared.links.trace import parse, unpack

log = structlog.get_logger()
TICK_S = 0.05  # how often a trace is followed
LOOK_S = 1.0  # how often the kernel is asked
EXCHANGE_S = 5.0  # between exchanges that measure the RTT
STALE_S = 0.5  # packets that would wait longer by an old shape are dropped with it
OF_TIERS = {"set", "cut", "heal"}  # what the tier may ask for; a trace would name files, a probe takes seconds


class Shaping(Protocol):
    """What the daemon needs of the kernel."""

    def route(self, address: str) -> int: ...
    def prepare(self, interface: int) -> list[str]: ...
    def apply(self, interface: int, shape: Shape, *, flush: bool = False) -> None: ...
    def read(self, interface: int) -> Reading | None: ...


class Shaper:
    """All links of one tier."""

    def __init__(self, config: Config, kernel: Shaping, clock: Callable[[], float] = time.time) -> None:
        self.config, self.kernel = config, kernel
        self.links = {name: link_between(name, config.tier, path, clock) for name, path in config.links.items()}
        self.metrics = Metrics(self.links.values())
        self._published = False
        self._ready = config.state_dir / "ready"  # exists while every link is shaped: the container's health

    async def run(self) -> None:
        """Serve until cancelled."""
        start_http_server(self.config.metrics_port, registry=self.metrics.registry)
        responder = Responder(self.config.probe_port)
        threading.Thread(target=responder.serve_forever, daemon=True).start()
        self.publish()
        if not self._published:
            raise BadSetting(f"TIERWISE_LINK_STATE_DIR={self.config.state_dir}: cannot write to it")
        server = await self._listen(self.config.control)
        await self.listen_to_tier()  # the loop keeps the server
        async with server, asyncio.TaskGroup() as tasks:
            for link in self.links.values():
                tasks.create_task(self._keep(link))
                if link.direction is Direction.UP:
                    tasks.create_task(self._exchange(link))
            await server.serve_forever()

    # -- keeping the links shaped

    async def _keep(self, link: Link) -> None:
        loop, looked = asyncio.get_running_loop(), 0.0
        while True:
            if link.interface is None:
                with suppress(OSError):  # no such host yet, or no route: stay `waiting`
                    self.attach(link, await self._address(link))
            elif loop.time() - looked >= LOOK_S:
                looked = loop.time()
                self.look(link)
            if link.trace and link.interface is not None:
                self.apply(link)
            await asyncio.sleep(TICK_S if link.trace else 2 * TICK_S)

    async def _address(self, link: Link) -> str:
        host = self.config.peers.get(link.peer, link.peer)
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, None, family=socket.AF_INET, type=socket.SOCK_DGRAM)
        return str(found[0][4][0])

    def attach(self, link: Link, address: str) -> None:
        """Shape the interface over which the peer is reached.

        Raises:
            BadSetting: another link has that interface; one of the two would not be shaped as it says.
            OSError: no route, or the interface is gone.
        """
        interface = self.kernel.route(address)
        for other in self.links.values():
            if other is not link and other.interface == interface:
                raise BadSetting(f"links {other.name} and {link.name} share an interface: give each its own network")
        if refused := self.kernel.prepare(interface):
            log.info(f"link {link.name}: offloads that cannot be turned off: {', '.join(refused)}")
        link.interface = interface
        self.apply(link)
        if link.applied:
            log.info(f"link {link.name}: {link.profile.name} towards {address}")

    def apply(self, link: Link, *, command: bool = False) -> None:
        """Give the kernel the link's shape unless it has it; look again for an interface that is lost."""
        shape = link.shape()
        if link.interface is None or shape == link.applied:
            return
        flush = command and self._stale(link)
        try:
            self.kernel.apply(link.interface, shape, flush=flush)
        except OSError as error:
            log.info(f"link {link.name}: cannot be shaped ({error}); looking for it again")
            link.interface = link.applied = None
        else:
            link.applied = shape
            if flush:
                log.info(f"link {link.name}: dropped the packets that waited by its old shape")
        self.metrics.settings(link)
        self.publish()

    def _stale(self, link: Link) -> bool:
        reading = self.kernel.read(link.interface) if link.interface is not None else None
        if not reading or not reading.backlog:
            return False
        queued_s = reading.backlog / reading.bytes_per_s if reading.bytes_per_s else 0.0
        return queued_s + reading.delay_s + reading.jitter_s > STALE_S

    def look(self, link: Link) -> Reading | None:
        """Read the kernel's settings and counters; apply the shape again if somebody changed it."""
        reading = self.kernel.read(link.interface) if link.interface is not None else None
        if link.applied and (reading is None or not reading.holds(link.applied)):
            log.info(f"link {link.name}: the kernel's settings were changed; applying them again")
            link.applied = None
            self.apply(link)
        if not self._published:
            self.publish()
        if reading:
            self.metrics.counted(link, reading)
        return reading

    def publish(self) -> None:
        """Write `links.json`, which tells the tier what is in force.

        After a failed write there is no file, since an old one may be wrong; the next look tries again.
        """
        state = json.dumps({"links": {name: link.status() for name, link in self.links.items()}})
        draft, file = self.config.state_dir / ".links.json", self.config.state_dir / "links.json"
        try:
            draft.write_text(state)
            draft.replace(file)
            waiting = any(link.mode is Mode.WAITING for link in self.links.values())
            self._ready.unlink(missing_ok=True) if waiting else self._ready.touch()
            self._published = True
        except OSError as error:
            self._published = False
            log.error("links.json cannot be written", detail=str(error))
            for old in (file, self._ready):
                with suppress(OSError):
                    old.unlink()

    async def _exchange(self, link: Link) -> None:
        peer: Peer | None = None
        while True:
            await asyncio.sleep(EXCHANGE_S)
            rtt = math.nan
            if link.interface is not None:
                try:
                    if peer is None:
                        address = await self._address(link)  # a peer that started again may have another
                        peer = await asyncio.to_thread(Peer, (address, self.config.probe_port), EXCHANGE_S)
                    rtt = await asyncio.to_thread(peer.rtt)
                except OSError:
                    if peer:
                        peer.close()
                    peer = None
            self.metrics.rtt.labels(link.name).set(rtt)

    # -- commands

    async def listen_to_tier(self) -> asyncio.Server | None:
        """Where the tier may change links, offer it a socket beside `links.json`; else null."""
        path = self.config.state_dir / SHAPER_SOCKET
        path.unlink(missing_ok=True)  # of a shaper that let it
        if not self.config.tier_may_change:
            return None
        server = await self._listen(path, OF_TIERS)
        path.chmod(0o666)  # the tier is another user; nobody else has this folder
        return server

    async def _listen(self, path: Path, allowed: Collection[str] | None = None) -> asyncio.Server:
        """Answer commands on a socket at `path`: all of them, or those allowed."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        return await asyncio.start_unix_server(partial(self._converse, allowed=allowed), path, limit=1 << 24)

    async def _converse(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, allowed: Collection[str] | None = None
    ) -> None:
        with closing(writer), suppress(OSError):  # the caller may leave before its answer
            async for line in reader:
                try:
                    request = json.loads(line)
                    request = request if isinstance(request, dict) else {}
                    if allowed is not None and request.get("do") not in allowed:
                        raise BadSetting(f"command {request.get('do')!r}: a tier may {', '.join(sorted(allowed))}")
                    answer = await self.answer(request)
                except (TierwiseError, ValueError, OSError) as error:
                    answer = {"error": str(error)}
                writer.write(json.dumps(answer).encode() + b"\n")
                await writer.drain()

    async def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Carry one command out. Raises BadSetting where it makes no sense."""
        command = request.get("do")
        if command == "show":
            return {"tier": self.config.tier, "links": {link.name: self._show(link) for link in self.links.values()}}
        link = self.links.get(str(request.get("link")))
        if link is None:
            raise BadSetting(f"link {request.get('link')!r}: this end shapes {', '.join(self.links) or 'none'}")
        if command == "probe":
            return await self._probe(link)
        if command == "counters":
            return self._show(link)["counters"] or {}
        kind, changed = self._change(link, str(command), request)
        self.apply(link, command=True)
        if changed:
            self.metrics.changes.labels(link.name, kind).inc()
            self.publish()
        return link.status()

    def _change(self, link: Link, command: str, request: dict[str, Any]) -> tuple[str, bool]:
        if command == "set":
            return "profile", link.set(str(request.get("profile")))
        if command == "trace":
            name = str(request.get("name") or request.get("path"))
            if "packed" in request:
                return "trace", link.play(unpack(name, str(request["packed"])))
            text = request["text"] if "text" in request else Path(str(request.get("path"))).read_text()
            return "trace", link.play(parse(name, str(text)))
        if command == "cut":
            return "cut", link.cut()
        if command == "heal":
            return "heal", link.heal()
        raise BadSetting(f"unknown command {command!r}: show, set, trace, cut, heal, counters, probe")

    def _show(self, link: Link) -> dict[str, Any]:
        reading = self.look(link)
        held = bool(reading and link.applied and reading.holds(link.applied))
        state = link.status() | {"peer": link.peer, "direction": link.direction.value, "held": held}
        if reading is None:
            return state | {"kernel": None, "counters": None}
        counters = {key: getattr(reading, key) for key in ("sent_bytes", "sent_packets", "drops", "backlog")}
        return state | {"kernel": reading.settings(), "counters": counters}

    async def _probe(self, link: Link) -> dict[str, Any]:
        if link.interface is None:
            raise BadSetting(f"link {link.name} waits for {link.peer}")
        if link.direction is Direction.DOWN:
            raise BadSetting(f"probe {link.name} from its source, {link.peer}")
        up, down = (shape_of(link.profile, direction) for direction in Direction)
        return await asyncio.to_thread(measure, (await self._address(link), self.config.probe_port), up, down)
