"""Modelled times of a run. Nothing here was waited for: every table says `modelled`.

    T = client + sum over tiers (tokenize + infer + prune) + sum over links crossed (hop + RTT + size/rate, each way)
               - sum over calls sent ahead of a tier's answer (the rest of its pass, beside what is behind it)

tokenize, infer, prune and what HTTP adds are measured on this machine (`lab/replay/profile.py`); a link
takes what the simulated one (`shared/links/simulated.py`) takes on average. Left out: waiting for a busy model.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import NormalDist

import numpy as np
from rich.console import Console

from lab.replay.profile import Http, Table, measure_http, measure_table
from lab.replay.recorder import Kernel, Recorder
from lab.replay.run import NONE, Run
from lab.replay.sizes import Sizes
from lab.replay.station import Station
from lab.replay.walk import Replay
from shared.links.profile import Profile, on_the_wire, packets
from shared.policies import Where

BUSY = 1.3  # slowest round over the mean: below it, the tables are to be trusted


@dataclass(frozen=True)
class Modelled:
    """Per text, [N]: seconds in all, of inference and of links; bytes of bodies, each way."""

    seconds: np.ndarray
    infer: np.ndarray
    link: np.ndarray
    bytes_up: np.ndarray
    bytes_down: np.ndarray


class Times:
    """Models a bundle's runs: `threads` of each tier, `links` by (from, to). `anew` measures again.

    `tables`, by recording and threads, and `http` stand in for what would be measured. `data`: the file
    of the texts, for the advice to measure again.
    """

    def __init__(
        self,
        replay: Replay,
        threads: Mapping[str, int],
        links: Mapping[tuple[str, str], Profile],
        console: Console,
        *,
        anew: bool = False,
        tables: Mapping[tuple[str, int], Table] | None = None,
        http: Http | None = None,
        data: str = "FILE",
    ) -> None:
        self._data = data if data.startswith("hub:") else Path(data).name  # cards and reports leave this machine
        self._replay, self._threads, self._links, self._console = replay, threads, links, console
        self._tables = dict(tables or {})
        self._dense: dict[tuple[str, int, Kernel, bool], np.ndarray] = {}
        self._sizes = Sizes(replay)
        for station in replay.stations:
            self._table(station.timed, threads[station.name], anew=anew)
        self.http: Http = http or measure_http(replay.bundle, console, anew=anew)

    @property
    def notes(self) -> list[str]:
        """What a reader of the times must know about their measurement."""
        worst = max(measured.spread for measured in self._tables.values())
        if worst <= BUSY:
            return []
        again = ["tierwise", "replay", "--profile", "--data", self._data, "--bundle", self._replay.bundle.argument]
        return [
            f"the machine was busy when it was measured (times varied {worst:.1f}-fold): "
            f"measure again with `{shlex.join(again)}`"
        ]

    def of(self, run: Run) -> Modelled:
        """The modelled figures of a run."""
        tiers, texts = len(run.tiers), len(run.label)
        infer, other, link, rest = (np.zeros((tiers, texts)) for _ in range(4))  # seconds; links by the tier they leave
        up, down = np.zeros(texts), np.zeros(texts)
        sizes = dict(zip(run.tiers, run.layers, strict=True))
        for at, station in enumerate(self._replay.stations_of(run)):
            for kernel in Kernel:
                counted = kernel is Kernel.COUNTED
                rows = np.flatnonzero(run.ran[at] & (run.counted[at] == counted))
                if not len(rows):
                    continue
                numbers, layer = run.numbers[at, rows], run.exit_layer[at, rows]
                heads = run.watched[at] or run.bound.exit_rule(Where(station.name, (), sizes)) is not None
                tokens = station.table(numbers, kernel).tokens[numbers]
                passes = self._passes(station, kernel, heads=heads)
                infer[at, rows] = passes[layer - 1, tokens]
                ahead = run.ahead_layer[at, rows]
                rest[at, rows] = np.where(run.ahead_used[at, rows], infer[at, rows] - passes[ahead - 1, tokens], 0)
                measured = self._table(station.timed, self._threads[station.name])
                other[at, rows] = np.interp(run.words[numbers], measured.words, measured.tokenize)
                if counted:
                    sent = rows[run.sent_to[at, rows] != NONE]
                    other[at, sent] += np.interp(run.words[run.numbers[at, sent]], measured.words, measured.prune)
        for (here, there), rows, asked, answered in self.crossings(run):
            profile = self._links[run.tiers[here], run.tiers[there]]
            link[here, rows] += self.http.hop + round_trip(profile, asked, answered)
            up[rows] += asked
            down[rows] += answered
        for crossed, (numbers, _) in run.vain.items():
            rows = np.flatnonzero(numbers != NONE)
            up[rows] += self._sizes.in_vain(run, crossed, rows)
        seconds = np.zeros(texts)
        for at in reversed(range(tiers)):  # from each tier on: its pass, and beside the rest of it what is behind
            behind = link[at] + seconds
            seconds = infer[at] + other[at] + behind - np.minimum(rest[at], behind)
        return Modelled(self.http.client + seconds, infer.sum(0), link.sum(0), up, down)

    def until_exits(self, at: int) -> np.ndarray:
        """Seconds [N, E] from when a tier gets each whole text until it could leave by each exit, under a rule."""
        station, numbers = self._replay.stations[at], self._replay.numbers
        tokens = station.table(numbers, Kernel.PLAIN).tokens[numbers]
        measured = self._table(station.timed, self._threads[station.name])
        tokenize = np.interp(self._replay.corpus.words[numbers], measured.words, measured.tokenize)
        return self._passes(station, Kernel.PLAIN, heads=True)[: station.layers, tokens].T + tokenize[:, None]

    def crossings(self, run: Run) -> Iterator[tuple[tuple[int, int], np.ndarray, np.ndarray, np.ndarray]]:
        """Every link that was crossed, as two tiers' numbers: the rows that crossed it, and bytes there and back."""
        for link in run.carried:
            rows = np.flatnonzero(run.carried[link] != NONE)
            yield link, rows, self._sizes.requests(run, link, rows), self._sizes.answers(run, link[1], rows)

    def _table(self, recorder: Recorder, threads: int, *, anew: bool = False) -> Table:
        key = (recorder.digest, threads)
        if key not in self._tables:
            self._tables[key] = measure_table(recorder.source, threads, self._console, anew=anew)
        return self._tables[key]

    def _passes(self, station: Station, kernel: Kernel, *, heads: bool) -> np.ndarray:
        """Seconds until each exit, [E, tokens], with or without the heads on the way."""
        threads = self._threads[station.name]
        key = (station.timed.digest, threads, kernel, heads)
        if key not in self._dense:
            measured = self._table(station.timed, threads)
            tokens = station.timed.source.computed(np.arange(measured.lengths[-1] + 1))
            passes = np.array([np.interp(tokens, measured.lengths, row) for row in measured.infer[kernel]])
            if not heads:
                passes *= np.interp(tokens, measured.lengths, measured.whole[kernel]) / passes[-1]
            self._dense[key] = passes
        return self._dense[key]


def round_trip(link: Profile, up: np.ndarray, down: np.ndarray) -> np.ndarray:
    """Seconds that a link takes on average for bodies of these bytes there and back."""
    total = np.zeros(len(up))
    for sizes, rate in ((up, link.rate_up_bps), (down, link.rate_down_bps)):
        counts = packets(sizes)
        for count in np.unique(counts):
            total[counts == count] += slowest(link.rtt_s, link.jitter_s, int(count))
        total += counts * link.loss_ratio * link.rtt_s + (8 * on_the_wire(sizes) / rate if rate else 0.0)
    return total


@cache
def slowest(rtt: float, jitter: float, count: int) -> float:
    """Expected seconds until the last of `count` packets is there: the mean of the greatest of as many delays.

    Each is normal around half the RTT with `jitter` as its deviation, cut off at 0 and at the RTT. That one packet is
    sent while another is delayed is left out: a few percent on a link as slow as nbiot.
    """
    if not jitter:
        return rtt / 2
    one, steps = NormalDist(rtt / 2, jitter), np.linspace(0, rtt, 501)
    return float(np.trapezoid([1 - one.cdf(step) ** count for step in steps], steps))
