"""W3C trace context, in, through and out; spans go to OpenTelemetry where an endpoint is set (extra `otel`).

A tier answers and sends on with a span of its own in the caller's trace, or starts a trace. Left out: `tracestate`.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from shared.background import Background
from shared.errors import BadSetting

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Tracer

# The caller's span: version 00 has 55 characters; later ones may say more behind the flags (W3C Trace Context, 3.2.4).
_PARENT = re.compile(
    r"(?!ff|00.{54})[0-9a-f]{2}-(?!0{32})(?P<trace>[0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-(?P<flags>[0-9a-f]{2})(-.*)?"
)


@dataclass(frozen=True)
class Span:
    """This tier's part in a trace; its `facts` are attributes of the exported span."""

    trace_id: str
    span_id: str
    flags: str
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def sampled(self) -> bool:
        """Whether somebody records the trace."""
        return bool(int(self.flags, 16) & 1)

    @property
    def traceparent(self) -> str:
        return f"00-{self.trace_id}-{self.span_id}-{self.flags}"


class Traces:
    """Begins spans; `tracer` exports them, null does not. `provider` is shut down with it."""

    def __init__(self, tracer: Tracer | None = None, provider: TracerProvider | None = None) -> None:
        self._tracer, self._provider = tracer, provider

    def close(self, timeout_s: float) -> None:
        """Export the last spans, for `timeout_s` at most: alone, it waits 30 s for a collector that is down."""
        if self._provider is not None:
            last = Background("spans", limit=1)
            last.put(self._provider.shutdown)
            last.close(timeout_s)

    @contextmanager
    def span(self, name: str, headers: Mapping[str, str]) -> Iterator[Span]:
        """A span in the trace that the headers name, or in a new one."""
        parent = _PARENT.fullmatch(headers.get("traceparent", ""))
        if self._tracer is None:
            trace, flags = (parent["trace"], parent["flags"]) if parent else (secrets.token_hex(16), "00")
            yield Span(trace, secrets.token_hex(8), flags)
            return
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        context = TraceContextTextMapPropagator().extract({"traceparent": parent.group()} if parent else {})
        with self._tracer.start_as_current_span(name, context=context) as exported:
            ids = exported.get_span_context()
            span = Span(f"{ids.trace_id:032x}", f"{ids.span_id:016x}", f"{int(ids.trace_flags):02x}")
            try:
                yield span
            finally:
                exported.set_attributes({f"tierwise.{key}": value for key, value in span.facts.items()})


def exporting(endpoint: str | None, tier: str) -> Traces:
    """Traces exported over OTLP/HTTP to `endpoint`, in the background; null: not exported.

    Raises:
        BadSetting: the extra is not installed.
    """
    if endpoint is None:
        return Traces()
    try:
        import requests  # noqa: TID251 - made like the clients of shared/links/clients.py below
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise BadSetting("TIERWISE_OTLP_ENDPOINT needs the extra: pip install 'tierwise[otel]'") from error
    named = Resource.create({"service.name": f"tierwise-{tier}"})
    provider = TracerProvider(resource=named, shutdown_on_exit=False)  # `close` does it
    session = requests.Session()
    session.trust_env = False  # no proxy, no .netrc
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint, session=session)))
    return Traces(provider.get_tracer("tierwise"), provider)
