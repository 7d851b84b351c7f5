"""What came of one call: its rows, each with its part of what the call put on the link."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from shared.contracts import InferredRow, LinkUse, TextPair


@dataclass(frozen=True)
class Carried:
    """One call's rows, the link's tier, the bytes it put there, and its seconds there (the callee's time taken off).

    `joules` are modelled; null: the link's profile has no power model.
    """

    rows: list[InferredRow]
    request_bytes: int
    response_bytes: int
    link_s: float
    joules: float | None
    target: str


def with_link(rows: Sequence[InferredRow], texts: Sequence[TextPair], use: LinkUse) -> list[InferredRow]:
    """The callee's rows of these texts, each first hop with the link on record and the text's part of the call's use.

    A hop that has a link already was passed on by the callee, and keeps it.
    """
    up = _shares(use.request_bytes, [len(text.text) + len(text.text_pair or "") for text in texts])
    down = _shares(use.response_bytes, [1] * len(texts))
    joules = None if use.modelled_joules is None else round(use.modelled_joules / max(1, len(texts)), 6)
    out = []
    for row, request_bytes, response_bytes in zip(rows, up, down, strict=True):
        if row.hops and row.hops[0].link is None:
            part = {"request_bytes": request_bytes, "response_bytes": response_bytes, "modelled_joules": joules}
            link = use.model_copy(update=part)
            row = row.model_copy(update={"hops": [row.hops[0].model_copy(update={"link": link}), *row.hops[1:]]})
        out.append(row)
    return out


def _shares(total: int, sizes: Sequence[int]) -> list[int]:
    """Divide `total` in proportion to `sizes`, in whole bytes that add up to it."""
    whole = max(1, sum(sizes))
    ends = [total * upto // whole for upto in accumulate(sizes)]
    return [end - start for start, end in pairwise([0, *ends[:-1], total])] if sizes else []
