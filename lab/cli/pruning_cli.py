"""`tierwise train-keep` and `check-pruning`: which words a deeper tier needs, and what it costs to drop the others."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from lab.cli import options
from lab.console import aside, screen
from lab.outputs import sole_writer

app = typer.Typer()
console = screen()


@app.command("train-keep")
def train_keep(
    data: options.Data,
    bundle: options.BundleName = "collaborative",
    n: Annotated[int, Option(min=10, help="Texts to learn from and to judge on.")] = 1000,
    skip: Annotated[int, Option(min=0, help="Leave out the first rows.")] = 0,
    unsure: Annotated[
        float, Option(min=0, max=1, help="Only texts of which the first tier is less sure than this; 0: all.")
    ] = 0.9,
    hold_out: Annotated[int, Option(min=1, help="Leave out this many rows, the last of the split train.")] = 2500,
    threads: Annotated[int, Option(min=1, max=256, help="Compute threads.")] = 2,
) -> None:
    """Learn which words a deeper tier needs, without labels, into the bundle's keep.safetensors; a killed run goes on.
    `check-pruning` then judges it."""
    from lab.data.examples import hold_out as divide
    from lab.data.examples import training_rows
    from lab.engine import check_torch, let_threads_sleep
    from shared.model.bundle import load_bundle

    check_torch("train-keep")
    let_threads_sleep()
    from lab.fit.keep import train_keep as job
    from lab.fit.keep_head import FILE

    loaded = load_bundle(bundle)
    rows, _ = divide(training_rows(data, None, loaded.labels)[0], hold_out)
    with sole_writer(loaded.folder / "keep"):
        found = job(loaded, rows[skip:], most=n, unsure=unsure, threads=threads, console=console)
    console.print(f"written: {loaded.folder / FILE}", highlight=False)
    console.print(
        f"learned from {found['learned']} texts; of the upper half of the words of {found['judged']} others found:"
    )
    for name, share in found["upper_half_found"].items():
        console.print(f"  {name}: {share:.3f}", highlight=False)


@app.command("check-pruning")
def check_pruning(
    data: options.Data,
    n: options.FirstTexts = 200,
    states: Annotated[int, Option(min=1, help="Texts, of those sent, whose states are dropped.")] = 1000,
    split: options.Split = "test",
    exclude_split: options.ExcludeSplit = None,
    bundle: options.BundleName = "collaborative",
    other: Annotated[
        list[str] | None, Option(help="A bundle whose deepest classifier is asked about the same texts; repeat.")
    ] = None,
    threads: Annotated[int, Option(min=1, max=256, help="Compute threads.")] = 1,
    out: Annotated[Path, options.writes("OUT.json")] = Path("pruning"),
) -> None:
    """What dropping words, or their states, costs the deepest tier on the texts that it is sent; resumable."""
    from lab.data.examples import load_without
    from lab.data.readable import readable, readers_of
    from lab.papers.pruning import check
    from lab.replay.recorder import Recorders
    from shared.model.bundle import load_bundle

    loaded = load_bundle(bundle)
    examples, left_out = readable(
        load_without(data, split, exclude_split, labels=loaded.labels)[:n], readers_of(loaded)
    )
    left_out.tell(aside())
    others = [load_bundle(name) for name in other or ()]
    recorders = Recorders(console, threads=threads)
    with sole_writer(out):
        try:
            report = check(loaded, others, examples, recorders, out, states=states)
        finally:
            recorders.save()
    for row in report["rows"]:
        points, more = [100 * one for one in row["points"]], row["nll_more"]
        by = f" by {row['score']}, {row['kept']:.2f} kept" if row["score"] else ""
        after = f" after layer {row['after']}" if row["after"] else ""
        lost = f"{points[0]:+.1f} [{points[1]:+.1f}, {points[2]:+.1f}] points"
        nll = f"NLL {more[0]:+.3f} [{more[1]:+.3f}, {more[2]:+.3f}]"
        told = f"work {row['work']:.2f}, {lost}, {nll}, n = {row['n']}{', accepted' if row['accepted'] else ''}"
        console.print(f"{row['reader']}, {row['sent']}{by}{after}: {told}", highlight=False, soft_wrap=True)
    console.print(f"written: {out.with_suffix('.json')}", highlight=False)
