"""W3C trace context, in, through and out; spans go to OpenTelemetry where an endpoint is set (extra `otel`).

A tier answers and sends on with a span of its own in the caller's trace, or starts a trace. Below it stand the stages
of the request's first text. How long each took was measured, but not when it began: they are laid end to end from the
request's beginning. Left out: `tracestate`.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fastapi import Request

from shared.background import Background
from shared.contracts import Stage
from shared.errors import BadSetting, Failed

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span as Exported
    from opentelemetry.trace import Tracer

# The caller's span: version 00 has 55 characters; later ones may say more behind the flags (W3C Trace Context, 3.2.4).
_PARENT = re.compile(
    r"(?!ff|00.{54})[0-9a-f]{2}-(?!0{32})(?P<trace>[0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-(?P<flags>[0-9a-f]{2})(-.*)?"
)


@dataclass(frozen=True)
class Span:
    """This tier's part in a trace; its `facts` are attributes of the exported span, its `stages` (ms) its children."""

    trace_id: str
    span_id: str
    flags: str
    facts: dict[str, Any] = field(default_factory=dict)
    stages: dict[Stage, float] = field(default_factory=dict)

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
    def span(
        self, name: str, headers: Mapping[str, str], describe: Callable[[], dict[str, str]] = dict
    ) -> Iterator[Span]:
        """A span in the trace that the headers name, or in a new one; `describe` gives its attributes, if exported."""
        parent = _PARENT.fullmatch(headers.get("traceparent", ""))
        if self._tracer is None:
            trace, flags = (parent["trace"], parent["flags"]) if parent else (secrets.token_hex(16), "00")
            yield Span(trace, secrets.token_hex(8), flags)
            return
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        context = TraceContextTextMapPropagator().extract({"traceparent": parent.group()} if parent else {})
        started = self._tracer.start_as_current_span
        with started(name, context=context, kind=SpanKind.SERVER, attributes=describe()) as exported:
            ids, began = exported.get_span_context(), time.time_ns()
            span = Span(f"{ids.trace_id:032x}", f"{ids.span_id:016x}", f"{int(ids.trace_flags):02x}")
            try:
                yield span
            finally:
                exported.set_attributes({f"tierwise.{key}": value for key, value in span.facts.items()})
                if exported.is_recording():
                    _end(exported, span.facts.get("status"))
                    self._lay_out(span.stages, began)

    def _lay_out(self, stages: Mapping[Stage, float], began_ns: int) -> None:
        """A child of the current span for each stage, one after the other."""
        assert self._tracer is not None
        for stage, ms in stages.items():
            ended_ns = began_ns + round(ms * 1e6)
            self._tracer.start_span(stage, start_time=began_ns).end(ended_ns)
            began_ns = ended_ns


def described(request: Request) -> dict[str, str]:
    """A request by OpenTelemetry's names for HTTP."""
    return {
        "http.request.method": request.method,
        "http.route": route_of(request),
        "url.path": request.url.path,
        "url.scheme": request.url.scheme,
        "network.protocol.version": request.scope["http_version"],
    }


def route_of(request: Request) -> str:
    """The path of a request's route, `/v2/models/{name}/infer`: there are few, whatever callers write."""
    return str(request.scope["route"].path)


def _end(exported: Exported, status: int | None) -> None:
    """The status of an answer; one from 500 on is an error of ours."""
    from opentelemetry.trace import StatusCode

    if status is not None:
        exported.set_attribute("http.response.status_code", status)
        if status >= Failed.status:
            exported.set_attribute("error.type", str(status))
            exported.set_status(StatusCode.ERROR)


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
