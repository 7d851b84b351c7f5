"""Words travel whole, but the deepest tier drops the states of unimportant ones after its first layers.

    layers 1 to k on every token, layers k + 1 to L on those that are kept; exit heads pool over what is left

Kept tokens keep their positions: MPNet's relative bias loses the rows and columns of the others. Special tokens stay.
For the openvino engine, whose state of a text is a `Row`. Left out: training for it, drops at several layers.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from shared.model.base import Array
from shared.model.encoder import Engine
from shared.model.openvino_engine import Row, padded
from shared.model.words import Encoded

HIDDEN = np.float32(-1e9)  # added to the scores of padding


def after(engine: Engine, encoded: Encoded, layers: int, *, importance: bool = False) -> Row:
    """A text's state after the engine's first layers, which no later pass overwrites."""
    state = engine.start([encoded], importance=importance)
    for n in range(layers):
        state = engine.layer(n, state)
    (row,) = state
    assert isinstance(row, Row)
    return replace(row, hidden=np.array(engine.hidden(state, 0)[None]), received=row.received)


def last_exit(engine: Engine, row: Row, layers: int, keep: Array) -> Array:
    """Logits [C] of the last exit where only the tokens `keep`, ascending, go on after so many layers."""
    state = [only(row, keep)]
    for n in range(layers, engine.layers):
        state = engine.layer(n, state)
    return engine.exits(engine.layers - 1, state)[0]


def only(row: Row, keep: Array) -> Row:
    """A row with some of its tokens alone, at the positions that they had."""
    S, tokens = padded(len(keep)), len(keep)
    hidden = np.zeros((1, S, row.hidden.shape[-1]), dtype=np.float32)
    hidden[0, :tokens] = row.hidden[0, keep]
    bias = row.bias[..., keep] if row.bias.shape[2] == 1 else row.bias[:, :, keep][..., keep]
    wide = np.zeros((*bias.shape[:2], 1 if bias.shape[2] == 1 else S, S), dtype=np.float32)
    wide[:, :, : bias.shape[2], :tokens] = bias
    wide[..., tokens:] = HIDDEN
    return Row(tokens, wide, hidden, None)


def tokens_of(encoded: Encoded, words: Array) -> Array:
    """The tokens of these words, and the special ones, ascending."""
    owner = np.array(encoded.word_of)
    return np.flatnonzero((owner < 0) | np.isin(owner, words))
