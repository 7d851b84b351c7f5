"""What a tier counts: one registry per app, names and units by Prometheus' conventions, labels from closed sets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from shared.contracts import DegradedReason

BUCKETS = tuple(round(0.0005 * (30 / 0.0005) ** (i / 21), 6) for i in range(22))  # 22, geometric, 0.5 ms to 30 s
STAGES = ("tokenize", "queue", "infer", "prune", "link", "ensemble")
OFFLOAD_REASONS = ("policy", "confidence", "curve")
REJECTIONS = ("bad_request", "too_large", "unsupported_media", "invalid", "queue_full", "draining", "deadline")


class Telemetry:
    """The metrics of one tier. Closed-label counters start at zero explicitly, else their panels are empty."""

    def __init__(self, *, tier: str, layers: int, labels: Sequence[str], upstreams: Sequence[str]) -> None:
        self.tier = tier
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self.requests = self._histogram("request_duration_seconds", "Time of a request.", "outcome")
        self.stages = self._histogram("stage_duration_seconds", "Time of a stage of a request.", "stage")
        self.exits = self._counter("exits", "Texts that left at a layer.", "tier", "layer")
        self.offloads = self._counter("offloads", "Texts sent to another tier.", "from", "to", "reason")
        self.link_bytes = self._counter("link_bytes", "Body bytes over a link.", "link", "direction")
        self.words = self._counter("words", "Words that came in, and that were kept when sent on.", "tier", "kind")
        self.answers = self._counter("answers", "Answers by label.", "tier", "label")
        self.degraded = self._counter("degraded", "Answers with less than planned.", "tier", "reason")
        self.rejected = self._counter("rejected", "Requests refused.", "tier", "reason")
        self.confidence = Histogram(
            "tierwise_confidence",
            "Calibrated confidence of this tier's own answers.",
            ["tier"],
            buckets=tuple(i / 20 for i in range(1, 21)),
            registry=self.registry,
        )
        self.queue_depth = self._gauge("queue_depth", "Requests waiting for the model.")
        self.inflight = self._gauge("inflight", "Requests being answered.")
        self.info = Gauge(
            "tierwise_build_info", "Always 1.", ["tier", "version", "bundle", "device"], registry=self.registry
        )
        for metric in (self.confidence, self.queue_depth, self.inflight):
            metric.labels(tier)
        for outcome in ("ok", "degraded", "rejected", "error"):
            self.requests.labels(tier, outcome)
        for stage in STAGES:
            self.stages.labels(tier, stage)
        for layer in range(1, layers + 1):
            self.exits.labels(tier, str(layer))
        for upstream in upstreams:
            for reason in OFFLOAD_REASONS:
                self.offloads.labels(tier, upstream, reason)
            for direction in ("up", "down"):
                self.link_bytes.labels(f"{tier}-{upstream}", direction)
        for counter, values in (
            (self.words, ("in", "kept")),
            (self.answers, labels),
            (self.degraded, get_args(DegradedReason)),
            (self.rejected, REJECTIONS),
        ):
            for value in values:
                counter.labels(tier, value)

    def stage(self, name: str, seconds: float) -> None:
        self.stages.labels(self.tier, name).observe(seconds)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"tierwise_{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(f"tierwise_{name}", text, ["tier"], registry=self.registry)

    def _histogram(self, name: str, text: str, label: str) -> Histogram:
        return Histogram(f"tierwise_{name}", text, ["tier", label], buckets=BUCKETS, registry=self.registry)
