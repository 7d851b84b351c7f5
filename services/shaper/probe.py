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
from contextlib import closing
from dataclasses import asdict, dataclass
from statistics import fmean, median, stdev
from typing import Any

from services.shaper.shape import Shape

HEADERS, UDP_HEADER = 14 + 20, 8  # bytes: Ethernet and IP of each frame, UDP of each datagram
FULL = 1514  # bytes of a full frame
FRAGMENTS = 8  # frames of a datagram where one a frame would keep the processor too busy
BUSY_BPS = 20e6
FEW, MANY = 40, 4000  # datagrams and frames that count for the rate: at least, at most
TRIES = 3  # trains, while the sender's processor is too busy to send one in time
SLACK_S = 0.08  # the sender may be held up so long: the link stays busy
ECHO_FRAME = 14 + 20 + 32 + 15  # Ethernet, IP, TCP with timestamps, and the line
FASTEST_BPS = 200e6  # what the test offers at most; above, the settings are read back
LONGEST_BYTES = 64_000_000  # of a train
_TIMESTAMP, _RCVBUFFORCE = 35, 33  # SO_TIMESTAMPNS and SO_RCVBUFFORCE, asm-generic/socket.h


@dataclass(frozen=True)
class Train:
    """Datagrams of `size` bytes on the wire: `burst` at once, then `rate` bits/s; arrivals count after `skip` s."""

    size: int
    packets: int
    burst: int
    rate: float
    skip: float


def train_for(shape: Shape) -> Train | None:
    """A train that tells the rate of a link end: 1 s, or 4,000 frames if sooner; None for one too fast to fill."""
    if not 0 < shape.rate_bps <= FASTEST_BPS:
        return None
    size = min(FULL, max(150, int(shape.rate_bps * 0.01 / 8)))
    if shape.rate_bps > BUSY_BPS and not shape.loss_ratio:  # one lost fragment loses them all
        size = FULL * FRAGMENTS
    settle = 4 * min(shape.jitter_s, shape.delay_s)
    per_second = shape.rate_bps / 8 / size
    burst = int((settle + SLACK_S) * per_second) + 1
    counted = int(max(FEW, min(per_second, MANY * FULL / size)) + settle * per_second)
    return Train(size, burst + counted, burst, shape.rate_bps, settle)


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
            self._socket.setsockopt(socket.SOL_SOCKET, _RCVBUFFORCE, 2 * LONGEST_BYTES)
        except PermissionError:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2 * LONGEST_BYTES)
        self._socket.setsockopt(socket.SOL_SOCKET, _TIMESTAMP, 1)
        self._socket.bind(("", 0))
        self.port = int(self._socket.getsockname()[1])

    def count(self, packets: int, silence: float, skip: float) -> dict[str, float]:
        """Wait for `packets`, or for `silence` seconds without one. How many arrived, and how fast (bits/s)."""
        arrivals: list[tuple[float, int]] = []
        self._socket.settimeout(silence)
        try:
            while len(arrivals) < packets:
                data, extra, _, _ = self._socket.recvmsg(FULL * FRAGMENTS, 64)
                seconds, nanoseconds = struct.unpack("=qq", extra[0][2])
                arrivals.append((seconds + nanoseconds / 1e9, _on_the_wire(len(data))))
        except TimeoutError:
            pass
        finally:
            self._socket.close()
        counted = [(at, size) for at, size in arrivals if at >= arrivals[0][0] + skip]
        busy = counted[-1][0] - counted[0][0] if counted else 0.0
        bits = 8 * sum(size for _, size in counted[1:])
        return {"received": len(arrivals), "rate": bits / busy if busy else 0.0}


def _on_the_wire(payload: int) -> int:
    """Bytes of the frames that carry a datagram."""
    return payload + UDP_HEADER + HEADERS * -(-(payload + UDP_HEADER) // (FULL - HEADERS))


def send(train: Train, target: tuple[str, int]) -> bool:
    """Send a train; False if the sender was held up for so long that the link may have run dry."""
    in_time = True
    payload = bytes(train.size - UDP_HEADER - HEADERS * -(-train.size // FULL))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.connect(target)
        started = time.perf_counter()
        for number in range(train.packets):
            ahead = started + (number - train.burst) * train.size * 8 / train.rate - time.perf_counter()
            if ahead > 0.001:
                time.sleep(ahead)
            elif ahead < -SLACK_S / 2 and number > train.burst:
                started -= ahead + SLACK_S / 2  # catching up in one go would overfill the queue
                in_time = in_time and ahead > -SLACK_S
            udp.send(payload)
    return in_time


def measure(address: tuple[str, int], up: Shape, down: Shape) -> dict[str, Any]:
    """RTT (seconds) and, where a train can fill the link, the rate each way (bits/s); {"out": True} on an outage.

    Raises:
        OSError: the link broke half way.
    """
    rtt_s, deviation_s = up.delay_s + down.delay_s, (up.jitter_s**2 + down.jitter_s**2) ** 0.5
    silence_s = 1 + rtt_s + 4 * deviation_s
    try:
        peer = Peer(address, 3 * silence_s)
    except (TimeoutError, ConnectionRefusedError) as error:
        return {"out": True, "why": str(error) or "timed out"}
    with closing(peer):
        for _ in range(3):  # warm up: slow start, neighbour tables, delayed acknowledgements
            peer.rtt()
        rtts = [peer.rtt() for _ in range(max(20, min(40, int(3 / max(rtt_s, 0.001)))))]
        seen = {"median": median(rtts), "mean": fmean(rtts), "sd": stdev(rtts), "n": len(rtts)}
        answer: dict[str, Any] = {"rtt": seen}
        for direction, shape in (("up", up), ("down", down)):
            if train := train_for(shape):
                answer[direction] = _send_train(peer, address[0], direction, train, silence_s)
        return answer


def _send_train(peer: Peer, host: str, direction: str, train: Train, silence_s: float) -> dict[str, float]:
    """What arrived of a train sent up, or down, and whether it was sent in time: the first that was, or the last."""
    wait: dict[str, Any] = {"packets": train.packets, "silence": silence_s, "skip": train.skip}
    counted, in_time = dict[str, float](), False
    for _ in range(TRIES):
        if direction == "up":
            port = peer.ask({"do": "receive"})["port"]
            in_time = send(train, (host, port))
            counted = peer.ask({"do": "count", **wait})
        else:
            receiver = Receiver()
            in_time = peer.ask({"do": "send", "port": receiver.port, "train": asdict(train)})["in_time"]
            counted = receiver.count(**wait)
        if in_time:
            break
    return counted | {"sent": train.packets, "in_time": in_time}


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
                    if train.size > FULL * FRAGMENTS or train.packets * train.size > LONGEST_BYTES:
                        return
                    answer = {"in_time": send(train, (self.client_address[0], request["port"]))}
                self.wfile.write(json.dumps(answer).encode() + b"\n")
        except (ValueError, KeyError, TypeError, OSError):
            return  # no shaper, or one that is gone: close its connection


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
