"""The `tierwise` command. Nothing heavy is imported until a command runs: `--help` answers at once."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument, Option

from lab.cli import options
from lab.cli.data_cli import app as data_app
from lab.cli.link_cli import app as links
from lab.cli.merge_cli import app as merge
from lab.cli.mesh_cli import app as mesh_app
from lab.cli.policy_cli import app as policies
from lab.cli.pruning_cli import app as pruning_app
from lab.cli.replay_cli import app as recorded
from lab.cli.scale_cli import app as replicas
from lab.console import aside, screen
from lab.outputs import sole_writer
from lab.whole import Runtime

if TYPE_CHECKING:
    from lab.data.examples import Example

app = typer.Typer(
    help="Text classification across network tiers: early exits, calibrated offloading, pruning, ensemble.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(links, name="link", help="The links of running containers: show, set, cut, heal, replay a trace, verify.")
app.add_typer(policies, name="policy", help="Policies of your own.")
app.add_typer(replicas, name="scale", help="How many replicas: an autoscaler, sizes, throughput; simulated or slept.")
app.add_typer(merge, name="merge", help="What replicas of a tier kept apart, put together: states, ledgers.")
app.add_typer(data_app)
app.add_typer(recorded)
app.add_typer(mesh_app)
app.add_typer(pruning_app)
console = screen()
_OTHERS_DECIDE = ("classify", "demo", "serve", "policy")  # the tiers, or the one file that is named

TrainSplit = Annotated[str | None, Option(help="Rows of this split.", show_default="train; without the column, all")]
HoldOut = Annotated[int, Option(min=1, help="Validation is this many rows, the last of the split.")]
Port = Annotated[int | None, Option(min=1, max=65000, help="First port; the others follow.", show_default="8080")]
Access = Annotated[str | None, Option("--link", help="Profile of the first tier's links.", show_default="5g-nsa")]
Backbone = Annotated[str | None, Option(help="Profile of the links between deeper tiers.", show_default="metro")]
Threads = Annotated[int, Option(min=1, max=256, help="Compute threads.")]


def _training_rows(data: str, split: str | None, labels: Sequence[str] = ()) -> list[Example]:
    """Rows to train or calibrate on; warns where a file names no split."""
    from lab.data.examples import ALL, training_rows

    examples, used = training_rows(data, split, labels)
    if split is None and used == ALL:
        aside().print(f"{data} has no split column: every row is used; measure on other texts", style="yellow")
    return examples


def _version(asked: bool) -> None:
    if asked:
        from shared import __version__

        console.print(f"tierwise {__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    version: Annotated[
        bool, Option("--version", help="Print the version and exit.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    folder = os.environ.get("TIERWISE_POLICY_DIR")
    if folder and context.invoked_subcommand not in _OTHERS_DECIDE:
        from shared.policies import load

        load(Path(folder).expanduser())


@app.command()
def demo(
    bundle: options.BundleName = "collaborative", port: Port = None, access: Access = None, backbone: Backbone = None
) -> None:
    """Start the tiers, classify a dozen reviews, print what each answer cost, stop."""
    import asyncio

    from lab.live import demo as job
    from lab.live.stack import Layout, running

    layout = Layout(bundle, port, access=access, backbone=backbone)
    with running(layout, console) as stack:
        asyncio.run(job.run(stack.url, console, start=layout.command))


@app.command()
def serve(
    bundle: options.BundleName = "collaborative", port: Port = None, access: Access = None, backbone: Backbone = None
) -> None:
    """Keep the tiers up until Ctrl-C or SIGTERM, then stop them cleanly. SIGHUP: they read their policies again."""
    import time

    from lab.live.stack import Layout, running
    from lab.stops import hang_ups

    layout = Layout(bundle, port, access=access, backbone=backbone)
    with hang_ups() as hung_up, running(layout, console, show_logs=True) as stack:
        console.print(f"ready: {stack.url}/   (Ctrl-C stops)")
        try:
            while True:
                time.sleep(0.2)
                stack.check()
                if hung_up():
                    stack.reload()
        except (KeyboardInterrupt, SystemExit):
            console.print("stopping")


@app.command()
def classify(
    texts: Annotated[
        list[str] | None, Argument(help="Texts; - alone: standard input.", show_default="lines of standard input")
    ] = None,
    file: Annotated[str | None, Option(help="A file with one text a line, or one of labelled texts; -: none.")] = None,
    url: options.Url = "http://127.0.0.1:8080",
    policy: Annotated[str | None, Option(help=f"{options.POLICY}.")] = None,
    json_lines: Annotated[bool, Option("--json", help="Print each result as one JSON line.")] = False,
) -> None:
    """Ask running tiers (see `serve`) what they think of some texts. Status 1: some lines were refused."""
    import asyncio

    from lab.live.ask import ask, read_asked

    if texts and file is not None:
        raise typer.BadParameter("give texts or --file, not both")
    asked = read_asked(texts or [], file, sys.stdin)
    if asyncio.run(ask(url, asked, policy, console, json_lines=json_lines)):
        raise typer.Exit(1)


@app.command()
def bench(
    data: options.Data,
    n: options.FirstTexts = 200,
    policy: Annotated[list[str] | None, options.policies("collaborative, tabi, TIER-only, random")] = None,
    split: options.Split = "test",
    exclude_split: options.ExcludeSplit = None,
    access: Access = None,
    backbone: Backbone = None,
    url: Annotated[str | None, Option(help="Running tiers; else they start here.", callback=options.address)] = None,
    cell: Annotated[
        list[str] | None, Option(help="Running containers, links ACCESS/BACKBONE, verified; resumable; repeat.")
    ] = None,
    whole: Annotated[
        list[Runtime] | None,
        Option(help="Also whole models instead of tiers, int8 on this runtime, over the same links; repeat."),
    ] = None,
    rate: Annotated[options.Finite, Option(min=0, help="Open loop: Poisson arrivals per second.")] = 0,
    concurrency: Annotated[int, Option(min=1, help="Closed loop: requests under way at once.")] = 1,
    trace: Annotated[
        str | None,
        Option(
            help="With --rate: the first tier's links follow this trace of deploy/netem/traces, anew for each policy."
        ),
    ] = None,
    out: Annotated[Path, options.writes("OUT.json, .png, .parquet over earlier ones, .jsonl meanwhile")] = Path(
        "bench"
    ),
    bundle: Annotated[str | None, Option(help=options.BUNDLE, show_default="collaborative")] = None,
    port: Port = None,
    seed: options.Seed = 0,
) -> None:
    """Compare policies on live tiers over HTTP: accuracy, latency, path, bytes; interleaved and paired."""
    from dataclasses import replace

    from lab.data.examples import load_without
    from lab.live import bench as job
    from lab.live import cells
    from lab.live.bench_report import write
    from lab.live.stack import Layout, reached
    from lab.live.whole import build, served
    from shared.links.trace import known_trace
    from shared.model.bundle import load_bundle

    if (url or cell) and (access or backbone or bundle or port):
        raise typer.BadParameter("tiers that run already keep their links, bundle and port")
    if (url or cell) and whole:
        raise typer.BadParameter("--whole needs tiers that are started here: leave out --url and --cell")
    if trace and (url or cell or whole or not rate):
        raise typer.BadParameter("--trace needs --rate and tiers that are started here: no --url, --cell, --whole")
    if trace:
        known_trace(trace)
    policies = policy or ["collaborative", "tabi", "end-only", "edge-only", "cloud-only", "random"]
    labels = () if url or cell else load_bundle(bundle or "collaborative").labels
    examples = load_without(data, split, exclude_split, labels=labels)[:n]
    plan = job.Plan(examples, policies, rate=rate, concurrency=concurrency, seed=seed, split=split, trace=trace)
    if cell:
        cells.run(plan, cell, url or "http://127.0.0.1:8080", out, console)
        return
    journal = None if rate else out.with_name(f"{out.name}.jsonl")
    with sole_writer(out):
        layout = Layout(
            bundle or "collaborative", port, access=access, backbone=backbone, link_control=trace is not None
        )
        built = build(layout.bundle, data, whole, console) if whole else []
        with reached(url, layout, console) as tiers, served(built, tiers, console) as wholes:
            plan = replace(plan, wholes=wholes)
            done = job.run(plan, tiers, console, journal)
        write(plan, done, out, console)
        if journal:
            journal.unlink()


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
    access: Access = None,
    backbone: Backbone = None,
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


@app.command("print-config")
def print_config(tier: Annotated[str, Argument(help="Which tier's settings.")] = "end") -> None:
    """Every setting of a tier: variable, value, where it comes from, what it means."""
    from lab.cli.config import table

    console.print(table(tier))


def main() -> None:
    """The entry point: an error of ours is one line and exit status 2; TERM and HUP unwind and stop the tiers."""
    import logging
    import signal

    import structlog

    from shared.errors import TierwiseError
    from shared.web.machine import check_working_directory

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda received, _: sys.exit(128 + received))
    # tiers log their steps; a command's screen shows its own words, and warnings go to standard error
    quiet = structlog.make_filtering_bound_logger(logging.WARNING)
    structlog.configure(wrapper_class=quiet, logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    try:
        check_working_directory()
        app()
    except* (TierwiseError, UnicodeError, OSError) as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        aside().print(f"tierwise: {error}", style="red")
        sys.exit(2)


if __name__ == "__main__":
    main()
