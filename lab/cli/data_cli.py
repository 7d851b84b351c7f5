"""`tierwise fit` and `data`: from a file of labels to a bundle, and the public data sets that the manual names."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from lab.cli import options
from lab.console import screen

app = typer.Typer()
console = screen()


@app.command()
def fit(
    data: Annotated[str, Argument(help="A .csv, .tsv, .jsonl or .parquet (or .gz) of texts with labels; or hub:NAME.")],
    out: Annotated[Path | None, Option(help="Folder of the bundle.", show_default="DATA-bundle, here")] = None,
    text_column: Annotated[str | None, Option(help="Column of the text.", show_default="found by its name")] = None,
    label_column: Annotated[str | None, Option(help="Column of the label.", show_default="found by its name")] = None,
    base: Annotated[
        list[str] | None,
        Option(help="Encoder of every tier, or TIER=ENCODER; as in `train`.", show_default="MiniLM"),
    ] = None,
    tiers: Annotated[
        list[str] | None,
        Option(help="Tiers and their layers, as end=6,edge=6,cloud=12.", show_default="end,edge,cloud, by the base"),
    ] = None,
    epochs: Annotated[
        float | None, Option(min=0.01, help="Passes over the rows.", show_default="1 to 8, by the rows")
    ] = None,
    max_tokens: Annotated[
        int | None, Option(min=8, help="Tokens to read of a text.", show_default="nearly all, at most 256")
    ] = None,
    within: Annotated[
        options.Finite, Option(min=0, max=1, help="Accuracy that may be lost against cloud-only.")
    ] = 0.005,
    threads: Annotated[int | None, Option(min=1, max=256, help="Compute threads.", show_default="one a core")] = None,
    seed: options.Seed = 0,
) -> None:
    """From a file of labelled texts to a bundle that can be served: trained, calibrated, quantized, judged on rows that
    were held out. The same command goes on where it was stopped."""
    from lab.data.examples import Columns
    from lab.engine import check_torch, let_threads_sleep

    check_torch("fit")
    let_threads_sleep()
    from lab.fit import from_file as job
    from lab.fit.networks import networks
    from shared.web.machine import cpus

    order, found = networks(base or (), tiers or ())
    wanted = job.Options(order, found, epochs, max_tokens, within, seed)
    stem = data.removeprefix("hub:").rstrip("/").rpartition("/")[2].partition(".")[0]
    folder = out or Path(f"{stem}-bundle")
    columns = Columns(text_column, label_column)
    verdict = job.fit(data, columns, wanted, folder, threads=threads or max(1, int(cpus())), console=console)
    console.print(f"{folder}: {verdict}", soft_wrap=True, highlight=False)
    place = folder if folder.is_absolute() else f"./{folder}"
    console.print(f"Now: tierwise serve --bundle {place}", soft_wrap=True, highlight=False)


@app.command()
def data(
    name: Annotated[str, Argument(help="imdb, cola, mnli, mrpc, qnli, qqp or sst2.")],
    out: Annotated[
        Path, Option(file_okay=False, help="Folder of NAME.parquet, and of files fetched elsewhere.")
    ] = Path("."),
) -> None:
    """Make NAME.parquet, a public data set that the manual's commands name: fetched, counted, in a fixed order."""
    from lab.data.public import make

    make(name, out, console)
