"""A client of a running tier: ask it to classify, and say plainly what went wrong if it does not."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import httpx

from shared.contracts import ClassifyResponse
from shared.errors import TierwiseError


class NoAnswer(TierwiseError):
    """The tier could not be reached, or refused."""


@dataclass(frozen=True)
class Timed:
    """An answer and the seconds that the client waited for it."""

    answer: ClassifyResponse
    seconds: float


async def classify(client: httpx.AsyncClient, inputs: Any, options: dict[str, Any]) -> Timed:
    """One call to `/v1/classify`.

    Raises:
        NoAnswer: no connection, or a problem document; its detail is in the message.
    """
    started = time.perf_counter()
    try:
        answer = await client.post("/v1/classify", json={"inputs": inputs, "options": options})
    except httpx.HTTPError as error:
        raise NoAnswer(
            f"no tier answers at {client.base_url}: {error or type(error).__name__}; try `make serve`"
        ) from error
    seconds = time.perf_counter() - started
    if answer.status_code != 200:
        raise NoAnswer(f"{answer.status_code}: {_detail(answer)}")
    return Timed(ClassifyResponse.model_validate_json(answer.content), seconds)


def _detail(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["detail"])
    except (ValueError, KeyError, TypeError):
        return answer.text[:200]
