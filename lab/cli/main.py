"""The `tierwise` command. Nothing heavy is imported until a command runs: `--help` answers at once."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lab.cli.arguments import BundleName, Data, ExcludeSplit, Seed, Split, address, finite, output
from lab.cli.link_cli import app as links
from lab.cli.replay_cli import app as recorded
from lab.console import aside, screen

if TYPE_CHECKING:
    from lab.data.examples import Example
    from lab.live.stack import Layout

app = typer.Typer(
    help="Text classification across network tiers: early exits, calibrated offloading, pruning, ensemble.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(links, name="link", help="The links of running containers: show, set, cut, heal, replay a trace, verify.")
app.add_typer(recorded)
console = screen()

TrainSplit = Annotated[
    str | None, typer.Option(help="Rows whose `split` column says this. [default: train; without the column, all]")
]
HoldOut = Annotated[int, typer.Option(min=1, help="Validation is this many rows, the last of the split.")]
Port = Annotated[
    int | None, typer.Option(min=1, max=65000, help="The first tier's port; the others follow. [default: 8080]")
]
Access = Annotated[
    str | None,
    typer.Option("--link", help="Profile of the first tier's links (deploy/netem/profiles.yaml). [default: 5g-nsa]"),
]
Backbone = Annotated[str | None, typer.Option(help="Profile of the links between deeper tiers. [default: metro]")]
Threads = Annotated[int, typer.Option(min=1, max=256, help="Compute threads.")]


def _given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _training_rows(data: str, split: str | None) -> list[Example]:
    """Rows to train or calibrate on; that a file names no split is said."""
    from lab.data.examples import ALL, training_rows

    examples, used = training_rows(data, split)
    if split is None and used == ALL:
        aside().print(f"{data} has no split column: every row is used; measure on other texts", style="yellow")
    return examples


def _layout(bundle: str, port: int | None, access: str | None, backbone: str | None) -> Layout:
    from lab.live.stack import Layout

    return Layout(bundle=bundle, port=port, access=access, backbone=backbone)


def _version(asked: bool) -> None:
    if asked:
        from shared import __version__

        console.print(f"tierwise {__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    pass


@app.command()
def demo(
    bundle: BundleName = "collaborative", port: Port = None, access: Access = None, backbone: Backbone = None
) -> None:
    """Start the tiers, classify a dozen reviews, print what each answer cost, stop."""
    from lab.live import demo as job
    from lab.live.stack import running

    with running(_layout(bundle, port, access, backbone), console) as stack:
        job.main(stack.url, console)


@app.command()
def serve(
    bundle: BundleName = "collaborative", port: Port = None, access: Access = None, backbone: Backbone = None
) -> None:
    """Keep the tiers up until Ctrl-C or SIGTERM, then stop them cleanly."""
    import time

    from lab.live.stack import running

    with running(_layout(bundle, port, access, backbone), console, show_logs=True) as stack:
        console.print(f"ready: {stack.url}/docs   (Ctrl-C stops)")
        try:
            while True:
                time.sleep(1)
                stack.check()
        except (KeyboardInterrupt, SystemExit):
            console.print("stopping")


@app.command()
def classify(
    text: Annotated[
        str | None, typer.Argument(help="A text; without it, lines of --file or of standard input.")
    ] = None,
    file: Annotated[Path | None, typer.Option(help="A file with one text a line.")] = None,
    url: Annotated[str, typer.Option(help="The first tier.", callback=address)] = "http://127.0.0.1:8080",
    policy: Annotated[str | None, typer.Option(help="NAME, NAME:key=value,... or FILE.json.")] = None,
    json_lines: Annotated[bool, typer.Option("--json", help="Print each result as one JSON line.")] = False,
) -> None:
    """Ask running tiers (see `serve`) what they think of some texts. Status 1: some lines were refused."""
    import asyncio

    from lab.live.ask import Asked, ask

    if text is not None and file is not None:
        raise typer.BadParameter("give a text or --file, not both")
    if text is not None:
        asked = [Asked(text)]
    else:
        raw = file.read_bytes() if file else sys.stdin.buffer.read()
        name = str(file or "standard input")
        try:
            lines = raw.decode("utf-8").split("\n")
        except UnicodeDecodeError as error:
            line = raw[: error.start].count(b"\n") + 1
            raise typer.BadParameter(f"{name}, line {line}: not UTF-8") from error
        asked = [Asked(line, f"{name}, line {at}") for at, line in enumerate(lines, start=1) if line.strip()]
    if asyncio.run(ask(url, asked, policy, console, json_lines=json_lines)):
        raise typer.Exit(1)


@app.command()
def bench(
    context: typer.Context,
    data: Data,
    n: Annotated[int, typer.Option(min=1, help="Texts, after any are left out.")] = 200,
    policy: Annotated[
        list[str] | None, typer.Option(help="NAME, NAME:key=value,... or FILE.json; repeat to compare.")
    ] = None,
    split: Split = "test",
    exclude_split: ExcludeSplit = None,
    access: Access = None,
    backbone: Backbone = None,
    url: Annotated[
        str | None, typer.Option(help="Running tiers; without it they are started here.", callback=address)
    ] = None,
    cell: Annotated[
        list[str] | None,
        typer.Option(
            help="Running containers, with these links: ACCESS/BACKBONE; repeat. Each is verified, resumable."
        ),
    ] = None,
    rate: Annotated[
        float, typer.Option(min=0, help="Open loop: arrivals per second, Poisson. 0: closed loop.", callback=finite)
    ] = 0,
    concurrency: Annotated[int, typer.Option(min=1, help="Closed loop: requests under way at once.")] = 1,
    out: Annotated[
        Path,
        typer.Option(
            help="Writes OUT.json, OUT.png and OUT.parquet, over earlier ones; OUT.jsonl until done.", callback=output
        ),
    ] = Path("bench"),
    bundle: BundleName = "collaborative",
    port: Port = None,
    seed: Seed = 0,
) -> None:
    """Compare policies on live tiers over HTTP: accuracy, latency, path, bytes; interleaved and paired."""
    from lab.data.examples import load_without
    from lab.live import bench as job
    from lab.live.bench_report import write
    from lab.live.stack import running
    from lab.outputs import sole_writer

    named = [name for name in ("access", "backbone", "bundle", "port") if _given(context, name)]
    if (url or cell) and named:
        raise typer.BadParameter("tiers that run already keep their links, bundle and port", param_hint=named)
    policies = policy or ["collaborative", "tabi", "end-only", "edge-only", "cloud-only", "random"]
    examples = load_without(data, split, exclude_split)
    plan = job.Plan(examples[:n], policies, rate=rate, concurrency=concurrency, seed=seed, split=split)
    ledger = None if rate else out.with_name(f"{out.name}.jsonl")
    if cell:
        from lab.live import cells

        cells.run(plan, cell, url or "http://127.0.0.1:8080", out, console)
        return
    with sole_writer(out):
        if url:
            done = job.run(plan, url, console, ledger)
        else:
            with running(_layout(bundle, port, access, backbone), console) as stack:
                done = job.run(plan, stack.url, console, ledger)
        write(plan, done, out, console)
        if ledger:
            ledger.unlink()


@app.command()
def train(
    data: Data,
    out: Annotated[Path, typer.Option(help="Folder of the trained network, e.g. deploy/models/BUNDLE/NAME.")],
    base: Annotated[str, typer.Option(help="A BERT, RoBERTa or MPNet encoder: pinned, on the hub, or a folder.")],
    layers: Annotated[int, typer.Option(min=1, help="Layers to use; each gets an exit.")],
    classes: Annotated[int, typer.Option(min=2, help="Labels 0 to this less 1.")] = 2,
    n: Annotated[int | None, typer.Option(min=1, help="Use only the first rows.")] = None,
    split: TrainSplit = None,
    hold_out: HoldOut = 2500,
    max_tokens: Annotated[int, typer.Option(min=8, help="Read this many tokens, head and tail.")] = 160,
    epochs: Annotated[float, typer.Option(min=0.01, help="Passes over the data.")] = 1.0,
    batch: Annotated[int, typer.Option(min=1, help="Texts in a step.")] = 16,
    rank: Annotated[int, typer.Option(min=1, help="Rank of the adapters.")] = 16,
    adapter_lr: Annotated[float, typer.Option(help="Peak learning rate of the adapters.")] = 3e-4,
    tier_end: Annotated[list[int] | None, typer.Option(help="A layer at which a tier ends: weighs 3 times.")] = None,
    distill: Annotated[float, typer.Option(min=0, help="Weight of learning from the deepest exit.")] = 0.0,
    pruned_share: Annotated[float, typer.Option(min=0, max=1, help="Share of texts pruned first (upper tiers).")] = 0.0,
    bf16: Annotated[bool, typer.Option(help="Matrix products in bf16.")] = True,
    threads: Threads = 2,
    seed: Seed = 0,
) -> None:
    """Train every exit of one network; a killed run resumes when called again."""
    from lab.data.examples import hold_out as divide
    from lab.fit.checks import check_out
    from lab.fit.train import Recipe
    from lab.fit.train import train as job
    from lab.outputs import sole_writer

    examples, validation = divide(_training_rows(data, split), hold_out)
    recipe = Recipe(
        base=base,
        layers=layers,
        classes=classes,
        max_tokens=max_tokens,
        rank=rank,
        epochs=epochs,
        batch=batch,
        adapter_lr=adapter_lr,
        tier_ends=tuple(tier_end or ()),
        distill=distill,
        pruned_share=pruned_share,
        bf16=bf16,
        seed=seed,
    )
    check_out(out)
    with sole_writer(out):
        job(recipe, examples[:n], validation[:600], out, threads=threads, console=console)


@app.command()
def calibrate(
    data: Data,
    bundle: BundleName = "collaborative",
    split: TrainSplit = None,
    hold_out: HoldOut = 2500,
    n: Annotated[int | None, typer.Option(min=50, help="Use only the first validation rows.")] = None,
    offload_share: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Choose the first threshold for this share sent on.", callback=finite),
    ] = None,
    within: Annotated[
        float, typer.Option(min=0, max=1, help="Accuracy that may be lost against cloud-only.", callback=finite)
    ] = 0.005,
    pruning: Annotated[
        bool, typer.Option(help="Choose a pruning coefficient (slow); without it, pruning is off.")
    ] = True,
    only_others: Annotated[
        bool, typer.Option(help="Keep the card; choose only what policies other than collaborative and tabi need.")
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

    _, validation = divide(_training_rows(data, split), hold_out)
    links = {"access": access or ACCESS, "backbone": backbone or BACKBONE}
    calibration = Calibration(bundle, validation[:n], **links, threads=threads, console=console)
    if only_others:
        calibration.others(within=within)
    elif not calibration.run(within=within, offload_share=offload_share, pruning=pruning):
        raise typer.Exit(1)


@app.command()
def evaluate(
    data: Data,
    bundle: BundleName = "collaborative",
    split: Split = "test",
    exclude_split: ExcludeSplit = None,
    n: Annotated[int | None, typer.Option(min=1, help="Use the first rows only, before texts are left out.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=8, help="Read this many tokens, not the bundle's.")] = None,
    threads: Threads = 2,
    save: Annotated[bool, typer.Option(help="Write the figures into the model card.")] = False,
) -> None:
    """Accuracy and calibration of every exit of every tier on unseen texts, whole and without early exit."""
    from lab.data.examples import load_without
    from lab.fit.evaluate import evaluate as job

    examples = load_without(data, split, exclude_split, first=n)
    job(bundle, examples, max_tokens=max_tokens, threads=threads, console=console, save=save, split=split)


@app.command("print-config")
def print_config(
    tier: Annotated[str, typer.Argument(help="Which tier's settings.")] = "end",
) -> None:
    """Every setting of a tier: variable, value, where it comes from, what it means."""
    from lab.cli.config import table

    console.print(table(tier))


def main() -> None:
    """The entry point: an error of ours is one line and exit status 2; TERM and HUP unwind and stop the tiers."""
    import signal

    from shared.errors import TierwiseError
    from shared.web.machine import check_working_directory

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda received, _: sys.exit(128 + received))
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
