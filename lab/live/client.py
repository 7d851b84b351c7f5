"""A client of a running tier: ask it to classify, and say plainly what went wrong if it does not.

It shows the door's key that the tiers themselves ask for: the one in the file that `TIERWISE_DOOR_KEY_FILE` names,
or else `TIERWISE_KEY_FILE`.
"""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import dataclass
from typing import Any

import httpx
from pydantic import ValidationError

from shared.contracts import ClassifyResponse
from shared.errors import Failed, TierwiseError
from shared.links.clients import AsyncClient
from shared.web.guard import read_key
from shared.web.settings import key_path

KEYS = ("TIERWISE_DOOR_KEY_FILE", "TIERWISE_KEY_FILE")


class NoAnswer(TierwiseError):
    """The tier could not be reached, or refused."""


class TextRefused(NoAnswer):
    """The tier takes a text for what it cannot classify (413, 422): others may do."""


# of a client that measures: connections stay open between its turns
LIMITS = httpx.Limits(max_connections=256, max_keepalive_connections=256, keepalive_expiry=60)
PROBE = "a fine film"  # a text that is never the reason of a refusal


@dataclass(frozen=True)
class Timed:
    """An answer and the seconds that the client waited for it."""

    answer: ClassifyResponse
    seconds: float


def key_of(setting: str) -> str | None:
    """The key in the file that a setting names, `TIERWISE_DOOR_KEY_FILE`; null where it names none.

    One key guards a tier's whole port where only one is set, so the other setting's file will do.

    Raises:
        BadSetting: no key in that file.
    """
    for name in (setting, *KEYS):
        if named := os.environ.get(name):
            return read_key(key_path(name, named))
    return None


def connect(url: str, **options: Any) -> AsyncClient:
    """A client of the tier at `url`, with its key; `options` are httpx's own.

    Raises:
        BadSetting: no key in the file that a setting names.
    """
    key = key_of("TIERWISE_DOOR_KEY_FILE")
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    return AsyncClient(url, headers=headers, **options)


async def classify(client: AsyncClient, inputs: Any, options: dict[str, Any]) -> Timed:
    """One call to `/v1/classify`.

    Raises:
        NoAnswer: no connection, an answer that is not a tier's, or a problem document; its detail is in the message.
    """
    started = time.perf_counter()
    try:
        answer = await client.post("/v1/classify", json={"inputs": inputs, "options": options})
    except httpx.HTTPError as error:
        raise _no_answer(client, error) from error
    seconds = time.perf_counter() - started
    if answer.status_code != 200:
        refusal = TextRefused if answer.status_code in (413, 422) else NoAnswer
        raise refusal(f"{answer.status_code}: {detail_of(answer)}")
    try:
        return Timed(ClassifyResponse.model_validate_json(answer.content), seconds)
    except ValidationError as error:
        raise NoAnswer(f"what answers at {client.base_url} is no tier of ours") from error


def _no_answer(client: AsyncClient, error: httpx.HTTPError) -> NoAnswer:
    """No connection, and what would make a tier of this machine answer there."""
    url = client.base_url
    try_this = "make serve" if url.port == 8080 else f"tierwise serve --port {url.port or 80}"
    here = url.host in ("127.0.0.1", "localhost", "::1")
    hint = f"try `{try_this}`" if here else "is it up, and is the address right?"
    return NoAnswer(f"no tier answers at {url}: {error or type(error).__name__}; {hint}")


async def info_of(client: AsyncClient) -> dict[str, Any]:
    """The tier's `/info`.

    Raises:
        NoAnswer: no connection, or what answers is not a tier.
    """
    try:
        info = (await client.get("/info")).json()
        if not {"bundle", "card_sha256", "labels", "links"} <= info.keys():
            raise KeyError("labels")
    except httpx.HTTPError as error:
        raise _no_answer(client, error) from error
    except (ValueError, KeyError, AttributeError) as error:
        raise NoAnswer(f"what answers at {client.base_url} is no tier of ours") from error
    return dict(info)


async def play(client: AsyncClient, trace: str) -> None:
    """Have every link of the tier follow a trace of `deploy/netem/traces` from now on; no breaker is open then.

    Raises:
        NoAnswer: the tier does not let its links be changed, or does not simulate them.
    """
    for _ in range(2):  # over the trace of before a breaker may not close, and while it closes this one goes on
        links = (await info_of(client))["links"]
        for link in links:
            try:
                answer = await client.put(f"/v1/links/{link['to']}", json={"trace": trace})
            except httpx.HTTPError as error:
                raise _no_answer(client, error) from error
            if answer.status_code != 200:
                raise NoAnswer(f"{answer.status_code}: {detail_of(answer)}")
        while any(link["breaker"] == "open" for link in (await info_of(client))["links"]):
            await asyncio.sleep(0.2)


def detail_of(answer: httpx.Response) -> str:
    """Why a service refused, as its answer says it; where it failed, with the id that its log has."""
    try:
        told = answer.json()
        named = f": {told['request_id']}" if answer.status_code == Failed.status and "request_id" in told else ""
        return f"{told['detail']}{named}"
    except (ValueError, KeyError, TypeError):
        return answer.text[:200]
