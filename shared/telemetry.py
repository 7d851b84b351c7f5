"""What a tier counts: one registry per app, names and units by Prometheus' conventions, labels from closed sets."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import product
from typing import TypeVar, get_args

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from shared.contracts import STAGES, DegradedReason, Stage
from shared.errors import tree
from shared.logs import OUTCOMES

SECONDS = tuple(round(0.0005 * (30 / 0.0005) ** (i / 21), 6) for i in range(22))  # 22, geometric, 0.5 ms to 30 s
RATIOS = tuple(i / 20 for i in range(21))  # 0 is a bucket of its own: a chance of 0 is common
SPECULATED = ("used", "wasted", "moved")  # moved: wasted too, and the text went to another tier
HEDGED = ("won", "lost", "failed")  # of the second call; failed: both did
OFFLOAD_REASONS = ("policy", "confidence", "curve")
NO_POLICY = "none"  # requests that were refused or failed, whatever policy they asked for
REJECTIONS = tuple(dict.fromkeys(error.rejection for error in tree() if error.rejection))
M = TypeVar("M", Counter, Gauge, Histogram)


class Telemetry:
    """The metrics of one tier: each stands here once, with its labels.

    A label has a closed set of values, and every combination starts at zero: a panel shows nothing where there is no
    series.
    """

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
        self._values: dict[str, Sequence[str]] = {  # of labels that several metrics have
            "tier": [tier],
            "from": [tier],
            "to": upstreams,
            "by": tiers,
            "link": [f"{tier}-{upstream}" for upstream in upstreams],
            "policy": policies,
            "reason": OFFLOAD_REASONS,
            "outcome": ("ok", "degraded"),
        }
        counter, gauge = partial(self._metric, Counter), partial(self._metric, Gauge)
        seconds = partial(self._metric, partial(Histogram, buckets=SECONDS))
        ratio = partial(self._metric, partial(Histogram, buckets=RATIOS))

        self.requests = seconds("request_duration_seconds", "Time of a request.", "tier", "outcome", "policy")
        for outcome in ("rejected", "error", "probe"):
            self.requests.labels(tier, outcome, NO_POLICY)
        self.stages = seconds("stage_duration_seconds", "Time of a stage of a request.", "tier", stage=STAGES)
        self.exits = counter("exits", "Texts that left at a layer.", "tier", layer=[str(n + 1) for n in range(layers)])
        self.offloads = counter("offloads", "Texts sent to another tier.", "from", "to", "reason", "policy")
        text = "Texts sent to another tier ahead of this tier's answer."
        self.speculations = counter("speculations", text, "from", "to", outcome=SPECULATED)
        self.link_bytes = counter("link_bytes", "Body bytes over a link.", "link", direction=("up", "down"))
        text = "Joules of the device's radio, by the power model of the link's profile; not measured."
        self.joules = counter("modelled_joules", text, "link")
        text = "Body bytes of the calls among them that were wasted."
        self.wasted_bytes = counter("speculation_wasted_bytes", text, "link", direction=("up", "down"))
        text = "Calls that were late, so that another way was taken too, by what came of the second call."
        self.hedges = counter("hedges", text, "from", "to", second=upstreams, outcome=HEDGED)
        text = "Body bytes of the calls among them that were cancelled."
        self.hedge_wasted_bytes = counter("hedge_wasted_bytes", text, "link", direction=("up", "down"))
        self.words = counter(
            "words", "Words that came in, and that were kept when sent on.", "tier", kind=("in", "kept")
        )
        self.answers = counter("answers", "Answers by label.", "tier", label=labels)
        text = "Answers by the tier that ran last, counted where they were asked for."
        self.answered = counter("answered", text, "tier", "by", "policy")
        self.degraded = counter("degraded", "Answers with less than planned.", "tier", reason=get_args(DegradedReason))
        self.card_skew = counter("card_skew", "Answers by a tier with another model card.", "tier", "by")
        self.rejected = counter("rejected", "Requests refused.", "tier", reason=REJECTIONS)
        text = "Decisions kept on record, or lost."
        self.ledger_lines = counter("ledger_lines", text, "tier", outcome=("kept", "lost"))
        self.retries = counter("retries", "Calls to an upstream that were made a second time.", "link")
        self.breaker_open = gauge("breaker_open", "1 while an upstream is not asked.", "link")
        text = "Replicas of the tier that a link leads to: asked, or ejected and only probed."
        self.replicas = gauge("replicas", text, "link", state=("in", "out"))
        self.confidence = ratio("confidence", "Calibrated confidence of this tier's own answers.", "tier")
        self.offload_probability = ratio("offload_probability", "Chance of sending a text on, once inferred.", "tier")
        self.queue_depth = gauge("queue_depth", "Requests waiting for the model.", "tier")
        self.wait_seconds = gauge("wait_seconds", "Seconds of work that wait for the model or run in it.", "tier")
        text = "Seconds of work that wait at an upstream, as it said of late; 0: it said nothing."
        self.upstream_wait_seconds = gauge("upstream_wait_seconds", text, "link")
        self.inflight = gauge("inflight", "Requests being answered.", "tier")
        self.info = gauge("build_info", "Always 1.", "tier", version=(), bundle=(), engine=())

    def _metric(self, kind: Callable[..., M], name: str, text: str, /, *labels: str, **values: Sequence[str]) -> M:
        """A metric from zero; `values` are those of further labels, or of labels that mean something else here."""
        closed = {label: self._values[label] for label in labels} | values
        metric = kind(f"tierwise_{name}", text, list(closed), registry=self.registry)
        for combination in product(*closed.values()):
            metric.labels(*combination)
        return metric

    def collect(self) -> Iterator[CounterMetricFamily]:
        """Log lines: a thread counts them that must not wait for a metric's lock."""
        text = "Log lines written, lost, or left out because they repeat another."
        lines = CounterMetricFamily("tierwise_log_lines", text, labels=["tier", "outcome"])
        for outcome, count in self.log_lines().items():
            lines.add_metric([self.tier, outcome], count)
        yield lines

    def stage(self, name: Stage, seconds: float) -> None:
        self.stages.labels(self.tier, name).observe(seconds)

    def request(self, outcome: str, policy: str, seconds: float, trace_id: str | None = None) -> None:
        """Count a request, with its trace as an exemplar; a policy that this tier does not offer is never a label."""
        known = policy if policy in self.policies else NO_POLICY
        exemplar = None if trace_id is None else {"trace_id": trace_id}
        self.requests.labels(self.tier, outcome, known).observe(seconds, exemplar)

    def exposed(self, accept: str) -> tuple[bytes, str]:
        """Every metric and its media type: OpenMetrics, which alone has exemplars, if the caller accepts it."""
        if "application/openmetrics-text" in accept:
            return openmetrics.generate_latest(self.registry), openmetrics.CONTENT_TYPE_LATEST
        return generate_latest(self.registry), CONTENT_TYPE_LATEST
