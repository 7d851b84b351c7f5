"""Measuring a link between two shapers: exchanges over a warm TCP connection, and trains of UDP packets.

Every shaper answers on one TCP port, a JSON object a line: `echo`, `receive` (count what arrives on a fresh UDP port,
by the kernel's time of arrival), `send` (a train to the caller). Bytes are those of whole Ethernet frames, as netem's
rate counts them.

A train starts with a burst, so that packets queue before the link for longer than jitter can delay one of them, and
goes on at the link's rate: the link is busy all the time, and nothing is dropped for want of room. What arrives in the
first moments, while the queue builds up, is not counted for the rate.
"""

from __future__ import annotations

import json
import socket
import socketserver
import struct
import time
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from services.shaper.shape import Shape

HEADERS = 14 + 20 + 8  # Ethernet, IP, UDP
FULL = 1514  # bytes of a full frame
ECHO_FRAME = 14 + 20 + 32 + 15  # Ethernet, IP, TCP with timestamps, and the line
FASTEST = 200e6  # bits/s that the test offers at most; above, the settings are read back
LONGEST = 64_000_000  # bytes of a train
_TIMESTAMP, _RCVBUFFORCE = 35, 33  # SO_TIMESTAMPNS and SO_RCVBUFFORCE, asm-generic/socket.h


@dataclass(frozen=True)
class Train:
    """Frames of `frame` bytes: `burst` at once, the others at `rate` bits/s; arrivals count after `skip` seconds."""

    frame: int
    packets: int
    burst: int
    rate: float
    skip: float


def train_for(shape: Shape) -> Train | None:
    """A train that tells the rate of a link end: at least 1 s and 40 frames; None for one too fast to fill."""
    if not 0 < shape.rate <= FASTEST:
        return None
    frame = min(FULL, max(150, int(shape.rate * 0.01 / 8)))
    settle = 4 * min(shape.jitter, shape.delay)
    per_second = shape.rate / 8 / frame
    burst = int((settle + 0.02) * per_second) + 1
    counted = int(max(per_second, 40)) + int(settle * per_second)
    return Train(frame, burst + counted, burst, shape.rate, settle)


class Peer:
    """A warm connection to another shaper."""

    def __init__(self, address: tuple[str, int], timeout: float) -> None:
        self._socket = socket.create_connection(address, timeout)
        self._file = self._socket.makefile("rb")
        _undelayed(self._socket)

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """One request, one answer; OSError when the link or the peer is gone."""
        self._socket.sendall(json.dumps(request).encode() + b"\n")
        line = self._file.readline()
        if not line:
            raise ConnectionResetError("the peer closed the connection")
        return dict(json.loads(line))

    def rtt(self) -> float:
        started = time.perf_counter()
        self.ask({"do": "echo"})
        return time.perf_counter() - started

    def close(self) -> None:
        self._file.close()
        self._socket.close()


class Receiver:
    """A UDP port; the kernel keeps what arrives, with its time of arrival, until `count` is called."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, _RCVBUFFORCE, 2 * LONGEST)
        except PermissionError:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2 * LONGEST)
        self._socket.setsockopt(socket.SOL_SOCKET, _TIMESTAMP, 1)
        self._socket.bind(("", 0))
        self.port = int(self._socket.getsockname()[1])

    def count(self, packets: int, silence: float, skip: float) -> dict[str, float]:
        """Wait for `packets`, or until nothing has come for `silence` seconds: what came, and how fast (bits/s)."""
        arrivals: list[tuple[float, int]] = []
        self._socket.settimeout(silence)
        try:
            while len(arrivals) < packets:
                data, extra, _, _ = self._socket.recvmsg(2048, 64)
                seconds, nanoseconds = struct.unpack("=qq", extra[0][2])
                arrivals.append((seconds + nanoseconds / 1e9, len(data) + HEADERS))
        except TimeoutError:
            pass
        finally:
            self._socket.close()
        counted = [(at, size) for at, size in arrivals if at >= arrivals[0][0] + skip]
        busy = counted[-1][0] - counted[0][0] if counted else 0.0
        bits = 8 * sum(size for _, size in counted[1:])
        return {"received": len(arrivals), "rate": bits / busy if busy else 0.0}


def send(train: Train, target: tuple[str, int]) -> None:
    """Send a train; returns when its last packet is handed to the kernel."""
    payload = bytes(train.frame - HEADERS)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.connect(target)
        started = time.perf_counter()
        for number in range(train.packets):
            ahead = started + (number - train.burst) * train.frame * 8 / train.rate - time.perf_counter()
            if ahead > 0.001:
                time.sleep(ahead)
            udp.send(payload)


def measure(address: tuple[str, int], up: Shape, down: Shape) -> dict[str, Any]:
    """RTT (seconds) and, where a train can fill the link, the rate each way (bits/s); {"out": True} on an outage.

    Raises:
        OSError: the link broke half way.
    """
    rtt, deviation = up.delay + down.delay, (up.jitter**2 + down.jitter**2) ** 0.5
    silence = 1 + rtt + 4 * deviation
    patience = 3 * silence
    try:
        peer = Peer(address, patience)
    except (TimeoutError, ConnectionRefusedError) as error:
        return {"out": True, "why": str(error) or "timed out"}
    try:
        for _ in range(3):  # warm up: slow start, neighbour tables, delayed acknowledgements
            peer.rtt()
        rtts = [peer.rtt() for _ in range(max(20, min(100, int(3 / max(rtt, 0.001)))))]
        answer: dict[str, Any] = {"rtt": {"mean": fmean(rtts), "sd": stdev(rtts), "n": len(rtts)}}
        if train := train_for(up):
            port = peer.ask({"do": "receive"})["port"]
            send(train, (address[0], port))
            counted = peer.ask({"do": "count", "packets": train.packets, "silence": silence, "skip": train.skip})
            answer["up"] = counted | {"sent": train.packets}
        if train := train_for(down):
            receiver = Receiver()
            peer.ask({"do": "send", "port": receiver.port, "train": train.__dict__})
            answer["down"] = receiver.count(train.packets, silence, train.skip) | {"sent": train.packets}
        return answer
    finally:
        peer.close()


class _Responder(socketserver.StreamRequestHandler):
    """One caller's requests, in order."""

    def handle(self) -> None:
        _undelayed(self.request)
        receiver: Receiver | None = None
        try:
            for line in self.rfile:
                request = json.loads(line)
                answer: dict[str, Any] = {}
                if request["do"] == "receive":
                    receiver = Receiver()
                    answer = {"port": receiver.port}
                elif request["do"] == "count" and receiver:
                    answer = receiver.count(request["packets"], request["silence"], request["skip"])
                elif request["do"] == "send":
                    train = Train(**request["train"])
                    if train.frame > FULL or train.packets * train.frame > LONGEST:
                        return
                    send(train, (self.client_address[0], request["port"]))
                self.wfile.write(json.dumps(answer).encode() + b"\n")
        except (ValueError, KeyError, TypeError, OSError):
            return  # not one of us, or gone: its connection closes


class Responder(socketserver.ThreadingTCPServer):
    """Answers probes until the process ends; run `serve_forever` in a thread."""

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, port: int) -> None:
        super().__init__(("", port), _Responder)


def _undelayed(connection: socket.socket) -> None:
    """Send lines at once, and acknowledgements with them: alone, they would queue ahead of the line."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 0)
