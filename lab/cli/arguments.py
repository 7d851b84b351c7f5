"""Checks of command-line arguments, before anything long begins."""

from __future__ import annotations

import math
import os
from pathlib import Path

import typer


def address(value: str | None) -> str | None:
    """A usable http address.

    Raises:
        typer.BadParameter: it is none.
    """
    from shared.links.address import fault_of, may_hold_secret

    if value is not None and (fault := fault_of(value)):
        shown = "this" if may_hold_secret(value) else repr(value)
        raise typer.BadParameter(f"{shown} is no address like http://127.0.0.1:8080: {fault}")
    return value


def finite(value: float | None) -> float | None:
    """A number that is one.

    Raises:
        typer.BadParameter: NaN or infinite, which no range refuses.
    """
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is no number to work with")
    return value


def output(path: Path) -> Path:
    """A name that files beside it can be written under; missing folders are made when they are.

    Raises:
        typer.BadParameter: no name, or a folder that cannot be written or made.
    """
    if path.name in ("", ".."):  # a folder called like the default is no obstacle: OUT.json lies beside it
        raise typer.BadParameter(f"{path} is a folder: give the name of a file, without its ending")
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise typer.BadParameter(f"{path}: {folder} is no folder that can be written")
    return path
