"""Writes the synthetic traces of this folder: `python deploy/netem/make_traces.py`. Seeded: the same bytes every time.

They are invented, not measured; their shape follows what published drives describe (rates roughly log-normal and
correlated over seconds, outages while driving, a short gap and another level at a handover).

walking.csv   120 s, about 40 Mbit/s, slow fading           handover.csv   60 s, every 15 s a gap (0.3 s) and a new cell
stepdown.csv  120 s at 14 Mbit/s and 40 ms, but 0.1 Mbit/s and 400 ms from second 90 on
driving.csv   180 s, about 20 Mbit/s, fast fading, an outage from second 80 to 100
"""

from __future__ import annotations

import random
from pathlib import Path

STEP = 0.5  # seconds
HEADER = "# synthetic: made by make_traces.py, not measured\nseconds,bits_per_second,rtt_ms,loss\n"


def fading(random_: random.Random, seconds: float, *, median: float, spread: float, memory: float) -> list[float]:
    """Bits per second, one a step: a log-normal autoregression; `memory` is the correlation of neighbours."""
    level, rates = 0.0, []
    for _ in range(int(seconds / STEP)):
        level = memory * level + (1 - memory**2) ** 0.5 * random_.gauss(0, spread)
        rates.append(max(1e5, median * 2.718281828**level))
    return rates


def _row(second: float, rate: float, rtt: float) -> str:
    return f"{second:.1f},{rate:.0f},{rtt:.0f},0\n"


def walking() -> str:
    """At a constant RTT of 30 ms."""
    rates = fading(random.Random(1), 120, median=40e6, spread=0.4, memory=0.95)
    return "".join(_row(i * STEP, rate, 30) for i, rate in enumerate(rates))


def driving() -> str:
    """At a constant RTT of 45 ms."""
    rates = fading(random.Random(2), 180, median=20e6, spread=0.8, memory=0.8)
    return "".join(_row(i * STEP, 0 if 80 <= i * STEP < 100 else rate, 45) for i, rate in enumerate(rates))


def handover() -> str:
    """Four cells, each with its own rate and RTT."""
    random_ = random.Random(3)
    lines = []
    for cell, (median, rtt) in enumerate([(60e6, 20), (15e6, 45), (80e6, 18), (30e6, 35)]):
        start = cell * 15.0
        lines.append(_row(start, 0, rtt))
        rates = fading(random_, 15, median=median, spread=0.2, memory=0.9)
        lines += [_row(start + max(0.3, i * STEP), rate, rtt) for i, rate in enumerate(rates)]
    return "".join(lines)


def stepdown() -> str:
    """A quarter of the time a hundredth of the rate and ten times the RTT."""
    return _row(0, 14e6, 40) + _row(60, 14e6, 40) + _row(90, 0.1e6, 400)


if __name__ == "__main__":
    folder = Path(__file__).parent / "traces"
    folder.mkdir(exist_ok=True)
    for make in (walking, driving, handover, stepdown):
        (folder / f"{make.__name__}.csv").write_text(HEADER + make())
