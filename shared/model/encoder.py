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

from shared.errors import BadState
from shared.model.base import Array
from shared.model.calibration import calibrated
from shared.model.exits import ExitRule
from shared.model.state import State
from shared.model.words import Encoded

EngineName = Literal["auto", "openvino", "torch"]
PrecisionName = Literal["auto", "int8", "bf16", "fp32"]


class Precision(StrEnum):
    """What an encoder's linear maps compute in."""

    INT8 = "int8"  # static ranges; what is around the maps in bf16 where the processor has it, else in fp32
    BF16 = "bf16"
    FP32 = "fp32"


class Engine(Protocol):
    """Computes layers. A state holds the texts of one pass that still take part; only its engine looks into it.

    It holds layers `first` + 1 to `layers` of a network: of a worker's segment the first may be another than 0.
    """

    name: str
    version: str  # of the library that computes
    device: str
    precision: Precision
    first: int
    layers: int

    def enter(self) -> None:
        """Prepare the thread that will run it; called once, by that thread."""

    def start(self, texts: Sequence[Encoded], *, importance: bool) -> Any:
        """Embed texts: the state before the first layer."""

    def resume(self, texts: Sequence[State], *, importance: bool) -> Any:
        """The state of texts that all ran through the same layers, here or elsewhere.

        Importance counts from 0 where a text brings none.
        """

    def layer(self, n: int, state: Any) -> Any:
        """The state after layer `n`, counted from 0."""

    def exits(self, n: int, state: Any) -> Array:
        """Logits of the exit after layer `n`, float32 [B, C]."""

    def parts(self, n: int, state: Any, row: int) -> Array:
        """What each of a text's own tokens adds to the logits of the exit after layer `n`, float32 [S, C]."""

    def received(self, state: Any, row: int) -> Array | None:
        """Attention that each of a text's own tokens received so far, [S]; null without importance."""

    def hidden(self, state: Any, row: int) -> Array:
        """What each of a text's own tokens is now, float32 [S, D], the caller's own."""

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
    state: State | None = None  # where another may go on from; null unless it was asked for


_NOTHING = Encoded([0], [0], [-1], [], 0, False)


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """Layers on an engine, with a temperature per exit."""

    engine: Engine
    temperatures: Array  # [E]

    def run(
        self,
        texts: Sequence[Encoded] | Sequence[State],
        rule: ExitRule | None,
        *,
        importance: bool = False,
        every_exit: bool = False,
        parts: bool = False,
        over: Callable[[list[int]], list[bool]] | None = None,
        tell: Callable[[Reached], None] | None = None,
        tell_every: bool = False,
        so_far: dict[int, ExitTrace] | None = None,
        until: int | None = None,
        states: bool = False,
    ) -> list[ExitTrace]:
        """Run layer by layer; each text leaves where `rule` first accepts, and is not computed further.

        Without a rule all layers run and only the last exit is evaluated, unless `every_exit`. `over` is asked between
        layers which of the texts (by number) must leave now with the exit they have reached. `tell` hears of each exit
        that is evaluated; with `tell_every` all are, which changes no trace.
        `so_far` holds after each layer what every text gets if it leaves there: then each exit is evaluated, which
        changes no trace.

        `texts` may be states after one layer: they go on from there, and get what a whole run gives; one that the rule
        would have let out before has left there. `until` is the last layer that runs. With `states` each exit is
        evaluated, and a trace holds the state in which the text left.

        Raises:
            BadState: the states differ in their layers, or this encoder does not hold the next one.
        """
        engine, end = self.engine, self.engine.layers if until is None else until
        begun = [text for text in texts if isinstance(text, State)]
        first = self._first(begun, len(texts), end)
        done: dict[int, ExitTrace] = {} if so_far is None else so_far
        if begun and rule is not None:
            done.update(self._left_before(begun, rule))
        rows = [row for row in range(len(texts)) if row not in done]  # the texts still here
        if not rows:
            return [done[row] for row in range(len(texts))]
        state, seen = self._begin([texts[row] for row in rows], importance)
        whole = rule is not None or every_exit
        for depth in range(first + 1, end + 1):
            last = depth == end
            state = engine.layer(depth - 1, state)
            late = [False] * len(rows) if last or over is None else over(rows)
            asked = last or whole or states or tell_every or any(late)
            if not asked and so_far is None:
                continue
            newest = engine.exits(depth - 1, state)
            seen = [*seen, newest] if whole or states else [newest]  # logits [rows, C] of the exits so far
            history = np.stack(seen)  # [E, rows, C]
            met = None
            if rule is not None and not last:
                met = rule(self.calibrate(history, last=depth))
            accepted = np.zeros(len(rows), dtype=bool) if met is None else met
            leaves = [last or bool(is_in) or cut for is_in, cut in zip(accepted, late, strict=True)]
            for at, row in enumerate(rows):
                if leaves[at] or so_far is not None:
                    received, added = engine.received(state, at), engine.parts(depth - 1, state, at) if parts else None
                    keeps, logits = states and leaves[at], history[:, at].copy()
                    kept = State(engine.hidden(state, at), logits, received) if keeps else None
                    cut = not (last or accepted[at])
                    done[row] = ExitTrace(depth, logits if whole else logits[-1:], received, added, cut, kept)
            if tell is not None and asked:
                tell(Reached(depth, rows, newest, met))
            stay = [at for at, leaving in enumerate(leaves) if not leaving]
            if not stay:
                break
            if len(stay) < len(rows):
                rows, state = [rows[at] for at in stay], engine.keep(state, stay)
                seen = [logits[stay] for logits in seen]
        return [done[row] for row in range(len(texts))]

    def _begin(self, texts: Sequence[Encoded | State], importance: bool) -> tuple[Any, list[Array]]:
        """The engine's state of texts, or of their states, and the logits of the exits that they bring."""
        begun = [text for text in texts if isinstance(text, State)]
        if not begun:
            return self.engine.start(texts, importance=importance), []  # type: ignore[arg-type]
        return self.engine.resume(begun, importance=importance), list(np.stack([s.exits for s in begun], axis=1))

    def _first(self, begun: Sequence[State], texts: int, end: int) -> int:
        """Layers that ran before a pass, whose last layer is `end`.

        Raises:
            BadState: the layers that come next are not held here, or differ.
        """
        ran = {state.done for state in begun} or {0}
        first, held = min(ran), (self.engine.first, self.engine.layers)
        if len(ran) > 1 or len(begun) not in (0, texts):
            raise BadState("states of one pass must all be after the same layer")
        if not held[0] <= first < end <= held[1]:
            raise BadState(f"layers {first + 1} to {end} were asked for; {held[0] + 1} to {held[1]} are held here")
        return first

    def _left_before(self, begun: Sequence[State], rule: ExitRule) -> dict[int, ExitTrace]:
        """The states that a whole run would not have reached, by number: the rule lets them out before."""
        history = np.stack([state.exits for state in begun], axis=1)  # [done, B, C]
        calibrated, left = self.calibrate(history), np.zeros(len(begun), dtype=int)
        for depth in range(len(history), 0, -1):
            left[rule(calibrated[:depth])] = depth
        return {
            row: ExitTrace(int(left[row]), history[: left[row], row].copy(), state.received, None, False, state)
            for row, state in enumerate(begun)
            if left[row]
        }

    def warm_up(self, *, importance: bool = False) -> None:
        """A first pass, over nothing: what an engine compiles, packs and prepares for it, no request waits for."""
        engine = self.engine
        state = engine.start([_NOTHING], importance=importance)
        for n in range(engine.first, engine.layers):
            state = engine.layer(n, state)

    def calibrate(self, logits: Array, *, last: int | None = None) -> Array:
        """Probabilities from logits [E, ..., C] of E neighbouring exits: eq. 5-6 with each exit's temperature.

        They end with the exit after layer `last`; without it they begin with the first.
        """
        end = len(logits) if last is None else last
        return calibrated(logits, self.temperatures[end - len(logits) : end])
