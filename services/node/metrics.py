"""What a node counts, for Prometheus: texts and segments as they happened, queues as they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector

from shared.logs import OUTCOMES
from shared.mesh.live import Live
from shared.telemetry import REJECTIONS

_TEXTS = {
    "answered": "Texts of this source that were answered.",
    "segments": "Segments that ran.",
    "busy_seconds": "Time in which segments ran.",
    "sent": "Texts sent to neighbours.",
    "taken": "Texts taken from neighbours.",
    "again": "Texts whose holder was lost, or did not take them.",
    "joined": "Texts that came twice.",
    "silences": "Times that a neighbour left the set.",
}


class Metrics:
    """The metrics of one node."""

    def __init__(self, live: Live) -> None:
        self._live, self._name = live, live.node.name
        self.log_lines: Callable[[], Mapping[str, int]] = lambda: dict.fromkeys(OUTCOMES, 0)  # the process sets it
        self.registry = CollectorRegistry()
        self.registry.register(self)
        ProcessCollector(registry=self.registry)
        text = "Requests refused."
        self.rejected = Counter("tierwise_node_rejected", text, ["node", "reason"], registry=self.registry)
        for reason in REJECTIONS:
            self.rejected.labels(self._name, reason)

    def collect(self) -> Iterator[Metric]:
        """Everything that the node itself keeps count of."""
        live = self._live
        counts = asdict(live.counts)
        counts["busy_seconds"] = counts.pop("busy_s")
        for name, count in counts.items():
            yield self._counted(name, _TEXTS[name], count)
        yield self._counted("admitted", "Texts admitted by this source.", live.source.admitted)
        lines = CounterMetricFamily("tierwise_node_log_lines", "Log lines, by outcome.", labels=["node", "outcome"])
        for outcome, count in self.log_lines().items():
            lines.add_metric([self._name, outcome], count)
        yield lines
        queues = GaugeMetricFamily("tierwise_node_queue", "Texts that wait.", labels=["node", "queue"])
        queues.add_metric([self._name, "input"], len(live.node.waiting))
        queues.add_metric([self._name, "output"], len(live.node.leaving))
        yield queues
        for name, text, value in (
            ("exit_threshold_ratio", "The exit threshold of this source.", live.source.threshold),
            ("gap_seconds", "Time between two texts of this source, where it adapts its rate.", live.source.gap_s),
            ("neighbours", "Neighbours in the set.", sum(not n.away for n in live.node.neighbours.values())),
        ):
            gauge = GaugeMetricFamily(f"tierwise_node_{name}", text, labels=["node"])
            gauge.add_metric([self._name], value)
            yield gauge

    def _counted(self, name: str, text: str, count: float) -> Metric:
        counter = CounterMetricFamily(f"tierwise_node_{name}", text, labels=["node"])
        counter.add_metric([self._name], count)
        return counter

    def exposed(self) -> tuple[bytes, str]:
        """Every metric, and its media type."""
        return generate_latest(self.registry), CONTENT_TYPE_LATEST
