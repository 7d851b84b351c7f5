"""Rows of a CSV or parquet file: the columns that are asked for, and where a person finds each row.

A CSV is UTF-8, its first line names the columns, and quoted fields may hold line breaks. Commas part the columns, or
semicolons or tabs where only these give the columns that are asked for. Its values are texts. A row's place is the line
that it starts in, as an editor counts; rows of a parquet file are counted from 1. Left out: what the values mean.
"""

from __future__ import annotations

import codecs
import csv
import io
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from shared.errors import BadSetting

_WIDE = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)
_SEPARATORS = ",;\t"


@dataclass(frozen=True)
class Rows:
    """The columns of a file that were asked for, those that it has, and the place of each row."""

    columns: list[str]
    places: list[str]
    values: dict[str, list[Any]]


def read(name: str, file: IO[bytes], wanted: Sequence[str], enough: Callable[[Sequence[str]], bool]) -> Rows:
    """Read an open file; `enough` says whether columns of these names will do, which decides a CSV's separator.

    Raises:
        BadSetting: it cannot be read, or has one of the columns twice; the message names the row.
    """
    return _csv(name, file.read(), wanted, enough) if name.lower().endswith(".csv") else _parquet(name, file, wanted)


def start_of(text: object, characters: int = 40) -> str:
    """The start of a text in quotes, on one line.

    >>> start_of("It was a dark night.\\nAnd a stormy one.", 22)
    "'It was a dark night.\\\\nA...'"
    """
    if not isinstance(text, str):
        return repr(text)[:characters]
    return repr(text if len(text) <= characters else f"{text[:characters]}...")


# -- CSV --------------------------------------------------------------------------------------------------------------


def _csv(name: str, raw: bytes, wanted: Sequence[str], enough: Callable[[Sequence[str]], bool]) -> Rows:
    text = _decoded(name, raw)
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))  # a text may be a whole book
    headers = {separator: _header(text, separator) for separator in _SEPARATORS}
    separator = next((one for one in _SEPARATORS if enough(headers[one])), None)
    if separator is None:
        columns = max(headers.values(), key=len)
        if not any(columns):
            raise BadSetting(f"{name}: cannot be read: it is empty")
        return Rows(columns, [], {})  # they will not do: what the rows hold says nothing
    columns = headers[separator]
    at = _positions(name, columns, wanted)
    places: list[str] = []
    values: dict[str, list[Any]] = {column: [] for column in at}
    for line, record in itertools.islice(_records(name, text, separator), 1, None):
        if len(record) != len(columns):
            raise BadSetting(
                f"{name}, line {line}: cannot be read: {len(record)} fields, the first line names {len(columns)}; "
                f"the row starts with {start_of(record[0])}"
            )
        places.append(f"{name}, line {line}")
        for column, position in at.items():
            values[column].append(record[position])
    return Rows(columns, places, values)


def _decoded(name: str, raw: bytes) -> str:
    if raw.startswith(_WIDE) or b"\x00" in (raw.splitlines() or [b""])[0]:
        raise BadSetting(f"{name}: cannot be read: it is UTF-16 or UTF-32; save it as UTF-8")
    raw = raw.removeprefix(codecs.BOM_UTF8)
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        lines = (raw[: error.start] + b".").splitlines()
        whole = raw[error.start - len(lines[-1]) + 1 :].splitlines()[0].decode(errors="replace")
        raise BadSetting(
            f"{name}, line {len(lines)}: cannot be read: it is not UTF-8; save it as UTF-8; "
            f"the line starts with {start_of(whole)}"
        ) from error


def _header(text: str, separator: str) -> list[str]:
    try:
        record = next((record for _, record in _records("", text, separator)), [])
    except BadSetting:
        return []
    return [column.strip() for column in record]


def _records(name: str, text: str, separator: str) -> Iterator[tuple[int, list[str]]]:
    """Every record with the line that it starts in; blank lines are none."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    while True:
        line = reader.line_num + 1
        try:
            record = next(reader, None)
        except csv.Error as error:
            row = next(itertools.islice(io.StringIO(text, newline=""), line - 1, None), "")
            raise BadSetting(
                f"{name}, line {line}: cannot be read: {error} (is a quote not closed, or not doubled?); "
                f"the row starts with {start_of(row)}"
            ) from error
        if record is None:
            return
        if record:
            yield line, record


def _positions(name: str, columns: Sequence[str], wanted: Sequence[str]) -> dict[str, int]:
    twice = [column for column in wanted if columns.count(column) > 1]
    if twice:
        raise BadSetting(f"{name}: column {twice[0]!r} is there twice: rename or remove one")
    return {column: columns.index(column) for column in wanted if column in columns}


# -- parquet ----------------------------------------------------------------------------------------------------------


def _parquet(name: str, file: IO[bytes], wanted: Sequence[str]) -> Rows:
    try:
        opened = pq.ParquetFile(file)
        columns = list(opened.schema_arrow.names)
        table = opened.read(columns=list(_positions(name, columns, wanted)))
    except (pa.ArrowException, OSError) as error:
        raise BadSetting(f"{name}: cannot be read: {' '.join(str(error).split())}") from error
    places = [f"{name}, row {row}" for row in range(1, len(table) + 1)]
    return Rows(columns, places, {column: _values(table[column], places, column) for column in table.column_names})


def _values(column: Any, places: Sequence[str], name: str) -> list[Any]:  # pyarrow has no types
    try:
        return list(column.to_pylist())
    except UnicodeDecodeError:
        return [_value(scalar, place, name) for scalar, place in zip(column, places, strict=True)]


def _value(scalar: Any, place: str, name: str) -> Any:
    try:
        return scalar.as_py()
    except UnicodeDecodeError as error:
        raise BadSetting(f"{place}: {name} is not UTF-8: {start_of(bytes(error.object))}") from error
