"""Labelled texts: a file (`rows.py`) with `text` (or `text_a`, `text_b`), `label` and `split`; or `hub:NAME`.

    text, text_a, sentence   the text; one that is missing is "", which no tier reads
    text_b                   the other half of a pair; missing or blank: no pair
    label                    one of the bundle's labels, or its place: an integer from 0
    split                    train, test, ...; `all` is reserved: every row, whatever its split

Where a column has none of these names, another usual one is taken if there is only one. What is wrong in a row is told
with file, row and start of the text.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lab.data.hub import PREFIX, Filesystem, hub_files, hub_splits, opened
from lab.data.rows import KINDS, Rows, kind_of, read, separators_of, start_of
from shared.errors import BadSetting

ALL = "all"
_TEXTS = ("text", "text_a", "sentence")
_OTHER_TEXTS = ("message", "review", "content", "comment", "body", "utterance", "tweet")
_OTHER_LABELS = ("labels", "class", "category", "sentiment", "intent", "topic")
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


@dataclass(frozen=True)
class Columns:
    """The columns with the text and the label; those that are null are found by their usual names."""

    text: str | None = None
    label: str | None = None

    def choose(self, columns: Sequence[str]) -> Mapping[str, str] | None:
        """Which of a file's columns has which role; none if the text or the label is missing.

        Raises:
            BadSetting: several columns may be meant, or one for both.
        """
        text = _chosen("text", self.text, columns, _TEXTS, _OTHER_TEXTS)
        label = _chosen("label", self.label, columns, ("label",), _OTHER_LABELS)
        if text is None or label is None:
            return None
        if text == label:
            raise BadSetting(f"column {text!r} cannot be text and label: --text-column and --label-column name two")
        return {"text": text, "label": label} | {name: name for name in ("text_b", "split") if name in columns}


def _chosen(
    what: str, named: str | None, columns: Sequence[str], usual: Sequence[str], others: Sequence[str]
) -> str | None:
    if named is not None:
        return named if named in columns else None
    for name in usual:
        if name in columns:
            return name
    found = [column for column in columns if column.lower() in (*usual, *others)]
    if len(found) > 1:
        raise BadSetting(f"which column is the {what}: {', '.join(found)}? Rename it {what!r}, or see `tierwise fit`")
    return found[0] if found else None


@dataclass(frozen=True)
class Row:
    """A row as it is in a file; `said` is its label, not mapped to any bundle's."""

    text: str
    pair: str | None
    said: Any
    split: str | None  # null where the file has no such column
    place: str

    def __str__(self) -> str:
        """Where it is and how it starts, for a message."""
        return f"{self.place} ({start_of(self.text)})"


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
        inside = sorted(str(path) for path in Path(source).glob("*") if kind_of(path.name))
        if Path(source).is_dir() and not inside:
            raise BadSetting(f"{source}: no {_kinds()} file in this folder")
        found += inside or [source]
    return found


def load(
    source: str, split: str = ALL, *, labels: Sequence[str] = (), filesystem: Filesystem | None = None
) -> list[Example]:
    """All examples of a split, or with `all` of every one, in file order. `labels` are the bundle's, which a row may
    name; `filesystem` stands in for the hub's.

    Raises:
        BadSetting: the file cannot be read; its columns or the split are not there; a text is none, or a label neither
            one of `labels` nor an integer from 0.
    """
    rows = rows_of(source, split=split, filesystem=filesystem)
    if split != ALL and rows[0].split is None:
        raise BadSetting(f"{source}: no split column: add one, or say --split {ALL} to use every row")
    chosen = [row for row in rows if split in (ALL, row.split)]
    if not chosen:
        raise BadSetting(f"{source}: no split {split!r}; it has {sorted({row.split or '' for row in rows} - {''})}")
    return [Example(row.text, row.pair, _place_of(row, labels), row.place) for row in chosen]


def rows_of(
    source: str, columns: Columns | None = None, *, split: str = ALL, filesystem: Filesystem | None = None
) -> list[Row]:
    """Every row of a file, whatever its split and label; of the hub, those of its files for `split`.

    Raises:
        BadSetting: it cannot be read, its columns are not there, a text is none, or it has no rows.
    """
    out: list[Row] = []
    for rows in _read(source, split, columns or Columns(), filesystem):
        said = rows.values.get("split")
        named = [None if said is None else _stripped(value) for value in said or rows.places]
        if said is None and source.startswith(PREFIX):
            named = [None if split == ALL else split] * len(
                rows.places
            )  # a file of the hub is of the split in its name
        out += [_row(rows, at, name) for at, name in enumerate(named)]
    if not out:
        raise BadSetting(f"{source}: no rows")
    return out


def texts_of(source: str) -> list[tuple[str, str]]:
    """The texts of a file whose labels, if it has any, do not matter; each with its place. Blank ones are left out.

    Raises:
        BadSetting: it cannot be read, or has no column with texts.
    """

    def choose(columns: Sequence[str]) -> Mapping[str, str] | None:
        text = _chosen("text", None, columns, _TEXTS, _OTHER_TEXTS)
        return None if text is None else {"text": text}

    with Path(source).open("rb") as file:
        rows = read(source, file, choose)
    if rows.roles is None:
        raise BadSetting(f"{source}: needs a column text; it has {_has(source, rows.columns)}")
    told = zip(rows.values["text"], rows.places, strict=True)
    return [(_text(cell, place, rows.roles["text"]), place) for cell, place in told if str(cell or "").strip()]


def every_row(source: str, columns: Columns, *, filesystem: Filesystem | None = None) -> list[Row]:
    """Every row of a file with its split, those of the hub by the files of each split.

    Raises:
        BadSetting: as `rows_of`.
    """
    named = hub_splits(source, filesystem) if source.startswith(PREFIX) else []
    return [row for split in named or [ALL] for row in rows_of(source, columns, split=split, filesystem=filesystem)]


def splits(source: str) -> list[str]:
    """What the `split` column says; nothing where there is none."""
    if source.startswith(PREFIX):
        return hub_splits(source)
    (rows,) = _read(source, ALL, Columns(), None)
    return sorted({_stripped(value) for value in rows.values.get("split", [])} - {""})


def training_rows(source: str, split: str | None, labels: Sequence[str] = ()) -> tuple[list[Example], str]:
    """Rows to train or calibrate on, and the name of their split: the one named, else `train`, else every row.

    Raises:
        BadSetting: as `load`.
    """
    used = split or ("train" if splits(source) else ALL)
    return load(source, used, labels=labels), used


def _read(source: str, split: str, columns: Columns, filesystem: Filesystem | None) -> list[Rows]:
    if source.startswith(PREFIX):
        found = []
        for path in hub_files(source, None if split == ALL else split, filesystem):
            with opened(source, path, filesystem) as file:
                found.append(_checked(source, read(path, file, columns.choose), columns))
        return found
    if not Path(source).is_file():
        what = "a folder: name a file in it" if Path(source).is_dir() else "no such file"
        raise BadSetting(f"{source}: {what} (a {_kinds()} path, or hub:OWNER/NAME)")
    if kind_of(source) is None:
        raise BadSetting(f"{source}: is no {_kinds()} file, nor one of them with .gz")
    try:
        with Path(source).open("rb") as file:
            return [_checked(source, read(source, file, columns.choose), columns)]
    except OSError as error:
        raise BadSetting(f"{source}: cannot be read: {error.strerror}") from error


def _kinds() -> str:
    return f"{', '.join(KINDS[:-1])} or {KINDS[-1]}"


def _checked(source: str, rows: Rows, columns: Columns) -> Rows:
    if rows.roles is None:
        has = _has(source, rows.columns)
        for named in (columns.text, columns.label):
            if named is not None and named not in rows.columns:
                raise BadSetting(f"{source}: no column {named!r}; it has {has}")
        raise BadSetting(
            f"{source}: needs columns text (or text_a, text_b) and label; it has {has} (`tierwise fit` has the options "
            "--text-column and --label-column)"
        )
    return rows


def _has(source: str, columns: Sequence[str]) -> str:
    """A file's columns for a message; what looks like several in one hints at the separators that are read."""
    if len(columns) == 1 and not columns[0].isidentifier() and (separators := separators_of(source)):
        return f"{start_of(columns[0])} alone; columns are separated by {separators}"
    return ", ".join(start_of(column) for column in columns[:20]) or "none"


def _row(rows: Rows, at: int, split: str | None) -> Row:
    assert rows.roles is not None
    place, values = rows.places[at], rows.values
    text = _text(values["text"][at], place, rows.roles["text"])
    pair = _text(values["text_b"][at], place, "text_b") if "text_b" in values else ""
    return Row(text, pair if pair.strip() else None, values["label"][at], split, place)


def _place_of(row: Row, labels: Sequence[str]) -> int:
    """The place of a row's label among the bundle's."""
    if (word := word_of(row.said)) in labels:
        return labels.index(word)
    if (place := _label(row.said)) is not None:
        return place
    cell = start_of(row.said)
    if labels:
        raise BadSetting(
            f"{row.place}: {cell} is none of the bundle's labels ({', '.join(labels)}), nor the place of one; "
            f"the text starts with {start_of(row.text)}"
        )
    raise BadSetting(
        f"{row.place}: labels must be integers from 0, in the order of the bundle's, not {cell} "
        f"(`tierwise fit` reads words); the text starts with {start_of(row.text)}"
    )


def word_of(cell: Any) -> str:
    """A label as a word: `1.0` is `1`; missing or blank: "".

    >>> [word_of(cell) for cell in (" billing ", 1.0, "2.0", True, None)]
    ['billing', '1', '2', 'true', '']
    """
    if cell is None or isinstance(cell, bool):
        return "" if cell is None else str(cell).lower()
    word = str(cell).strip()
    whole = _INTEGER.fullmatch(word)
    return str(int(whole[1])) if whole else word


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


def load_without(
    source: str, split: str, exclude_split: str | None, *, labels: Sequence[str] = (), first: int | None = None
) -> list[Example]:
    """A split's examples (or the first few), less those that also occur in another, if one is named.

    Raises:
        BadSetting: as `load`, or nothing is left.
    """
    examples = load(source, split, labels=labels)[:first]
    if exclude_split and not (examples := without(examples, load(source, exclude_split, labels=labels))):
        raise BadSetting(f"{source}: every text of {split} occurs in {exclude_split}: nothing remains")
    return examples


def hold_out(examples: list[Example], count: int) -> tuple[list[Example], list[Example]]:
    """The last `count` rows as validation data, and the rest less the texts that occur among them."""
    if not 0 < count < len(examples):
        raise BadSetting(f"cannot hold out {count} of {len(examples)} rows: choose a smaller --hold-out")
    validation = examples[-count:]
    return without(examples[:-count], validation), validation
