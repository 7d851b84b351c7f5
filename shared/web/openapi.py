"""What FastAPI cannot know about a tier's OpenAPI document: problem documents (RFC 9457) and keys."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from shared.contracts import Problem
from shared.errors import TierwiseError
from shared.web.problems import PROBLEM_TYPE

_KEY = "key"
KEYED: list[dict[str, Any]] = [{_KEY: []}]  # the `security` of a route that asks for a key


def problems(*errors: type[TierwiseError]) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route that may answer with these errors."""
    content = {PROBLEM_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {error.status: {"description": error.title, "content": content} for error in errors}


def complete(app: FastAPI) -> None:
    """Add to the document what the routes refer to."""
    generated = app.openapi

    def document() -> dict[str, Any]:
        components = (described := generated()).setdefault("components", {})
        components.setdefault("schemas", {})["Problem"] = Problem.model_json_schema()
        components["securitySchemes"] = {_KEY: {"type": "http", "scheme": "bearer"}}
        return described

    app.openapi = document  # type: ignore[method-assign]
