"""Options that several commands share, and checks of arguments before anything long begins."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Option


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


if TYPE_CHECKING:
    Finite = float
else:

    class Finite(float):
        """The annotation of a number that is one: NaN and infinite are refused before a range is looked at."""

        @classmethod
        def __get_pydantic_core_schema__(cls, source: object, handler: object) -> Any:
            from pydantic_core import core_schema

            return core_schema.float_schema(allow_inf_nan=False)

    Finite.__name__ = "float"  # what `--help` shows


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


POLICY = "NAME, NAME:key=value,... or FILE.json"
BUNDLE = "A bundle in deploy/models, or a folder."
TEXTS = "A .csv, .tsv, .jsonl or .parquet (or .gz) with text (or text_a,text_b), label, split"

Data = Annotated[str, Option(help=f"{TEXTS}; or hub:NAME.")]
Split = Annotated[str, Option(help="Rows whose `split` column says this; `all`: every row.")]
ExcludeSplit = Annotated[str | None, Option(help="Leave out texts that also occur in this split.")]
FirstTexts = Annotated[int, Option(min=1, help="Texts, after any are left out.")]
BundleName = Annotated[str, Option(help=BUNDLE)]
LinkPair = Annotated[str, Option(help="ACCESS/BACKBONE or ACCESS,BACKBONE: profiles of deploy/netem/profiles.yaml.")]
Access = Annotated[str | None, Option("--link", help="Profile of the first tier's links.", show_default="5g-nsa")]
Backbone = Annotated[str | None, Option(help="Profile of the links between deeper tiers.", show_default="metro")]
Url = Annotated[str, Option(help="The first tier.", callback=address)]
Seed = Annotated[int, Option(min=0, max=2**63 - 1, help="Seed of every random choice.")]


def policies(default: str) -> Any:
    """The option of policies to compare; `default`: what stands for none."""
    return Option(help=f"{POLICY}; repeat to compare.", show_default=default)


def writes(files: str) -> Any:
    """The option of the name that a command's files have."""
    return Option(help=f"Writes {files}.", callback=output)
