"""From the bytes of a request to a model of the contract, or to the refusal that the contract's table names.

Parsing is ours, not FastAPI's: its default error echoes the input, and a lone surrogate or NaN in that echo is a 500.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect

from shared.errors import Refused, plain

_MAX_DEPTH, _MAX_VALUES = 32, 10_000  # walking and refusing more would keep the event loop from everybody else
M = TypeVar("M", bound=BaseModel)


async def read(request: Request, limit: int, timeout_s: float) -> bytes:
    """The body, refused by its type first, and by its size or slowness before it is read to the end."""
    media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media != "application/json":
        raise Refused(415, "unsupported-media", f"content type {media or 'missing'}; send application/json")
    if (coding := request.headers.get("content-encoding", "identity").lower()) != "identity":
        raise Refused(415, "unsupported-media", f"content encoding {coding}; send the JSON as it is")
    too_large = Refused(413, "too-large", f"the body is over {limit} bytes")
    length = request.headers.get("content-length", "0")
    if length.isdecimal() and int(length) > limit:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(timeout_s):
            async for chunk in request.stream():
                body += chunk
                if len(body) > limit:
                    raise too_large
    except TimeoutError as error:
        raise Refused(408, "slow-body", f"the body took over {timeout_s:g} s") from error
    except ClientDisconnect as error:
        raise Refused(400, "bad-request", "the caller left before the body was read") from error
    return bytes(body)


def parse(body: bytes) -> Any:
    """Strict JSON: UTF-8, no NaN or Infinity, at most 32 levels deep, at most 10,000 values."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    try:
        parsed = json.loads(body.decode("utf-8"), parse_constant=refuse)
        level, depth, values = [parsed], 0, 1
        while level := [inner for outer in level for inner in _children(outer)]:
            depth += 1
            values += len(level)
            if values > _MAX_VALUES:
                raise Refused(413, "too-large", f"the body holds over {_MAX_VALUES} values")
            if depth > _MAX_DEPTH:
                raise ValueError(f"nested more than {_MAX_DEPTH} deep")
        return parsed
    except (ValueError, RecursionError) as error:
        why = f"nested more than {_MAX_DEPTH} deep" if isinstance(error, RecursionError) else error
        if "integer string conversion" in str(error):
            why = "a number has thousands of digits"
        raise Refused(400, "bad-json", f"the body is not JSON: {why}") from error


def _children(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def validate(model: type[M], parsed: Any) -> M:
    """A model from parsed JSON; every problem is named by its place in the body, without echoing its value."""
    try:
        return model.model_validate(parsed)
    except ValidationError as error:
        problems = [
            {"at": _place(parsed, e["loc"], e["type"]), "problem": in_words(e["type"], e["msg"])}
            for e in error.errors(include_url=False, include_input=False, include_context=False)
        ]
        first = f"{problems[0]['at']}: {problems[0]['problem']}"
        raise Refused(422, "bad-input", first[:500], problems[:20]) from error


def in_words(kind: str, message: str) -> str:
    """A validation error for a caller, who knows nothing of the library that found it."""
    if kind == "union_tag_invalid":
        return 'expected a text, or {"text": ..., "text_pair": ...}'
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        return "expected a JSON object"
    return plain(message)


def _place(parsed: Any, loc: tuple[int | str, ...], kind: str) -> str:
    """Where in the body an error is, `inputs.1.text_pair`: pydantic's `loc` without the names of union members."""
    path = []
    for part in loc:
        inside = part in parsed if isinstance(parsed, dict) else isinstance(parsed, list) and isinstance(part, int)
        if inside:
            parsed = parsed[part]
        if inside or (kind == "missing" and part == loc[-1]):
            path.append(str(part))
    return ".".join(path) or "body"
