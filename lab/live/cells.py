"""The same bench over several pairs of shaped links of running containers: set, verify, measure, verify again.

A cell that is already on disk is not measured again, and one that was killed goes on where it stopped. A run whose
links did not hold is refused: its samples are deleted.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console

from lab.console import busy
from lab.data.examples import digest
from lab.live.bench import Plan
from lab.live.bench import run as measure
from lab.live.bench_report import table, write
from lab.live.links import running_links
from lab.outputs import sole_writer
from shared.errors import BadSetting
from shared.links.profile import profile


def run(plan: Plan, cells: list[str], url: str, out: Path, console: Console) -> None:
    """Measure each `ACCESS/BACKBONE` into OUT-ACCESS-BACKBONE.json, .parquet and .png.

    Raises:
        BadSetting: no containers, an unknown profile, or links that did not hold.
    """
    pairs = [cell.partition("/") for cell in cells]
    for cell, (access, slash, backbone) in zip(cells, pairs, strict=True):
        if not slash:
            raise BadSetting(f"cell {cell!r}: expected ACCESS/BACKBONE, such as lte/regional")
        profile(f"{access}+{backbone}")
    for access, _, backbone in pairs:
        under = out.with_name(f"{out.name}-{access}-{backbone}")
        done = under.with_name(f"{under.name}.json")
        if done.exists() and _is_of(was := json.loads(done.read_text()), plan):
            console.print(f"{done}: already measured")
            console.print(table(was))
            continue
        journal = under.with_name(f"{under.name}.jsonl")
        shape(access, backbone)
        before = verified(console)
        with sole_writer(under):
            measured = measure(plan, url, console, journal)
            try:
                after = verified(console)
            except BadSetting:
                journal.unlink()
                raise
            write(plan, measured, under, console, links_verified={"before": before, "after": after})
            journal.unlink()


def _is_of(report: dict[str, Any], plan: Plan) -> bool:
    """Whether a report is of this plan; only then does it stand for a run."""
    ours = (digest(plan.examples), plan.policies, plan.loop, plan.seed)
    return (report.get("data_sha256"), list(report.get("policies", ())), report.get("loop"), report.get("seed")) == ours


def shape(access: str, backbone: str) -> None:
    """Give the links of the running containers these profiles, at once."""
    links = running_links()
    for link, name in (("end-edge", access), ("edge-cloud", backbone), ("end-cloud", f"{access}+{backbone}")):
        links.set_profile(link, name)


def verified(console: Console) -> list[dict[str, object]]:
    """What the links measure.

    Raises:
        BadSetting: one does not hold what its profile says.
    """
    with busy(console, "verifying the links"):
        reports = running_links().verify()
    failed = [f"{r.link}: {r.reason}" for r in reports if not r.ok]
    if failed:
        raise BadSetting(f"the links do not hold what their profiles say: {'; '.join(failed)}")
    return [r.as_dict() for r in reports]
