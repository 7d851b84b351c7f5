"""Unit costs of a run, as in DIMEE's Tables I and II (Bajpai & Hanawal 2025, arXiv 2410.05338, section IV-D).

    first tier    lambda1 per layer          tier between   lambda2 per layer      last tier   gamma, whatever it runs
    offloading    o1 to a tier between, o2 to the last

`lab/fit/pools.py` holds the constants: lambda2 = 1 is the paper's, the rest is fitted to its Table I [CALC]. The
paper has one classifier and texts that one device answers; what it leaves open [R]:

    a text that crosses several links pays for the deepest tier that it reaches, once: o1, then o2 - o1 more
    a layer is priced by its width, (D / D of the last tier)^2
    a text that leaves the last tier early pays its share of gamma

Costs are relative to the whole model on the device (L * lambda1, section IV-B), or to the cloud (o2 + gamma, abstract).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from safetensors import safe_open

from lab.fit.pools import Costs
from lab.replay.run import NONE, Run
from lab.replay.walk import Replay


@dataclass(frozen=True)
class References:
    """What costs are compared with."""

    device: float
    cloud: float


def unit_costs(replay: Replay, run: Run, prices: Costs | None = None) -> np.ndarray:
    """What each text cost, [N], at the fitted prices or others."""
    prices, last = prices or Costs(), len(run.tiers) - 1
    total = np.zeros(len(run.label))
    deepest = _width(replay.stations[-1].recorder.source.folder)
    for at, station in enumerate(replay.stations_of(run)):
        price = prices.lambda2
        if at == 0:
            price = prices.lambda1
        elif at == last:
            price = prices.gamma / run.layers[at]
        total += price * (_width(station.recorder.source.folder) / deepest) ** 2 * run.exit_layer[at]
    reach = [0.0, *(prices.o2 if at == last else prices.o1 for at in range(1, last + 1))]
    for (here, there), carried in run.carried.items():
        total[carried != NONE] += reach[there] - reach[here]
    return total


def references(replay: Replay) -> References:
    """The whole model on the device, and on the cloud."""
    prices = Costs()
    return References(prices.lambda1 * replay.stations[-1].layers, prices.o2 + prices.gamma)


@cache
def _width(folder: Path) -> int:
    """Hidden size of a trained classifier."""
    with safe_open(folder / "adapters.safetensors", "np") as file:
        return int(file.get_slice("heads.0.query").get_shape()[0])
