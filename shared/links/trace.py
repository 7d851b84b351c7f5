"""Traces: a link whose rate changes with time, replayed from the start when it ends. Two formats, told apart by commas.

- CSV `seconds,bits_per_second[,rtt_ms,loss]`, header optional, `#` starts a comment; loss in percent of packets. A row
  holds until the next one, the last as long as the one before it (a single row: for ever). Rate 0 is an outage.
- mahimahi's packet-delivery format: one millisecond a line, each the chance to deliver one packet of 1500 bytes. It
  becomes the mean rate of stretches of about 100 ms, longer where no packet falls into one; nothing for a second or
  more is an outage. (mahimahi itself delivers packet by packet.)

Left out: the queue's memory. Packets that wait when the rate changes leave at the times they were given before.
"""

from __future__ import annotations

import base64
import math
import zlib
from bisect import bisect_right
from dataclasses import dataclass, replace
from itertools import pairwise

from shared.errors import BadSetting
from shared.links.profile import PROFILES, Profile

TRACES = PROFILES.parent / "traces"

STEP_S = 0.1
OUTAGE_STEPS = 10  # without a packet
PACKET_BITS = 1500 * 8


@dataclass(frozen=True)
class Step:
    """From `start` (seconds): bits per second (0 is an outage), and if given RTT (seconds) and loss (ratio)."""

    start_s: float
    rate_bps: float
    rtt_s: float | None = None
    loss_ratio: float | None = None

    def on(self, base: Profile) -> Profile:
        """The link of profile `base` while this step lasts, both ways at its rate."""
        return replace(
            base,
            rate_up_bps=self.rate_bps,
            rate_down_bps=self.rate_bps,
            rtt_s=base.rtt_s if self.rtt_s is None else self.rtt_s,
            loss_ratio=1.0 if not self.rate_bps else base.loss_ratio if self.loss_ratio is None else self.loss_ratio,
        )


@dataclass(frozen=True)
class Trace:
    """Steps from 0 to `duration_s` (seconds)."""

    name: str
    steps: tuple[Step, ...]
    duration_s: float

    def at(self, seconds: float) -> Step:
        """The step in force so long after the start.

        >>> Trace("t", (Step(0, 5.0), Step(2, 7.0)), duration_s=4).at(6.5).rate_bps
        7.0
        """
        return self.steps[bisect_right(self.steps, seconds % self.duration_s, key=lambda step: step.start_s) - 1]

    def out_for_s(self, seconds: float) -> float:
        """How long an outage lasts that is in force so long after the start; 0: the link carries something then.

        >>> Trace("t", (Step(0, 5.0), Step(2, 0.0), Step(3, 0.0)), duration_s=4).out_for_s(6.5)
        1.5
        """
        at = bisect_right(self.steps, seconds % self.duration_s, key=lambda step: step.start_s) - 1
        if self.steps[at].rate_bps:
            return 0.0
        ahead = [step.start_s + self.duration_s * turn for turn in (0, 1) for step in self.steps if step.rate_bps]
        begins = [start for start in ahead if start > self.steps[at].start_s]
        return min(begins, default=math.inf) - seconds % self.duration_s

    def pack(self) -> str:
        """As one short word for a command line: CSV, compressed; `unpack` reads it. Times to 1 ms, rates to 1 bit/s."""
        end = [] if math.isinf(self.duration_s) else [replace(self.steps[-1], start_s=self.duration_s)]
        rows = [*self.steps, *end]
        lines = ["{:.3f},{:.0f},{},{}".format(*_cells(row)) for row in rows]
        return base64.b64encode(zlib.compress("\n".join(lines).encode(), 9)).decode()


def _cells(step: Step) -> tuple[float, float, str, str]:
    rtt = "" if step.rtt_s is None else f"{step.rtt_s * 1e3:g}"
    return step.start_s, step.rate_bps, rtt, "" if step.loss_ratio is None else f"{step.loss_ratio * 100:g}"


def unpack(name: str, packed: str) -> Trace:
    """The trace in a word of `Trace.pack`, whose last row says only where the trace ends.

    Raises:
        BadSetting: the word is no packed trace.
    """
    try:
        text = zlib.decompress(base64.b64decode(packed, validate=True)).decode()
    except (ValueError, zlib.error) as error:
        raise BadSetting(f"trace {name}: not a packed trace") from error
    steps = parse(name, text).steps
    return Trace(name, steps[:-1], steps[-1].start_s) if len(steps) > 1 else Trace(name, steps, math.inf)


def parse(name: str, text: str) -> Trace:
    """A trace in either format; `name` is the file's, for messages.

    Raises:
        BadSetting: names file, line, and what is wrong with it.
    """
    lines = [(number, line.partition("#")[0].strip()) for number, line in enumerate(text.splitlines(), start=1)]
    lines = [(number, line) for number, line in lines if line]
    if not lines:
        raise BadSetting(f"trace {name}: no data in it")
    return _csv(name, lines) if any("," in line for _, line in lines) else _mahimahi(name, lines)


def _csv(name: str, lines: list[tuple[int, str]]) -> Trace:
    if lines[0][1].startswith("seconds"):
        lines = lines[1:]
    steps: list[Step] = []
    for number, line in lines:
        cells = [cell.strip() for cell in line.split(",")]
        if not 2 <= len(cells) <= 4:
            raise BadSetting(
                f"trace {name}, line {number}: expected seconds,bits_per_second[,rtt_ms,loss], got {line!r}"
            )
        second, rate = (_number(name, number, cell) for cell in cells[:2])
        rtt, loss = (_number(name, number, cell) if cell else None for cell in [*cells[2:], "", ""][:2])
        if steps and second <= steps[-1].start_s:
            raise BadSetting(f"trace {name}, line {number}: {second:g} s does not come after the line before")
        if loss is not None and loss > 100:
            raise BadSetting(f"trace {name}, line {number}: a loss of {loss:g} % is over 100")
        steps.append(Step(second, rate, None if rtt is None else rtt / 1e3, None if loss is None else loss / 100))
    if not steps:
        raise BadSetting(f"trace {name}: no data in it")
    first = steps[0].start_s
    steps = [replace(step, start_s=step.start_s - first) for step in steps]
    return Trace(name, tuple(steps), 2 * steps[-1].start_s - steps[-2].start_s if len(steps) > 1 else math.inf)


def _mahimahi(name: str, lines: list[tuple[int, str]]) -> Trace:
    times: list[int] = []
    for number, line in lines:
        if not line.isdecimal():
            raise BadSetting(f"trace {name}, line {number}: expected a time in milliseconds, got {line!r}")
        times.append(int(line))
        if len(times) > 1 and times[-1] < times[-2]:
            raise BadSetting(f"trace {name}, line {number}: {line} ms comes before the line before")
    duration_s = times[-1] / 1e3
    if not duration_s:
        raise BadSetting(f"trace {name}: it ends at 0 ms; mahimahi's last line says how long it lasts")
    count = max(1, round(duration_s / STEP_S))
    packets = [0] * count
    for time in times:
        packets[min(count - 1, time * count // times[-1])] += 1
    filled = [at for at, number in enumerate(packets) if number]
    steps: list[Step] = []
    for before, after in pairwise([-1, *filled]):  # steps before+1 ... after, with packets only in the last
        start = before + 1
        if after - start >= OUTAGE_STEPS:
            steps.append(Step(start * duration_s / count, 0.0))
            start = after
        seconds = (after + 1 - start) * duration_s / count
        steps.append(Step(start * duration_s / count, packets[after] * PACKET_BITS / seconds))
    return Trace(name, tuple(steps), duration_s)


def _number(name: str, line: int, cell: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise BadSetting(f"trace {name}, line {line}: expected a number from 0 on, got {cell!r}")
    return value


def trace_names() -> list[str]:
    """The traces of `deploy/netem/traces`."""
    return sorted(path.stem for path in TRACES.glob("*.csv"))


def known_trace(name: str) -> Trace:
    """A trace of `deploy/netem/traces` by its name.

    Raises:
        BadSetting: there is none of that name.
    """
    if name not in trace_names():
        raise BadSetting(f"trace {name!r}: choose from {', '.join(trace_names()) or 'none'}")
    return parse(name, (TRACES / f"{name}.csv").read_text("utf-8"))
