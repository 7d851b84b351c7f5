"""The demo: a dozen reviews of our own writing through three live tiers, and what each answer cost."""

from __future__ import annotations

import asyncio
import json
from collections import Counter

from rich.console import Console
from rich.table import Table

from lab.live.client import Timed, classify, connect
from shared.contracts import Hop

REVIEWS = [
    "An absolute joy from the first scene to the last. See it.",
    "Dull, lazy and far too long. I want my evening back.",
    "Warm, funny and beautifully acted; my whole family loved it.",
    "The worst script I have heard in years, delivered by people who seem to know it.",
    "I expected nothing and got something lovely. It is small, and it knows exactly what it wants to say.",
    "Not bad, not good. Some scenes work, most do not, and I could not tell you what it was about an hour later.",
    "The photography is stunning and the lead gives everything she has. What a pity that nobody wrote her a story: "
    "by the middle I had stopped caring, and by the end I had stopped watching.",
    "Oh, wonderful, another two hours of men shouting at maps. Just what my weekend needed. I laughed, though never "
    "where I was supposed to.",
    "It is hard to hate a film this sincere. It is also hard to sit through it. Still, I caught myself humming the "
    "theme on the way home, and I suppose that counts for something.",
    "If you like slow cinema you may find patience rewarded. I usually do. Here I found a camera that had been left "
    "running, an actor who had been left alone with it, and a viewer who had been left behind.",
    "My grandfather worked on a trawler, so I came with doubts. The first half hour agreed: the nets are wrong, "
    "the weather is wrong, and nobody on that deck has ever gutted a fish. Then the storm comes, and the film forgets "
    "to be clever. For forty minutes there is hardly a word. Hands, rope, water, a face that understands before we do. "
    "I have read that the director shot it on a real boat in a real gale and I believe it; you can see that the crew "
    "is not acting. The ending is a mistake, a speech where there should have been silence, and the music swells as if "
    "somebody feared that we had missed the point. None of that matters much. I have thought about those forty minutes "
    "every day since, and last night I rang my grandfather to tell him about them.",
    "I wanted to like it. The reviews were kind, a friend had cried, and the book it comes from is one that I give to "
    "people. All the pieces are there: the house, the letters, the two sisters who do not speak. The costumes are "
    "right and the light is right. Yet scene after scene is staged as though somebody were ticking a list, and the "
    "letters, which in the book break your heart because you never see them, are read aloud by a voice that belongs "
    "in an advertisement for tea. The younger sister is miscast, the elder is wasted, and the one change to the plot "
    "turns a story about pride into a story about the post office. Devoted readers will be polite about it. Everyone "
    "else will wonder what the fuss was about, and I cannot blame them.",
]


async def run(url: str, console: Console) -> None:
    """Classify every review, one after the other, and print the table and a curl line."""
    async with connect(url, timeout=60) as client:
        await classify(client, REVIEWS[0], {"policy": "cloud-only"})  # opens the connections
        timed = [await classify(client, text, {"seed": index}) for index, text in enumerate(REVIEWS)]
    console.print(_table(timed))
    console.print(_summary(timed))
    body = json.dumps({"inputs": REVIEWS[5]})
    console.print("Try it yourself (`make serve` keeps the tiers up):", style="bold")
    console.print(
        f"  curl -s {url}/v1/classify -H 'content-type: application/json' \\\n    -d '{body}'", soft_wrap=True
    )


def _table(timed: list[Timed]) -> Table:
    table = Table(title="A dozen reviews through three tiers", title_justify="left", show_edge=False, pad_edge=False)
    table.add_column("review", max_width=30, no_wrap=True, overflow="ellipsis")
    for name in (
        "label",
        "conf",
        "path (exit/layers)",
        "words sent/in",
        "bytes",
        "infer ms",
        "link ms",
        "total ms",
        "link",
    ):
        table.add_column(name, justify="right" if name not in ("label", "path (exit/layers)") else "left", no_wrap=True)
    for text, item in zip(REVIEWS, timed, strict=True):
        result = item.answer.results[0]
        hops = result.hops
        sent = [hop.words_kept for hop in hops[:-1]]
        table.add_row(
            text,
            result.label,
            f"{result.confidence:.3f}",
            " > ".join(f"{hop.tier} {hop.exit_layer}/{hop.layers}" for hop in hops),
            f"{'>'.join(map(str, sent))}/{result.words_in}" if sent else f"-/{result.words_in}",
            str(sum(_bytes(hop) for hop in hops)) if len(hops) > 1 else "-",
            "+".join(f"{hop.timings_ms['infer']:.0f}" for hop in hops),
            "+".join(f"{hop.link.ms:.0f}" for hop in hops if hop.link) or "-",
            f"{item.seconds * 1e3:.0f}",
            ",".join(sorted({hop.link.backend for hop in hops if hop.link})) or "-",
        )
    return table


def _bytes(hop: Hop) -> int:
    return hop.link.request_bytes + hop.link.response_bytes if hop.link else 0


def _summary(timed: list[Timed]) -> str:
    results = [item.answer.results[0] for item in timed]
    shares = Counter(result.tier for result in sorted(results, key=lambda result: len(result.hops)))
    links = [hop.link for result in results for hop in result.hops if hop.link]
    used = sorted({f"{link.source}-{link.target} {link.profile} ({link.backend})" for link in links})
    answered = ", ".join(f"{count} at the {tier}" for tier, count in shares.items())
    return f"Answered: {answered}. Links: {', '.join(used) or 'none used'}."


def main(url: str, console: Console) -> None:
    """Run the demo against the tier at `url`."""
    asyncio.run(run(url, console))
