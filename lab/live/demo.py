"""The demo: a dozen reviews of our own writing through three live tiers, and what each answer cost."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.table import Table

from lab.live.client import Timed, classify, connect

REVIEWS = Path(__file__).with_name("reviews.txt").read_text().splitlines()


async def run(url: str, console: Console, *, start: str = "make serve") -> None:
    """Classify every review, one after the other, and print the table and a curl line; `start` keeps tiers up there."""
    async with connect(url, timeout=60) as client:
        await classify(client, REVIEWS[0], {"policy": "cloud-only"})  # opens the connections
        timed = [await classify(client, text, {"seed": index}) for index, text in enumerate(REVIEWS)]
    console.print(_table(timed))
    console.print(_summary(timed))
    body = json.dumps({"inputs": REVIEWS[5]})
    console.print(f"Try it yourself (`{start}` keeps the tiers up):", style="bold")
    console.print(
        f"  curl -s {url}/v1/classify -H 'content-type: application/json' \\\n    -d '{body}'", soft_wrap=True
    )


def _table(timed: list[Timed]) -> Table:
    table = Table(title="A dozen reviews through three tiers", title_justify="left", show_edge=False, pad_edge=False)
    table.add_column("review", max_width=30, no_wrap=True, overflow="ellipsis")
    names = "label", "conf", "path (exit/layers)", "words sent/in", "bytes", "infer ms", "link ms", "total ms", "link"
    for name in names:
        table.add_column(name, justify="right" if name not in ("label", "path (exit/layers)") else "left", no_wrap=True)
    for text, item in zip(REVIEWS, timed, strict=True):
        result = item.answer.results[0]
        hops = result.hops
        links = [hop.link for hop in hops if hop.link]
        sent = [hop.words_kept for hop in hops[:-1]]
        table.add_row(
            text,
            result.label,
            f"{result.confidence:.3f}",
            " > ".join(f"{hop.tier} {hop.exit_layer}/{hop.layers}" for hop in hops),
            f"{'>'.join(map(str, sent))}/{result.words_in}" if sent else f"-/{result.words_in}",
            str(sum(link.request_bytes + link.response_bytes for link in links)) if links else "-",
            "+".join(f"{hop.timings_ms['infer']:.0f}" for hop in hops),
            "+".join(f"{link.ms:.0f}" for link in links) or "-",
            f"{item.seconds * 1e3:.0f}",
            ",".join(sorted({link.backend for link in links})) or "-",
        )
    return table


def _summary(timed: list[Timed]) -> str:
    results = [item.answer.results[0] for item in timed]
    shares = Counter(result.tier for result in sorted(results, key=lambda result: len(result.hops)))
    links = [hop.link for result in results for hop in result.hops if hop.link]
    used = sorted({f"{link.source}-{link.target} {link.profile} ({link.backend})" for link in links})
    answered = ", ".join(f"{count} at the {tier}" for tier, count in shares.items())
    return f"Answered: {answered}. Links: {', '.join(used) or 'none used'}."
