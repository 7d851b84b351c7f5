"""How a node runs a segment: with the network itself, or slept on recorded exits.

    Computed   the layers run here. Nodes on one machine share its processors
    Slept      what each exit said of these texts was recorded before (`lab/mesh/texts.py`). A segment sleeps for a
               given time, and the state that travels has the real size and no content. So each node has a processor of
               its own, as fast as it is told. Every output of it says `slept`

A segment ends after a layer whose exit is asked: where the bundle says (`Bundle.segments`), or layer L k / K of L for
k = 1 to K.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, cast

import numpy as np
from safetensors import SafetensorError, safe_open

from shared.errors import BadSetting, BadState, UnreadableText, one_line
from shared.model.base import Array
from shared.model.bundle import Bundle
from shared.model.classifier import Classifier
from shared.model.state import Form, Segment, State, pack, unpack
from shared.model.words import Encoded


def ends_of(bundle: Bundle, segments: int | None) -> tuple[int, ...]:
    """The layer of the deepest tier's network that ends each segment; null: as the bundle cuts it.

    Raises:
        BadSetting: more segments than layers.
    """
    layers = bundle.tiers[bundle.order[-1]].layers
    if segments is None:
        return bundle.segments
    if not 1 <= segments <= layers:
        raise BadSetting(f"{segments} segments of {layers} layers: choose from 1 to {layers}")
    return tuple(round(layers * (at + 1) / segments) for at in range(segments))


def key_of(text: str, pair: str | None = None) -> str:
    """The sha256 that names a text on its way."""
    return hashlib.sha256(f"{text}\0{pair or ''}".encode(errors="surrogatepass")).hexdigest()


@dataclass(frozen=True)
class Item:
    """A text between two segments; `key` is the sha256 of the text."""

    key: str
    at: Encoded | State


class Runs(Protocol):
    """Runs segments in one thread; the rest is asked by any."""

    ends: tuple[int, ...]
    kind: str  # what every output says of it
    runs_on: str

    def begin(self, text: str, pair: str | None, key: str) -> Item:
        """A text before its first segment; raises UnreadableText."""

    def run(self, item: Item, segment: int) -> tuple[Array, Item]:
        """The calibrated probabilities [C] of the exit that ends a segment, and the text after it."""

    def packed(self, item: Item) -> bytes:
        """A text after a segment, as bytes."""

    def size(self, item: Item) -> int:
        """How many bytes that would be, or nearly."""

    def unpacked(self, packed: memoryview, key: str, segment: int) -> Item:
        """A text that goes on with this segment; raises BadState."""


def _at(state: State, ends: Sequence[int], segment: int) -> State:
    """The state, if it is the one before this segment.

    Raises:
        BadState: there is no such segment, or another layer ran last.
    """
    if not 1 <= segment < len(ends) or state.done != ends[segment - 1]:
        raise BadState(f"the state is after layer {state.done}; segments end after {', '.join(map(str, ends))}")
    return state


class _Packs:
    """The two directions of a packed state, which both kinds share."""

    ends: tuple[int, ...]
    _segment: Segment
    _form: Form

    def packed(self, item: Item) -> bytes:
        assert isinstance(item.at, State)
        return pack(item.at, self._segment, self._form)

    def size(self, item: Item) -> int:
        assert isinstance(item.at, State)
        width = {Form.FP32: 4, Form.FP16: 2, Form.INT8: 1}[self._form]
        return item.at.tokens * self._segment.hidden * width

    def unpacked(self, packed: memoryview, key: str, segment: int) -> Item:
        return Item(key, _at(unpack(packed, self._segment), self.ends, segment))


class Computed(_Packs):
    """The layers of a classifier, all of them held here or some segments of them."""

    kind = "computed"

    def __init__(self, classifier: Classifier, ends: tuple[int, ...], form: Form) -> None:
        self.ends = ends
        self._classifier, self._segment, self._form = classifier, classifier.segment, form
        self.runs_on = classifier.runs_on

    def begin(self, text: str, pair: str | None, key: str) -> Item:
        return Item(key, self._classifier.encode(text, pair))

    def run(self, item: Item, segment: int) -> tuple[Array, Item]:
        texts = cast("list[State]", [item.at])  # or one that is encoded: of one text the kind is plain
        trace = self._classifier.run(texts, None, until=self.ends[segment], states=True)[0]
        assert trace.state is not None
        said = self._classifier.calibrate(trace.logits[-1:], last=self.ends[segment])[0]
        return said, replace(item, at=trace.state)


class Slept(_Packs):
    """Recorded exits, and a given time for each segment.

    Raises:
        BadSetting: no such recording.
    """

    kind = "slept"

    def __init__(self, recording: Path, ends: tuple[int, ...], service_s: float, form: Form) -> None:
        try:
            with safe_open(recording, "np") as file:
                told = file.metadata()
                exits, tokens = file.get_tensor("exits"), file.get_tensor("tokens")  # [N, L, C], [N]
        except (OSError, SafetensorError) as error:
            raise BadSetting(f"{recording}: cannot read recorded exits: {one_line(error)}") from error
        self._known = {key: (exits[at], int(tokens[at])) for at, key in enumerate(told["keys"].split())}
        layers, classes = exits.shape[1:]
        self.ends, self._form, self._service_s = ends, form, service_s
        self.runs_on = f"{told['runs_on']}, recorded"
        self._segment = Segment(
            digest="0" * 64,
            first=0,
            last=layers,
            hidden=int(told["hidden"]),
            classes=classes,
            max_tokens=int(tokens.max()),
        )

    def begin(self, text: str, pair: str | None, key: str) -> Item:
        if key not in self._known:
            raise UnreadableText("no exits were recorded of this text")
        exits, tokens = self._known[key]
        return Item(key, State(np.zeros((tokens, self._segment.hidden), dtype=np.float32), exits[:0]))

    def run(self, item: Item, segment: int) -> tuple[Array, Item]:
        time.sleep(self._service_s)
        assert isinstance(item.at, State)
        exits = self._known[item.key][0][: self.ends[segment]]
        return exits[-1], replace(item, at=replace(item.at, exits=exits))

    def unpacked(self, packed: memoryview, key: str, segment: int) -> Item:
        if key not in self._known:
            raise BadState("no exits were recorded of this text")
        return super().unpacked(packed, key, segment)
