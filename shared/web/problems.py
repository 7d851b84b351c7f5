"""An error as its problem document (RFC 9457). The class of the error says what it means (`shared/errors.py`)."""

from __future__ import annotations

import math
from collections.abc import Mapping

from fastapi import Response

from shared.contracts import Problem
from shared.errors import TierwiseError, Unauthorized

PROBLEM_TYPE = "application/problem+json"


def problem(error: TierwiseError, request_id: str) -> Problem:
    """What a caller is told of an error."""
    detail = str(error).encode(errors="backslashreplace").decode()  # it may quote a lone surrogate
    return Problem(
        type=f"urn:tierwise:{error.kind}",
        title=error.title,
        status=error.status,
        detail=_shortened(detail),
        request_id=request_id,
        errors=[dict(each) for each in error.errors],
    )


def document(error: TierwiseError, request_id: str, headers: Mapping[str, str]) -> Response:
    """The response that carries the problem."""
    out = {**headers, "x-request-id": request_id}
    if error.retry_after_s is not None:
        out["retry-after"] = str(math.ceil(max(1.0, error.retry_after_s)))
    if isinstance(error, Unauthorized):
        out["www-authenticate"] = "Bearer"
    if error.hangs_up:
        out["connection"] = "close"
    content = problem(error, request_id).model_dump_json()
    return Response(content, error.status, out, media_type=PROBLEM_TYPE)


def _shortened(text: str, limit: int = 500) -> str:
    """What a caller sent may be quoted, not sent back whole."""
    return text if len(text) <= limit else f"{text[:limit]}..."
