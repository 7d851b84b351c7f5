"""`tierwise mesh`: one network's layers spread over neighbours (MDI-Exit), live or simulated."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from lab.cli import options
from lab.console import screen
from lab.outputs import sole_writer
from shared.mesh.source import Adapt

app = typer.Typer()
console = screen()
SAMPLE = Path(__file__).resolve().parents[1] / "data" / "sample" / "reviews.csv"

Topologies = Annotated[
    list[str] | None,
    Option(help="local, pair, mesh3, ring3, mesh5; torusN with --simulated; repeat.", show_default="mesh3"),
]
Rates = Annotated[
    list[options.Finite] | None,
    Option(
        min=0.01,
        max=100_000,
        help="Texts a second that come; repeat for a sweep; not with --adapt rate.",
        show_default="20",
    ),
]
Segments = Annotated[
    int | None,
    Option(min=1, max=1000, help="Segments of the network, each with an exit.", show_default="the bundle's"),
]
ServiceMs = Annotated[
    options.Finite | None,
    Option(
        min=0.1,
        max=60_000,
        help="A segment sleeps so long on recorded exits, as on a processor of its own.",
        show_default="computed, on shared processors; simulated: 20",
    ),
]
ReportMs = Annotated[
    options.Finite,
    Option(min=1, max=60_000, help="A neighbour silent for so long is asked; ten times that, and it is lost."),
]
Holds = Annotated[
    list[str] | None,
    Option(metavar="NODE=FIRST-LAST", help="A node holds these segments alone; repeat.", show_default="all"),
]
Adapting = Annotated[Adapt, Option(help="What the source adapts to its queues; rate: it admits as many as they allow.")]
Checking = Annotated[bool, Option("--check", help="Live and simulated. Status 1: a throughput differs by over 10 %.")]
Cutting = Annotated[
    str | None, Option(metavar="LINK@FROM-TO", help="With --compose: cut a link, as n1-n2, between these seconds.")
]
Composed = Annotated[
    bool, Option("--compose", help="Nodes are containers of deploy/mesh, links shaped by netem; needs Docker.")
]
Texts = Annotated[
    str | None, Option(help=f"{options.TEXTS}; or hub:NAME.", show_default="the 48 reviews of the demo's sample")
]


@app.command()
def mesh(
    topology: Topologies = None,
    rate: Rates = None,
    adapt: Adapting = Adapt.FIXED,
    threshold: Annotated[
        options.Finite, Option(min=0.01, max=1, help="Confidence from which an exit answers (T_e).")
    ] = 0.9,
    no_exit: Annotated[bool, Option("--no-exit", help="Also without early exits.")] = False,
    segments: Segments = None,
    service_ms: ServiceMs = None,
    report_ms: ReportMs = 100.0,
    seconds: Annotated[
        options.Finite, Option(min=1, max=3600, help="Of each run; the first third is left out.")
    ] = 30.0,
    link: Annotated[str, Option(help="Profile of every link.")] = "wifi",
    kill: Annotated[str | None, Option(metavar="NODE@SECONDS", help="Kill a node in mid-run.")] = None,
    cut: Cutting = None,
    hold: Holds = None,
    simulated: Annotated[bool, Option("--simulated", help="In simulated time, no live nodes.")] = False,
    compose: Composed = False,
    check: Checking = False,
    data: Texts = None,
    n: options.FirstTexts = 500,
    split: Annotated[str | None, Option(help="As in `bench`.", show_default="test; all of the sample")] = None,
    bundle: options.BundleName = "split-imdb",
    out: Annotated[Path, options.writes("OUT.json and OUT.png")] = Path("mesh"),
    seed: options.Seed = 0,
) -> None:
    """Spread one network's segments over neighbours that decide by queues (MDI-Exit): texts come open-loop; what each
    mesh answers, how rightly, and how its queues, rate and threshold move."""
    from lab.data.examples import load_without
    from lab.mesh.run import Plan, run
    from lab.replay.recorder import Recorders
    from shared.links.profile import profile
    from shared.mesh.runs import ends_of
    from shared.mesh.topology import check_held
    from shared.model.bundle import load_bundle

    if check and simulated:
        raise typer.BadParameter("--check runs live and simulated: leave out --simulated")
    if compose and simulated:
        raise typer.BadParameter("--compose starts containers, --simulated nothing: leave out one of them")
    if cut and not compose:
        raise typer.BadParameter("--cut: only links of containers can be cut: add --compose")
    if adapt is Adapt.RATE and rate:
        raise typer.BadParameter("--rate and --adapt rate: the source finds its rate itself; leave out one of them")
    if (check or simulated) and service_ms is None:
        service_ms = 20.0
    loaded = load_bundle(bundle)
    profile(link)
    count = len(ends_of(loaded, segments))
    plan = Plan(
        topologies=topology or ["mesh3"],
        rates=rate or [20.0],
        adapt=adapt,
        threshold=threshold,
        no_exit=no_exit,
        segments=segments,
        service_s=None if service_ms is None else service_ms / 1e3,
        seconds=seconds,
        link=link,
        kill=_killed(kill, seconds),
        simulated=simulated,
        check=check,
        seed=seed,
        held=_held(hold or [], count),
        cut=_cut(cut, seconds),
        compose=compose,
        report_s=report_ms / 1e3,
    )
    for cell in plan.cells():
        check_held(cell.topology, cell.held, count)
    split = split or ("test" if data else "all")
    examples = load_without(data or str(SAMPLE), split, None, labels=loaded.labels)[:n]
    with sole_writer(out):
        if not run(plan, loaded, examples, Recorders(console), out):
            raise typer.Exit(1)


def _held(asked: list[str], segments: int) -> dict[str, range]:
    """Which segments each named node holds.

    Raises:
        typer.BadParameter: a node is named twice, or it is not written so.
        BadSetting: there are no such segments.
    """
    from shared.mesh.topology import held_of

    pairs = [each.partition("=")[::2] for each in asked]
    if not all(node and held for node, held in pairs) or len(dict(pairs)) < len(pairs):
        raise typer.BadParameter(f"--hold {' --hold '.join(asked)}: expected NODE=FIRST-LAST, once for each node")
    return {node: held_of(held, segments) for node, held in pairs}


def _killed(asked: str | None, seconds: float) -> tuple[str, float] | None:
    """A node and when it is killed.

    Raises:
        typer.BadParameter: it is not written so, or never in this run.
    """
    if asked is None:
        return None
    name, _, at = asked.partition("@")
    try:
        when = float(at)
    except ValueError:
        when = -1.0
    if not name or not 0 < when < seconds:
        raise typer.BadParameter(f"--kill {asked}: expected NODE@SECONDS, within the {seconds:g} s of a run")
    return name, when


def _cut(asked: str | None, seconds: float) -> tuple[str, float, float] | None:
    """A link, when it is cut and when it is healed.

    Raises:
        typer.BadParameter: it is not written so, or not within this run.
    """
    if asked is None:
        return None
    link, _, times = asked.rpartition("@")
    try:
        begins, ends = map(float, times.split("-"))
    except ValueError:
        begins = ends = -1.0
    if not link or not 0 < begins < ends < seconds:
        raise typer.BadParameter(f"--cut {asked}: expected LINK@FROM-TO, within the {seconds:g} s of a run")
    return link, begins, ends
