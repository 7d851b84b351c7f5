"""`tierwise replay`, `tables` and `plan`: what works on recorded texts, without live tiers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from lab.cli.arguments import BundleName, Data, ExcludeSplit, Seed, Split, address, output
from lab.console import screen

app = typer.Typer()
console = screen()

Links = Annotated[str, typer.Option(help="ACCESS/BACKBONE or ACCESS,BACKBONE: profiles of deploy/netem/profiles.yaml.")]
Threads = Annotated[int | None, typer.Option(min=1, help="Modelled threads of all tiers but the first.")]
RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results"


@app.command()
def replay(
    data: Annotated[
        list[str] | None,
        typer.Option(
            help="A .parquet or .csv with text (or text_a,text_b), label, split; a folder of them; hub:NAME. Repeat. "
            "[default: data]",
        ),
    ] = None,
    bundle: Annotated[
        str | None, typer.Option(help="NAME,NAME...; without it, every bundle that was calibrated on these data.")
    ] = None,
    policy: Annotated[
        list[str] | None, typer.Option(help="NAME, NAME:key=value,... or FILE.json; repeat. `all`: every one.")
    ] = None,
    n: Annotated[int, typer.Option(min=1, help="Texts, after any are left out.")] = 200,
    split: Annotated[
        str | None,
        typer.Option(help="Rows whose `split` column says this; `all`: every row. [default: test, else dev]"),
    ] = None,
    exclude_split: ExcludeSplit = None,
    links: Links = "5g-nsa/metro",
    measured: Annotated[
        list[Path] | None,
        typer.Option(exists=True, help="Live times to show beside: a bench's .json, a tier's ledger (.jsonl); repeat."),
    ] = None,
    profile: Annotated[bool, typer.Option("--profile", help="Measure this machine anew, not once for all.")] = False,
    threads: Threads = None,
    out: Annotated[
        Path, typer.Option(help="Writes OUT.json, OUT.parquet and OUT-BUNDLE.png, over earlier ones.", callback=output)
    ] = Path("replay"),
    seed: Seed = 0,
) -> None:
    """Compare policies without live tiers: each text is run once, kept on disk, and every policy replayed exactly."""
    from lab.outputs import sole_writer
    from lab.replay.compare import choose, compare
    from lab.replay.recorder import Recorders
    from lab.replay.report import write
    from lab.replay.trial import Conditions

    if data is None and not Path("data").is_dir():
        raise typer.BadParameter("name the labelled texts to replay with --data, or put them into a folder `data`")
    sets = choose(data or ["data"], bundle.split(",") if bundle else None, split, exclude_split, n)
    conditions = Conditions(Recorders(console), links, threads, seed, anew=profile)
    with sole_writer(out):
        write(*compare(sets, policy or ["all"], conditions, measured or ()), out, console)


@app.command()
def tables(
    table: Annotated[
        list[str] | None,
        typer.Argument(help="hu-1, hu-parts, hu-pruned, dimee-1, dimee-costs, dimee-pools; else all."),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(exists=True, file_okay=False, help="Folder with imdb.parquet, cola.parquet, ..."),
    ] = None,
    n: Annotated[int, typer.Option(min=20, help="Texts of each data set, of each split.")] = 600,
    quick: Annotated[bool, typer.Option("--quick", help="30 texts of each: does it run, not what is true.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of report.json and figures. [default: this repository's; tables-quick]"),
    ] = None,
    links: Links = "5g-nsa/metro",
    threads: Threads = None,
    seed: Seed = 0,
) -> None:
    """The papers' tables again, with intervals and figures, beside their own numbers; texts are recorded once."""
    from lab.papers.make import run
    from lab.replay.recorder import Recorders
    from lab.replay.trial import Conditions

    if data is None:
        raise typer.BadParameter("name the folder of the labelled texts: --data FOLDER")
    out = out or (Path("tables-quick") if quick else RESULTS)  # what does it run must not replace what is true
    run(data, table or [], out, 30 if quick else n, Conditions(Recorders(console), links, threads, seed))


@app.command("check-times")
def check_times(
    data: Data,
    n: Annotated[int, typer.Option(min=1, help="Texts, after any are left out.")] = 100,
    rounds: Annotated[int, typer.Option(min=1, help="Benches; the machine is profiled before and after each.")] = 5,
    policy: Annotated[
        list[str] | None,
        typer.Option(help="NAME, NAME:key=value,... or FILE.json; repeat. [default: collaborative, TIER-only]"),
    ] = None,
    split: Split = "test",
    exclude_split: ExcludeSplit = None,
    links: Links = "5g-nsa/metro",
    url: Annotated[
        str | None,
        typer.Option(
            help="First tier of running containers, whose links are then shaped; else tiers start here.",
            callback=address,
        ),
    ] = None,
    bundle: BundleName = "collaborative",
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of all tiers but the first.")] = None,
    out: Annotated[Path, typer.Option(help="Writes OUT.json.", callback=output)] = Path("check-times"),
    seed: Seed = 0,
) -> None:
    """How far modelled times (of `replay`, `tables`, `plan`) are from live ones on this machine."""
    from lab.data.examples import load_without
    from lab.live import check_times as job
    from lab.outputs import sole_writer
    from shared.model.bundle import load_bundle

    own = load_bundle(bundle)
    check = job.Check(
        load_without(data, split, exclude_split)[:n],
        own,
        policy or ["collaborative", *(f"{tier}-only" for tier in own.order)],
        links=links,
        rounds=rounds,
        threads=threads,
        seed=seed,
        url=url,
    )
    with sole_writer(out):
        job.run(check, out, console)


@app.command()
def plan(
    data: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="A .parquet or .csv with train and test. Needed.")
    ] = None,
    accuracy: Annotated[float | None, typer.Option(min=0, max=1, help="Least accuracy, as a lower bound.")] = None,
    p95_ms: Annotated[float | None, typer.Option(min=0, help="Greatest 95th percentile of time, as a bound.")] = None,
    max_bytes: Annotated[
        float | None, typer.Option("--bytes", min=0, help="Most bytes of bodies a request, up and down, as a bound.")
    ] = None,
    objective: Annotated[str, typer.Option(help="With --accuracy: the time that is least, mean or p95.")] = "mean",
    bundle: BundleName = "collaborative",
    n: Annotated[int, typer.Option(min=40, help="Validation texts.")] = 600,
    judged_on_n: Annotated[
        int | None, typer.Option("--unseen", min=1, help="Unseen texts to judge the plan on; default: as many.")
    ] = None,
    pruning: Annotated[
        list[float] | None, typer.Option(min=0, max=10, help="Pruning coefficients to try besides 0 (slow); repeat.")
    ] = None,
    links: Links = "5g-nsa/metro",
    threads: Threads = None,
    out: Annotated[Path, typer.Option(help="Writes OUT.json, OUT.png and OUT.policy.json.", callback=output)] = Path(
        "plan"
    ),
    seed: Seed = 0,
) -> None:
    """Find the fastest setting that keeps an accuracy, or the most accurate within --p95-ms or --bytes, on validation
    data; check it on unseen texts. Status 1: none."""
    from lab.outputs import sole_writer
    from lab.replay.plan import Targets, grid
    from lab.replay.plan import plan as search
    from lab.replay.plan_report import report, write
    from lab.replay.recorder import Recorders
    from lab.replay.trial import Conditions, unseen, validation
    from shared.model.bundle import load_bundle

    if data is None or (accuracy, p95_ms, max_bytes) == (None, None, None):
        raise typer.BadParameter("needs --data FILE and a target: --accuracy, --p95-ms or --bytes")
    if not all(math.isfinite(limit) for limit in (p95_ms or 0, max_bytes or 0)):
        raise typer.BadParameter("--p95-ms and --bytes are finite")
    if objective not in ("mean", "p95") or (objective == "p95" and accuracy is None):
        raise typer.BadParameter("--objective is mean or p95, of the time that is least with --accuracy")
    conditions = Conditions(Recorders(console), links, threads, seed)
    own, targets = load_bundle(bundle), Targets(accuracy, p95_ms, max_bytes, objective)
    try:
        chosen_on, judged_on = validation(own, data, n, conditions), unseen(own, data, judged_on_n or n, conditions)
        found = search(chosen_on, grid(chosen_on, (0.0, *(pruning or ()))), targets)
        said = report(found, targets, chosen_on, judged_on)
    finally:
        conditions.recorders.save()
    with sole_writer(out):
        write(said, out, console)
    if not said["feasible"]:
        raise typer.Exit(1)
