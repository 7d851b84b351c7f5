"""Every error of ours as its problem document (RFC 9457): class -> status -> type, in one table."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from fastapi import Response

from shared.contracts import Problem
from shared.errors import BadInput, CallerLeft, DeadlinePassed, Draining, QueueFull, Refused, TierwiseError

# class -> (status, problem type, label of rejected_total)
_STATUS: dict[type[TierwiseError], tuple[int, str, str]] = {
    BadInput: (422, "bad-input", "invalid"),
    QueueFull: (429, "queue-full", "queue_full"),
    CallerLeft: (499, "caller-left", "abandoned"),
    Draining: (503, "draining", "draining"),
    DeadlinePassed: (504, "deadline-passed", "deadline"),
}
_INTERNAL = (500, "internal", None)  # any other error is no caller's doing
_REFUSALS = {
    400: "bad_request",
    401: "unauthorized",
    408: "slow_body",
    413: "too_large",
    415: "unsupported_media",
    422: "invalid",
    431: "too_large",
}
_TITLES = {
    400: "Bad request",
    401: "No valid key",
    404: "No such path",
    405: "Method not allowed",
    408: "The body came too slowly",
    413: "Too large",
    415: "Send application/json",
    422: "Cannot classify this",
    429: "Too busy",
    431: "Headers too large",
    499: "The caller left",
    500: "Failed inside",
    503: "Shutting down",
    504: "Deadline passed",
}


PROBLEM_TYPE = "application/problem+json"


def title(status: int) -> str:
    """What a status is called here."""
    return _TITLES.get(status, "Not possible")


@dataclass(frozen=True)
class Verdict:
    """What an error means to a caller; `reason` is its label among the rejections, if it is counted."""

    status: int
    kind: str
    reason: str | None
    errors: list[dict[str, str]] = field(default_factory=list)


def judge(error: TierwiseError) -> Verdict:
    """The verdict on an error."""
    if isinstance(error, Refused):
        return Verdict(error.status, error.kind, _REFUSALS.get(error.status), error.errors)
    return Verdict(*next((row for base, row in _STATUS.items() if isinstance(error, base)), _INTERNAL))


def document(error: TierwiseError, request_id: str, headers: Mapping[str, str]) -> Response:
    """The response that says so."""
    verdict = judge(error)
    problem = Problem(
        type=f"urn:tierwise:{verdict.kind}",
        title=title(verdict.status),
        status=verdict.status,
        detail=_shortened(str(error).encode(errors="backslashreplace").decode()),  # it may quote a lone surrogate
        request_id=request_id,
        errors=verdict.errors,
    )
    out = {**headers, "x-request-id": request_id}
    if verdict.status in (429, 503):
        wait = error.retry_after_s if isinstance(error, QueueFull) else 1.0
        out["retry-after"] = str(math.ceil(max(1.0, wait)))
    if verdict.status == 401:
        out["www-authenticate"] = "Bearer"
    if verdict.status in (401, 408, 413, 415, 431, 503):  # what is left of the body is not read
        out["connection"] = "close"
    return Response(problem.model_dump_json(), verdict.status, out, media_type=PROBLEM_TYPE)


def _shortened(text: str, limit: int = 500) -> str:
    """What a caller sent may be quoted, not sent back whole."""
    return text if len(text) <= limit else f"{text[:limit]}..."
