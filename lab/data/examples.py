"""Labelled texts: a parquet or CSV file with `text` (or `text_a`, `text_b`), `label` and `split`; or `hub:NAME`.

    text, text_a, sentence   the text; one that is missing is "", which no tier reads
    text_b                   the other half of a pair; missing or blank: no pair
    label                    an integer from 0, the place of the bundle's label
    split                    train, test, ...; `all` is reserved: every row, whatever its split

What is wrong in a row is told with file, row and start of the text.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lab.data.hub import PREFIX, Filesystem, hub_files, hub_splits, opened
from lab.data.rows import Rows, read, start_of
from shared.errors import BadSetting

ALL = "all"
_TEXTS = ("text", "text_a", "sentence")
_COLUMNS = (*_TEXTS, "text_b", "label", "split")
_INTEGER = re.compile(r"\s*([0-9]{1,9})(\.0*)?\s*")
_WORDS = {"false": 0, "true": 1}


@dataclass(frozen=True)
class Example:
    """One labelled text (or pair), and the file and row that it comes from."""

    text: str
    pair: str | None
    label: int
    place: str = field(default="", compare=False)

    def __str__(self) -> str:
        """Where it is and how it starts, for a message."""
        return f"{self.place or 'a text'} ({start_of(self.text)})"


def unseen(source: str) -> str:
    """The split that no bundle was fitted on: `test`, or where there is none, `dev` (GLUE's test labels are secret)."""
    known = splits(source)
    return next((name for name in ("test", "dev", "validation") if name in known), "test")


def files(sources: list[str]) -> list[str]:
    """Files, `hub:NAME`s, and every data file of a folder among them, in order.

    Raises:
        BadSetting: a folder without a data file.
    """
    found: list[str] = []
    for source in sources:
        inside = sorted(str(path) for path in Path(source).glob("*") if path.suffix.lower() in (".parquet", ".csv"))
        if Path(source).is_dir() and not inside:
            raise BadSetting(f"{source}: no .parquet or .csv file in this folder")
        found += inside or [source]
    return found


def load(source: str, split: str = ALL, *, filesystem: Filesystem | None = None) -> list[Example]:
    """All examples of a split, or with `all` of every one, in file order. `filesystem` stands in for the hub's.

    Raises:
        BadSetting: the file cannot be read; its columns or the split are not there; a text is none, a label no
            integer from 0.
    """
    out: list[Example] = []
    known: set[str] = set()
    for rows in _read(source, split, filesystem):
        if "split" not in rows.values:
            if split != ALL and not source.startswith(PREFIX):  # a file of the hub is of the split that it is named by
                raise BadSetting(f"{source}: no split column: add one, or say --split {ALL} to use every row")
            named = [split] * len(rows.places)
        else:
            named = [_stripped(value) for value in rows.values["split"]]
        known |= set(named)
        out += [_example(rows, at) for at, name in enumerate(named) if split in (ALL, name)]
    if not known:
        raise BadSetting(f"{source}: no rows")
    if not out:
        raise BadSetting(f"{source}: no split {split!r}; it has {sorted(known - {''})}")
    return out


def splits(source: str) -> list[str]:
    """What the `split` column says; nothing where there is none."""
    if source.startswith(PREFIX):
        return hub_splits(source)
    (rows,) = _read(source, ALL, None)
    return sorted({_stripped(value) for value in rows.values.get("split", [])} - {""})


def training_rows(source: str, split: str | None) -> tuple[list[Example], str]:
    """Rows to train or calibrate on, and the name of their split: the one named, else `train`, else every row.

    Raises:
        BadSetting: as `load`.
    """
    used = split or ("train" if splits(source) else ALL)
    return load(source, used), used


def _read(source: str, split: str, filesystem: Filesystem | None) -> list[Rows]:
    if source.startswith(PREFIX):
        found = []
        for path in hub_files(source, None if split == ALL else split, filesystem):
            with opened(source, path, filesystem) as file:
                found.append(_checked(source, read(path, file, _COLUMNS, _enough)))
        return found
    if not Path(source).is_file():
        what = "a folder: name a file in it" if Path(source).is_dir() else "no such file"
        raise BadSetting(f"{source}: {what} (a .parquet or .csv path, or hub:OWNER/NAME)")
    try:
        with Path(source).open("rb") as file:
            return [_checked(source, read(source, file, _COLUMNS, _enough))]
    except OSError as error:
        raise BadSetting(f"{source}: cannot be read: {error.strerror}") from error


def _enough(columns: Sequence[str]) -> bool:
    return "label" in columns and any(name in columns for name in _TEXTS)


def _checked(source: str, rows: Rows) -> Rows:
    if not _enough(rows.columns):
        has = ", ".join(start_of(column) for column in rows.columns[:20])
        raise BadSetting(f"{source}: needs columns text (or text_a, text_b) and label; it has {has or 'none'}")
    return rows


def _example(rows: Rows, at: int) -> Example:
    place = rows.places[at]
    first = next(name for name in _TEXTS if name in rows.values)
    text = _text(rows.values[first][at], place, first)
    pair = _text(rows.values["text_b"][at], place, "text_b") if "text_b" in rows.values else ""
    label = _label(rows.values["label"][at])
    if label is None:
        cell = start_of(rows.values["label"][at])
        raise BadSetting(
            f"{place}: labels must be integers from 0, in the order of the bundle's, not {cell}; "
            f"the text starts with {start_of(text)}"
        )
    return Example(text, pair if pair.strip() else None, label, place)


def _text(cell: Any, place: str, column: str) -> str:
    if cell is None:
        return ""
    if not isinstance(cell, str):
        raise BadSetting(f"{place}: {column} must be text, not {start_of(cell)}")
    return cell


def _label(cell: Any) -> int | None:
    """The label that a cell says; null where it says none.

    >>> [_label(cell) for cell in ("1", 1.0, True, "1.5", -1, float("inf"), "", "good")]
    [1, 1, 1, None, None, None, None, None]
    """
    words = str(cell).strip()
    if (named := _WORDS.get(words.lower())) is not None:
        return named
    whole = _INTEGER.fullmatch(words)
    return int(whole[1]) if whole else None


def _stripped(cell: Any) -> str:
    return "" if cell is None else str(cell).strip()


def check_labels(examples: Sequence[Example], labels: Sequence[str], whose: str) -> None:
    """Refuse texts that are labelled with what `whose` labels do not have.

    Raises:
        BadSetting: with the labels that there are.
    """
    if wrong := next((example for example in examples if example.label >= len(labels)), None):
        raise BadSetting(f"{whose} has {len(labels)} labels ({', '.join(labels)}); label {wrong.label} in {wrong}")


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


def load_without(source: str, split: str, exclude_split: str | None, *, first: int | None = None) -> list[Example]:
    """A split's examples (or the first few), less those that also occur in another, if one is named.

    Raises:
        BadSetting: as `load`, or nothing is left.
    """
    examples = load(source, split)[:first]
    if exclude_split and not (examples := without(examples, load(source, exclude_split))):
        raise BadSetting(f"{source}: every text of {split} occurs in {exclude_split}: nothing remains")
    return examples


def hold_out(examples: list[Example], count: int) -> tuple[list[Example], list[Example]]:
    """The last `count` rows as validation data, and the rest less the texts that occur among them."""
    if not 0 < count < len(examples):
        raise BadSetting(f"cannot hold out {count} of {len(examples)} rows: choose a smaller --hold-out")
    validation = examples[-count:]
    return without(examples[:-count], validation), validation
