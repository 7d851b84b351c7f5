"""Classify texts from the command line, in batches that a tier accepts. A line that is refused costs no other line."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console

from lab.console import aside, sheet
from lab.data.examples import texts_of
from lab.data.rows import kind_of, start_of
from lab.live.client import PROBE, NoAnswer, TextRefused, classify, connect
from lab.policies import parse_policy
from shared.contracts import Result
from shared.errors import BadSetting
from shared.links.clients import AsyncClient

_TEXTS, _BYTES = 16, 500_000  # of one request


@dataclass(frozen=True)
class Asked:
    """A text, and the file and line that it comes from; one that was typed has no place."""

    text: str
    place: str = ""


@dataclass(frozen=True)
class Answered:
    """What a tier answers to a text: a result and the request's milliseconds, or why it refused."""

    result: Result | None
    ms: float = 0.0
    refused: str = ""


def read_asked(texts: Sequence[str], file: str | None, stdin: TextIO) -> list[Asked]:
    """The texts that were typed; else those of a file, or the lines of standard input. Blank lines are none.

    Raises:
        BadSetting: a file that cannot be read, or is not UTF-8.
    """
    if texts and list(texts) != ["-"]:
        return [Asked(text) for text in texts]
    if file not in (None, "-"):
        if kind_of(file):
            return [Asked(text, place) for text, place in texts_of(file)]
        return _lines(file, Path(file).read_bytes())
    if stdin.isatty():
        aside().print("reading a text from each line; Ctrl-D ends")
    return _lines("standard input", stdin.buffer.read())


def _lines(name: str, raw: bytes) -> list[Asked]:
    try:
        lines = raw.decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise BadSetting(f"{name}, line {line}: not UTF-8") from error
    return [Asked(line, f"{name}, line {at}") for at, line in enumerate(lines, start=1) if line.strip()]


async def ask(url: str, asked: Sequence[Asked], policy: str | None, console: Console, *, json_lines: bool) -> int:
    """Print one line per text, also if the tiers stop answering on the way; how many texts were refused.

    Raises:
        NoAnswer: nothing to classify, no tier there, or a refusal that no text is the reason of.
    """
    if not asked:
        raise NoAnswer("nothing to classify: give a text, --file, or lines on standard input")
    options: dict[str, Any] = {} if policy is None else {"policy": parse_policy(policy)}
    table = sheet(None, "label", "confidence", "path (exit/layers)", "batch ms", "text", "why")
    refused = 0
    try:
        async with connect(url, timeout=120) as client:
            async for at, answered in _answers(client, asked, options):
                if answered.result is None:
                    refused += 1
                    aside().print(f"{asked[at].place} ({start_of(asked[at].text)}): {answered.refused}", style="yellow")
                elif json_lines:
                    print(answered.result.model_copy(update={"index": at}).model_dump_json(by_alias=True))
                else:
                    table.add_row(*_row(asked[at].text, answered.result, answered.ms))
    finally:
        if table.row_count:
            console.print(table)
    return refused


async def _answers(
    client: AsyncClient, asked: Sequence[Asked], options: dict[str, Any]
) -> AsyncIterator[tuple[int, Answered]]:
    """An answer per text. Where all of the first are refused, a text of ours tells whether it was the texts."""
    known = False
    for rows in _batches(asked):
        answers = await _batch(client, [asked[at] for at in rows], options)
        if not known and all(answer.result is None for answer in answers):
            await classify(client, PROBE, options)
        known = True
        for at, answer in zip(rows, answers, strict=True):
            yield at, answer


async def _batch(client: AsyncClient, asked: Sequence[Asked], options: dict[str, Any]) -> list[Answered]:
    """The answers of one request; one that is refused is halved until the text is found."""
    try:
        timed = await classify(client, [one.text for one in asked], options)
    except TextRefused as error:
        if len(asked) > 1:
            half = len(asked) // 2
            return [*await _batch(client, asked[:half], options), *await _batch(client, asked[half:], options)]
        if not asked[0].place:
            raise
        return [Answered(None, refused=str(error).removesuffix(" in input 0"))]
    return [Answered(result, timed.answer.timings_ms["total"]) for result in timed.answer.results]


def _batches(asked: Sequence[Asked]) -> Iterator[list[int]]:
    """Row numbers, by request."""
    rows: list[int] = []
    size = 0
    for at, one in enumerate(asked):
        length = len(one.text.encode(errors="replace"))
        if rows and (len(rows) == _TEXTS or size + length > _BYTES):
            yield rows
            rows, size = [], 0
        rows.append(at)
        size += length
    yield rows


def _row(text: str, result: Result, ms: float) -> list[str]:
    path = " > ".join(f"{hop.tier} {hop.exit_layer}/{hop.layers}" for hop in result.hops)
    short = text if len(text) < 60 else f"{text[:57]}..."
    return [result.label, f"{result.confidence:.3f}", path, f"{ms:.0f}", short, _why(result)]


def _why(result: Result) -> str:
    """The reason, and whom the ensemble overruled."""
    if not result.ensemble.overruled:
        return result.why
    last = result.hops[-1]
    return f"{result.why} The ensemble overruled {last.tier}, which said {last.label}."
