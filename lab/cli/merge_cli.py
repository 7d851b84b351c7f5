"""`tierwise merge ...`: what replicas of a tier kept apart, put together."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from lab.cli import options
from lab.console import screen

app = typer.Typer(no_args_is_help=True)
console = screen()
States = Annotated[list[Path], Argument(exists=True, dir_okay=False, help="State files, all called TIER-DIGEST.json.")]
Ledgers = Annotated[list[Path], Argument(exists=True, dir_okay=False, help="Ledgers.")]


@app.command()
def states(
    files: States,
    out: Annotated[Path, Option(file_okay=False, help="Folder (a `TIERWISE_STATE_DIR`) that gets the merged file.")],
    since: Annotated[
        Path | None,
        Option(exists=True, dir_okay=False, help="The state file that all began with.", show_default="none"),
    ] = None,
    bundle: options.BundleName = "collaborative",
) -> None:
    """Merge what policies learned on replicas of a tier into one file that a tier starts from."""
    from lab.merge import merge_states

    for path, policies in merge_states(files, out, bundle, since).items():
        console.print(f"wrote {path}: {', '.join(policies) or 'no policy has learned anything'}")


@app.command()
def ledgers(
    files: Ledgers, out: Annotated[Path, Option(dir_okay=False, help="The merged ledger, a .jsonl file.")]
) -> None:
    """Merge ledgers into one that is ordered by time; equal lines count once."""
    from lab.merge import merge_ledgers

    merged = merge_ledgers(files, options.output(out))
    console.print(f"wrote {out}: {merged.lines} lines; {merged.repeated} repeated, {merged.torn} torn left out")
