"""The HTTP surface of a tier: the same on every one.

`create_app(settings, network=..., transport=...)`: the model and the way to the upstreams are passed in by tests.
Pure ASGI only: `BaseHTTPMiddleware` breaks disconnect detection.
"""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import httpx
import structlog
from fastapi import FastAPI, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from shared import __version__
from shared.body import Refused, parse, read, validate
from shared.bundle import Bundle, load_bundle
from shared.contracts import (
    CONTRACT_VERSION,
    ClassifyRequest,
    ClassifyResponse,
    InferRequest,
    InferResponse,
    Problem,
)
from shared.errors import BadInput, BadSetting, DeadlinePassed, Draining, QueueFull, TierwiseError
from shared.ledger import Ledger
from shared.link import Backend, ShapedLinks
from shared.network import Network, load_network
from shared.policies import name_of, named, names, spec_of
from shared.settings import Settings
from shared.telemetry import NO_POLICY, Telemetry
from shared.tier import Tier
from shared.upstream import Upstream
from shared.worker import Worker

log = structlog.get_logger()
_ID = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_TRACE = re.compile(r"00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


# class -> (status, problem type, label of rejected_total): the one table
_STATUS: dict[type[TierwiseError], tuple[int, str, str]] = {
    BadInput: (422, "bad-input", "invalid"),
    QueueFull: (429, "queue-full", "queue_full"),
    Draining: (503, "draining", "draining"),
    DeadlinePassed: (504, "deadline-passed", "deadline"),
}
_REFUSALS = {400: "bad_request", 413: "too_large", 415: "unsupported_media", 422: "invalid"}
_TITLES = {
    400: "Not JSON",
    404: "No such path",
    405: "Method not allowed",
    413: "Too large",
    415: "Send application/json",
    422: "Cannot classify this",
    429: "Too busy",
    503: "Shutting down",
    504: "Deadline passed",
}


def create_app(
    settings: Settings, *, network: Network | None = None, transport: httpx.AsyncBaseTransport | None = None
) -> FastAPI:
    """A tier as an ASGI app. Everything is loaded here, so a started app is a ready one.

    Raises:
        BadSetting: a bundle, tier, link or policy that does not exist, or weights that do not fit.
    """
    bundle = load_bundle(settings.bundle)
    settings.check(bundle.order)
    model = network or _load(settings, bundle)
    telemetry = Telemetry(
        tier=settings.tier,
        tiers=bundle.order,
        policies=names(bundle.order),
        layers=bundle.tiers[settings.tier].layers,
        labels=bundle.labels,
        upstreams=list(settings.upstreams),
    )
    worker = Worker(model, threads=settings.threads, limit=settings.queue_limit)
    shaped = _shaped_links(settings)
    upstreams = [
        Upstream(
            source=settings.tier,
            target=target,
            url=url,
            backend=settings.links,
            profile_name=settings.link_profiles[target],
            timeout_s=settings.upstream_timeout_ms / 1e3,
            shaped=shaped,
            transport=transport,
        )
        for target, url in settings.upstreams.items()
    ]
    tier = Tier(
        name=settings.tier,
        bundle=bundle,
        worker=worker,
        upstreams=upstreams,
        telemetry=telemetry,
        default_policy=named(settings.policy),
        state_dir=settings.state_dir,
    )
    telemetry.info.labels(settings.tier, __version__, bundle.name, model.encoder.device.type).set(1)

    ledger = _ledger(settings, telemetry)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        log.info("ready", tier=settings.tier, bundle=bundle.name, card=bundle.digest[:12], port=settings.port)
        yield
        app.state.draining = True
        for upstream in upstreams:
            await upstream.close()
        worker.close()
        await tier.states.close()
        if ledger is not None:
            ledger.close()

    app = FastAPI(title=f"Tierwise {settings.tier}", version=__version__, lifespan=lifespan, redirect_slashes=False)
    app.state.draining = False
    app.state.tier, app.state.ledger = tier, ledger
    surface = _Surface(app, settings, bundle, model, tier, ledger)
    surface.add_routes()
    return app


def _ledger(settings: Settings, telemetry: Telemetry) -> Ledger | None:
    if settings.ledger is None:
        return None
    lines, tier = telemetry.ledger_lines, settings.tier
    return Ledger(
        settings.ledger,
        tier=tier,
        texts=settings.ledger_texts,
        count=lambda outcome, count: lines.labels(tier, outcome).inc(count),
    )


def _shaped_links(settings: Settings) -> ShapedLinks | None:
    """The shaper's word on this tier's links: without it, a run on netem would only look shaped."""
    if settings.links is not Backend.NETEM:
        return None
    shaped = ShapedLinks(settings.link_state_dir)
    missing = [target for target in settings.upstreams if not shaped.in_force(f"{settings.tier}-{target}")]
    if missing:
        raise BadSetting(
            f"TIERWISE_LINKS=netem, but {settings.link_state_dir / ShapedLinks.FILE} names no shaped link to "
            f"{', '.join(missing)}: start this tier's shaper, or set TIERWISE_LINKS=simulated"
        )
    return shaped


def _load(settings: Settings, bundle: Bundle) -> Network:
    import torch

    device = settings.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise BadSetting("TIERWISE_DEVICE=cuda: torch sees no CUDA device; use auto or cpu")
    torch.set_num_threads(settings.threads)
    model = bundle.tiers[settings.tier]
    network = load_network(
        bundle.folder / model.network, layers=model.layers, max_tokens=model.max_tokens, device=device
    )
    card, tier = bundle.card, settings.tier
    if settings.calibration == "per_exit" and tier in card.temperatures:
        temperatures = card.temperatures[tier]
    else:
        temperatures = [card.model_temperatures.get(tier, 1.0)] * model.layers
    network.encoder.temperatures.copy_(torch.tensor(temperatures))
    return network


class _Surface:
    """The endpoints of one app."""

    def __init__(
        self, app: FastAPI, settings: Settings, bundle: Bundle, network: Network, tier: Tier, ledger: Ledger | None
    ) -> None:
        self.app, self.settings, self.bundle, self.network, self.tier = app, settings, bundle, network, tier
        self.ledger = ledger
        self.telemetry = tier.telemetry

    def add_routes(self) -> None:
        add = self.app.add_api_route
        for path, endpoint, takes, gives in (
            ("/v1/classify", self.classify, ClassifyRequest, ClassifyResponse),
            ("/v1/infer", self.infer, InferRequest, InferResponse),
        ):
            here = f"#/paths/{path.replace('/', '~1')}/post/requestBody/content/application~1json/schema"
            schema = takes.model_json_schema(ref_template=here + "/$defs/{model}")
            body = {"content": {"application/json": {"schema": schema}}, "required": True}
            problems = {status: {"model": Problem} for status in (400, 413, 415, 422, 429, 503, 504)}
            add(
                path,
                endpoint,
                methods=["POST"],
                response_model=gives,
                responses=problems,  # type: ignore[arg-type]
                openapi_extra={"requestBody": body},
            )
        add("/livez", self.livez, methods=["GET"])
        add("/readyz", self.readyz, methods=["GET"])
        add("/info", self.info, methods=["GET"])
        add("/metrics", self.metrics, methods=["GET"], response_class=Response)
        self.app.add_exception_handler(HTTPException, self.on_http_error)

    async def classify(self, request: Request) -> Response:
        return await self._answer(request, self._classify)

    async def infer(self, request: Request) -> Response:
        return await self._answer(request, self._infer)

    async def livez(self) -> dict[str, str]:
        return {"status": "alive"}

    async def readyz(self, request: Request) -> Response:
        if self.app.state.draining:
            return self._problem(Draining("this tier is shutting down"), _request_id(request))
        return Response('{"status":"ready"}', media_type="application/json")

    async def info(self) -> dict[str, Any]:
        import torch
        import transformers

        model = self.bundle.tiers[self.tier.name]
        policy = self.tier.default_policy
        return {
            "tier": self.tier.name,
            "bundle": self.bundle.name,
            "card_sha256": self.bundle.digest,
            "labels": list(self.bundle.labels),
            "layers": model.layers,
            "exits": model.layers,
            "max_tokens": model.max_tokens,
            "policy": spec_of(policy),
            "learned": self.tier.states.described(),
            "limits": {
                "max_inputs": self.settings.max_inputs,
                "max_body_bytes": self.settings.max_body_bytes,
                "queue_limit": self.settings.queue_limit,
                "upstream_timeout_ms": self.settings.upstream_timeout_ms,
            },
            "links": [
                {"to": u.target, "url": u.url, "backend": u.link[0].value, "profile": u.link[1].name}
                for u in self.tier.upstreams.values()
            ],
            "device": str(self.network.encoder.device),
            "dtype": str(next(self.network.encoder.layers.parameters()).dtype).removeprefix("torch."),
            "threads": self.settings.threads,
            "versions": {
                "tierwise": __version__,
                "contract": CONTRACT_VERSION,
                "torch": torch.__version__,
                "transformers": transformers.__version__,
            },
        }

    async def metrics(self) -> Response:
        self.telemetry.queue_depth.labels(self.tier.name).set(self.tier.worker.waiting)
        return Response(generate_latest(self.telemetry.registry), media_type=CONTENT_TYPE_LATEST)

    # -- one request -----------------------------------------------------------------------------------------------

    async def _answer(
        self,
        request: Request,
        work: Callable[[Any, str, Mapping[str, str]], Awaitable[tuple[BaseModel, str, str, str]]],
    ) -> Response:
        """Parse, run `work`, and turn every error of ours into its problem document; counted once, here.

        `work` gives the answer, its outcome, the name of its policy, and the value of `Server-Timing`.
        """
        started, request_id = time.perf_counter(), _request_id(request)
        inflight = self.telemetry.inflight.labels(self.tier.name)
        headers = {"x-request-id": request_id}
        if _TRACE.fullmatch(trace := request.headers.get("traceparent", "")):
            headers["traceparent"] = trace
        outcome, policy = "error", NO_POLICY
        inflight.inc()
        try:
            if self.app.state.draining:
                raise Draining("this tier is shutting down")
            parsed = parse(await read(request, self.settings.max_body_bytes))
            answer, outcome, policy, timing = await work(parsed, request_id, headers)
            headers["server-timing"] = timing
            return Response(answer.model_dump_json(by_alias=True), media_type="application/json", headers=headers)
        except TierwiseError as error:
            outcome = "rejected"
            return self._problem(error, request_id, headers)
        finally:
            inflight.dec()
            self.telemetry.request(outcome, policy, time.perf_counter() - started)

    async def _classify(
        self, parsed: Any, request_id: str, headers: Mapping[str, str]
    ) -> tuple[ClassifyResponse, str, str, str]:
        started = time.perf_counter()
        if isinstance(parsed, dict) and isinstance(inputs := parsed.get("inputs"), list):
            self._check_count(inputs)
        request = validate(ClassifyRequest, parsed)
        answered = await self.tier.classify(request, request_id, headers)
        results = answered.results
        total = (time.perf_counter() - started) * 1e3
        timings = {"ensemble": round(answered.ensemble_s * 1e3, 3), "total": round(total, 3)}
        answer = ClassifyResponse(
            id=request_id,
            model=f"{self.bundle.name}@{self.bundle.digest[:12]}",
            results=results,
            timings_ms=timings,  # type: ignore[arg-type]
        )
        if self.ledger is not None:
            self.ledger.add(request, answer, spec_of(answered.policy))
        stages: Mapping[str, float] = dict(results[0].hops[0].timings_ms) | timings
        timing = ", ".join(f"{stage};dur={ms}" for stage, ms in stages.items())
        spec = request.options.policy or name_of(self.tier.default_policy)
        policy = spec if isinstance(spec, str) else spec["name"]
        return answer, "degraded" if any(result.degraded for result in results) else "ok", policy, timing

    async def _infer(
        self, parsed: Any, request_id: str, headers: Mapping[str, str]
    ) -> tuple[InferResponse, str, str, str]:
        started = time.perf_counter()
        request = validate(InferRequest, parsed)
        self._check_count(request.texts)
        if request.version != CONTRACT_VERSION or len(request.indices) != len(request.texts):
            raise Refused(422, "bad-input", f"this tier speaks contract {CONTRACT_VERSION}, one index per text")
        rows = await self.tier.infer(request, headers)
        total = round((time.perf_counter() - started) * 1e3, 3)
        outcome = "degraded" if any(row.degraded for row in rows) else "ok"
        return InferResponse(rows=rows, total_ms=total), outcome, request.policy["name"], f"total;dur={total}"

    def _check_count(self, inputs: list[Any]) -> None:
        if not inputs:
            raise Refused(422, "bad-input", "inputs is empty: send at least one text")
        if len(inputs) > self.settings.max_inputs:
            raise Refused(413, "too-large", f"{len(inputs)} inputs; at most {self.settings.max_inputs} in one request")

    def _problem(self, error: TierwiseError, request_id: str, headers: Mapping[str, str] | None = None) -> Response:
        if isinstance(error, Refused):
            status, kind, reason, errors = error.status, error.kind, _REFUSALS.get(error.status), error.errors
        else:
            known = next((row for base, row in _STATUS.items() if isinstance(error, base)), None)
            if known is None:
                raise error
            (status, kind, reason), errors = known, []
        if reason:
            self.telemetry.rejected.labels(self.tier.name, reason).inc()
        problem = Problem(
            type=f"urn:tierwise:{kind}",
            title=_TITLES[status],
            status=status,
            detail=str(error).encode(errors="backslashreplace").decode(),  # it may quote a lone surrogate
            request_id=request_id,
            errors=errors,
        )
        out = {**(headers or {}), "x-request-id": request_id}
        if status in (429, 503):
            out["retry-after"] = "1"
        return Response(problem.model_dump_json(), status, out, media_type="application/problem+json")

    async def on_http_error(self, request: Request, error: Exception) -> Response:
        """404 and 405, as Starlette raises them."""
        assert isinstance(error, HTTPException)
        kind = {404: "no-such-path", 405: "method-not-allowed"}.get(error.status_code, "bad-request")
        detail = f"{request.method} {request.url.path}: {error.detail}; see /docs"
        return self._problem(Refused(error.status_code, kind, detail), _request_id(request), error.headers)


def _request_id(request: Request) -> str:
    given = request.headers.get("x-request-id", "")
    return given if _ID.fullmatch(given) else uuid.uuid4().hex
