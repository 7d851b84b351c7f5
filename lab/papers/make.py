"""`tierwise tables`: what the papers report, made again with intervals, into one file with pictures.

    OUT/report.json      every number, with its n, seed, data hashes, links, threads and hardware
    OUT/*.png            the pictures (`figures.py`)
    OUT/point-THRESHOLD.policy.json    our operating points of hu-1, as files that `--policy` and TIERWISE_POLICY take

Texts are recorded once and kept, so a killed run goes on, and a larger `n` records only what is new. A run of some
tables leaves the others in the report as they are.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from lab.console import progress
from lab.live.bench_report import cpu
from lab.outputs import write_json
from lab.papers import dimee, hu, pruned
from lab.papers.dimee_prices import variation
from lab.papers.figures import draw
from lab.replay.recorder import Recorders
from lab.replay.trial import Conditions, Trial, tuning, unseen, validation
from shared.errors import BadSetting
from shared.model.bundle import MODELS, Bundle, load_bundle

Step = Callable[[], dict[str, Any]]
Make = Callable[[Bundle, Path, int, Conditions], Trial]


@dataclass(frozen=True)
class Job:
    """What to make. `data` holds NAME.parquet for each bundle split-NAME, and imdb.parquet for `collaborative`."""

    data: Path
    tables: list[str]
    out: Path
    n: int = 600
    links: str = "5g-nsa/metro"
    threads: int | None = None
    seed: int = 0


NAMES = {
    "hu-1": "Zhang et al., Table I, and operating points that must beat it",
    "hu-parts": "what pruning, the S curve, calibration, early exit and the ensemble each contribute",
    "hu-pruned": "networks trained with pruned texts and without, on pruned texts",
    "dimee-1": "DIMEE, Table I, its rivals at equal cost, and each device alone",
    "dimee-costs": "DIMEE as each unit cost changes",
    "dimee-pools": "the pools: how well an embedding tells them",
}


def run(job: Job, console: Console) -> int:
    """Make the tables that were asked for, and the report over all that were ever made; the texts that had to be run.

    Raises:
        BadSetting: a table that does not exist, or data that are not there.
    """
    unknown = [name for name in job.tables if name not in NAMES]
    if unknown:
        raise BadSetting(f"no table {unknown[0]!r}: choose among {', '.join(NAMES)}")
    recorders = Recorders(console)
    conditions = Conditions(recorders, job.links, job.threads, job.seed)
    steps = [step for step in _steps(job, conditions) if step[0] in (job.tables or NAMES)]
    if not steps:
        raise BadSetting(f"{job.data}: {', '.join(job.tables)} needs imdb.parquet")
    try:
        with progress(console, transient=True) as bar:
            for name, part, step in bar.track(steps, description="tables"):
                bar.console.print(f"{name} {part}")
                _keep(job.out, name, part, step())
                recorders.save()
    finally:
        recorders.save()
    report = json.loads((job.out / "report.json").read_text())
    draw(report["tables"], job.out)
    write_points(report["tables"], job.out)
    console.print(f"written: {job.out / 'report.json'} and pictures beside it; {recorders.ran} texts were run")
    return recorders.ran


def _steps(job: Job, conditions: Conditions) -> Iterator[tuple[str, str, Step]]:
    """Every table with the part of it (a data set) that one step makes. Trials are made once, when first needed."""
    imdb = job.data / "imdb.parquet"
    known: dict[tuple[str, str], Trial] = {}

    def trial(make: Make, bundle: Bundle, data: Path) -> Trial:
        key = (make.__name__, bundle.name)
        if key not in known:
            known[key] = make(bundle, data, job.n, conditions)
        return known[key]

    def calibration(bundle: Bundle, data: Path, n: int, conditions: Conditions) -> Trial:
        """As many held-out texts as the card's pools were made of, unless the table is a quick one."""
        return validation(bundle, data, 5 * n // 2, conditions)

    def made(bundle: Bundle, data: Path, part: Callable[..., dict[str, Any]], *chosen_on: Make) -> dict[str, Any]:
        judged_on = trial(unseen, bundle, data)
        return {"made": judged_on.described(), **part(*(trial(make, bundle, data) for make in chosen_on), judged_on)}

    if imdb.is_file():
        whole = load_bundle("collaborative")
        yield (
            "hu-1",
            "imdb",
            lambda: made(whole, imdb, lambda v, t: {"table": hu.table_1(t), "points": hu.points(v, t)}, tuning),
        )
        yield "hu-parts", "imdb", lambda: made(whole, imdb, hu.parts, validation)
        yield "hu-pruned", "imdb", lambda: made(whole, imdb, pruned.trained)
    for bundle, data in split_bundles(job.data):
        for name, part, *chosen_on in (
            ("dimee-1", lambda t: {**dimee.table_1(t), "devices": dimee.devices(t)}),
            ("dimee-costs", lambda v, t: {"cost_variation": variation(v, t)}, calibration),
            ("dimee-pools", dimee.pools),
        ):
            yield name, data.stem, lambda b=bundle, d=data, p=part, c=chosen_on: made(b, d, p, *c)  # type: ignore[misc]


def split_bundles(data: Path) -> list[tuple[Bundle, Path]]:
    """The committed `split-NAME` bundles whose NAME.parquet is in the folder.

    Raises:
        BadSetting: there is none.
    """
    names = sorted(path.parent.name for path in MODELS.glob("split-*/bundle.json"))
    files = {name: data / f"{name.removeprefix('split-')}.parquet" for name in names}
    found = [(load_bundle(name), path) for name, path in files.items() if path.is_file()]
    if not found:
        raise BadSetting(f"{data}: none of {', '.join(path.name for path in files.values())}")
    return found


def write_points(tables: dict[str, Any], out: Path) -> None:
    """Our operating points, one policy file each."""
    for made in tables.get("hu-1", {}).values():
        for row in made["points"]["rows"]:
            if row["rule"] == "ours":
                write_json(out / f"point-{row['spec']['offload_threshold']:g}.policy.json", row["spec"])


def _keep(out: Path, name: str, part: str, made: dict[str, Any]) -> None:
    """Put one part of a table into the report, whole or not at all."""
    path = out / "report.json"
    report = json.loads(path.read_text()) if path.exists() else {"tables": {}}
    made["made"]["hardware"] = f"{cpu()}, {os.cpu_count()} cores"
    report["tables"].setdefault(name, {})[part] = made
    write_json(path, report)
