"""The terminal: names and texts are shown as they are, whatever they hold.

Labels, paths, policies and texts are other people's: `[neg]` is no markup, `:x:` no emoji, and an escape sequence must
not reach the terminal. So a console here takes no markup at all; colour comes from `style=`.
"""

from __future__ import annotations

import sys
from collections.abc import Collection
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.status import Status
from rich.table import Table
from rich.text import Text

WIDTH = 170  # tables need room in a file or a pipe too


def visible(text: str) -> str:
    """Control characters as their escapes, less line feeds and tabs.

    >>> visible("a\\x1b[2Jb")
    'a\\\\x1b[2Jb'
    """
    if text.isprintable():
        return text
    return "".join(_shown(character) for character in text)


def _shown(character: str) -> str:
    code = ord(character)
    hidden = (code < 32 and character not in "\n\t") or 127 <= code < 160 or 0xD800 <= code < 0xE000
    turns = 0x202A <= code <= 0x202E or 0x2066 <= code <= 0x2069  # the direction of all that follows
    return ascii(character)[1:-1] if hidden or turns else character


class PlainConsole(Console):
    """A console without markup, emoji codes and control characters."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Every text that is printed, or stands in a table, comes through here."""
        return super().render_str(visible(text), **options)


def screen() -> PlainConsole:
    """Standard output."""
    return PlainConsole(width=None if sys.stdout.isatty() else WIDTH)


def aside() -> PlainConsole:
    """Standard error, for what is no result."""
    return PlainConsole(stderr=True, soft_wrap=True, highlight=False)


class _Name(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(visible(task.description))


def progress(console: Console, **options: Any) -> Progress:
    """A progress bar whose names are shown as they are."""
    columns = (_Name(), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, **options)


def busy(console: Console, what: str) -> Status:
    """A spinner while something goes on."""
    return console.status(Text(visible(what)))


def sheet(title: str | None, *columns: str, words: Collection[str] | None = None) -> Table:
    """A table without a frame. Columns of `words` (all, if none are named) stand to the left, numbers to the right."""
    table = Table(title=title, title_justify="left", show_edge=False, pad_edge=False)
    for column in columns:
        left = words is None or column in words
        table.add_column(column, justify="left" if left else "right", overflow="fold")
    return table
