"""The cells of `tierwise mesh`: live or simulated, one after the other; or both, held against each other."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from rich.console import Console

from lab.console import sheet
from lab.data.examples import Example, digest
from lab.live.bench_report import cpu
from lab.mesh import containers, live
from lab.mesh.nodes import Mesh
from lab.mesh.outcome import Cell
from lab.mesh.report import figures, name_of, write
from lab.mesh.simulate import simulate
from lab.mesh.texts import record
from lab.replay.recorder import Recorders, runs_on
from shared.errors import BadSetting
from shared.mesh.source import Adapt
from shared.mesh.topology import LIVE, Topology, topology
from shared.model.bundle import Bundle

NO_EXIT = 2.0  # a threshold that no confidence reaches
WITHIN = 0.10  # of the live throughput: the simulator's


@dataclass(frozen=True)
class Plan:
    """What is to be run: every topology, and of those that do not adapt their rate every rate."""

    topologies: Sequence[str]
    rates: Sequence[float]
    adapt: Adapt
    threshold: float
    no_exit: bool
    segments: int | None
    service_s: float | None
    seconds: float
    link: str
    kill: tuple[str, float] | None
    simulated: bool
    check: bool
    seed: int
    held: Mapping[str, range] = field(default_factory=dict)  # by node; others hold all
    cut: tuple[str, float, float] | None = None
    compose: bool = False
    report_s: float = 0.1

    def cells(self) -> list[Cell]:
        """In order.

        Raises:
            BadSetting: a topology that does not exist or is too large to be live, or no such node to kill or to hold.
        """
        rates = self.rates[:1] if self.adapt is Adapt.RATE else self.rates
        thresholds = [(self.threshold, self.adapt)]
        if self.no_exit:
            thresholds.append((NO_EXIT, Adapt.RATE if self.adapt is Adapt.RATE else Adapt.FIXED))
        out = []
        for name in self.topologies:
            nodes = topology(name)
            self._check(nodes)
            for threshold, adapt in thresholds:
                for rate in rates:
                    out.append(
                        Cell(
                            nodes,
                            adapt,
                            threshold,
                            rate,
                            self.seconds,
                            self.link,
                            self.service_s,
                            self.kill,
                            self.seed,
                            self.held,
                            self.cut,
                            self.report_s,
                        )
                    )
        return out

    def _check(self, mesh: Topology) -> None:
        if not self.simulated and mesh.name not in LIVE:
            raise BadSetting(f"topology {mesh.name} is for the simulator alone: add --simulated")
        if self.kill and self.kill[0] not in mesh.nodes[1:]:
            raise BadSetting(f"--kill {self.kill[0]}: choose from {', '.join(mesh.nodes[1:]) or 'none'} in {mesh.name}")
        if wrong := sorted(self.held.keys() - set(mesh.nodes)):
            raise BadSetting(f"--hold {wrong[0]}: no such node in {mesh.name}")
        edges = mesh.edges
        links = [f"{a}-{b}" for a, b in combinations(mesh.nodes, 2) if b in edges[a] or a in edges[b]]
        if self.cut and self.cut[0] not in links:
            raise BadSetting(f"--cut {self.cut[0]}: choose from {', '.join(links) or 'none'} in {mesh.name}")


def run(plan: Plan, bundle: Bundle, examples: Sequence[Example], recorders: Recorders, out: Path) -> bool:
    """Run every cell, print and write what came of them; false where a check failed."""
    console, cells = recorders.console, plan.cells()
    with tempfile.TemporaryDirectory(prefix="tierwise-exits-") as scratch:
        file = Path(scratch) / "exits.safetensors" if plan.service_s is not None else None
        texts, exits = record(bundle, examples, plan.segments, recorders, file)
        mesh = Mesh(bundle, plan.segments, file, compose=plan.compose)
        found = []
        for at, cell in enumerate(cells):
            with console.status(f"{at + 1}/{len(cells)} {name_of(cell)}, {cell.rate:g}/s, {cell.seconds:g} s"):
                if not plan.simulated:
                    outcome = live.run(cell, mesh, texts)
                    found.append(figures(cell, outcome, exits, _kind(plan)))
                if plan.check:  # with the service times that the live nodes had
                    cell = replace(cell, service_s=outcome.facts["service_ms"] / 1e3)
                if plan.simulated or plan.check:
                    found.append(figures(cell, simulate(cell, exits), exits, "simulated"))
    facts: dict[str, Any] = {
        "title": _title(plan),
        "cpu": cpu(),
        "bundle": bundle.card_name,
        "runs_on": runs_on(bundle),
        "texts": len(texts),
        "texts_sha256": digest(texts),
        "segments": exits.segments,
        "ends": list(exits.layers),
        "checked": None,
    }
    if plan.check:
        facts["checked"] = compared(found, console)
    write(found, facts, out, console)
    return facts["checked"] is None or all(row["within"] for row in facts["checked"])


def compared(found: Sequence[dict[str, Any]], console: Console) -> list[dict[str, Any]]:
    """Simulated beside live, cell by cell: does the throughput agree within `WITHIN`?"""
    rows = []
    shown = sheet(
        "simulated against live", "mesh", "live /s", "simulated /s", "differs", "within 10 %", words=("mesh",)
    )
    for real, played in zip(found[::2], found[1::2], strict=True):
        a, b = real["throughput_per_s"], played["throughput_per_s"]
        differs = b / a - 1 if a else float("inf")
        within = abs(differs) <= WITHIN
        rows.append({"name": real["name"], "live": a, "simulated": b, "differs": differs, "within": within})
        shown.add_row(real["name"], f"{a:.1f}", f"{b:.1f}", f"{differs:+.1%}", "yes" if within else "NO")
    console.print(shown)
    return rows


def _kind(plan: Plan) -> str:
    where = f"containers over {containers.backend()} links" if plan.compose else "live"
    if plan.service_s is None:
        return f"{where}, computed on shared processors"
    return f"{where}, slept {plan.service_s * 1e3:g} ms a segment on recorded exits"


def _title(plan: Plan) -> str:
    if plan.kill:
        return f"{plan.kill[0]} is killed after {plan.kill[1]:g} s: what it held runs again"
    if plan.cut:
        link, at, until = plan.cut
        return f"Link {link} is cut from {at:g} to {until:g} s: what was sent over it runs again"
    if plan.adapt is Adapt.RATE:
        return "Answered texts a second, where the source admits as many as its queues allow"
    if plan.adapt is Adapt.THRESHOLD:
        return "Accuracy at a fixed rate, where the source adapts the exit threshold"
    return "A mesh at a fixed rate and a fixed exit threshold"
