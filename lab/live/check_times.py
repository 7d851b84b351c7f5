"""Modelled times against live ones: profile and bench in turns, so that a slow spell of the machine falls on both.

    profile, bench, profile, bench, ..., profile

Every bench sends the same texts under the same policies; what it should have taken is modelled from the profiles before
and after it (their mean). Each bench gives one ratio of modelled to live mean time. Reported are the ratios' geometric
mean and its t interval: how far the model is off, and how sure that is on this machine. Compute and links are told
apart, so that a model that is off says where.
"""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from lab.console import aside, sheet
from lab.data.examples import Example, check_labels, digest
from lab.data.readable import LeftOut, readable, readers_of
from lab.live import bench, cells
from lab.live.bench_report import cpu
from lab.live.client import connect, info_of
from lab.live.stack import Layout, free_ports, reached
from lab.outputs import write_json
from lab.policies import parse_policy, shown
from lab.replay.profile import Http, http_now, table_now
from lab.replay.recorder import Recorders, runs_on
from lab.replay.run import Run
from lab.replay.times import Times
from lab.replay.trial import access_and_backbone, links_of, threads_of
from lab.replay.walk import Replay
from lab.stats import mean_interval
from shared.errors import BadSetting
from shared.model.bundle import Bundle
from shared.web.machine import cpus
from shared.web.settings import PREFIX, Settings

PROFILE_ROUNDS = 4  # of each profile: there are many
Parts = dict[str, float]  # mean ms of a request: `total`, and of that `compute`, `link` and the `rest`


@dataclass(frozen=True)
class Check:
    """What to compare. `links`: ACCESS/BACKBONE. `url`: running containers; without it the tiers are processes here."""

    examples: list[Example]
    bundle: Bundle
    policies: list[str]
    links: str = "5g-nsa/metro"
    rounds: int = 5
    threads: int | None = None  # of the deeper tiers; the first has 1
    seed: int = 0
    url: str | None = None
    asked: list[Example] = field(default_factory=list)  # with those that cannot be read
    left_out: LeftOut = field(default_factory=LeftOut)  # of the texts asked: what cannot be read


def run(check: Check, out: Path, console: Console) -> None:
    """Measure, print the table, write OUT.json (after every round, so that a killed check leaves what it has).

    Raises:
        BadSetting: links that do not exist or did not hold, a policy for replay only, texts that cannot be read, tiers
            that are not as the model takes them, an answer without all its tiers.
    """
    _refuse(check)
    texts, left_out = readable(check.examples, readers_of(check.bundle))
    left_out.tell(aside())
    check = replace(check, examples=texts, asked=check.examples, left_out=left_out)
    replay, runs = _replayed(check, console)
    written = out.with_name(f"{out.name}.json")
    rounds: list[dict[str, dict[str, Parts]]] = []
    held: list[list[dict[str, object]]] = []
    before = _modelled(check, replay, runs, console)
    for number in range(1, check.rounds + 1):
        console.print(f"round {number} of {check.rounds}", highlight=False)
        live, links = _live(check, console)
        after = _modelled(check, replay, runs, console)
        rounds.append({name: {"live": live[name], "modelled": _mean(before[name], after[name])} for name in runs})
        held.append(links)
        before = after
        figures = report(check, rounds) | {"engine": runs_on(check.bundle), "links_verified": held}
        write_json(written, figures)
    console.print(table(figures))
    console.print(f"written: {written}")


def _refuse(check: Check) -> None:
    """What would stop or falsify it, before minutes have gone by."""
    links_of(check.bundle, check.links)
    check_labels(check.examples, check.bundle.labels, f"bundle {check.bundle.name}")
    if check.url is None:
        settings = {f"{PREFIX}{name.upper()}" for name in Settings.model_fields.keys() - {"key_file", "door_key_file"}}
        if set_ := sorted(settings & os.environ.keys()):
            raise BadSetting(f"{', '.join(set_)}: tiers so set are not what is modelled: unset them (--help)")
        return
    info = asyncio.run(_info(check.url))
    if info["card_sha256"] != check.bundle.digest:
        raise BadSetting(f"{check.url} runs bundle {info['bundle']}, not this {check.bundle.name}: name its --bundle")
    cells.shape("ideal", "ideal")  # are there containers?


async def _info(url: str) -> dict[str, Any]:
    async with connect(url, timeout=10) as client:
        return await info_of(client)


def _replayed(check: Check, console: Console) -> tuple[Replay, dict[str, Run]]:
    recorders = Recorders(console)
    try:
        replay = Replay(check.bundle, check.examples, recorders, seed=check.seed)
        runs = {name: replay.run(replay.policy(parse_policy(name))) for name in check.policies}
    finally:
        recorders.save()
    if alone := [name for name, run in runs.items() if run.replay_only]:
        raise BadSetting(f"{', '.join(alone)}: with bundle {check.bundle.name} in replay only")
    return replay, runs


def _modelled(check: Check, replay: Replay, runs: dict[str, Run], console: Console) -> dict[str, Parts]:
    """What every policy should take, by a profile taken now."""
    threads = threads_of(check.bundle, check.threads)
    stations = {(s.recorder.digest, threads[s.name]): s.recorder.source for s in replay.stations}
    tables = {key: table_now(source, key[1], console, rounds=PROFILE_ROUNDS) for key, source in stations.items()}
    links = links_of(check.bundle, check.links)
    times = Times(replay, threads, links, console, tables=tables, http=_http(check, console))
    return {name: _parts(took.seconds, took.infer, took.link) for name, run in runs.items() for took in [times.of(run)]}


def _http(check: Check, console: Console) -> Http:
    """What HTTP adds on these tiers, their links unshaped for as long."""
    with _tiers(check, "ideal", "ideal", console) as url:
        return http_now(url, check.bundle)


def _live(check: Check, console: Console) -> tuple[dict[str, Parts], list[dict[str, object]]]:
    """What every policy took, and what the containers' links measured afterwards (simulated ones: nothing)."""
    plan = bench.Plan(check.examples, check.policies, seed=check.seed)
    with _tiers(check, *access_and_backbone(check.links), console) as url:
        samples = bench.run(plan, url, console).samples
    held = cells.verified(console) if check.url else []
    if whys := {sample.result.degraded for sample in samples} - {None}:
        raise BadSetting(f"an answer lacked a tier ({', '.join(sorted(map(str, whys)))}): its time is not comparable")
    return {name: _of([sample for sample in samples if sample.policy == name]) for name in check.policies}, held


@contextmanager
def _tiers(check: Check, access: str, backbone: str, console: Console) -> Iterator[str]:
    """Where tiers answer over these links: running containers, or processes started for as long."""
    if check.url:
        cells.shape(access, backbone)
    threads = threads_of(check.bundle, check.threads)
    ports = free_ports(len(threads))
    layout = Layout(str(check.bundle.folder), ports, access=access, backbone=backbone, threads=threads)
    with reached(check.url, layout, console) as url:
        yield url


def _of(samples: list[bench.Sample]) -> Parts:
    infer = [sum(hop.timings_ms["infer"] for hop in s.result.hops) / 1e3 for s in samples]
    link = [sum(hop.link.ms for hop in s.result.hops if hop.link) / 1e3 for s in samples]
    return _parts(np.array([s.seconds for s in samples]), np.array(infer), np.array(link))


def _parts(total: np.ndarray, compute: np.ndarray, link: np.ndarray) -> Parts:
    waits = {"total": total, "compute": compute, "link": link}
    means = {name: 1e3 * float(seconds.mean()) for name, seconds in waits.items()}
    return means | {"rest": means["total"] - means["compute"] - means["link"]}


def _mean(*parts: Parts) -> Parts:
    return {key: float(np.mean([part[key] for part in parts])) for key in parts[0]}


def report(check: Check, rounds: Sequence[dict[str, dict[str, Parts]]]) -> dict[str, Any]:
    """Means over the rounds, and how far the model is off."""
    return {
        "n": len(check.examples) + len(check.left_out.texts),
        "left_out": check.left_out.report(),
        "rounds": len(rounds),
        "links": check.links,
        "backend": "simulated" if check.url is None else "netem",
        "seed": check.seed,
        "hardware": {"cpu": cpu(), "cores": cpus(), "device": "cpu"},
        "threads": threads_of(check.bundle, check.threads),
        "bundle": check.bundle.name,
        "card_sha256": check.bundle.digest,
        "data_sha256": digest(check.asked or check.examples),
        "policies": {name: _compared(name, [of_round[name] for of_round in rounds]) for name in check.policies},
    }


def _compared(name: str, rounds: list[dict[str, Parts]]) -> dict[str, Any]:
    logs = [math.log(of_round["modelled"]["total"] / of_round["live"]["total"]) for of_round in rounds]
    return {
        "asked": parse_policy(name),
        "live_ms": _mean(*(of_round["live"] for of_round in rounds)),
        "modelled_ms": _mean(*(of_round["modelled"] for of_round in rounds)),
        "off_by": [math.expm1(bound) for bound in mean_interval(logs)],
        "by_round": rounds,
    }


def table(figures: dict[str, Any]) -> Table:
    """One row per policy."""
    hardware = figures["hardware"]
    title = (
        f"{figures['n']} texts, {figures['rounds']} rounds; {hardware['cpu']}, {hardware['cores']:g} core(s); "
        f"links {figures['links']} ({figures['backend']})"
    )
    parts = ("compute: live", "modelled", "link: live", "modelled")
    out = sheet(title, "policy", "live mean ms", "modelled", "off [95 %]", *parts, words=("policy",))
    for name, row in figures["policies"].items():
        live, modelled = row["live_ms"], row["modelled_ms"]
        pairs = [f"{side[part]:.0f}" for part in ("compute", "link") for side in (live, modelled)]
        out.add_row(shown(name), f"{live['total']:.0f}", f"{modelled['total']:.0f}", off(row), *pairs)
    return out


def off(row: dict[str, Any]) -> str:
    """How far the model is off, with its interval where there is more than one round."""
    middle, low, high = row["off_by"]
    return f"{middle:+.1%}" + ("" if low == high else f" [{low:+.1%}, {high:+.1%}]")
