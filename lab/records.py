"""One row per text and policy, as a parquet file beside a report: what a bench or a replay measured, to be analysed.

bundle, row, place       the bundle; the text's number among those asked, from 0; the file and row that it comes from
text_sha256              the text (and its pair) as ledgers name it
policy, label            the policy as it was asked for; the true label
predicted, confidence    what was answered
tier, exit_layer         the last tier that ran, and where the text left its encoder
ms                       waited (bench) or modelled (replay)
degraded                 why less was done than planned; null: nothing
words_in, words_kept     of the text, and after the last pruning; null: none was pruned or sent
bytes_up, bytes_down     of all bodies
links                    a list of link, up, down: bytes of the bodies on each link
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lab.data.examples import Example
from shared.web.ledger import text_sha256


@dataclass(frozen=True)
class Crossed:
    """Bytes on one link, SOURCE-TARGET."""

    link: str
    up: int
    down: int


@dataclass(frozen=True)
class Record:
    """One text under one policy; the columns above."""

    bundle: str
    row: int
    example: Example
    policy: str
    label: str
    predicted: str
    confidence: float
    tier: str
    exit_layer: int
    ms: float
    crossed: Sequence[Crossed]
    degraded: str | None
    words_in: int
    words_kept: int | None

    def columns(self) -> dict[str, Any]:
        """A row of the file."""
        own = {name: value for name, value in vars(self).items() if name not in ("example", "crossed")}
        return own | {
            "place": self.example.place,
            "text_sha256": text_sha256(self.example.text, self.example.pair),
            "bytes_up": sum(one.up for one in self.crossed),
            "bytes_down": sum(one.down for one in self.crossed),
            "links": [asdict(one) for one in self.crossed],
        }


SCHEMA = pa.schema(
    [
        ("bundle", pa.string()),
        ("row", pa.int64()),
        ("place", pa.string()),
        ("text_sha256", pa.string()),
        ("policy", pa.string()),
        ("label", pa.string()),
        ("predicted", pa.string()),
        ("confidence", pa.float64()),
        ("tier", pa.string()),
        ("exit_layer", pa.int64()),
        ("ms", pa.float64()),
        ("degraded", pa.string()),
        ("words_in", pa.int64()),
        ("words_kept", pa.int64()),
        ("bytes_up", pa.int64()),
        ("bytes_down", pa.int64()),
        ("links", pa.list_(pa.struct([("link", pa.string()), ("up", pa.int64()), ("down", pa.int64())]))),
    ]
)


def write_records(path: Path, records: Sequence[Record]) -> None:
    """Write them at once, by row and policy."""
    ordered = sorted(records, key=lambda one: (one.bundle, one.row, one.policy))
    unfinished = path.with_name(f".{path.name}.part")
    pq.write_table(pa.Table.from_pylist([one.columns() for one in ordered], schema=SCHEMA), unfinished)
    unfinished.replace(path)
