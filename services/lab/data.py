"""Data sets: a parquet or CSV file with `text` or `text_a`,`text_b`, `label`, and optionally `split`; or `hub:NAME`."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pcsv
import pyarrow.parquet as pq

from shared.errors import BadSetting

_TEXTS = dict.fromkeys(("text", "text_a", "text_b", "sentence", "split"), pa.string())  # digits are a text too


@dataclass(frozen=True)
class Example:
    """One labelled text (or pair)."""

    text: str
    pair: str | None
    label: int


def unseen(source: str) -> str:
    """The split that no bundle was fitted on: `test`, or where there is none, `dev` (GLUE's test labels are secret)."""
    known = splits(source)
    return "dev" if "dev" in known and "test" not in known else "test"


def files(sources: list[str]) -> list[str]:
    """Files, `hub:NAME`s, and every data file of a folder among them, in order.

    Raises:
        BadSetting: a folder without a data file.
    """
    found: list[str] = []
    for source in sources:
        inside = sorted(str(path) for path in Path(source).glob("*") if path.suffix in (".parquet", ".csv"))
        if Path(source).is_dir() and not inside:
            raise BadSetting(f"{source}: no .parquet or .csv file in this folder")
        found += inside or [source]
    return found


def load(source: str, split: str | None = None) -> list[Example]:
    """All examples of a split, in file order; `split=None` takes every row.

    Raises:
        BadSetting: the file cannot be read; its columns or the split are not there; a text is none, a label no
            integer from 0.
    """
    table = _table(source, split)
    columns = set(table.column_names)
    first = next((name for name in ("text", "text_a", "sentence") if name in columns), None)
    if first is None or "label" not in columns:
        raise BadSetting(f"{source}: needs columns text (or text_a, text_b) and label; it has {sorted(columns)}")
    if split is not None and "split" in columns:
        known = _splits(table)
        if split not in known:
            raise BadSetting(f"{source}: no split {split!r}; it has {known}")
        table = table.filter(pc.equal(table["split"], split))
    pairs = table["text_b"].to_pylist() if "text_b" in columns else [None] * len(table)
    if not len(table):
        raise BadSetting(f"{source}: no rows")
    texts = table[first].to_pylist()
    if (row := next((at for at, text in enumerate(texts) if not isinstance(text, str)), None)) is not None:
        raise BadSetting(f"{source}: {first} must be text; row {row} of the split has {texts[row]!r}")
    try:
        labels = [_label(label) for label in table["label"].to_pylist()]
    except ValueError as error:
        raise BadSetting(f"{source}: labels must be integers from 0, in the order of the bundle's: {error}") from error
    return [Example(*row) for row in zip(texts, pairs, labels, strict=True)]


def _label(said: Any) -> int:
    try:
        label = int(said)
        if label >= 0 and label == float(said):
            return label
    except (TypeError, ValueError):
        pass
    raise ValueError(f"{said!r} is none")


def splits(source: str) -> list[str]:
    """What the `split` column says; nothing where there is none."""
    table = _table(source, None)
    return _splits(table) if "split" in table.column_names else []


def _splits(table: Any) -> list[str]:
    return sorted({str(name) for name in table["split"].to_pylist() if name is not None})


def _table(source: str, split: str | None) -> Any:  # pyarrow has no types
    if source.startswith("hub:"):
        from huggingface_hub import HfFileSystem

        files = [f for f in HfFileSystem().glob(f"datasets/{source[4:]}/**/*.parquet") if not split or split in f]
        if not files:
            raise BadSetting(f"{source}: no parquet file for split {split!r} on the hub")
        return pq.read_table(files, filesystem=HfFileSystem())
    if not Path(source).is_file():
        raise BadSetting(f"{source}: no such file (a .parquet or .csv path, or hub:NAME)")
    try:
        if source.endswith(".csv"):
            return pcsv.read_csv(source, convert_options=pcsv.ConvertOptions(column_types=_TEXTS))
        return pq.read_table(source)
    except (pa.ArrowException, OSError) as error:
        raise BadSetting(f"{source}: cannot be read: {error}") from error


def check_labels(examples: list[Example], labels: Sequence[str], whose: str) -> None:
    """Refuse texts that are labelled with what `whose` labels do not have.

    Raises:
        BadSetting: with the labels that there are.
    """
    if (most := max(example.label for example in examples)) >= len(labels):
        raise BadSetting(f"{whose} has {len(labels)} labels ({', '.join(labels)}); the texts have label {most}")


def digest(examples: list[Example]) -> str:
    """sha256 over texts and labels, in order: names the data that a number was measured on."""
    hashed = hashlib.sha256()
    for example in examples:
        hashed.update(f"{example.text}\x00{example.pair}\x00{example.label}\x01".encode())
    return hashed.hexdigest()


def without(examples: list[Example], others: list[Example]) -> list[Example]:
    """The examples whose text does not occur among `others`: duplicates across splits leak labels."""
    known = {(other.text, other.pair) for other in others}
    return [example for example in examples if (example.text, example.pair) not in known]


def load_without(source: str, split: str, exclude_split: str | None) -> list[Example]:
    """A split's examples, less those that also occur in another, if one is named.

    Raises:
        BadSetting: as `load`, or nothing is left.
    """
    examples = load(source, split)
    if exclude_split and not (examples := without(examples, load(source, exclude_split))):
        raise BadSetting(f"{source}: every text of {split} occurs in {exclude_split}: nothing remains")
    return examples


def hold_out(examples: list[Example], count: int) -> tuple[list[Example], list[Example]]:
    """The last `count` rows as validation data, and the rest less the texts that occur among them."""
    if not 0 < count < len(examples):
        raise BadSetting(f"cannot hold out {count} of {len(examples)} rows")
    validation = examples[-count:]
    return without(examples[:-count], validation), validation
