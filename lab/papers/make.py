"""`tierwise tables`: what the papers report, made again with intervals, into one file with pictures.

    OUT/report.json      every number, with its n, seed, data hashes, links, threads, hardware; a verdict on each bundle
    OUT/*.png            the pictures (`figures.py`)
    OUT/point-THRESHOLD.policy.json    our operating points of hu-1, as files that `--policy` and TIERWISE_POLICY take

Texts are recorded once and kept, so a killed run goes on, and a larger `n` records only what is new. A run of some
tables leaves the others in the report as they are.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from lab.console import progress
from lab.live.bench_report import cpu
from lab.outputs import write_json
from lab.papers import dimee, gates, hu, pruned, recserve
from lab.papers.figures import draw
from lab.replay.trial import Conditions, Trial, tuning, unseen, validation
from shared.errors import BadSetting
from shared.model.bundle import MODELS, Bundle, load_bundle

Maker = Callable[[Bundle, Path, int, Conditions], Trial]
NAMES = ("hu-1", "hu-parts", "hu-pruned", "recserve", "gates", "dimee-1", "dimee-costs", "dimee-pools")


def run(data: Path, tables: list[str], out: Path, n: int, conditions: Conditions) -> int:
    """Make the tables that were asked for (none: all), and the report over all that were ever made.

    `data` holds NAME.parquet for each bundle split-NAME, and imdb.parquet for `collaborative`. Returns how many texts
    had to be run.

    Raises:
        BadSetting: a table that does not exist, or data that are not there.
    """
    unknown = [name for name in tables if name not in NAMES]
    if unknown:
        raise BadSetting(f"no table {unknown[0]!r}: choose among {', '.join(NAMES)}")

    @cache
    def trial(make: Maker, bundle: str) -> Trial:
        return make(load_bundle(bundle), sources[bundle], n, conditions)

    sources, recorders = _sources(data), conditions.recorders
    steps = [(name, bundle) for bundle in sources for name in _parts(bundle) if name in (tables or NAMES)]
    if not steps:
        raise BadSetting(f"{data}: {', '.join(tables)} needs imdb.parquet")
    try:
        with progress(recorders.console, transient=True) as bar:
            for name, bundle in bar.track(steps, description="tables"):
                bar.console.print(f"{name} {sources[bundle].stem}")
                part, chosen_on = _parts(bundle)[name]
                trials = [trial(make, bundle) for make in (chosen_on, unseen) if make]
                _keep(out, name, sources[bundle].stem, {"made": trials[-1].described(), **part(*trials)})
                recorders.save()
        judged = dict.fromkeys(bundle for _, bundle in steps)
        verdicts = {bundle: trial(unseen, bundle).verdict(["collaborative", "tabi"]) for bundle in judged}
    finally:
        recorders.save()
    report = json.loads((out / "report.json").read_text())
    write_json(out / "report.json", report | {"verdicts": report.get("verdicts", {}) | verdicts})
    draw(report["tables"], out)
    for made in report["tables"].get("hu-1", {}).values():
        for spec in [row["spec"] for row in made["points"]["rows"] if row["rule"] == "ours"]:
            write_json(out / f"point-{spec['offload_threshold']:g}.policy.json", spec)
    recorders.console.print(f"written: {out / 'report.json'} and pictures beside it; {recorders.ran} texts were run")
    for bundle, said in verdicts.items():
        recorders.console.print(f"{bundle}, times modelled: {said}", highlight=False, soft_wrap=True)
    return recorders.ran


def _parts(bundle: str) -> dict[str, tuple[Callable[..., dict[str, Any]], Maker | None]]:
    """The tables that a bundle has a part in: what makes the part, and the trial that it chooses on, if any."""
    if bundle == "collaborative":
        return {
            "hu-1": (lambda chosen_on, t: {"table": hu.table_1(t), "points": hu.points(chosen_on, t)}, tuning),
            "hu-parts": (hu.parts, validation),
            "hu-pruned": (pruned.trained, None),
            "recserve": (recserve.table, validation),
            "gates": (gates.table, validation),
        }
    return {
        "dimee-1": (lambda t: {**dimee.table_1(t), "devices": dimee.devices(t)}, None),
        "dimee-costs": (lambda chosen_on, t: {"cost_variation": dimee.variation(chosen_on, t)}, _as_calibrated),
        "dimee-pools": (dimee.pools, None),
    }


def _as_calibrated(bundle: Bundle, data: Path, n: int, conditions: Conditions) -> Trial:
    """As many held-out texts as the card's pools were made of, unless the table is a quick one."""
    return validation(bundle, data, 5 * n // 2, conditions)


def _sources(data: Path) -> dict[str, Path]:
    """The labelled texts of `collaborative` and of every committed bundle `split-NAME`, where the folder has them.

    Raises:
        BadSetting: it has those of no `split-NAME`.
    """
    names = sorted(path.parent.name for path in MODELS.glob("split-*/bundle.json"))
    files = {name: data / f"{name.removeprefix('split-')}.parquet" for name in names}
    if not any(path.is_file() for path in files.values()):
        raise BadSetting(f"{data}: none of {', '.join(path.name for path in files.values())}")
    files = {"collaborative": data / "imdb.parquet", **files}
    return {name: path for name, path in files.items() if path.is_file()}


def _keep(out: Path, name: str, part: str, made: dict[str, Any]) -> None:
    """Put one part of a table into the report, whole or not at all."""
    path = out / "report.json"
    report = json.loads(path.read_text()) if path.exists() else {"tables": {}}
    made["made"]["hardware"] = f"{cpu()}, {os.cpu_count()} cores"
    report["tables"].setdefault(name, {})[part] = made
    write_json(path, report)
