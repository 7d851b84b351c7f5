"""`tierwise train`, `quantize`, `calibrate` and `evaluate`: what a bundle is made with, from rows with labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Option

from lab.cli import options
from lab.console import aside, screen
from lab.outputs import sole_writer

if TYPE_CHECKING:
    from lab.data.examples import Example

app = typer.Typer()
console = screen()

TrainSplit = Annotated[str | None, Option(help="Rows of this split.", show_default="train; without the column, all")]
HoldOut = Annotated[int, Option(min=1, help="Validation is this many rows, the last of the split.")]
Threads = Annotated[int, Option(min=1, max=256, help="Compute threads.")]


def _training_rows(data: str, split: str | None, labels: Sequence[str] = ()) -> list[Example]:
    """Rows to train or calibrate on; warns where a file names no split."""
    from lab.data.examples import ALL, training_rows

    examples, used = training_rows(data, split, labels)
    if split is None and used == ALL:
        aside().print(f"{data} has no split column: every row is used; measure on other texts", style="yellow")
    return examples


@app.command()
def train(
    data: options.Data,
    out: Annotated[Path, Option(help="Folder of the classifier, e.g. deploy/models/BUNDLE/NAME.")],
    base: Annotated[str, Option(help="A BERT, RoBERTa or MPNet encoder: pinned, on the hub, or a folder.")],
    layers: Annotated[int, Option(min=1, help="Layers to use; each gets an exit.")],
    classes: Annotated[int, Option(min=2, help="Labels 0 to this less 1.")] = 2,
    n: Annotated[int | None, Option(min=1, help="Use only the first rows.")] = None,
    split: TrainSplit = None,
    hold_out: HoldOut = 2500,
    max_tokens: Annotated[int, Option(min=8, help="Read this many tokens, head and tail.")] = 160,
    epochs: Annotated[float, Option(min=0.01, help="Passes over the data.")] = 1.0,
    batch: Annotated[int, Option(min=1, help="Texts in a step.")] = 16,
    rank: Annotated[int, Option(min=1, help="Rank of the adapters.")] = 16,
    adapter_lr: Annotated[float, Option(help="Peak learning rate of the adapters.")] = 3e-4,
    head_lr: Annotated[float, Option(help="Peak learning rate of the exit heads.")] = 2e-3,
    tier_end: Annotated[list[int] | None, Option(help="A layer at which a tier ends: weighs 3 times.")] = None,
    distill: Annotated[float, Option(min=0, help="Weight of learning from --teacher, or the deepest exit.")] = 0.0,
    teacher: Annotated[Path | None, Option(help="Folder of a classifier to learn from (--distill).")] = None,
    start: Annotated[Path | None, Option(help="Folder of a trained classifier to go on from.")] = None,
    gatekeeper: Annotated[
        float, Option(min=0, max=1, help="Teach exits to be sure only where right: how much right weighs; 0: off.")
    ] = 0.0,
    pruned_share: Annotated[float, Option(min=0, max=1, help="Share of texts pruned first (upper tiers).")] = 0.0,
    prune_with: Annotated[
        str, Option(help="What prunes: a base, or the folder of a trained classifier.")
    ] = "sentence-transformers/all-MiniLM-L6-v2",
    unsure: Annotated[
        float, Option(min=0, max=1, help="Only texts of which --prune-with is less sure than this; 0: all.")
    ] = 0.0,
    skip: Annotated[int, Option(min=0, help="Leave out the first rows, before --n.")] = 0,
    bf16: Annotated[bool, Option(help="Matrix products in bf16.")] = True,
    threads: Threads = 2,
    seed: options.Seed = 0,
) -> None:
    """Train a classifier with an exit at every layer; a killed run resumes when called again."""
    from lab.data.examples import hold_out as divide
    from lab.engine import check_torch, let_threads_sleep
    from lab.fit.checks import check_out

    check_torch("train")
    let_threads_sleep()
    from lab.fit.recipe import Recipe
    from lab.fit.train import train as job

    examples, validation = divide(_training_rows(data, split), hold_out)
    examples = examples[skip:]
    if missing := sorted(set(range(classes)) - {example.label for example in examples[:n]}):
        labels = ", ".join(map(str, missing))
        aside().print(f"--classes {classes}, but no training text has label {labels}", style="yellow")
    recipe = Recipe(
        base=base,
        layers=layers,
        classes=classes,
        max_tokens=max_tokens,
        rank=rank,
        epochs=epochs,
        batch=batch,
        adapter_lr=adapter_lr,
        head_lr=head_lr,
        tier_ends=tuple(tier_end or ()),
        distill=distill,
        teacher=str(teacher or ""),
        start=str(start or ""),
        gatekeeper=gatekeeper,
        pruned_share=pruned_share,
        prune_with=prune_with,
        unsure=unsure,
        bf16=bf16,
        seed=seed,
    )
    check_out(out)
    with sole_writer(out):
        job(recipe, examples[:n], validation[:600], out, threads=threads, console=console)


@app.command()
def quantize(
    data: options.Data,
    bundle: options.BundleName = "collaborative",
    split: TrainSplit = None,
    hold_out: HoldOut = 2500,
    threads: Threads = 2,
) -> None:
    """Find the int8 ranges of all classifiers of a bundle on validation texts; `calibrate` must follow."""
    from lab.data.examples import hold_out as divide
    from lab.data.readable import readable, readers_of
    from lab.engine import check_torch
    from lab.fit.checks import check_bundle, folders_of
    from shared.model.bundle import load_bundle

    check_torch("quantize")
    from lab.fit.quantize import quantize_all

    loaded = load_bundle(bundle)
    check_bundle(loaded)
    _, validation = divide(_training_rows(data, split, loaded.labels), hold_out)
    texts, left_out = readable(validation, readers_of(loaded))
    left_out.tell(aside())
    quantize_all(loaded, folders_of(loaded), texts, console, threads=threads)


@app.command()
def calibrate(
    data: options.Data,
    bundle: options.BundleName = "collaborative",
    split: TrainSplit = None,
    hold_out: HoldOut = 2500,
    n: Annotated[int | None, Option(min=50, help="Use only the first validation rows.")] = None,
    offload_share: Annotated[
        options.Finite | None,
        Option(min=0, max=1, help="Choose the first threshold for this share sent on."),
    ] = None,
    within: Annotated[
        options.Finite, Option(min=0, max=1, help="Accuracy that may be lost against cloud-only.")
    ] = 0.005,
    pruning: Annotated[bool, Option(help="Choose a pruning coefficient (slow); without it, pruning is off.")] = True,
    only_others: Annotated[
        bool, Option(help="Keep the card; choose only what policies other than collaborative and tabi need.")
    ] = False,
    access: options.Access = None,
    backbone: options.Backbone = None,
    threads: Threads = 2,
) -> None:
    """Fit temperatures and ensemble weights, choose the operating point, write the model card. Status 1: the card is
    written, but --offload-share cannot be met."""
    from lab.data.examples import hold_out as divide
    from lab.fit.calibrate import Calibration
    from lab.live.stack import ACCESS, BACKBONE
    from shared.model.bundle import load_bundle

    _, validation = divide(_training_rows(data, split, load_bundle(bundle).labels), hold_out)
    links = {"access": access or ACCESS, "backbone": backbone or BACKBONE}
    calibration = Calibration(bundle, validation[:n], **links, threads=threads, console=console, data=data)
    if only_others:
        calibration.others(within=within)
    elif not calibration.run(within=within, offload_share=offload_share, pruning=pruning):
        raise typer.Exit(1)


@app.command()
def evaluate(
    data: options.Data,
    bundle: options.BundleName = "collaborative",
    split: options.Split = "test",
    exclude_split: options.ExcludeSplit = None,
    n: Annotated[int | None, Option(min=1, help="Use the first rows only, before texts are left out.")] = None,
    max_tokens: Annotated[int | None, Option(min=8, help="Read this many tokens, not the bundle's.")] = None,
    threads: Threads = 2,
    save: Annotated[bool, Option(help="Write the figures into the model card.")] = False,
) -> None:
    """Accuracy and calibration of every exit of every tier on unseen texts, whole and without early exit."""
    from lab.data.examples import load_without
    from lab.fit.evaluate import evaluate as job
    from shared.model.bundle import load_bundle

    examples = load_without(data, split, exclude_split, labels=load_bundle(bundle).labels, first=n)
    job(bundle, examples, max_tokens=max_tokens, threads=threads, console=console, save=save, split=split)
