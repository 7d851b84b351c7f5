"""The `tierwise` command. Nothing heavy is imported until a command runs: `--help` answers at once."""

from __future__ import annotations

import os
import sys
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
from lab.cli.train_cli import app as train_app
from lab.console import aside, screen
from lab.outputs import sole_writer
from lab.whole import Runtime

if TYPE_CHECKING:
    pass

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
app.add_typer(train_app)
app.add_typer(pruning_app)
console = screen()
_OTHERS_DECIDE = ("classify", "demo", "serve", "policy")  # the tiers, or the one file that is named

Port = Annotated[int | None, Option(min=1, max=65000, help="First port; the others follow.", show_default="8080")]


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
    bundle: options.BundleName = "collaborative",
    port: Port = None,
    access: options.Access = None,
    backbone: options.Backbone = None,
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
    bundle: options.BundleName = "collaborative",
    port: Port = None,
    access: options.Access = None,
    backbone: options.Backbone = None,
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
    access: options.Access = None,
    backbone: options.Backbone = None,
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
