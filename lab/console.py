"""The terminal: names and texts are shown as they are, whatever they hold.

Labels, paths, policies and texts are other people's: `[neg]` is no markup, `:x:` no emoji, and an escape sequence must
not reach the terminal. So a console here takes no markup at all; colour comes from `style=`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Collection, Iterator
from typing import Any, TypeVar

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

Item = TypeVar("Item")
WIDTH = 190  # tables need room in a file or a pipe too

# control characters less tab and line feed, halves of surrogate pairs, marks that turn the direction of what follows
HIDDEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")


def visible(text: str) -> str:
    """Control characters as their escapes, less line feeds and tabs.

    >>> visible("a\\x1b[2Jb")
    'a\\\\x1b[2Jb'
    """
    return HIDDEN.sub(lambda found: ascii(found[0])[1:-1], text)


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


def tracked(items: Collection[Item], console: Console, name: str, *, least: int = 2) -> Iterator[Item]:
    """Items one after the other, with a bar that goes away; none for fewer than `least`, or where nobody looks."""
    quiet = len(items) < least or not console.is_terminal
    with progress(console, transient=True, disable=quiet) as bar:
        yield from bar.track(items, description=name)


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
