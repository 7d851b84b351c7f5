"""The nodes of a live run: what all of them get, and what a run asks of them, be they processes or containers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from lab.mesh.outcome import Cell
from shared.mesh.source import Adapt
from shared.mesh.topology import written
from shared.model.bundle import Bundle


@dataclass(frozen=True)
class Mesh:
    """What every node of a mesh gets. `recorded`: the file of exits, where nodes sleep."""

    bundle: Bundle
    segments: int | None
    recorded: Path | None
    threads: int = 1
    compose: bool = False  # containers instead of processes


class Nodes(Protocol):
    """Running nodes. `urls`: where each answers, by its name."""

    urls: Mapping[str, str]

    def kill(self, name: str) -> None:
        """End a node at once, as a loss of power does."""

    def cut(self, link: str, *, cut: bool) -> None:
        """Cut a link, `n1-n2`, or heal it."""

    def check(self, name: str) -> None:
        """Raises BadSetting if this node has stopped."""


def settings_of(cell: Cell, mesh: Mesh, name: str) -> dict[str, str]:
    """A node's settings but for its address, its links and where its recording is."""
    slept = cell.service_s is not None and mesh.recorded is not None
    return {
        "TIERWISE_SEGMENTS": str(mesh.segments or ""),
        "TIERWISE_HELD_SEGMENTS": written(cell.held[name]) if name in cell.held else "",
        "TIERWISE_EXIT_THRESHOLD": str(cell.threshold),
        "TIERWISE_ADAPT": cell.adapt.value if name in cell.topology.sources else Adapt.FIXED.value,
        "TIERWISE_GAP_MS": str(1e3 / cell.rate),
        "TIERWISE_REPORT_MS": str(1e3 * cell.report_s),
        "TIERWISE_THREADS": str(mesh.threads),
        "TIERWISE_LOG_LEVEL": "warning",
        "TIERWISE_QUEUE_LIMIT": "10000",
        "TIERWISE_DRAIN_S": "0.5",
        "TIERWISE_SERVICE_MS": str(1e3 * cell.service_s) if slept and cell.service_s else "",
    }
