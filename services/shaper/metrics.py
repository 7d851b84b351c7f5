"""What a shaper counts, for Prometheus: settings in force, measured RTT, what the kernel sent and dropped, changes."""

from __future__ import annotations

import math
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge

from services.shaper.shape import Direction, Reading, Shape
from services.shaper.state import Link

KINDS = ("profile", "trace", "cut", "heal")


class Metrics:
    """One registry per shaper; settings are NaN while a link waits, and the measured RTT while nothing gets through."""

    def __init__(self, links: Iterable[Link]) -> None:
        self.registry = CollectorRegistry()
        both = ["link", "direction"]
        self._settings = (
            self._gauge("config_rate_bytes_per_second", "Configured rate; 0 is unlimited.", both),
            self._gauge("config_delay_seconds", "Configured one-way delay.", both),
            self._gauge("config_jitter_seconds", "Standard deviation of the one-way delay.", both),
            self._gauge("config_loss_ratio", "Configured share of packets lost.", both),
        )
        self.rtt = self._gauge("rtt_seconds", "Measured round-trip time of a small exchange.", ["link"])
        self._sent = self._counter("sent_bytes", "Bytes of frames that this end sent.", ["link"])
        self._drops = self._counter("drops", "Packets that this end lost, by loss or a full queue.", ["link"])
        self._changes = self._counter("changes", "Changes of the link.", ["link", "kind"])
        self._last: dict[str, Reading] = {}
        for link in links:
            self._sent.labels(link.name)
            self._drops.labels(link.name)
            for kind in KINDS:
                self._changes.labels(link.name, kind)
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
        last = self._last.get(link.name)
        again = last is None or reading.sent_bytes < last.sent_bytes or reading.drops < last.drops
        before = Reading(0, 0, 0, 0, 0) if again or last is None else last
        self._sent.labels(link.name).inc(reading.sent_bytes - before.sent_bytes)
        self._drops.labels(link.name).inc(reading.drops - before.drops)
        self._last[link.name] = reading

    def changed(self, link: Link, kind: str) -> None:
        self._changes.labels(link.name, kind).inc()

    def _gauge(self, name: str, text: str, labels: list[str]) -> Gauge:
        return Gauge(f"tierwise_link_{name}", text, labels, registry=self.registry)

    def _counter(self, name: str, text: str, labels: list[str]) -> Counter:
        return Counter(f"tierwise_link_{name}", text, labels, registry=self.registry)
