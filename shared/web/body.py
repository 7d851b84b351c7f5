"""From the bytes of a request to a model of the contract, or to the refusal that the contract's table names.

Parsing is ours, not FastAPI's: its default error echoes the input, and a lone surrogate or NaN in that echo is a 500.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any, TypeVar, get_args

from fastapi import Request
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from starlette.requests import ClientDisconnect

from shared.errors import (
    BadInput,
    BadJson,
    QueueFull,
    Refused,
    SlowBody,
    TooLarge,
    UnsupportedMedia,
    did_you_mean,
    in_words,
)
from shared.model.state import STATES_TYPE

_MOST_PROBLEMS, _FEW, _LONGEST = 20, 3, 500  # problems of a body; those that `detail` names; its characters
_ALIKE, _LONGEST_KEY = 0.7, 64  # how much of a key is right if it was meant, and characters of one that is looked at
_MAX_DEPTH, _MAX_VALUES = 32, 10_000  # walking and refusing more would keep the event loop from everybody else
_SHORT = 16_384  # bytes of a body that are not counted on the shelf: the number of connections bounds them
M = TypeVar("M", bound=BaseModel)


class Shelf:
    """Room for the bodies of all requests together, `most` bytes; a short body has its place whatever the others do."""

    def __init__(self, most: int) -> None:
        self._most, self._taken = most, 0

    @contextmanager
    def place(self) -> Iterator[Callable[[int], None]]:
        """Room for one request's body, free again when the request ends: call it with the bytes so far.

        Raises:
            QueueFull: by that call, where the bodies of others leave too little.
        """
        taken = 0

        def grow(size: int) -> None:
            nonlocal taken
            more = max(0, size - _SHORT) - taken
            if self._taken + more > self._most:
                raise QueueFull("the bodies of other requests fill this tier's memory: try again soon")
            self._taken += more
            taken += more

        try:
            yield grow
        finally:
            self._taken -= taken


async def read(
    request: Request, limit: int, timeout_s: float, grow: Callable[[int], None], *, media: Collection[str]
) -> bytes:
    """The body, refused by its type first, and by its size or slowness before it is read to the end.

    `media` are the content types that it may have; "" stands for none.
    """
    given = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if given not in media:
        taken = STATES_TYPE if STATES_TYPE in media else "application/json"
        raise UnsupportedMedia(f"content type {given or 'missing'}; send {taken}")
    if (coding := request.headers.get("content-encoding", "identity").lower()) != "identity":
        raise UnsupportedMedia(f"content encoding {coding}; send the body as it is")
    too_large = TooLarge(f"the body is over {limit} bytes")
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
                grow(len(body))
    except TimeoutError as error:
        raise SlowBody(f"the body took over {timeout_s:g} s") from error
    except ClientDisconnect as error:
        raise Refused("the caller left before the body was read") from error
    if cut := request.scope.get("state", {}).get("cut"):  # by the server, which knows what was wrong with it
        raise cut
    return bytes(body)


def parse(body: bytes) -> Any:
    """Strict JSON: UTF-8, no NaN or Infinity, at most 32 levels deep, at most 10,000 values."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    _weigh(body)
    try:
        parsed = json.loads(body.decode("utf-8"), parse_constant=refuse)
        level, depth, values = [parsed], 0, 1
        while level := [inner for outer in level for inner in _children(outer)]:
            depth += 1
            values += len(level)
            if values > _MAX_VALUES:
                raise TooLarge(f"the body holds over {_MAX_VALUES} values")
            if depth > _MAX_DEPTH:
                raise ValueError(f"nested more than {_MAX_DEPTH} deep")
        return parsed
    except (ValueError, RecursionError) as error:
        why = f"nested more than {_MAX_DEPTH} deep" if isinstance(error, RecursionError) else error
        if "integer string conversion" in str(error):
            why = "a number has thousands of digits"
        raise BadJson(f"the body is not JSON: {why}") from error


def _weigh(body: bytes) -> None:
    """Refuse too many values before they are parsed, by what separates them: counted at the speed of C.

    n values hold at most n - 1 commas, n brackets that open, and 2 n strings. Without escaped quotes, every other part
    between two quotes is outside of all strings.
    """
    bare = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    heavy = bare.count(b'"') > 4 * _MAX_VALUES
    if not heavy:
        outside = b"".join(bare.split(b'"')[::2])
        if b"[" * (_MAX_DEPTH + 1) in outside:
            raise BadJson(f"the body is not JSON: nested more than {_MAX_DEPTH} deep")
        opened = outside.count(b"[") + outside.count(b"{")
        heavy = opened > _MAX_VALUES or outside.count(b",") >= _MAX_VALUES
    if heavy:
        raise TooLarge(f"the body holds over {_MAX_VALUES} values")


def _children(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def validate(model: type[M], parsed: Any) -> M:
    """A model from parsed JSON; every problem is named by its place in the body, without echoing its value."""
    try:
        return model.model_validate(parsed)
    except ValidationError as error:
        found: dict[tuple[str, ...], list[ErrorDetails]] = {}
        for each in error.errors(include_url=False, include_input=False, include_context=False):
            found.setdefault(_place(parsed, each["loc"], each["type"]), []).append(each)
        problems = [
            {"at": ".".join(place) or "body", "problem": _problem(model, place, errors)}
            for place, errors in islice(found.items(), _MOST_PROBLEMS)
        ]
        raise BadInput(_summary(problems, len(found)), errors=problems) from error


def _problem(model: type[BaseModel], place: Sequence[str], errors: Sequence[ErrorDetails]) -> str:
    """What is wrong at one place: several errors are those of a union's members, any of which would do."""
    if errors[0]["type"] == "extra_forbidden":
        *way, name = place
        known = _keys(model, way)
        hint = did_you_mean(name, known, likeness=_ALIKE) if len(name) <= _LONGEST_KEY else ""
        return f"unknown key{hint}; known: {', '.join(known)}"
    first, *others = dict.fromkeys(in_words(each["type"], each["msg"]) for each in errors)
    return first + "".join(f" or {other.removeprefix('expected ')}" for other in others)


def _keys(model: type[BaseModel], way: Sequence[str]) -> list[str]:
    """The keys that an object has at a place in the body; places in a list say nothing."""
    here = [model]
    for key in way:
        fields = [one.model_fields[key] for one in here if key in one.model_fields]
        here = [inner for field in fields for inner in _models(field.annotation)] or here
    return [name for one in here for name in one.model_fields]


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models(part)


def _summary(problems: Sequence[Mapping[str, str]], count: int) -> str:
    """The first few of so many problems, for a caller who reads `detail` alone."""
    lines = [f"{each['at']}: {each['problem']}" for each in problems]
    for shown in range(min(_FEW, len(lines)), 0, -1):
        told = "; ".join(lines[:shown]) + (f"; and {count - shown} more" if count > shown else "")
        if len(told) <= _LONGEST:
            return told
    return told[:_LONGEST]


def _place(parsed: Any, loc: tuple[int | str, ...], kind: str) -> tuple[str, ...]:
    """Where in the body an error is, `inputs`, `1`, `text`: pydantic's `loc` without the names of union members."""
    path = []
    for part in loc:
        inside = part in parsed if isinstance(parsed, dict) else isinstance(parsed, list) and isinstance(part, int)
        if inside:
            parsed = parsed[part]
        if inside or (kind == "missing" and part == loc[-1]):
            path.append(str(part))
    return tuple(path)
