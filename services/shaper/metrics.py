"""What a shaper counts, for Prometheus: settings in force, measured RTT, what the kernel sent and dropped, changes."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge

from services.shaper.shape import Direction, Reading, Shape
from services.shaper.state import Link

KINDS = ("profile", "trace", "cut", "heal")


class Metrics:
    """One registry per shaper; settings are NaN while a link waits, and the measured RTT while nothing gets through."""

    def __init__(self, links: Iterable[Link]) -> None:
        self.registry = CollectorRegistry()
        gauge = partial(Gauge, namespace="tierwise_link", registry=self.registry)
        counter = partial(Counter, namespace="tierwise_link", registry=self.registry)
        both = ["link", "direction"]
        self._settings = (
            gauge("config_rate_bytes_per_second", "Configured rate; 0 is unlimited.", both),
            gauge("config_delay_seconds", "Configured one-way delay.", both),
            gauge("config_jitter_seconds", "Standard deviation of the one-way delay.", both),
            gauge("config_loss_ratio", "Configured share of packets lost.", both),
        )
        self.rtt = gauge("rtt_seconds", "Measured round-trip time of a small exchange.", ["link"])
        self.changes = counter("changes", "Changes of the link.", ["link", "kind"])
        self._sent = counter("sent_bytes", "Bytes of frames that this end sent.", ["link"])
        self._drops = counter("drops", "Packets that this end lost, by loss or a full queue.", ["link"])
        self._last: dict[str, tuple[int, int]] = {}
        for link in links:
            self._sent.labels(link.name)
            self._drops.labels(link.name)
            for kind in KINDS:
                self.changes.labels(link.name, kind)
            if link.direction is Direction.UP:  # the source measures it
                self.rtt.labels(link.name).set(math.nan)
            self.settings(link)

    def settings(self, link: Link) -> None:
        """Publish what is applied."""
        shape = link.applied or Shape(math.nan, math.nan, math.nan, math.nan)
        values = (shape.rate_bps / 8, shape.delay_s, shape.jitter_s, shape.loss_ratio)
        for gauge, value in zip(self._settings, values, strict=True):
            gauge.labels(link.name, link.direction).set(value)

    def counted(self, link: Link, reading: Reading) -> None:
        """Publish the kernel's counters, which start again when a queue is replaced."""
        sent, drops = self._last.get(link.name, (0, 0))
        if reading.sent_bytes < sent or reading.drops < drops:
            sent = drops = 0
        self._sent.labels(link.name).inc(reading.sent_bytes - sent)
        self._drops.labels(link.name).inc(reading.drops - drops)
        self._last[link.name] = reading.sent_bytes, reading.drops
