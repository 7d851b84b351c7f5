"""A tier's OpenAPI document: what FastAPI cannot know (problem documents, RFC 9457; keys), and routes of our own."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.routing import APIRoute

from shared.contracts import Problem
from shared.errors import TierwiseError
from shared.web.problems import PROBLEM_TYPE

_KEY = "key"
KEYED: list[dict[str, Any]] = [{_KEY: []}]  # the `security` of a route that asks for a key


def problems(*errors: type[TierwiseError]) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route that may answer with these errors."""
    content = {PROBLEM_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {error.status: {"description": error.title, "content": content} for error in errors}


class Described(APIRoute):
    """A route whose endpoint takes the request alone: FastAPI describes it, and solves nothing when it is called."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        return self.endpoint


def complete(app: FastAPI) -> None:
    """Add to the document what the routes refer to."""
    generated = app.openapi

    def document() -> dict[str, Any]:
        components = (described := generated()).setdefault("components", {})
        components.setdefault("schemas", {})["Problem"] = Problem.model_json_schema()
        components["securitySchemes"] = {_KEY: {"type": "http", "scheme": "bearer"}}
        return described

    app.openapi = document  # type: ignore[method-assign]
