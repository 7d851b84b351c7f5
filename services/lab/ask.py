"""Classify texts from the command line, in batches that a tier accepts."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from services.lab.client import NoAnswer, classify, connect
from services.lab.policies import parse_policy


async def ask(url: str, texts: list[str], policy: str | None, console: Console, *, json_lines: bool) -> None:
    """Print one line per text.

    Raises:
        NoAnswer: nothing to classify, no tier there, or a refusal.
    """
    if not texts:
        raise NoAnswer("nothing to classify: give a text, --file, or lines on standard input")
    options: dict[str, Any] = {} if policy is None else {"policy": parse_policy(policy)}
    table = Table("label", "confidence", "path (exit/layers)", "batch ms", "text", show_edge=False, pad_edge=False)
    async with connect(url, timeout=120) as client:
        for start in range(0, len(texts), 16):
            chunk = texts[start : start + 16]
            timed = await classify(client, chunk, options)
            for at, (text, result) in enumerate(zip(chunk, timed.answer.results, strict=True), start=start):
                if json_lines:
                    print(result.model_copy(update={"index": at}).model_dump_json(by_alias=True))
                    continue
                path = " > ".join(f"{hop.tier} {hop.exit_layer}/{hop.layers}" for hop in result.hops)
                short = text if len(text) < 60 else f"{text[:57]}..."
                ms = f"{timed.answer.timings_ms['total']:.0f}"
                table.add_row(result.label, f"{result.confidence:.3f}", path, ms, Text(short))
    if not json_lines:
        console.print(table)
