"""What a tier counts: one registry per app, names and units by Prometheus' conventions, labels from closed sets."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from shared.contracts import STAGES, DegradedReason, Stage
from shared.errors import tree
from shared.logs import OUTCOMES

BUCKETS = tuple(round(0.0005 * (30 / 0.0005) ** (i / 21), 6) for i in range(22))  # 22, geometric, 0.5 ms to 30 s
RATIOS = tuple(i / 20 for i in range(21))  # 0 is a bucket of its own: a chance of 0 is common
OFFLOAD_REASONS = ("policy", "confidence", "curve")
NO_POLICY = "none"  # requests that were refused or failed, whatever policy they asked for
REJECTIONS = tuple(dict.fromkeys(error.rejection for error in tree() if error.rejection))


class Telemetry:
    """The metrics of one tier. Closed-label counters start at zero explicitly, else their panels are empty."""

    def __init__(
        self,
        *,
        tier: str,
        tiers: Sequence[str],
        policies: Sequence[str],
        layers: int,
        labels: Sequence[str],
        upstreams: Sequence[str],
    ) -> None:
        self.tier, self.policies = tier, frozenset(policies)
        self.log_lines: Callable[[], Mapping[str, int]] = lambda: dict.fromkeys(OUTCOMES, 0)  # the process sets it
        self.registry = CollectorRegistry()
        self.registry.register(self)
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self.requests = self._histogram("request_duration_seconds", "Time of a request.", "outcome", "policy")
        self.stages = self._histogram("stage_duration_seconds", "Time of a stage of a request.", "stage")
        self.exits = self._counter("exits", "Texts that left at a layer.", "tier", "layer")
        self.offloads = self._counter("offloads", "Texts sent to another tier.", "from", "to", "reason", "policy")
        self.link_bytes = self._counter("link_bytes", "Body bytes over a link.", "link", "direction")
        self.words = self._counter("words", "Words that came in, and that were kept when sent on.", "tier", "kind")
        self.answers = self._counter("answers", "Answers by label.", "tier", "label")
        self.answered = self._counter(
            "answered", "Answers by the tier that ran last, counted where they were asked for.", "tier", "by", "policy"
        )
        self.degraded = self._counter("degraded", "Answers with less than planned.", "tier", "reason")
        self.card_skew = self._counter("card_skew", "Answers by a tier with another model card.", "tier", "by")
        self.rejected = self._counter("rejected", "Requests refused.", "tier", "reason")
        self.ledger_lines = self._counter("ledger_lines", "Decisions kept on record, or lost.", "tier", "outcome")
        self.retries = self._counter("retries", "Calls to an upstream that were made a second time.", "link")
        self.breaker_open = Gauge(
            "tierwise_breaker_open", "1 while an upstream is not asked.", ["link"], registry=self.registry
        )
        self.confidence = self._ratio("confidence", "Calibrated confidence of this tier's own answers.")
        self.offload_probability = self._ratio("offload_probability", "Chance of sending a text on, once inferred.")
        self.queue_depth = self._gauge("queue_depth", "Requests waiting for the model.")
        self.inflight = self._gauge("inflight", "Requests being answered.")
        self.info = Gauge(
            "tierwise_build_info", "Always 1.", ["tier", "version", "bundle", "device"], registry=self.registry
        )
        for metric in (self.confidence, self.offload_probability, self.queue_depth, self.inflight):
            metric.labels(tier)
        for policy in policies:
            for outcome in ("ok", "degraded"):
                self.requests.labels(tier, outcome, policy)
            for by in tiers:
                self.answered.labels(tier, by, policy)
        for outcome in ("rejected", "error", "probe"):
            self.requests.labels(tier, outcome, NO_POLICY)
        for stage in STAGES:
            self.stages.labels(tier, stage)
        for layer in range(1, layers + 1):
            self.exits.labels(tier, str(layer))
        for upstream in upstreams:
            self.retries.labels(f"{tier}-{upstream}")
            self.breaker_open.labels(f"{tier}-{upstream}")
            for reason in OFFLOAD_REASONS:
                for policy in policies:
                    self.offloads.labels(tier, upstream, reason, policy)
            for direction in ("up", "down"):
                self.link_bytes.labels(f"{tier}-{upstream}", direction)
        for counter, values in (
            (self.words, ("in", "kept")),
            (self.card_skew, tiers),
            (self.answers, labels),
            (self.degraded, get_args(DegradedReason)),
            (self.rejected, REJECTIONS),
            (self.ledger_lines, ("kept", "lost")),
        ):
            for value in values:
                counter.labels(tier, value)

    def collect(self) -> Iterator[CounterMetricFamily]:
        """What is counted elsewhere: log lines, by a thread that must not wait for a lock of a metric."""
        text = "Log lines written, lost, or left out because they repeat another."
        lines = CounterMetricFamily("tierwise_log_lines", text, labels=["tier", "outcome"])
        for outcome, count in self.log_lines().items():
            lines.add_metric([self.tier, outcome], count)
        yield lines

    def stage(self, name: Stage, seconds: float) -> None:
        self.stages.labels(self.tier, name).observe(seconds)

    def request(self, outcome: str, policy: str, seconds: float) -> None:
        """Count a request; a policy that this tier does not offer is never a label."""
        known = policy if policy in self.policies else NO_POLICY
        self.requests.labels(self.tier, outcome, known).observe(seconds)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"tierwise_{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(f"tierwise_{name}", text, ["tier"], registry=self.registry)

    def _histogram(self, name: str, text: str, *labels: str) -> Histogram:
        return Histogram(f"tierwise_{name}", text, ["tier", *labels], buckets=BUCKETS, registry=self.registry)

    def _ratio(self, name: str, text: str) -> Histogram:
        return Histogram(f"tierwise_{name}", text, ["tier"], buckets=RATIOS, registry=self.registry)
