"""The paths of other services' APIs. All ask the tier's one surface: its keys, limits, queue, log lines and counts."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import Request, Response
from pydantic import BaseModel

from shared import __version__
from shared.errors import Draining, Failed, HeadersTooLarge, ModelStopped, NoSuchPath, Refused
from shared.web.adapters.base import JSON
from shared.web.adapters.huggingface import (
    Predict,
    PredictRequest,
    PredictResponse,
    Task,
    TaskRequest,
    TaskResponse,
    TeiError,
)
from shared.web.adapters.v2 import (
    Infer,
    V2Error,
    V2InferRequest,
    V2InferResponse,
    V2Model,
    V2Ready,
    check_model,
    described,
)
from shared.web.health import Health
from shared.web.openapi import KEYED, body_of, problems, refusals
from shared.web.surface import ERRORS, Surface

_MODEL = "/v2/models/{name}"
_VERSION = _MODEL + "/versions/{version}"
_Endpoint = Callable[..., Awaitable[Any]]
_ANY = (Refused, HeadersTooLarge)  # of any request


def _named(path: str) -> dict[str, Any]:
    """The parameter of a path that names a model, for the OpenAPI document."""
    name = {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}, "description": "the bundle"}
    return {"parameters": [name]} if "{name}" in path else {}


class Adapters:
    """The endpoints of other APIs over a surface."""

    def __init__(self, surface: Surface, health: Health) -> None:
        self._surface, self._health, bundle = surface, health, surface.bundle
        self._model = described(
            name=bundle.name,
            version=bundle.digest[:12],
            platform=f"tierwise_{surface.classifier.engine.name}",
            labels=len(bundle.labels),
        )

    def add_routes(self) -> None:
        self._post("/predict", self.predict, takes=PredictRequest, gives=PredictResponse, error=TeiError)
        self._post("/", self.task, takes=TaskRequest, gives=TaskResponse, error=TeiError)
        self._post(f"{_MODEL}/infer", self.v2_infer, takes=V2InferRequest, gives=V2InferResponse, error=V2Error)
        self._surface.app.add_api_route(
            f"{_VERSION}/infer", self.v2_infer, methods=["POST"], response_model=None, include_in_schema=False
        )
        self._get("/health", self._health.readyz, problems(Draining, ModelStopped))
        self._get("/v2", self.server)
        self._get("/v2/health/live", self.live)
        self._get("/v2/health/ready", self.ready, refusals(V2Error, Draining, ModelStopped), gives=V2Ready)
        lost, down = refusals(V2Error, NoSuchPath), refusals(V2Error, Draining, ModelStopped)
        for path, told in ((_MODEL, True), (_VERSION, False)):
            self._get(path, self.model, lost, gives=V2Model, described=told)
            self._get(f"{path}/ready", self.model_ready, lost | down, gives=V2Ready, described=told)

    def _post(
        self,
        path: str,
        endpoint: _Endpoint,
        *,
        takes: type[BaseModel],
        gives: type[BaseModel],
        error: type[BaseModel],
    ) -> None:
        more = (NoSuchPath,) if "{" in path else ()
        security = {"security": KEYED} if self._surface.keys.door else {}
        self._surface.app.add_api_route(
            path,
            endpoint,
            methods=["POST"],
            operation_id=endpoint.__name__,
            response_model=gives,
            responses=refusals(error, *ERRORS, *more, Failed),
            openapi_extra={"requestBody": body_of(takes), **_named(path), **security},
        )

    def _get(
        self,
        path: str,
        endpoint: _Endpoint,
        responses: dict[int | str, dict[str, Any]] | None = None,
        *,
        gives: type[BaseModel] | None = None,
        described: bool = True,
    ) -> None:
        name = path.strip("/").replace("/{name}", "").replace("/", "_")
        self._surface.app.add_api_route(
            path,
            endpoint,
            methods=["GET"],
            operation_id=name,
            responses=problems(*_ANY) | (responses or {}),
            response_model=gives,
            openapi_extra=_named(path),
            include_in_schema=described,
        )

    async def predict(self, request: Request) -> Response:
        """text-embeddings-inference: predict labels."""
        return await self._surface.adapted(request, Predict())

    async def task(self, request: Request) -> Response:
        """Hugging Face's API: text classification."""
        return await self._surface.adapted(request, Task())

    async def v2_infer(self, request: Request) -> Response:
        """Open Inference Protocol: infer."""
        return await self._surface.adapted(request, self._infer(request))

    async def server(self) -> dict[str, Any]:
        """Open Inference Protocol: this server."""
        return {"name": "tierwise", "version": __version__, "extensions": ["binary_tensor_data"]}

    async def live(self) -> dict[str, bool]:
        """Open Inference Protocol: whether this tier lives."""
        return {"live": True}

    async def ready(self, request: Request) -> Response:
        """Open Inference Protocol: whether this tier takes requests."""
        return self._told(request, V2Ready(ready=True), ready=True)

    async def model(self, request: Request) -> Response:
        """Open Inference Protocol: what the model takes and gives."""
        return self._told(request, self._model)

    async def model_ready(self, request: Request) -> Response:
        """Open Inference Protocol: whether the model takes requests."""
        return self._told(request, V2Ready(name=self._model.name, ready=True), ready=True)

    def _infer(self, request: Request) -> Infer:
        return Infer(self._model, request, self._surface.settings.max_inputs)

    def _told(self, request: Request, content: BaseModel, *, ready: bool = False) -> Response:
        """What a GET asks for; `ready`: unless this tier takes no requests."""
        try:
            check_model(self._model, request.path_params)
            if ready:
                self._health.check()
        except (NoSuchPath, Draining, ModelStopped) as error:
            return self._surface.refused(request, error, self._infer(request))
        return Response(content.model_dump_json(exclude_none=True), media_type=JSON)
