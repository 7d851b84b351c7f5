"""`tierwise policy ...`: policies of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from lab.cli import options
from lab.console import screen

app = typer.Typer(no_args_is_help=True)
console = screen()


@app.callback()
def _several() -> None:
    """Keeps `check` a command of its own beside none."""


@app.command()
def check(
    file: Annotated[Path, Argument(exists=True, dir_okay=False, help="The policy's .py file.")],
    bundle: options.BundleName = "collaborative",
    texts: Annotated[
        Path | None, Option(exists=True, dir_okay=False, help="A text per line.", show_default="a dozen reviews")
    ] = None,
) -> None:
    """Load a policy's file and show what it decides on a dozen texts; no tier runs."""
    from lab.replay.check import check as job

    job(file, bundle, texts, console)
