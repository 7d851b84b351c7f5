"""A multi-exit encoder: layers run one by one, with an exit after each. What computes a layer is an engine.

    openvino   CPUs: int8, bf16 or fp32 (`openvino_engine.py`)
    torch      CUDA, training, and the reference in fp32 (`torch_engine.py`)

    importance_j = sum over layers that ran, heads and queries of A[h, q, j]     (arXiv 2412.12102, section III-B)

Exit rules, deadlines and who still takes part are decided here, once for all engines. Keys for shapes: B batch,
S sequence, D hidden, C classes, E exits. Left out: decoder use, cross attention, head masks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal, Protocol

import numpy as np

from shared.model.base import Array
from shared.model.calibration import calibrated
from shared.model.exits import ExitRule
from shared.model.words import Encoded

EngineName = Literal["auto", "openvino", "torch"]
PrecisionName = Literal["auto", "int8", "bf16", "fp32"]


class Precision(StrEnum):
    """What an encoder's linear maps compute in."""

    INT8 = "int8"  # static ranges; what is around the maps in bf16 where the processor has it, else in fp32
    BF16 = "bf16"
    FP32 = "fp32"


class Engine(Protocol):
    """Computes layers. A state holds the texts of one pass that still take part; only its engine looks into it."""

    name: str
    version: str  # of the library that computes
    device: str
    precision: Precision
    layers: int

    def enter(self) -> None:
        """Prepare the thread that will run it; called once, by that thread."""

    def start(self, texts: Sequence[Encoded], *, importance: bool) -> Any:
        """Embed texts: the state before the first layer."""

    def layer(self, n: int, state: Any) -> Any:
        """The state after layer `n`, counted from 0."""

    def exits(self, n: int, state: Any) -> Array:
        """Logits of the exit after layer `n`, float32 [B, C]."""

    def parts(self, n: int, state: Any, row: int) -> Array:
        """What each of a text's own tokens adds to the logits of the exit after layer `n`, float32 [S, C]."""

    def received(self, state: Any, row: int) -> Array | None:
        """Attention that each of a text's own tokens received so far, [S]; null without importance."""

    def keep(self, state: Any, rows: Sequence[int]) -> Any:
        """The state of some rows alone."""


@dataclass(frozen=True)
class Reached:
    """An exit that was evaluated, for the texts (by number) that still took part."""

    exit: int  # 1-based
    rows: list[int]
    logits: Array  # [rows, C]
    met: Array | None  # bool [rows]: whether the exit rule accepts it; null where no rule was asked


@dataclass(frozen=True)
class ExitTrace:
    """What one text got: where it left, and what every exit that was evaluated up to there said."""

    exit_layer: int  # 1-based
    logits: Array  # [E', C] float32; E' is exit_layer, or 1 when only the last exit was evaluated
    importance: Array | None  # [S] float32: attention received by each of the text's own tokens
    parts: Array | None = None  # [S, C] float32: what each of those tokens added to the last logits
    cut: bool = False  # it left because its time was over, not by the rule


_NOTHING = Encoded([0], [0], [-1], [], 0, False)


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """Layers on an engine, with a temperature per exit."""

    engine: Engine
    temperatures: Array  # [E]

    def run(
        self,
        texts: Sequence[Encoded],
        rule: ExitRule | None,
        *,
        importance: bool = False,
        every_exit: bool = False,
        parts: bool = False,
        over: Callable[[list[int]], list[bool]] | None = None,
        tell: Callable[[Reached], None] | None = None,
        tell_every: bool = False,
        so_far: dict[int, ExitTrace] | None = None,
    ) -> list[ExitTrace]:
        """Run layer by layer; each text leaves where `rule` first accepts, and is not computed further.

        Without a rule all layers run and only the last exit is evaluated, unless `every_exit`. `over` is asked between
        layers which of the texts (by number) must leave now with the exit they have reached. `tell` hears of each exit
        that is evaluated; with `tell_every` all are, which changes no trace.
        `so_far` holds after each layer what every text gets if it leaves there: then each exit is evaluated, which
        changes no trace.
        """
        engine = self.engine
        state = engine.start(texts, importance=importance)
        rows = list(range(len(texts)))  # the texts still here
        seen: list[Array] = []  # logits [rows, C] of the exits so far, for the rows still here
        done: dict[int, ExitTrace] = {} if so_far is None else so_far
        for depth in range(1, engine.layers + 1):
            last = depth == engine.layers
            state = engine.layer(depth - 1, state)
            late = [False] * len(rows) if last or over is None else over(rows)
            asked = last or rule is not None or every_exit or tell_every or any(late)
            if not asked and so_far is None:
                continue
            newest = engine.exits(depth - 1, state)
            seen = [*seen, newest] if rule is not None or every_exit else [newest]
            history = np.stack(seen)  # [E, rows, C]
            met = None
            if rule is not None and not last:
                met = rule(self.calibrate(history, last=depth))
            accepted = np.zeros(len(rows), dtype=bool) if met is None else met
            leaves = [last or bool(is_in) or cut for is_in, cut in zip(accepted, late, strict=True)]
            for at, row in enumerate(rows):
                if leaves[at] or so_far is not None:
                    cut = not (last or accepted[at])
                    added = engine.parts(depth - 1, state, at) if parts else None
                    done[row] = ExitTrace(depth, history[:, at].copy(), engine.received(state, at), added, cut)
            if tell is not None and asked:
                tell(Reached(depth, rows, newest, met))
            stay = [at for at, leaving in enumerate(leaves) if not leaving]
            if not stay:
                break
            if len(stay) < len(rows):
                rows, state = [rows[at] for at in stay], engine.keep(state, stay)
                seen = [logits[stay] for logits in seen]
        return [done[row] for row in range(len(texts))]

    def warm_up(self, *, importance: bool = False) -> None:
        """A first pass, over nothing: what an engine compiles, packs and prepares for it, no request waits for."""
        state = self.engine.start([_NOTHING], importance=importance)
        for n in range(self.engine.layers):
            state = self.engine.layer(n, state)

    def calibrate(self, logits: Array, *, last: int | None = None) -> Array:
        """Probabilities from logits [E, ..., C] of E neighbouring exits: eq. 5-6 with each exit's temperature.

        They end with the exit after layer `last`; without it they begin with the first.
        """
        end = len(logits) if last is None else last
        return calibrated(logits, self.temperatures[end - len(logits) : end])
