"""`tierwise replay`, `tables`, `plan` and `check-*`: what works on recorded texts, without live tiers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer
from typer import Argument, Option

from lab.cli import options
from lab.console import screen
from lab.outputs import sole_writer

app = typer.Typer()
console = screen()

Threads = Annotated[int | None, Option(min=1, help="Threads of all tiers but the first.")]
RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results"


@app.command()
def replay(
    data: Annotated[
        list[str] | None, Option(help=f"{options.TEXTS}; a folder of them; hub:NAME. Repeat.", show_default="data")
    ] = None,
    bundle: Annotated[str | None, Option(help="NAME,NAME...", show_default="those calibrated on these data")] = None,
    policy: Annotated[list[str] | None, options.policies("all")] = None,
    against: Annotated[
        str | None, Option(help="The policy that differences are against.", show_default="the deepest tier alone")
    ] = None,
    n: options.FirstTexts = 200,
    split: Annotated[str | None, Option(help="As in `bench`.", show_default="test, else dev")] = None,
    exclude_split: options.ExcludeSplit = None,
    links: options.LinkPair = "5g-nsa/metro",
    measured: Annotated[
        list[Path] | None,
        Option(exists=True, help="Live times to show beside: a bench's .json, a tier's ledger (.jsonl); repeat."),
    ] = None,
    profile: Annotated[bool, Option("--profile", help="Measure this machine anew, not once for all.")] = False,
    threads: Threads = None,
    out: Annotated[Path, options.writes("OUT.json, OUT.parquet and OUT-BUNDLE.png, over earlier ones")] = Path(
        "replay"
    ),
    seed: options.Seed = 0,
) -> None:
    """Compare policies without live tiers: each text is run once, kept on disk, and every policy replayed exactly."""
    from lab.replay.compare import choose, compare
    from lab.replay.recorder import Recorders
    from lab.replay.report import write
    from lab.replay.trial import Conditions

    if data is None and not Path("data").is_dir():
        raise typer.BadParameter("name the labelled texts to replay with --data, or put them into a folder `data`")
    sets = choose(data or ["data"], bundle.split(",") if bundle else None, split, exclude_split, n)
    conditions = Conditions(Recorders(console), links, threads, seed, anew=profile)
    with sole_writer(out):
        write(*compare(sets, policy or ["all"], conditions, measured or (), against), out, console)


@app.command()
def tables(
    data: Annotated[Path, Option(exists=True, file_okay=False, help="Folder with imdb.parquet, cola.parquet, ...")],
    table: Annotated[
        list[str] | None,
        Argument(help="hu-1, hu-parts, hu-pruned, recserve, gates, dimee-1, dimee-costs, dimee-pools; else all."),
    ] = None,
    n: Annotated[int, Option(min=20, help="Texts of each data set, of each split.")] = 600,
    quick: Annotated[bool, Option("--quick", help="30 texts of each: does it run, not what is true.")] = False,
    out: Annotated[Path | None, Option(help="Folder to write.", show_default="docs/results; tables-quick")] = None,
    links: options.LinkPair = "5g-nsa/metro",
    threads: Threads = None,
    seed: options.Seed = 0,
) -> None:
    """The papers' tables again, with intervals and figures, beside their own numbers; texts are recorded once."""
    from lab.papers.make import run
    from lab.replay.recorder import Recorders
    from lab.replay.trial import Conditions

    out = out or (Path("tables-quick") if quick else RESULTS)  # what does it run must not replace what is true
    run(data, table or [], out, 30 if quick else n, Conditions(Recorders(console), links, threads, seed))


@app.command("check-times")
def check_times(
    data: options.Data,
    n: options.FirstTexts = 100,
    rounds: Annotated[int, Option(min=1, help="Benches; the machine is profiled before and after each.")] = 5,
    policy: Annotated[list[str] | None, options.policies("collaborative, TIER-only")] = None,
    split: options.Split = "test",
    exclude_split: options.ExcludeSplit = None,
    links: options.LinkPair = "5g-nsa/metro",
    url: Annotated[str | None, Option(help="Containers that run; else tiers start.", callback=options.address)] = None,
    bundle: options.BundleName = "collaborative",
    threads: Threads = None,
    out: Annotated[Path, options.writes("OUT.json")] = Path("check-times"),
    seed: options.Seed = 0,
) -> None:
    """How far modelled times (of `replay`, `tables`, `plan`) are from live ones on this machine."""
    from lab.data.examples import load_without
    from lab.live import check_times as job
    from shared.model.bundle import load_bundle

    loaded = load_bundle(bundle)
    texts = load_without(data, split, exclude_split, labels=loaded.labels)[:n]
    policies = policy or ["collaborative", *(f"{tier}-only" for tier in loaded.order)]
    check = job.Check(texts, loaded, policies, links=links, rounds=rounds, threads=threads, seed=seed, url=url)
    with sole_writer(out):
        job.run(check, out, console)


@app.command("check-states")
def check_states(
    data: options.Data,
    n: options.FirstTexts = 200,
    split: options.Split = "test",
    exclude_split: options.ExcludeSplit = None,
    bundle: options.BundleName = "split-imdb",
    form: Annotated[Literal["fp16", "int8"], Option(help="What states travel as, in the second table.")] = "fp16",
    threads: Annotated[int, Option(min=1, help="Threads of the tier that goes on.")] = 1,
    profile: Annotated[bool, Option("--profile", help="Measure this machine anew, not once for all.")] = False,
    out: Annotated[Path, options.writes("OUT.json")] = Path("check-states"),
) -> None:
    """What hidden states change in the answers, against whole runs; and on which links they are the faster way."""
    from lab.data.examples import load_without
    from lab.replay.states import run
    from shared.model.bundle import load_bundle
    from shared.model.state import Form

    loaded = load_bundle(bundle)
    texts = load_without(data, split, exclude_split, labels=loaded.labels)[:n]
    with sole_writer(out):
        run(loaded, texts, Form(form), threads, out, console, anew=profile)


@app.command()
def plan(
    data: Annotated[Path, Option(exists=True, dir_okay=False, help="A file with train and test, as elsewhere.")],
    accuracy: Annotated[float | None, Option(min=0, max=1, help="Least accuracy, as a lower bound.")] = None,
    within: Annotated[
        float | None, Option(min=0, max=1, help="Most accuracy below the deepest tier alone, as an upper bound.")
    ] = None,
    p95_ms: Annotated[
        options.Finite | None, Option(min=0, help="Greatest 95th percentile of time, as a bound.")
    ] = None,
    max_bytes: Annotated[
        options.Finite | None, Option("--bytes", min=0, help="Most bytes of bodies, as a bound.")
    ] = None,
    objective: Annotated[Literal["mean", "p95"], Option(help="With --accuracy: the time that is least.")] = "mean",
    bundle: options.BundleName = "collaborative",
    n: Annotated[int, Option(min=40, help="Validation texts.")] = 600,
    judged_on_n: Annotated[int | None, Option("--unseen", min=1, help="Texts to judge on.", show_default="n")] = None,
    pruning: Annotated[list[float] | None, Option(min=0, max=10, help="Coefficients besides 0 (slow); repeat.")] = None,
    tokens: Annotated[
        list[str] | None,
        Option(
            metavar="TIER=N,N",
            help="Tokens that a tier may read besides the bundle's (slow for deep tiers); repeat.",
            show_default="first tier: 96, 128, 192",
        ),
    ] = None,
    links: options.LinkPair = "5g-nsa/metro",
    threads: Threads = None,
    out: Annotated[Path, options.writes("OUT.json, OUT.png and OUT.policy.json")] = Path("plan"),
    seed: options.Seed = 0,
) -> None:
    """Find the fastest setting that keeps an accuracy, or the most accurate within --p95-ms or --bytes, on validation
    data; check it on unseen texts. Status 1: none."""
    from lab.replay.plan import Targets
    from lab.replay.plan import plan as search
    from lab.replay.plan_report import report, write
    from lab.replay.recorder import Recorders
    from lab.replay.search import token_choices
    from lab.replay.trial import Conditions, unseen, validation
    from shared.model.bundle import load_bundle

    loaded, targets = load_bundle(bundle), Targets(accuracy, p95_ms, max_bytes, objective, within)
    if targets == Targets(objective=objective):
        raise typer.BadParameter("needs a target: --accuracy, --within, --p95-ms or --bytes")
    if objective == "p95" and not targets.accurate:
        raise typer.BadParameter("--objective goes with --accuracy or --within: it is the time that is least")
    conditions, read = Conditions(Recorders(console), links, threads, seed), token_choices(tokens or (), loaded)
    try:
        chosen_on, judged_on = (
            validation(loaded, data, n, conditions),
            unseen(loaded, data, judged_on_n or n, conditions),
        )
        found = search(chosen_on, targets, coefficients=(0.0, *(pruning or ())), tokens=read)
        figures = report(found, targets, chosen_on, judged_on)
    finally:
        conditions.recorders.save()
    with sole_writer(out):
        write(figures, out, console)
    if not figures["feasible"]:
        raise typer.Exit(1)
