"""One row per text and policy, as a parquet file beside a report: what a bench or a replay measured, to be analysed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import InitVar, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lab.data.examples import Example
from shared.web.ledger import text_sha256


@dataclass(frozen=True)
class Crossed:
    """Bytes of the bodies on one link, SOURCE-TARGET."""

    link: str
    up: int
    down: int


@dataclass(kw_only=True)
class Record:
    """One text under one policy; the fields are the file's columns."""

    bundle: str
    row: int  # the text's number among those asked, from 0
    place: str = field(init=False)  # the file and row that it comes from
    text_sha256: str = field(init=False)  # the text (and its pair) as ledgers name it
    policy: str  # as it was asked for
    label: str  # the true one
    predicted: str
    confidence: float
    tier: str  # the last that ran
    exit_layer: int  # where the text left that tier's encoder
    ms: float  # waited (bench) or modelled (replay)
    degraded: str | None  # why less was done than planned
    words_in: int
    words_kept: int | None  # after the last pruning; null: none was pruned or sent
    bytes_up: int = field(init=False)  # of all bodies
    bytes_down: int = field(init=False)
    links: list[dict[str, Any]] = field(init=False)
    example: InitVar[Example]
    crossed: InitVar[Sequence[Crossed]]

    def __post_init__(self, example: Example, crossed: Sequence[Crossed]) -> None:
        self.place, self.text_sha256 = example.place, text_sha256(example.text, example.pair)
        self.bytes_up, self.bytes_down = sum(one.up for one in crossed), sum(one.down for one in crossed)
        self.links = [asdict(one) for one in crossed]


_TYPES = {
    "str": pa.string(),
    "int": pa.int64(),
    "float": pa.float64(),
    "list[dict[str, Any]]": pa.list_(pa.struct([("link", pa.string()), ("up", pa.int64()), ("down", pa.int64())])),
}
SCHEMA = pa.schema([(column.name, _TYPES[str(column.type).removesuffix(" | None")]) for column in fields(Record)])


def write_records(path: Path, records: Sequence[Record]) -> None:
    """Write them at once, by row and policy."""
    ordered = sorted(records, key=lambda one: (one.bundle, one.row, one.policy))
    unfinished = path.with_name(f".{path.name}.part")
    pq.write_table(pa.Table.from_pylist([vars(one) for one in ordered], schema=SCHEMA), unfinished)
    unfinished.replace(path)
