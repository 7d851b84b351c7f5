"""A tier's OpenAPI document: what FastAPI cannot know, and routes of our own.

Bodies are read by hand, so their schemas are added; with them problem documents (RFC 9457), a stream's events and keys.
Every schema stands under `components/schemas`: generators of clients follow no other reference.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from shared.contracts import ClassifyRequest, ExitEvent, HopEvent, InferRequest, LinkChange, Problem
from shared.errors import TierwiseError
from shared.model.state import STATES_TYPE
from shared.web.adapters.huggingface import PredictRequest, TaskRequest, TeiError
from shared.web.adapters.v2 import V2Error, V2InferRequest
from shared.web.problems import PROBLEM_TYPE

_KEY = "key"
_SCHEMAS = "#/components/schemas/"
KEYED: list[dict[str, Any]] = [{_KEY: []}]  # the `security` of a route that asks for a key
STREAM_TYPE = "text/event-stream"
_EVENTS = "`exit`: ExitEvent, `hop`: HopEvent, and last `final`: ClassifyResponse, or `error`: Problem"
STREAMED: dict[int | str, dict[str, Any]] = {  # the `responses` of a route that may stream
    200: {
        "description": "The answer; server-sent events if the request accepts them",
        "content": {STREAM_TYPE: {"schema": {"type": "string", "description": _EVENTS}}},
    }
}


def body_of(message: type[BaseModel]) -> dict[str, Any]:
    """The `requestBody` of a route that takes a message."""
    return {"content": {"application/json": {"schema": _ref(message)}}, "required": True}


def states_of(message: type[BaseModel]) -> dict[str, Any]:
    """The `requestBody` of a route that takes a message with states behind it."""
    told = f"a {message.__name__} in JSON, then a packed state for each text; each part with its length (u32) before it"
    schema = {"type": "string", "format": "binary", "description": told}
    return {"content": {STATES_TYPE: {"schema": schema}}, "required": True}


def problems(*errors: type[TierwiseError]) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route that may answer with these errors."""
    return refusals(Problem, *errors, media=PROBLEM_TYPE)


def refusals(
    form: type[BaseModel], *errors: type[TierwiseError], media: str = "application/json"
) -> dict[int | str, dict[str, Any]]:
    """The same, of a route that tells errors in another form."""
    content = {media: {"schema": _ref(form)}}
    return {error.status: {"description": error.title, "content": content} for error in errors}


class Described(APIRoute):
    """A route whose endpoint takes the request alone: FastAPI describes it, and solves nothing when it is called."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        return self.endpoint


def _ref(message: type[BaseModel]) -> dict[str, Any]:
    return {"$ref": _SCHEMAS + message.__name__}


def complete(app: FastAPI) -> None:
    """Add to the document what the routes refer to."""
    generated = app.openapi

    def document() -> dict[str, Any]:
        _, added = models_json_schema(
            [
                (ClassifyRequest, "validation"),
                (InferRequest, "validation"),
                (LinkChange, "validation"),
                (Problem, "serialization"),
                (ExitEvent, "serialization"),
                (HopEvent, "serialization"),
                (PredictRequest, "validation"),
                (TaskRequest, "validation"),
                (TeiError, "serialization"),
                (V2InferRequest, "validation"),
                (V2Error, "serialization"),
            ],
            ref_template=_SCHEMAS + "{model}",
        )
        components = (described := generated()).setdefault("components", {})
        components["schemas"] = {**added["$defs"], **components.get("schemas", {})}
        components["securitySchemes"] = {_KEY: {"type": "http", "scheme": "bearer"}}
        return described

    app.openapi = document  # type: ignore[method-assign]
