"""The endpoints of a node."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Coroutine
from typing import Any

import structlog
from fastapi import FastAPI, Request, Response
from pydantic import Field
from starlette.exceptions import HTTPException

from services.node.metrics import Metrics
from services.node.settings import NodeSettings
from shared.contracts import TextPair
from shared.errors import (
    BadInput,
    Draining,
    Failed,
    MethodNotAllowed,
    NoSuchPath,
    Refused,
    TierwiseError,
)
from shared.failures import account
from shared.mesh.live import Live
from shared.mesh.topology import written
from shared.mesh.wire import BINARY, Answered, Asking, Message, Reported, Step, unframed
from shared.model.bundle import Bundle
from shared.web.body import Shelf, parse, read, validate
from shared.web.guard import authorize, while_waited_for
from shared.web.problems import document, request_id

log = structlog.get_logger()
_BODIES = 64  # full-sized ones that may be in memory at a time
JSON = "application/json"


class Asked(Message):
    """A text to classify, or a pair."""

    inputs: str | TextPair


class Told(Message):
    """Its answer. `path`: the segments that ran, each with its node."""

    id: str
    node: str
    runs: str = Field(description="computed; or slept, on recorded exits")
    label: str
    probabilities: dict[str, float]
    confidence: float
    exit_layer: int
    path: list[Step]
    ms: float


class Endpoints:
    """The endpoints of one app."""

    def __init__(
        self, app: FastAPI, settings: NodeSettings, live: Live, bundle: Bundle, door: str | None, tier: str | None
    ) -> None:
        self.app, self.settings, self.live, self.bundle = app, settings, live, bundle
        self.door_key, self.tier_key = door, tier
        self.metrics: Metrics = app.state.telemetry
        self.shelf = Shelf(_BODIES * settings.max_body_bytes)

    def add(self) -> None:
        for path, endpoint in (("classify", self.classify), ("continue", self.go_on), ("report", self.report)):
            self.app.add_api_route(f"/v1/{path}", endpoint, methods=["POST"], operation_id=path)
        gets: dict[str, Callable[..., Any]] = {
            "livez": self.livez,
            "readyz": self.readyz,
            "info": self.info,
            "metrics": self.exposed,
            "v1/mesh": self.mesh,
        }
        for path, answer in gets.items():
            self.app.add_api_route(f"/{path}", answer, methods=["GET"], response_model=None)
        for error in (HTTPException, TierwiseError, Exception):
            self.app.add_exception_handler(error, self.on_error)

    async def classify(self, request: Request) -> Response:
        """A text to answer, here or with the neighbours."""
        return await self._answer(request, self.door_key, {JSON}, self._classify)

    async def go_on(self, request: Request) -> Response:
        """A neighbour's text that goes on from its state."""
        return await self._answer(request, self.tier_key, {BINARY}, self._go_on)

    async def report(self, request: Request) -> Response:
        """This node's report."""
        return await self._answer(request, self.tier_key, {JSON}, self._report)

    async def livez(self) -> dict[str, str]:
        return {"status": "alive"}

    async def readyz(self, request: Request) -> Response:
        if self.app.state.draining:
            return self._problem(Draining("this node is shutting down"), request_id(request))
        return Response('{"status":"ready"}', media_type=JSON)

    async def info(self) -> dict[str, Any]:
        runs, settings = self.live.runs, self.settings
        return {
            "node": settings.tier,
            "bundle": self.bundle.name,
            "card_sha256": self.bundle.digest,
            "labels": list(self.bundle.labels),
            "runs": runs.kind,
            "runs_on": runs.runs_on,
            "ends": list(runs.ends),
            "held": written(self.live.node.held),
            "service_ms": settings.service_ms,
            "adapt": settings.adapt.value,
            "links": [
                {"to": name, "backend": way.backend.value, "profile": way.profile.name}
                for name, way in self.live.ways.items()
            ],
        }

    async def exposed(self) -> Response:
        content, media = self.metrics.exposed()
        return Response(content, media_type=media)

    async def mesh(self) -> dict[str, Any]:
        """Queues, source and neighbours, now."""
        live, node = self.live, self.live.node
        return {
            "node": node.name,
            "held": written(node.held),
            "waiting": len(node.waiting),
            "leaving": len(node.leaving),
            "service_ms": [None if seconds is None else round(seconds * 1e3, 3) for seconds in node.service_s],
            "threshold": live.source.threshold,
            "gap_ms": round(live.source.gap_s * 1e3, 3),
            "admitted": live.source.admitted,
            "counts": vars(live.counts),
            "neighbours": {
                name: {
                    "away": neighbour.away,
                    "held": neighbour.report.held and written(neighbour.report.held),
                    "waiting": neighbour.report.waiting,
                    "delay_ms": None if neighbour.delay_s is None else round(neighbour.delay_s * 1e3, 3),
                }
                for name, neighbour in node.neighbours.items()
            },
        }

    # -- one request ------------------------------------------------------------------------------------------------

    async def _answer(
        self,
        request: Request,
        key: str | None,
        media: Collection[str],
        work: Callable[[bytes, str], Coroutine[Any, Any, Response]],
    ) -> Response:
        """Read the body, run `work`, and turn every error of ours into its document."""
        named, limits = request_id(request), self.settings
        try:
            with self.shelf.place() as grow:
                if self.app.state.draining:
                    raise Draining("this node is shutting down")
                authorize(request, key)
                body = await read(request, limits.max_body_bytes, limits.body_timeout_ms / 1e3, grow, media=media)
                response = await while_waited_for(request, work(body, named))
                response.headers["x-request-id"] = named
                return response
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling() and not self.app.state.draining:
                raise
            return self._problem(Draining("this node stopped before it was answered"), named)
        except Exception as error:  # noqa: BLE001 - the outermost edge
            return self._problem(error, named)

    async def _classify(self, body: bytes, named: str) -> Response:
        began, asked = time.perf_counter(), validate(Asked, parse(body)).inputs
        text, pair = (asked, None) if isinstance(asked, str) else (asked.text, asked.text_pair)
        if not text.strip():
            raise BadInput("inputs: expected a text that is not blank")
        answer = await self.live.classify(text, pair, named)
        top = max(range(len(answer.probabilities)), key=answer.probabilities.__getitem__)
        told = Told(
            id=named,
            node=self.settings.tier,
            runs=self.live.runs.kind,
            label=self.bundle.labels[top],
            probabilities=dict(zip(self.bundle.labels, answer.probabilities, strict=True)),
            confidence=answer.probabilities[top],
            exit_layer=answer.exit_layer,
            path=list(answer.path),
            ms=_ms_since(began),
        )
        return Response(told.model_dump_json(), media_type=JSON)

    async def _go_on(self, body: bytes, named: str) -> Response:
        began = time.perf_counter()
        going, packed = unframed(body)
        item = self.live.runs.unpacked(packed, going.text_sha256, going.segment)
        answer = await self.live.go_on(going, item)
        answered = Answered(
            call=going.call,
            probabilities=list(answer.probabilities),
            exit_layer=answer.exit_layer,
            path=list(answer.path),
            held_ms=_ms_since(began),
            reported=self._reported(going.call),
        )
        return Response(answered.model_dump_json(), media_type=JSON)

    async def _report(self, body: bytes, named: str) -> Response:
        asking = validate(Asking, parse(body))
        return Response(self._reported(asking.call).model_dump_json(), media_type=JSON)

    def _reported(self, call: str) -> Reported:
        return Reported.of(call, self.live.report())

    def _problem(self, error: BaseException, named: str) -> Response:
        """An error's document. One that no caller caused is logged with its cause, and told without it."""
        if not isinstance(error, TierwiseError) or error.status == Failed.status:
            log.error("failed", request_id=named, **account(error))
            error = Failed()
        if error.rejection:
            self.metrics.rejected.labels(self.settings.tier, error.rejection).inc()
        return document(error, named, {})

    async def on_error(self, request: Request, error: Exception) -> Response:
        """What Starlette raises where no route fits."""
        if isinstance(error, HTTPException):
            raised = {each.status: each for each in (NoSuchPath, MethodNotAllowed)}.get(error.status_code, Refused)
            error = raised(f"{request.method} {request.url.path[:200]}: {error.detail}")
        return self._problem(error, request_id(request))


def _ms_since(began: float) -> float:
    return round((time.perf_counter() - began) * 1e3, 3)
