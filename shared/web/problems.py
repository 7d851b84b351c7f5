"""An error as its problem document (RFC 9457). The class of the error says what it means (`shared/errors.py`)."""

from __future__ import annotations

import math
import re
import uuid
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus

from fastapi import Request, Response
from pydantic import BaseModel

from shared.contracts import Problem
from shared.errors import TierwiseError, Unauthorized

PROBLEM_TYPE = "application/problem+json"
_LONGEST = 500  # characters of a detail
_ID = re.compile(r"[A-Za-z0-9_.-]{1,64}")


def request_id(request: Request) -> str:
    """The id that its caller gave a request, or a new one."""
    given = request.headers.get("x-request-id", "")
    return given if _ID.fullmatch(given) else uuid.uuid4().hex


def document(
    error: TierwiseError,
    request_id: str,
    headers: Mapping[str, str],
    form: Callable[[Problem], BaseModel] = lambda problem: problem,
) -> Response:
    """The response that tells a caller of an error, in the form that its API has for errors."""
    detail = str(error).encode(errors="backslashreplace").decode()  # it may quote a lone surrogate
    problem = Problem(
        type=f"urn:tierwise:{error.kind}",
        title=error.title,
        status=error.status,
        detail=detail if len(detail) <= _LONGEST else f"{detail[:_LONGEST]}...",  # it may quote what was sent
        request_id=request_id,
        errors=[dict(each) for each in error.errors],
    )
    out = {**headers, "x-request-id": request_id}
    if error.retry_after_s is not None:
        out["retry-after"] = str(math.ceil(max(1.0, error.retry_after_s)))
    if isinstance(error, Unauthorized):
        out["www-authenticate"] = "Bearer"
    if error.hangs_up:
        out["connection"] = "close"
    told = form(problem)
    return Response(told.model_dump_json(), error.status, out, PROBLEM_TYPE if told is problem else "application/json")


def as_bytes(answer: Response, headers: Sequence[tuple[bytes, bytes]] = ()) -> bytes:
    """A response with further headers as it travels, for a connection whose request reaches no app."""
    status = f"HTTP/1.1 {answer.status_code} {HTTPStatus(answer.status_code).phrase}\r\n"
    lines = [b"%b: %b\r\n" % header for header in (*headers, *answer.raw_headers)]
    return b"".join([status.encode(), *lines, b"\r\n", bytes(answer.body)])
