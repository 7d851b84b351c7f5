"""`tierwise link ...`: the links of a running stack."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.table import Table
from typer import Argument, Option

from lab.cli import options
from lab.console import screen, sheet
from lab.live.links import running_links
from services.shaper.shape import Reading
from services.shaper.verify import rate_text, reading_text
from shared.errors import BadSetting
from shared.links.profile import PROFILES
from shared.links.profile import profile as path_of

app = typer.Typer(help="Look at, change and measure the links of running containers.", no_args_is_help=True)
console = screen()

LinkName = Annotated[str, Argument(metavar="LINK", help="SOURCE-TARGET, e.g. end-edge.")]
Project = Annotated[str | None, Option(envvar="COMPOSE_PROJECT_NAME", help="Compose project, if several are running.")]
AsJson = Annotated[bool, Option("--json", help="Print JSON.")]
OneEnd = Annotated[bool, Option("--one-end", help="The other end runs on another machine: change this one only.")]


@app.command("list")
def list_(project: Project = None, as_json: AsJson = False) -> None:
    """Every link profile with its numbers and source, and the running links."""
    profiles = yaml.safe_load(PROFILES.read_text())
    try:
        running, why = running_links(project).show(), ""
    except BadSetting as error:
        running, why = {}, str(error)
    if as_json:
        print(json.dumps({"profiles": profiles, "links": running}))
        return
    table = sheet("Profiles", "profile", "rate up", "rate down", "RTT ms", "jitter ms", "loss %", "source")
    for name, raw in profiles.items():
        rates = [rate_text(rate) for rate in (path_of(name).rate_up_bps, path_of(name).rate_down_bps)]
        table.add_row(name, *rates, *(f"{raw[key]:g}" for key in ("rtt", "jitter", "loss")), raw["source"])
    console.print(table)
    console.print(_running(running) if running else f"No running links: {why}")


@app.command()
def show(project: Project = None, as_json: AsJson = False) -> None:
    """The running links: profile in force, and what the kernel does at each end."""
    shown = running_links(project).show()
    print(json.dumps(shown)) if as_json else console.print(_running(shown))


def _running(shown: dict[str, Any]) -> Table:
    columns = ("link", "direction", "sent by", "in force", "kernel", "sent bytes", "drops", "waiting bytes")
    table = sheet("Running links", *columns)
    for link, ends in shown.items():
        for direction, end in ends.items():
            state = f"{end['profile']} ({end['mode']})" + (f" {end['trace']}" if end["trace"] else "")
            kernel = reading_text(Reading.of(end["kernel"])) if end["kernel"] else "not shaped"
            counters = (
                [str(end["counters"][key]) for key in ("sent_bytes", "drops", "backlog")] if end["counters"] else []
            )
            table.add_row(link, direction, end["tier"], state, kernel, *counters)
    return table


@app.command("set")
def set_(
    link: LinkName,
    profile: Annotated[str, Argument(help="A profile, or a path over several: 5g-nsa+metro.")],
    project: Project = None,
    one_end: OneEnd = False,
) -> None:
    """Put a profile in force at both ends, within a second; ends a trace or a cut."""
    _say(link, running_links(project).set_profile(link, profile, one_end=one_end))


@app.command()
def trace(
    link: LinkName,
    file: Annotated[Path, Argument(exists=True, dir_okay=False, help="CSV or mahimahi (deploy/netem/traces).")],
    down: Annotated[Path | None, Option(exists=True, dir_okay=False, help="Another file towards SOURCE.")] = None,
    project: Project = None,
    one_end: OneEnd = False,
) -> None:
    """Replay a trace, again and again, over the profile in force."""
    _say(link, running_links(project).play_trace(link, file, down, one_end=one_end))


@app.command()
def cut(link: LinkName, project: Project = None, one_end: OneEnd = False) -> None:
    """Lose every packet until `heal`."""
    _say(link, running_links(project).cut(link, one_end=one_end))


@app.command()
def heal(link: LinkName, project: Project = None, one_end: OneEnd = False) -> None:
    """Back to what was before the cut."""
    _say(link, running_links(project).heal(link, one_end=one_end))


@app.command()
def verify(
    link: Annotated[str | None, Argument(metavar="[LINK]", help="All links unless given.")] = None,
    project: Project = None,
    as_json: AsJson = False,
) -> None:
    """Measure links and compare them with their profiles; exit status 1 if one does not hold."""
    reports = running_links(project).verify([link] if link else None)
    if as_json:
        print(json.dumps([report.as_dict() for report in reports]))
    else:
        table = sheet("Links against their profiles", "link", "profile", "check", "expected", "measured", "holds")
        for report in reports:
            for check in report.checks:
                mark = "yes" if check.held else "[bold red]NO[/]"
                table.add_row(report.link, report.profile, check.name, check.expected, check.measured, mark)
        console.print(table)
    if not all(report.ok for report in reports):
        raise typer.Exit(1)


@app.command()
def compare(
    url: options.Url = "http://127.0.0.1:8080",
    n: Annotated[int, Option(min=5, help="Requests per profile and side.")] = 40,
    out: Annotated[Path, Option(help="Where the figures go.")] = Path("links.json"),
    project: Project = None,
) -> None:
    """Simulated links against netem, profile by profile, on running containers."""
    from lab.live import simulated_links as job

    job.run(url, n, out, project, console)


def _say(link: str, answers: dict[Any, dict[str, Any]]) -> None:
    for direction, state in answers.items():
        what = f"{state['profile']} ({state['mode']})" + (f" {state['trace']}" if state["trace"] else "")
        numbers = f"{rate_text(state['rate'])}, RTT {1e3 * state['rtt']:g} ms, loss {100 * state['loss']:.4g} %"
        console.print(f"{link} {direction}: {what}: {numbers}", highlight=False)
