"""The HTTP surface of a tier: the same on every one.

Pure ASGI only: `BaseHTTPMiddleware` breaks disconnect detection.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import structlog
from fastapi import FastAPI, Request, Response
from fastapi.responses import PlainTextResponse
from starlette.exceptions import HTTPException
from structlog.contextvars import bound_contextvars

from shared.contracts import (
    CONTRACT_VERSION,
    HOP_STAGES,
    WAITING,
    AnswerTiming,
    ClassifyRequest,
    ClassifyResponse,
    InferredRow,
    InferRequest,
    InferResponse,
    Result,
    Stage,
)
from shared.errors import (
    BadInput,
    BadState,
    CallerLeft,
    Draining,
    Failed,
    HeadersTooLarge,
    MethodNotAllowed,
    NoSuchPath,
    Refused,
    TierwiseError,
    TooLarge,
    tree,
)
from shared.failures import account
from shared.model.classifier import Classifier
from shared.model.state import STATES_TYPE, State, unframe, unpack
from shared.pipeline.front import Front
from shared.policies import name_of, spec_of
from shared.telemetry import NO_POLICY
from shared.web.about import about
from shared.web.adapters.base import OURS, Adapter
from shared.web.assets import add_page
from shared.web.body import Shelf, parse, read, validate
from shared.web.guard import Keys, authorize, while_waited_for
from shared.web.ledger import Ledger
from shared.web.links import LinkControl
from shared.web.offers import Offers, offers
from shared.web.openapi import KEYED, STREAMED, Described, body_of, complete, problems, states_of
from shared.web.problems import document
from shared.web.problems import request_id as _request_id
from shared.web.record import Record, Then
from shared.web.settings import Settings
from shared.web.stream import Events, EventStream, wants_stream
from shared.web.tracing import Traces, described, route_of

log = structlog.get_logger()
_BODIES = 32  # full-sized ones that may be in memory at a time
ERRORS = [error for error in tree() if error.rejection and error is not CallerLeft]  # of a request with a body


@dataclass(frozen=True)
class _Done:
    """A response, the name of its policy, the value of `Server-Timing`, and what the log says about it."""

    response: Response
    policy: str
    timing: str
    facts: dict[str, Any]
    stages: dict[Stage, float]

    @property
    def outcome(self) -> str:
        return "degraded" if self.facts["degraded"] else "ok" if self.facts["texts"] else "probe"


def _facts(rows: Sequence[Result] | Sequence[InferredRow]) -> dict[str, Any]:
    """How many texts, the tiers that ran for any of them, and the reasons of what was degraded."""
    return {
        "texts": len(rows),
        "tiers": list(dict.fromkeys(hop.tier for row in rows for hop in row.hops)),
        "degraded": sorted({row.degraded for row in rows if row.degraded}),
    }


def _stages(rows: Sequence[Result] | Sequence[InferredRow], tier: str) -> dict[Stage, float]:
    """Milliseconds of the first text's stages on a tier, and on the link from it, in their order."""
    stages: dict[Stage, float] = {}
    for hop in rows[0].hops if rows else ():
        if hop.tier == tier:
            stages.update({stage: hop.timings_ms[stage] for stage in HOP_STAGES if stage in hop.timings_ms})
        if hop.link is not None and hop.link.source == tier:
            stages["link"] = hop.link.ms
    return stages


class Surface:
    """The endpoints of one app."""

    def __init__(
        self,
        app: FastAPI,
        settings: Settings,
        keys: Keys,
        classifier: Classifier,
        front: Front,
        ledger: Ledger | None,
        traces: Traces,
    ) -> None:
        self.app, self.settings, self.keys, self.classifier, self.front = app, settings, keys, classifier, front
        self.ledger, self.traces = ledger, traces
        self.tier, self.bundle, self.telemetry = front.tier, front.tier.bundle, front.tier.telemetry
        self.model = f"{self.bundle.card_name} {classifier.runs_on}"  # what answers
        self.links = LinkControl(settings, keys, self.tier.upstreams, self.bundle.order)
        self.shelf = Shelf(_BODIES * settings.max_body_bytes)

    def add_routes(self) -> None:
        add, add_plain = self.app.add_api_route, partial(self.app.router.add_api_route, route_class_override=Described)
        for path, endpoint, takes, gives, key, more in (
            ("/v1/classify", self.classify, body_of(ClassifyRequest), ClassifyResponse, self.keys.door, STREAMED),
            ("/v1/infer", self.infer, body_of(InferRequest), InferResponse, self.keys.tier, {}),
            ("/v1/continue", self.go_on, states_of(InferRequest), InferResponse, self.keys.tier, {}),
        ):
            extra = {"requestBody": takes, **({"security": KEYED} if key else {})}
            responses = {**more, **problems(*ERRORS, Failed)}
            add_plain(
                path,
                endpoint,
                methods=["POST"],
                operation_id=path.removeprefix("/v1/"),
                response_model=gives,
                responses=responses,
                openapi_extra=extra,
            )
        head = problems(Refused, HeadersTooLarge)
        add("/livez", self.livez, methods=["GET"], operation_id="livez", responses=head)
        add("/readyz", self.readyz, methods=["GET"], operation_id="readyz", responses=head | problems(Draining))
        add("/v1/policies", self.policies, methods=["GET"], operation_id="policies", responses=head)
        add("/info", self.info, methods=["GET"], operation_id="info", responses=head)
        add(
            "/metrics",
            self.metrics,
            methods=["GET"],
            operation_id="metrics",
            responses=head,
            response_class=PlainTextResponse,
        )
        for path, plain in (
            ("/livez", self.livez),
            ("/readyz", self.readyz),
            ("/health", self.readyz),
            ("/info", self.info),
            ("/v1/policies", self.policies),
            ("/metrics", self.metrics),
        ):  # the head of the same answer, for probes
            add(path, plain, methods=["HEAD"], include_in_schema=False)
        self.links.add_route(self.app)
        complete(self.app)
        add_page(self.app)
        for error in (HTTPException, TierwiseError, Exception):
            self.app.add_exception_handler(error, self.on_error)

    async def classify(self, request: Request) -> Response:
        if wants_stream(request):
            return EventStream(partial(self._classified, request))
        return await self._classified(request)

    async def _classified(self, request: Request, events: Events | None = None) -> Then:
        work = partial(self._classify, events=events)
        return await self._answer(request, self.keys.door, work, at_door=self.tier.worker.queue.admit)

    async def adapted(self, request: Request, adapter: Adapter) -> Response:
        """Answer a request to classify in another API's words."""
        work = partial(self._classify, adapter=adapter)
        return await self._answer(request, self.keys.door, work, self.tier.worker.queue.admit, adapter)

    def refused(self, request: Request, error: TierwiseError, adapter: Adapter) -> Response:
        """An error that was found before any work, in another API's words."""
        return self._problem(error, _request_id(request), {}, adapter)

    async def infer(self, request: Request) -> Response:
        return self._says_waiting(await self._answer(request, self.keys.tier, self._infer))

    async def go_on(self, request: Request) -> Response:
        """Go on from what another tier's layers of the same network have computed."""
        return self._says_waiting(await self._answer(request, self.keys.tier, self._go_on, media={STATES_TYPE}))

    def _says_waiting(self, then: Then) -> Then:
        then.response.headers[WAITING] = f"{self.tier.worker.queue.ahead_s:.3f}"
        return then

    async def livez(self) -> dict[str, str]:
        return {"status": "alive"}

    async def readyz(self, request: Request) -> Response:
        if self.app.state.draining:
            return self._problem(Draining("this tier is shutting down"), _request_id(request))
        return Response('{"status":"ready"}', media_type="application/json")

    async def info(self) -> dict[str, Any]:
        described = about(self.front, self.classifier, self.settings, self.keys)
        return {**described, **self.links.described()}

    async def policies(self) -> Offers:
        """The policies that this tier offers, with their parameters."""
        return offers(self.front)

    async def metrics(self, request: Request) -> Response:
        name, telemetry, queue = self.tier.name, self.telemetry, self.tier.worker.queue
        telemetry.queue_depth.labels(name).set(queue.waiting)
        telemetry.wait_seconds.labels(name).set(queue.ahead_s)
        for upstream in self.tier.upstreams.values():
            link = f"{name}-{upstream.target}"
            telemetry.breaker_open.labels(link).set(upstream.is_down)
            ejected = [one.breaker.open for one in upstream.replicas.all]
            for state, is_out in (("in", False), ("out", True)):
                telemetry.replicas.labels(link, state).set(ejected.count(is_out))
            telemetry.upstream_wait_seconds.labels(link).set(upstream.waiting_s or 0.0)
        content, media = self.telemetry.exposed(request.headers.get("accept", ""))
        return Response(content, media_type=media)

    # -- one request -----------------------------------------------------------------------------------------------

    async def _answer(
        self,
        request: Request,
        key: str | None,
        work: Callable[[bytes, str, Mapping[str, str]], Coroutine[Any, Any, _Done]],
        at_door: Callable[[], None] = lambda: None,
        adapter: Adapter = OURS,
        media: Collection[str] | None = None,
    ) -> Then:
        """Read the body, run `work`, and turn every error of ours into its document.

        `at_door` may refuse before anything is parsed, whatever the policy: a refusal under overload must cost little.
        """
        request_id, route = _request_id(request), route_of(request)
        with (
            self.traces.span(f"{request.method} {route}", request.headers, partial(described, request)) as span,
            bound_contextvars(request_id=request_id, trace_id=span.trace_id),
            self.shelf.place() as grow,
        ):
            record = Record(self.telemetry, route, span, request_id)
            headers = {"x-request-id": request_id, "traceparent": span.traceparent}
            error: BaseException
            try:
                if self.app.state.draining:
                    raise Draining("this tier is shutting down")
                authorize(request, key)
                limit, timeout_s = self.settings.max_body_bytes, self.settings.body_timeout_ms / 1e3
                body = await read(request, limit, timeout_s, grow, media=adapter.media if media is None else media)
                at_door()
                done = await while_waited_for(request, work(body, request_id, dict(headers)))
                span.facts.update(done.facts, policy=done.policy, outcome=done.outcome, status=200)
                span.stages.update(done.stages)
                headers["server-timing"] = done.timing
                done.response.headers.update(headers)
                return Then(done.response, record.end)
            except asyncio.CancelledError as raised:
                task = asyncio.current_task()
                if task is not None and task.cancelling() and not self.app.state.draining:
                    record.end()
                    raise
                error = Draining("this tier stopped before it was answered") if self.app.state.draining else raised
            except BaseException as raised:  # noqa: BLE001 - the outermost edge: a user's policy
                error = raised
            refused = self._problem(error, request_id, headers, adapter)
            outcome = "error" if refused.status_code == Failed.status else "rejected"
            span.facts.update(outcome=outcome, status=refused.status_code)
            return Then(refused, record.end)

    async def _classify(
        self,
        body: bytes,
        request_id: str,
        headers: Mapping[str, str],
        events: Events | None = None,
        adapter: Adapter = OURS,
    ) -> _Done:
        started = time.perf_counter()
        parsed = adapter.ask(body)
        if isinstance(parsed, dict) and isinstance(inputs := parsed.get("inputs"), list):
            self._check_count(inputs)
        request = validate(ClassifyRequest, parsed)
        spec = request.options.policy or name_of(self.front.default_policy)  # now: another may be loaded meanwhile
        watch = None if events is None else events.watch(headers, self.tier.worker.clock)
        answered = await self.front.classify(request, request_id, headers, watch)
        results, total_s = answered.results, time.perf_counter() - started
        timings: dict[AnswerTiming, float] = {"ensemble": _ms(answered.ensemble_s), "total": _ms(total_s)}
        answer = ClassifyResponse(
            id=request_id, model=self.model, policy=spec_of(answered.policy), results=results, timings_ms=timings
        )
        response = adapter.tell(answer)
        if self.ledger is not None:
            self.ledger.add(request, answer)
        stages = [*results[0].hops[0].timings_ms.items(), *timings.items()]
        timing = ", ".join(f"{stage};dur={ms}" for stage, ms in dict(stages).items())
        policy = spec if isinstance(spec, str) else spec["name"]
        stages_ms = {**_stages(results, self.tier.name), "ensemble": timings["ensemble"]}
        return _Done(response, policy, timing, _facts(results), stages_ms)

    async def _infer(self, body: bytes, request_id: str, headers: Mapping[str, str]) -> _Done:
        return await self._inferred(body, None, headers)

    async def _go_on(self, body: bytes, request_id: str, headers: Mapping[str, str]) -> _Done:
        head, packed = unframe(body)
        return await self._inferred(head, packed, headers)

    async def _inferred(self, body: bytes, packed: Sequence[memoryview] | None, headers: Mapping[str, str]) -> _Done:
        """Another tier's message, with a packed state for each text where it comes with states."""
        started = time.perf_counter()
        parsed = parse(body)
        if isinstance(parsed, dict) and parsed.get("version", CONTRACT_VERSION) != CONTRACT_VERSION:
            raise BadInput(f"this tier speaks contract {CONTRACT_VERSION}; its caller does not")
        request = validate(InferRequest, parsed)
        if len(request.texts) > self.settings.max_inputs:  # none at all is a probe
            self._check_count(request.texts)
        if len(request.indices) != len(request.texts):
            raise BadInput("expected one index per text")
        begun = [] if packed is None else self._states(request, packed)
        rows = await self.tier.infer(request, headers, begun)
        total = _ms(time.perf_counter() - started)
        policy = request.policy["name"] if rows else NO_POLICY
        answer = InferResponse(call=request.call, rows=rows, total_ms=total)
        least_bytes = 0 if rows else len(body)  # the answer to a probe is as long as the probe
        response = Response(answer.model_dump_json(by_alias=True).ljust(least_bytes), media_type="application/json")
        return _Done(response, policy, f"total;dur={total}", _facts(rows), _stages(rows, self.tier.name))

    def _states(self, request: InferRequest, packed: Sequence[memoryview]) -> list[State]:
        """The states of a request's texts.

        Raises:
            BadState: one that cannot be gone on from here, or not one for each text.
        """
        if not packed or len(packed) != len(request.texts):
            raise BadState(f"{len(packed)} states for {len(request.texts)} texts")
        if request.explain:
            raise BadInput("explain: a text that is explained travels as text")
        return [unpack(each, self.classifier.segment) for each in packed]

    def _check_count(self, inputs: list[Any]) -> None:
        if not inputs:
            problem = "is empty: send at least one text"
            raise BadInput(f"inputs {problem}", errors=[{"at": "inputs", "problem": problem}])
        if len(inputs) > self.settings.max_inputs:
            raise TooLarge(f"{len(inputs)} inputs; at most {self.settings.max_inputs} in one request")

    def _problem(
        self,
        error: BaseException,
        request_id: str,
        headers: Mapping[str, str] | None = None,
        adapter: Adapter = OURS,
    ) -> Response:
        """An error's document. One that no caller caused is logged with its cause, and told without it."""
        if not isinstance(error, TierwiseError) or error.status == Failed.status:
            log.error("failed", **{"request_id": request_id, **account(error)})
            error = Failed()
        if error.rejection:
            self.telemetry.rejected.labels(self.tier.name, error.rejection).inc()
        return document(error, request_id, headers or {}, adapter.refuse)

    async def on_error(self, request: Request, error: Exception) -> Response:
        """What Starlette raises where no route fits, and what was refused or broke outside of `_answer`."""
        if not isinstance(error, HTTPException):
            return self._problem(error, _request_id(request), {"connection": "close"})
        raised = {error.status: error for error in (NoSuchPath, MethodNotAllowed)}.get(error.status_code, Refused)
        detail = f"{request.method} {request.url.path[:200]}: {error.detail}; see /docs"
        return self._problem(raised(detail), _request_id(request), error.headers)


def _ms(seconds: float) -> float:
    return round(seconds * 1e3, 3)
