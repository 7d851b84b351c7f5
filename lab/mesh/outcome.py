"""What a run of a mesh is asked for and what came of it, live or simulated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from shared.mesh.source import Adapt
from shared.mesh.topology import Topology

DRAIN_S = 30.0


@dataclass(frozen=True)
class Exits:
    """What the exit at the end of each segment says of real texts: recorded from the network itself."""

    probabilities: np.ndarray  # [N, K, C] float32, calibrated
    labels: np.ndarray  # [N]
    state_bytes: np.ndarray  # [N] of the hidden state that would travel
    layers: tuple[int, ...]  # [K] the layer that ends each segment

    @property
    def segments(self) -> int:
        return self.probabilities.shape[1]


@dataclass(frozen=True)
class Cell:
    """One run. `service_s`: what a segment takes, where given; `rate`: texts a second that come to each source."""

    topology: Topology
    adapt: Adapt
    threshold: float  # over 1: no early exit
    rate: float
    seconds: float
    link: str
    service_s: float | None = None
    kill: tuple[str, float] | None = None
    seed: int = 0
    held: Mapping[str, range] = field(default_factory=dict)  # segments of nodes that do not hold all
    cut: tuple[str, float, float] | None = None  # a link, when it is cut and when it is healed
    report_s: float = 0.1  # after which a silent neighbour is asked

    @property
    def warm_s(self) -> float:
        """What is left out of every figure: queues fill, rates and thresholds find their place."""
        return self.seconds / 3


@dataclass(frozen=True)
class Answered:
    """One text's answer, when it came, and by which way. Seconds since the start."""

    text: int
    label: int
    segments: int
    nodes: tuple[str, ...]
    asked_at: float
    at: float


@dataclass(frozen=True)
class Sample:
    """A moment: the first source's gap and threshold, and each node's two queues."""

    at: float
    gap_s: float
    threshold: float
    queues: dict[str, tuple[int, int]]


@dataclass
class Outcome:
    """What came of a run: `offered` texts came to the sources, `admitted` were let in, `refused` were told so.

    `lost` got no answer at all; `unfinished` were still under way `DRAIN_S` after the last one came; `again` counts
    texts whose holder was lost, and that ran again from their last segment.
    """

    offered: int = 0
    admitted: int = 0
    refused: int = 0
    lost: int = 0
    again: int = 0
    unfinished: int = 0
    answered: list[Answered] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
