"""Rows of a file: the columns that are asked for, and where a person finds each row.

    .csv .tsv   UTF-8, the first line names the columns, quoted fields may hold line breaks. Commas part the columns of
                a CSV, or semicolons or tabs where only these give the columns that are asked for. Values are texts.
    .jsonl      UTF-8, an object in each line; a key is a column
    .parquet
    .gz         any of these, compressed

A row's place is the line that it starts in, as an editor counts; rows of a parquet file are counted from 1. Left out:
what the values mean.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import itertools
import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from shared.errors import BadSetting

_WIDE = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)
_SEPARATORS = {".csv": ",;\t", ".tsv": "\t"}
KINDS = (".csv", ".tsv", ".jsonl", ".parquet")
_GZIP = ".gz"

Choose = Callable[[Sequence[str]], Mapping[str, str] | None]  # of columns: role -> column; none: they will not do


@dataclass(frozen=True)
class Rows:
    """A file's columns, which of them has which role (none: they will not do), and the rows' places and values."""

    columns: list[str]
    roles: Mapping[str, str] | None
    places: list[str]
    values: dict[str, list[Any]]  # by role


def kind_of(name: str) -> str | None:
    """The kind of a file by its name; null where it is none that is read.

    >>> kind_of("data.CSV.gz"), kind_of("data.xlsx")
    ('.csv', None)
    """
    kind = Path(name.lower().removesuffix(_GZIP)).suffix
    return kind if kind in KINDS else None


def separators_of(name: str) -> str:
    """What parts the columns of a file of this name, in words; nothing where that is no character.

    >>> separators_of("data.csv.gz"), separators_of("data.jsonl")
    ('comma, semicolon or tab', '')
    """
    words = {",": "comma", ";": "semicolon", "\t": "tab"}
    *others, last = [words[separator] for separator in _SEPARATORS.get(kind_of(name) or "", "")] or [""]
    return f"{', '.join(others)} or {last}" if others else last


def read(name: str, file: IO[bytes], choose: Choose) -> Rows:
    """Read an open file. `choose` names the columns to read; it also decides a CSV's separator.

    Raises:
        BadSetting: it cannot be read, or has a chosen column twice; the message names the row.
    """
    kind = kind_of(name) or ".parquet"
    if name.lower().endswith(_GZIP):
        file = io.BytesIO(_unpacked(name, file))
    if kind in _SEPARATORS:
        return _csv(name, file.read(), _SEPARATORS[kind], choose)
    return _jsonl(name, file.read(), choose) if kind == ".jsonl" else _parquet(name, file, choose)


def _unpacked(name: str, file: IO[bytes]) -> bytes:
    try:
        return gzip.decompress(file.read())
    except (OSError, EOFError, zlib.error) as error:
        raise BadSetting(f"{name}: cannot be read: it is no whole gzip file ({error})") from error


def start_of(text: object, characters: int = 40) -> str:
    """The start of a text in quotes, on one line.

    >>> start_of("It was a dark night.\\nAnd a stormy one.", 22)
    "'It was a dark night.\\\\nA...'"
    """
    if not isinstance(text, str):
        return repr(text)[:characters]
    return repr(text if len(text) <= characters else f"{text[:characters]}...")


# -- CSV --------------------------------------------------------------------------------------------------------------


def _csv(name: str, raw: bytes, separators: str, choose: Choose) -> Rows:
    text = _decoded(name, raw)
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))  # a text may be a whole book
    headers = {separator: _header(text, separator) for separator in separators}
    chosen = {separator: choose(header) for separator, header in headers.items()}
    separator = next((one for one in separators if chosen[one] is not None), None)
    if separator is None:
        columns = max(headers.values(), key=len)
        if not any(columns):
            raise BadSetting(f"{name}: cannot be read: it is empty")
        return Rows(columns, None, [], {})  # they will not do: what the rows hold says nothing
    columns, roles = headers[separator], chosen[separator] or {}
    at = _positions(name, columns, roles)
    places: list[str] = []
    values: dict[str, list[Any]] = {role: [] for role in at}
    for line, record in itertools.islice(_records(name, text, separator), 1, None):
        if len(record) != len(columns):
            raise BadSetting(
                f"{name}, line {line}: cannot be read: {len(record)} fields, the first line names {len(columns)}; "
                f"the row starts with {start_of(record[0])}"
            )
        places.append(f"{name}, line {line}")
        for role, position in at.items():
            values[role].append(record[position])
    return Rows(columns, roles, places, values)


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


def _positions(name: str, columns: Sequence[str], roles: Mapping[str, str]) -> dict[str, int]:
    twice = [column for column in roles.values() if columns.count(column) > 1]
    if twice:
        raise BadSetting(f"{name}: column {twice[0]!r} is there twice: rename or remove one")
    return {role: columns.index(column) for role, column in roles.items()}


# -- JSON lines -------------------------------------------------------------------------------------------------------


def _jsonl(name: str, raw: bytes, choose: Choose) -> Rows:
    places: list[str] = []
    objects: list[dict[str, Any]] = []
    for line, said in enumerate(_decoded(name, raw).split("\n"), start=1):
        if said.strip():
            places.append(f"{name}, line {line}")
            objects.append(_object(places[-1], said))
    columns = list(dict.fromkeys(key for found in objects for key in found))
    if not columns:
        raise BadSetting(f"{name}: cannot be read: it is empty")
    roles = choose(columns)
    values = {role: [found.get(column) for found in objects] for role, column in (roles or {}).items()}
    return Rows(columns, roles, places, values)


def _object(place: str, said: str) -> dict[str, Any]:
    try:
        found = json.loads(said)
    except (ValueError, RecursionError) as error:
        raise BadSetting(f"{place}: cannot be read: it is no JSON; the row starts with {start_of(said)}") from error
    if not isinstance(found, dict):
        raise BadSetting(f"{place}: cannot be read: it is no JSON object; the row starts with {start_of(said)}")
    return found


# -- parquet ----------------------------------------------------------------------------------------------------------


def _parquet(name: str, file: IO[bytes], choose: Choose) -> Rows:
    try:
        opened = pq.ParquetFile(file)
        columns = list(opened.schema_arrow.names)
        roles = choose(columns) or {}
        _positions(name, columns, roles)
        table = opened.read(columns=list(roles.values()))
    except (pa.ArrowException, OSError) as error:
        raise BadSetting(f"{name}: cannot be read: {' '.join(str(error).split())}") from error
    places = [f"{name}, row {row}" for row in range(1, len(table) + 1)]
    values = {role: _values(table[column], places, column) for role, column in roles.items()}
    return Rows(columns, roles or None, places, values)


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
