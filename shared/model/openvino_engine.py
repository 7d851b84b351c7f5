"""The engine for CPUs: one compiled OpenVINO model per layer; hidden states stay the runtime's own tensors.

Texts run one after the other, layer by layer. A product's shape moves its last bits, and int8 rounding makes these
visible: so neither company nor padding may change it, and a text gives the same bits whatever shares its pass. Eight
texts at once would take a sixth less time on one core, and gigabytes: the runtime keeps memory for each shape it met.
For the same reason a length is padded to a multiple of `PAD`; the first text of a length takes about twice its time.

Layers with importance are models of their own, compiled when first asked for. Compiled models are kept beside the
graphs: to read one takes a sixth of the time that compiling takes. Left out: accelerators.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import structlog

from shared.errors import WrongWeights, one_line
from shared.model.base import Array
from shared.model.built import COMPILED, Built, read_sealed, write_sealed
from shared.model.encoder import Precision
from shared.model.graphs import plain
from shared.model.runtime import ov
from shared.model.state import State
from shared.model.words import Encoded

log = structlog.get_logger()
PAD = 32
_HIDDEN = np.float32(-1e9)  # added to the scores of padding


@dataclass(frozen=True)
class Row:
    """One text between two layers: its hidden state [1, S, D], and what its layers have added up, [S']."""

    tokens: int  # S'; S is the padded length
    bias: Array  # added to the attention scores, [1, 1, 1, S]; with MPNet's relative positions [1, H, S, S]
    hidden: Any  # numpy, or the runtime's tensor
    received: Array | None


class OpenVinoEngine:
    """Runs the layers that `built` holds, from the one after `first` on, with so many threads."""

    name, device = "openvino", "cpu"
    version = ov.__version__

    def __init__(self, built: Built, *, precision: Precision, threads: int, first: int = 0) -> None:
        self.precision, self.first, self.layers, self._built = precision, first, built.layers, built
        self._core = core()
        self._config = _config(precision, threads, self._core)
        self._prepared = built.folder / _of_this_machine(self._core, self._config)
        self._keeps = True
        self._plain = [None if n < first else self._compiled(n, importance=False) for n in range(self.layers)]
        self._counted: list[Any] = [None] * self.layers
        self._biases: dict[int, Array] = {}

    def enter(self) -> None:
        """Nothing to prepare: the thread count is part of what was compiled."""

    def start(self, texts: Sequence[Encoded], *, importance: bool) -> list[Row]:
        """Embed texts: the state before the first layer."""
        return [self._start(text, importance) for text in texts]

    def _start(self, text: Encoded, importance: bool) -> Row:
        received = np.zeros(len(text.ids), dtype=np.float32) if importance else None
        return self._row(self._built.embeddings(text.ids, text.segments), received)

    def resume(self, texts: Sequence[State], *, importance: bool) -> list[Row]:
        """The state of texts that all ran through the same layers, here or elsewhere."""
        return [self._row(text.hidden, text.attention() if importance else None) for text in texts]

    def _row(self, own: Array, received: Array | None) -> Row:
        """A text whose tokens are `own`, [S', D], with padding."""
        tokens, S = len(own), padded(len(own))
        hidden = np.zeros((1, S, own.shape[1]), dtype=np.float32)
        hidden[0, :tokens] = own
        return Row(tokens, self._bias(tokens, S), hidden, received)

    def layer(self, n: int, state: list[Row]) -> list[Row]:
        """The state after layer `n`, counted from 0."""
        return [self._layer(n, row, alone=len(state) == 1) for row in state]

    def _layer(self, n: int, row: Row, *, alone: bool) -> Row:
        counted = row.received is not None
        request = self._request(n, importance=counted)
        inputs = [row.hidden, row.bias, *([_queries(row)] if counted else [])]  # kept until they are read
        for at, given in enumerate(inputs):
            request.set_input_tensor(at, _tensor(given))
        request.infer()
        hidden = request.get_output_tensor(0)
        if not alone:  # the next text's pass writes to the request's tensor
            hidden = hidden.data.copy()
        if row.received is None:
            return replace(row, hidden=hidden)
        return replace(row, hidden=hidden, received=row.received + request.get_output_tensor(1).data[0, : row.tokens])

    def exits(self, n: int, state: list[Row]) -> Array:
        """Logits of the exit after layer `n`, float32 [B, C], computed a row at a time."""
        return np.stack([self._built.heads[n](_array(row.hidden)[0, : row.tokens]) for row in state])

    def parts(self, n: int, state: list[Row], row: int) -> Array:
        """What each token of a row adds to the logits of the exit after layer `n`, [S, C]."""
        at = state[row]
        return self._built.heads[n].parts(_array(at.hidden)[0, : at.tokens])

    def received(self, state: list[Row], row: int) -> Array | None:
        """Attention that each token of a row received so far, [S]."""
        return state[row].received

    def hidden(self, state: list[Row], row: int) -> Array:
        """What each token of a row is now, [S, D]."""
        at = state[row]
        return _array(at.hidden)[0, : at.tokens].copy()

    def keep(self, state: list[Row], rows: Sequence[int]) -> list[Row]:
        """The state of some rows alone."""
        return [state[row] for row in rows]

    def _request(self, n: int, *, importance: bool) -> Any:
        if not importance:
            return self._plain[n]
        if self._counted[n] is None:
            self._built.check_layer(n)
            self._counted[n] = self._compiled(n, importance=True)
        return self._counted[n]

    def _compiled(self, n: int, *, importance: bool) -> Any:
        path = self._prepared / f"layer-{n:02}{'-importance' if importance else ''}.blob"
        try:
            if (blob := read_sealed(path)) is not None:
                return self._core.import_model(blob, "CPU", self._config).create_infer_request()
            graph = self._core.read_model(self._built.layer(n))
            model = self._core.compile_model(graph if importance else plain(graph), "CPU", self._config)
        except RuntimeError as error:  # the runtime has no other
            raise WrongWeights(
                f"{self._built.layer(n)}: cannot be run; delete {path.parent}: {one_line(error)}"
            ) from error
        self._keep(path, model)
        return model.create_infer_request()

    def _keep(self, path: Path, model: Any) -> None:
        if self._keeps:
            try:
                write_sealed(path, model.export_model().getvalue())
            except OSError as error:  # the next start compiles again
                self._keeps = False
                log.warning("compiled_layers_not_kept", folder=str(path.parent), detail=error.strerror)

    def _bias(self, tokens: int, S: int) -> Array:
        if S not in self._biases:
            relative = self._built.embeddings.relative_bias(S)
            self._biases[S] = np.zeros((1, 1, 1, S), dtype=np.float32) if relative is None else relative[None]
        if tokens == S:
            return self._biases[S]
        mask = np.where(np.arange(S) < tokens, np.float32(0), _HIDDEN)
        return self._biases[S] + mask


def _queries(row: Row) -> Array:
    """1 where a row has a token, 0 at its padding, [1, 1, 1, S]."""
    return (np.arange(padded(row.tokens)) < row.tokens).astype(np.float32)[None, None, None]


def padded(tokens: int) -> int:
    """The length that a text of so many tokens is padded to."""
    return -(-tokens // PAD) * PAD


@cache
def core() -> ov.Core:
    """The runtime."""
    runtime = ov.Core()
    runtime.set_property({"ENABLE_MMAP": False})  # a mapped file would stay open for as long as its layer lives
    return runtime


def capabilities() -> list[str]:
    """What this processor computes natively: `INT8`, `BF16`, `FP32`, ..."""
    return list(core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"))


def _config(precision: Precision, threads: int, runtime: ov.Core) -> dict[str, Any]:
    halves = "BF16" in runtime.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "ENABLE_CPU_PINNING": False,
        "INFERENCE_PRECISION_HINT": "bf16" if halves and precision is not Precision.FP32 else "f32",
    }


def _of_this_machine(runtime: ov.Core, config: dict[str, Any]) -> str:
    """A folder's name for models as compiled here: by this version, for this processor, with these settings."""
    processor = runtime.get_property("CPU", "FULL_DEVICE_NAME"), capabilities()
    told = f"{ov.__version__} {processor} {sorted(config.items())}"
    return f"{COMPILED}{hashlib.sha256(told.encode()).hexdigest()[:16]}"


def _array(hidden: Any) -> Array:
    return hidden.data if isinstance(hidden, ov.Tensor) else hidden


def _tensor(array: Any) -> ov.Tensor:
    return array if isinstance(array, ov.Tensor) else ov.Tensor(array, shared_memory=True)
