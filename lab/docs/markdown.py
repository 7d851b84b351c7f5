"""Markdown tables: cells from a row's fields, headings and rows. Left out: what stands in them (`tables.yaml`)."""

from __future__ import annotations

import string
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Row = dict[str, Any]  # JSON


class Cells(string.Formatter):
    """Fills a cell from a row; what a row lacks is `-`.

    >>> Cells().format("{ms[mean]:.0f}, {up:100*+.1f}, {ran:.0%}", ms={"mean": 9}, up=[0, -0.01, 0.02], ran={"end": 1})
    '9, +0.0 [-1.0, +2.0], end 100%'
    """

    def get_field(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        try:
            return super().get_field(name, args, kwargs)
        except (KeyError, IndexError, TypeError):
            return None, name

    def format_field(self, value: Any, spec: str) -> str:
        """`100*` scales; a mapping is listed; three numbers are a value and its interval, two an interval."""
        factor, star, rest = spec.rpartition("*")
        if isinstance(value, dict):
            return ", ".join(f"{key} {self.format_field(item, spec)}" for key, item in value.items()) or "-"
        if isinstance(value, list):
            *middle, low, high = (self.format_field(item, spec) for item in value)
            return " ".join([*middle, f"[{low}, {high}]"])
        if value is None or isinstance(value, bool):
            return {None: "-", True: "yes", False: "no"}[value]
        if spec == "p":
            return "<.001" if value < 0.001 else f"{value:.3f}"[1:] if value < 1 else "1"
        return format(float(factor) * value if star else value, rest)


def filled_in(cell: str, row: Mapping[str, Any]) -> str:
    """A cell or heading with its fields."""
    return Cells().vformat(cell, (), row)


def table(rows: Iterable[Row], columns: Mapping[str, str]) -> str:
    """A Markdown table.

    >>> print(table([{"n": 2}, {"n": 3}], {"n": "{n}", "as a share": "{n:.0%}"}))
    | n | as a share |
    |---|---|
    | 2 | 200% |
    | 3 | 300% |
    """
    body = [" | ".join(filled_in(cell, row) for cell in columns.values()) for row in rows]
    return "\n".join([f"| {' | '.join(columns)} |", "|" + "---|" * len(columns), *(f"| {line} |" for line in body)])
