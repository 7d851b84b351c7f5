"""One tier as a replay sees it: recorded exits, calibrated as the tier calibrates them, for any exit rule or pruning.

Everything is looked up by the text's number: dense arrays that grow with the corpus, filled when first asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lab.replay.recorder import Kernel, Recorder
from lab.replay.run import NONE
from shared.model.base import Array
from shared.model.calibration import calibrated
from shared.model.exits import ExitRule, exit_taken
from shared.model.pruning import Pruning, keep_words

Numbers = np.ndarray  # int64 [n]: texts of the corpus
Layers = np.ndarray  # int64 [n]: 1-based exits


@dataclass
class ExitTable:
    """What one kernel gave, by text number; rows that nobody asked for are zero."""

    exits: Array  # float32 [texts, E, C], calibrated
    rounded: np.ndarray  # [texts, E, C] float64, to 6 digits as on the wire
    tokens: np.ndarray  # [texts] int64; 0 where the text cannot be read, -1 where it is not known yet


class Station:
    """The first `layers` layers of a recording, with a temperature for each exit.

    `timed`: the recording whose measured times hold here: its own, or the same classifier's over more tokens.
    """

    def __init__(
        self,
        name: str,
        recorder: Recorder,
        layers: int,
        temperatures: Sequence[float],
        *,
        timed: Recorder | None = None,
    ) -> None:
        assert len(temperatures) == layers <= recorder.source.layers
        self.name, self.recorder, self.corpus, self.layers = name, recorder, recorder.corpus, layers
        self.timed = timed or recorder
        self._temperatures = np.array(temperatures, dtype=np.float32)
        self._tables: dict[Kernel, ExitTable] = {}
        self._left: dict[tuple[Kernel, ExitRule], np.ndarray] = {}
        self._pruned: dict[Pruning, np.ndarray] = {}
        self._shortened: dict[tuple[int, tuple[int, int]], int] = {}

    def over(self, recorder: Recorder) -> Station:
        """The same tier over another recording of its classifier, of fewer tokens."""
        return Station(self.name, recorder, self.layers, self._temperatures.tolist(), timed=self.timed)

    def table(self, numbers: Numbers, kernel: Kernel) -> ExitTable:
        """The table of a kernel, these texts in it."""
        table = self._tables.get(kernel)
        if table is None or len(table.tokens) < len(self.corpus.texts):
            table = self._tables[kernel] = self._grown(table)
        missing = np.unique(numbers[table.tokens[numbers] < 0])
        if len(missing):
            records = self.recorder.records(missing.tolist(), kernel)
            logits = np.stack([record.logits[: self.layers] for record in records], 1)  # [E, n, C]
            exits = calibrated(logits, self._temperatures).swapaxes(0, 1)
            table.exits[missing] = exits
            values = [round(value, 6) for value in exits.flatten().tolist()]
            table.rounded[missing] = np.array(values).reshape(exits.shape)
            table.tokens[missing] = [record.tokens for record in records]
        return table

    def _grown(self, old: ExitTable | None) -> ExitTable:
        exits, rounded, tokens = (old.exits, old.rounded, old.tokens) if old else (None, None, None)
        shape = (self.layers, self.recorder.classes)
        return ExitTable(
            self._long(exits, shape, 0, np.float32),
            self._long(rounded, shape, 0, np.float64),
            self._long(tokens, (), -1, np.int64),
        )

    def _long(self, old: np.ndarray | None, shape: tuple[int, ...], fill: int, kind: type) -> np.ndarray:
        """An array with twice as many rows as there are texts, the old one at its start."""
        new: np.ndarray = np.full((max(64, 2 * len(self.corpus.texts)), *shape), fill, dtype=kind)
        if old is not None:
            new[: len(old)] = old
        return new

    def left(self, numbers: Numbers, rule: ExitRule | None, kernel: Kernel) -> Layers:
        """The exit that each text takes: the live rule, asked after every layer with the exits up to there."""
        if rule is None:
            return np.full(len(numbers), self.layers)
        table = self.table(numbers, kernel)
        known = self._left.get((kernel, rule))
        if known is None or len(known) < len(table.tokens):
            known = self._left[kernel, rule] = self._long(known, (), 0, np.int64)
        missing = numbers[known[numbers] == 0]
        if len(missing):
            known[missing] = exit_taken(table.exits[missing].swapaxes(0, 1), rule)
        return known[numbers]

    def pruned(self, numbers: Numbers, layers: Layers, pruning: Pruning) -> Numbers:
        """The numbers of the texts that travel on, each pruned by the attention received up to its exit."""
        known = self._pruned.get(pruning)
        if known is None or len(known) <= int(numbers.max(initial=0)):
            known = self._pruned[pruning] = self._long(known, (self.layers + 1,), NONE, np.int64)
        for number, layer in zip(numbers.tolist(), layers.tolist(), strict=True):
            if known[number, layer] < 0:
                known[number, layer] = self._prune(number, layer, pruning)
        return known[numbers, layers]

    def without_middle(self, numbers: Numbers, behind: tuple[int, int]) -> Numbers:
        """The numbers of the texts that travel on, each without the words that no tier behind reads."""
        return np.array([self._without_middle(number, behind) for number in numbers.tolist()], dtype=np.int64)

    def _without_middle(self, number: int, behind: tuple[int, int]) -> int:
        known = self._shortened.get((number, behind))
        if known is None:
            (record,) = self.recorder.records([number], Kernel.PLAIN)
            text, pair = self.corpus.texts[number]
            encoded = record.encoded(text, pair)
            tokens, own = self.recorder.tokens, self.recorder.source.max_tokens
            keep = tokens.unread_middle(text, pair, encoded, own, behind)
            known = number if keep is None else self.corpus.number(*keep_words(text, pair, encoded, keep))
            if known != number:
                self.corpus.shortened[known] = number
            self._shortened[number, behind] = known
        return known

    def _prune(self, number: int, layer: int, pruning: Pruning) -> int:
        (record,) = self.recorder.records([number], Kernel.COUNTED)
        text, pair = self.corpus.texts[number]
        assert record.importance is not None
        encoded = record.encoded(text, pair)
        keep = pruning.mask(encoded, record.importance[layer - 1].tolist())
        return self.corpus.number(*keep_words(text, pair, encoded, keep))
