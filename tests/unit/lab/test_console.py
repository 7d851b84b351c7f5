"""The terminal shows names and texts as they are: no markup, no emoji codes, no control characters."""

import io

import pytest
from rich.table import Table

from lab.console import PlainConsole, busy, progress

NAMES = ["[neg]", "exp [/x]/r", ":fire:", "[link=http://x]y[/link]", "a\\[b]"]


@pytest.fixture
def console():
    return PlainConsole(file=io.StringIO(), width=120, force_terminal=True, color_system=None)


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_shown_as_it_is_wherever_it_stands(console, name):
    table = Table(name, title=f"title {name}")
    table.add_row(f"cell {name}")
    console.print(f"line {name}")
    console.print(table)
    with progress(console) as bar:
        for _ in bar.track([1], description=f"bar {name}"):
            pass
    with busy(console, f"spinner {name}"):
        pass
    shown = console.file.getvalue()
    assert all(f"{what} {name}" in shown for what in ("line", "title", "cell", "bar"))


@pytest.mark.parametrize(
    ("text", "shown"),
    [("a\x1b[2Jb", "a\\x1b[2Jb"), ("a\x9b2Jb", "a\\x9b2Jb"), ("a\x07\x7f", "a\\x07\\x7f"), ("\u202eabc", "\\u202eabc")],
)
def test_control_characters_are_shown_as_escapes(text, shown):
    plain = PlainConsole(file=io.StringIO(), width=80)
    table = Table("x")
    table.add_row(text)
    plain.print(text)
    plain.print(table)
    assert plain.file.getvalue().count(shown) == 2
    assert text not in plain.file.getvalue()


def test_text_of_any_language_stays_as_it_is():
    plain = PlainConsole(file=io.StringIO(), width=80)
    plain.print("größe, 映画, नमस्ते 🙂\tx")
    assert "größe, 映画, नमस्ते 🙂" in plain.file.getvalue()
