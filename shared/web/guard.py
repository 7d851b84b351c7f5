"""Who may ask, and whether somebody still waits: bearer keys from secret files, and callers who leave."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from fastapi import Request

from shared.errors import BadSetting, CallerLeft, Unauthorized

T = TypeVar("T")
LEAST_KEY = 16  # characters


def read_key(path: Path | None) -> str | None:
    """The key in a secret file, without the white space around it; null where no file is named.

    Raises:
        BadSetting: the file cannot be read, or holds no key; the message never quotes it.
    """
    if path is None:
        return None
    try:
        key = path.read_text().strip()
    except (OSError, UnicodeError) as error:
        raise BadSetting(f"cannot read a key from {path}: {type(error).__name__}") from None
    if len(key) < LEAST_KEY or not key.isascii() or not key.isprintable() or " " in key:
        raise BadSetting(f"{path} must hold one key: at least {LEAST_KEY} printable ASCII characters without spaces")
    return key


@dataclass(frozen=True)
class Keys:
    """What `/v1/classify` (the door) and `/v1/infer` (other tiers) ask for: one key alone guards both.

    `/v1/continue` asks for the tiers' key, too.
    """

    door: str | None
    tier: str | None


def read_keys(door_file: Path | None, tier_file: Path | None) -> Keys:
    """The keys in two secret files; the one that is there stands in for the other. Raises as `read_key`."""
    door, tier = read_key(door_file), read_key(tier_file)
    return Keys(door or tier, tier or door)


def authorize(request: Request, key: str | None) -> None:
    """Compare in constant time.

    Raises:
        Unauthorized: the key is missing or another.
    """
    if key is None:
        return
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not hmac.compare_digest(given.lstrip(" ").encode(), key.encode()):
        raise Unauthorized("send the key of this tier: `authorization: Bearer KEY`")


async def while_waited_for(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Do the work of a request whose body is read; cancelled at once when its caller leaves.

    Raises:
        CallerLeft: nobody waits for the answer.
    """

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        waiting.reschedule(0)  # it is over now

    try:
        async with asyncio.timeout(None) as waiting:
            watching = asyncio.create_task(watch())
            try:
                return await work
            finally:
                watching.cancel()
    except TimeoutError as error:
        if waiting.expired():
            raise CallerLeft("the caller left before it was answered") from error
        raise
