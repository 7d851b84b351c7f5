"""The kernel's side: netem on an interface over rtnetlink, segmentation offloads off, settings and counters read back.

Jitter as a standard deviation needs netem's delay distribution table: without one the kernel draws uniformly, and the
deviation is jitter / sqrt(3). pyroute2 0.9 cannot send that table, nor call from inside a running event loop, so the
messages are packed here. Constants: linux/rtnetlink.h, linux/pkt_sched.h, linux/ethtool.h. Leaves out IPv6.
"""

from __future__ import annotations

import array
import errno
import fcntl
import os
import socket
import struct
from collections.abc import Iterator
from functools import lru_cache
from statistics import NormalDist

from services.shaper.shape import Reading, Shape
from shared.errors import BadSetting

NEWQDISC, GETQDISC, GETROUTE = 36, 38, 26
REQUEST, ACK, EXCL, DUMP, REPLACE, CREATE = 0x1, 0x4, 0x200, 0x300, 0x100, 0x400
ERROR, DONE = 2, 3
ROOT = 0xFFFFFFFF
KIND, OPTIONS, STATS2 = 1, 2, 7
DIST, RATE, LATENCY64, JITTER64 = 2, 6, 10, 11
ROUTE_DST, ROUTE_OIF, LOCAL = 1, 4, 2
SIOCETHTOOL, OFFLOADS = 0x8946, {"tso": 0x1F, "gso": 0x24, "gro": 0x2C}
_SCALE, _POINTS = 8192, 4096  # in netem's table: one standard deviation, and the number of entries
_LO = 1  # every namespace's loopback has index 1

MISSING = (
    "this kernel has no sch_netem, so links cannot be shaped: load the module (`modprobe sch_netem`, as root on the "
    "host), boot a kernel that has it, or run without shapers with TIERWISE_LINKS=simulated"
)


class Kernel:
    """netem on this network namespace's interfaces, over one netlink socket. Not for several threads."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        self._socket.settimeout(5)
        self._sequence = 0

    def check(self) -> None:
        """Ask for a netem without options, which the kernel always refuses: nothing changes, and its error says enough.

        Raises:
            BadSetting: no sch_netem, or not allowed to shape.
        """
        body = _tcmsg(_LO, ROOT) + _attribute(KIND, b"netem\0")
        try:
            self._ask(NEWQDISC, ACK | CREATE | EXCL, body)
        except OSError as error:
            if error.errno == errno.EINVAL:
                return
            if error.errno == errno.EPERM:
                raise BadSetting("shaping links needs uid 0 with CAP_NET_ADMIN") from error
            raise BadSetting(MISSING if error.errno == errno.ENOENT else f"{MISSING} ({error})") from error

    def route(self, address: str) -> int:
        """Index of the interface over which `address` is reached.

        Raises:
            BadSetting: the address is this namespace's own.
            OSError: there is no route.
        """
        body = struct.pack("=8BI", socket.AF_INET, 32, *[0] * 7) + _attribute(ROUTE_DST, socket.inet_aton(address))
        (reply,) = self._ask(GETROUTE, ACK, body)
        if reply[7] == LOCAL:
            raise BadSetting(f"{address} is this host's own address: a link needs two ends")
        return int(struct.unpack("=I", dict(_attributes(reply[12:]))[ROUTE_OIF])[0])

    def prepare(self, interface: int) -> list[str]:
        """Turn segmentation offloads off: netem would see 64 kB at once. Returns those that stay on."""
        refused = []
        name = socket.if_indextoname(interface).encode()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
            for offload, command in OFFLOADS.items():
                value = array.array("I", [command, 0])
                try:
                    fcntl.ioctl(any_socket, SIOCETHTOOL, struct.pack("16sP16x", name, value.buffer_info()[0]))
                except OSError:
                    refused.append(offload)
        return refused

    def apply(self, interface: int, shape: Shape, *, flush: bool = False) -> None:
        """Shape an interface, every parameter at once; `flush` drops the packets that still wait by the old shape."""
        nanoseconds = [round(seconds * 1e9) for seconds in (shape.delay_s, shape.jitter_s)]
        options = struct.pack("=6I", 0, shape.limit, round(shape.loss_ratio * 0xFFFFFFFF), 0, 0, 0)
        options += _attribute(DIST, _normal(shape.delay_s / shape.jitter_s if shape.jitter_s else 0.0))
        options += _attribute(RATE, struct.pack("=IiIi", shape.bytes_per_s, 0, 0, 0))
        options += _attribute(LATENCY64, struct.pack("=q", nanoseconds[0]))
        options += _attribute(JITTER64, struct.pack("=q", nanoseconds[1]))
        handle = 0  # the queue that is there, or a new one; another handle than the present one's makes a new one
        if flush:
            handle = next(other for other in (1 << 16, 2 << 16) if other != self._root(interface)[0])
        body = _tcmsg(interface, ROOT, handle) + _attribute(KIND, b"netem\0") + _attribute(OPTIONS, options)
        self._ask(NEWQDISC, ACK | CREATE | REPLACE, body)

    def read(self, interface: int) -> Reading | None:
        """Settings and counters of an interface; None where netem is not its root."""
        _, attributes = self._root(interface)
        if attributes.get(KIND) != b"netem\0":
            return None
        return _reading(attributes[OPTIONS], dict(_attributes(attributes[STATS2])))

    def _root(self, interface: int) -> tuple[int, dict[int, bytes]]:
        """Handle and attributes of an interface's root queue."""
        for reply in self._ask(GETQDISC, DUMP, _tcmsg(0, 0)):
            index, handle, parent = struct.unpack_from("=iII", reply, 4)
            if (index, parent) == (interface, ROOT):
                return handle, dict(_attributes(reply[20:]))
        return 0, {}

    def _ask(self, kind: int, flags: int, body: bytes) -> list[bytes]:
        """Send one message; the replies' payloads. Raises OSError with the kernel's error number."""
        self._sequence += 1
        self._socket.send(struct.pack("=IHHII", 16 + len(body), kind, flags | REQUEST, self._sequence, 0) + body)
        replies: list[bytes] = []
        while True:
            data, at = self._socket.recv(1 << 18), 0
            while at < len(data):
                size, answer, _, sequence, _ = struct.unpack_from("=IHHII", data, at)
                payload, at = data[at + 16 : at + size], at + _aligned(size)
                if sequence != self._sequence:
                    continue
                if answer == ERROR:
                    code = -struct.unpack_from("=i", payload)[0]
                    if code:
                        raise OSError(code, os.strerror(code))
                if answer in (ERROR, DONE):
                    return replies
                replies.append(payload)


def _reading(options: bytes, stats: dict[int, bytes]) -> Reading:
    _, limit, loss = struct.unpack_from("=3I", options)
    attributes = dict(_attributes(options[24:]))
    delay, jitter = (struct.unpack("=q", attributes[key])[0] / 1e9 for key in (LATENCY64, JITTER64))
    sent_bytes, sent_packets = struct.unpack_from("=QI", stats[1])
    _, backlog, drops = struct.unpack_from("=3I", stats[3])
    rate = struct.unpack_from("=I", attributes[RATE])[0] if RATE in attributes else 0
    return Reading(delay, jitter, loss / 0xFFFFFFFF, rate, limit, sent_bytes, sent_packets, drops, backlog)


@lru_cache(maxsize=64)
def _normal(cut: float) -> bytes:
    """netem's table of a standard normal cut off at plus and minus `cut` deviations."""
    cut = min(cut, 32767 / _SCALE)
    return struct.pack(f"={_POINTS}h", *(round(_SCALE * min(cut, max(-cut, z))) for z in _quantiles()))


@lru_cache(maxsize=1)
def _quantiles() -> tuple[float, ...]:
    return tuple(NormalDist().inv_cdf((i + 0.5) / _POINTS) for i in range(_POINTS))


def _tcmsg(interface: int, parent: int, handle: int = 0) -> bytes:
    return struct.pack("=BxxxiIII", 0, interface, handle, parent, 0)


def _aligned(size: int) -> int:
    return (size + 3) & ~3


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value.ljust(_aligned(len(value)), b"\0")


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= 4:
        size, kind = struct.unpack_from("=HH", data)
        yield kind & 0x3FFF, data[4:size]
        data = data[_aligned(size) :]
