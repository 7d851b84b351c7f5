"""What a network has computed of one text, as a value: another holder of the same network goes on from it.

Packed, all little-endian:
    b"TWst", version u8, form u8, with-received u8, 0 u8, done u32, tokens u32, hidden u32, classes u32,
    sha256 of the network [32], crc32 of all that follows and of the 56 bytes before u32
    exits float32 [done, C], received float32 [S] where it is told, then
        fp32, fp16   hidden [S, D]
        int8         scales float32 [S], hidden int8 [S, D]: a token's largest value is 127 scales

A packed state comes from elsewhere: every field is checked before it is used. Left out: compression (float bits hardly
get shorter), and padding (the engine that goes on adds its own).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np

from shared.errors import BadState
from shared.model.base import Array

STATES_TYPE = "application/octet-stream"  # of a message with states behind it
_MAGIC, _VERSION = b"TWst", 1
_FIXED = struct.Struct("<4sBBBBIIII32s")
_CRC = _LENGTH = struct.Struct("<I")
HEADER = _FIXED.size + _CRC.size  # bytes
_INT8 = 127
LARGEST = 1e6  # of a hidden value or a logit: those of MPNet and MiniLM stay below 11, and a pass from 1e20 gives NaN


class Form(StrEnum):
    """What the hidden values of a packed state are."""

    FP32 = "fp32"  # exact
    FP16 = "fp16"
    INT8 = "int8"  # with a scale for each token


_FORMS = tuple(Form)
_TYPES: dict[Form, np.dtype[Any]] = {Form.FP32: np.dtype("<f4"), Form.FP16: np.dtype("<f2"), Form.INT8: np.dtype("i1")}


@dataclass(frozen=True)
class Segment:
    """Layers `first` + 1 to `last` of one network, whose states are [S, hidden] with at most `max_tokens` tokens."""

    digest: str  # sha256 of the network: its base, adapters and heads, whichever layers are held
    first: int  # layers before the segment; 0: it can begin with a text
    last: int
    hidden: int
    classes: int
    max_tokens: int


@dataclass(frozen=True, eq=False)
class State:
    """A text between two layers: all positions are its own tokens, none is padding."""

    hidden: Array  # [S, D] float32
    exits: Array  # [done, C] float32: the logits of every exit so far
    received: Array | None = None  # [S] float32: attention that each token received so far; null: nobody asked

    @property
    def done(self) -> int:
        """Layers that ran."""
        return len(self.exits)

    @property
    def tokens(self) -> int:
        return len(self.hidden)

    def attention(self) -> Array:
        """Attention that each token received so far, [S]; nothing yet where nobody asked."""
        return np.zeros(self.tokens, dtype=np.float32) if self.received is None else self.received


def packed_bytes(segment: Segment, tokens: int, done: int, form: Form, *, received: bool = False) -> int:
    """Bytes of a packed state."""
    floats = done * segment.classes + tokens * (received + (form is Form.INT8))
    return HEADER + 4 * floats + tokens * segment.hidden * _TYPES[form].itemsize


def pack(state: State, segment: Segment, form: Form) -> bytes:
    """A state of the segment's network as bytes.

    Raises:
        BadState: a value is not finite, or too large for fp16.
    """
    hidden, scales, refused = state.hidden, b"", BadState(f"a state with values that {form} does not hold")
    if not (np.isfinite(hidden).all() and np.isfinite(state.exits).all()):
        raise refused
    if form is Form.INT8:
        largest = np.abs(hidden).max(-1) / np.float32(_INT8)  # [S]
        hidden = np.rint(hidden / np.where(largest > 0, largest, 1)[:, None])
        scales = largest.astype("<f4").tobytes()
    with np.errstate(over="ignore"):
        values = hidden.astype(_TYPES[form])
    if not np.isfinite(values).all():
        raise refused
    received = b"" if state.received is None else state.received.astype("<f4").tobytes()
    sizes = (state.done, state.tokens, segment.hidden, segment.classes)
    head = _FIXED.pack(
        _MAGIC, _VERSION, _FORMS.index(form), state.received is not None, 0, *sizes, bytes.fromhex(segment.digest)
    )
    body = b"".join((state.exits.astype("<f4").tobytes(), received, scales, values.tobytes()))
    return head + _CRC.pack(zlib.crc32(body, zlib.crc32(head))) + body


def unpack(packed: bytes | memoryview, segment: Segment) -> State:
    """A state that this segment can go on from.

    Raises:
        BadState: it is cut off, too long, altered, of another network, of a layer that the segment does not go on
            from, too many tokens, not finite, or a hidden value or a logit is beyond `LARGEST`.
    """
    if len(packed) < HEADER:
        raise BadState(f"a state of {len(packed)} bytes: its header has {HEADER}")
    head, body = bytes(packed[: _FIXED.size]), memoryview(packed)[HEADER:]
    magic, version, kind, told, spare, done, tokens, hidden, classes, digest = _FIXED.unpack(head)
    if magic != _MAGIC or version != _VERSION or spare or told > 1 or kind >= len(_FORMS):
        raise BadState(f"not a state of version {_VERSION}")
    form = _FORMS[kind]
    if digest.hex() != segment.digest:
        raise BadState(f"the state is of network {digest.hex()[:12]}; this is {segment.digest[:12]}")
    _check(segment, done, tokens, hidden, classes)
    size = packed_bytes(segment, tokens, done, form, received=bool(told))
    if len(packed) != size:
        raise BadState(f"a state of {len(packed)} bytes: {tokens} tokens in {form} after layer {done} have {size}")
    if _CRC.unpack(packed[_FIXED.size : HEADER])[0] != zlib.crc32(body, zlib.crc32(head)):
        raise BadState("the state was altered on its way: its checksum differs")
    return _values(body, form, bool(told), (done, tokens, hidden, classes))


def frame(head: bytes, packed: Sequence[bytes]) -> bytes:
    """A message with packed states behind it: the length of each part (u32), then the part."""
    return b"".join(piece for part in (head, *packed) for piece in (_LENGTH.pack(len(part)), part))


def unframe(body: bytes) -> tuple[bytes, list[memoryview]]:
    """What `frame` was given.

    Raises:
        BadState: the lengths do not add up to the body.
    """
    parts: list[memoryview] = []
    at, rest = 0, memoryview(body)
    while at < len(body):
        length = _LENGTH.unpack_from(body, at)[0] if at + _LENGTH.size <= len(body) else len(body)
        end = at + _LENGTH.size + length
        if end > len(body):
            raise BadState(f"the body ends at byte {len(body)}, within part {len(parts) + 1}")
        parts.append(rest[at + _LENGTH.size : end])
        at = end
    if not parts:
        raise BadState("the body is empty: it needs a message, and a state for each text")
    return bytes(parts[0]), parts[1:]


def _check(segment: Segment, done: int, tokens: int, hidden: int, classes: int) -> None:
    if not max(1, segment.first) <= done < segment.last:
        raise BadState(f"the state is after layer {done}; here layers {segment.first + 1} to {segment.last} run")
    if not 1 <= tokens <= segment.max_tokens:
        raise BadState(f"the state has {tokens} tokens; from 1 to {segment.max_tokens} are read here")
    if (hidden, classes) != (segment.hidden, segment.classes):
        raise BadState(
            f"the state is {hidden} wide with {classes} classes; here it is {segment.hidden} with {segment.classes}"
        )


def _values(body: memoryview, form: Form, told: bool, shape: tuple[int, int, int, int]) -> State:
    """The arrays behind the header, whose size is right."""
    done, tokens, hidden, classes = shape
    floats = np.frombuffer(body, "<f4", done * classes + tokens * (told + (form is Form.INT8)))
    exits, rest = floats[: done * classes].reshape(done, classes), floats[done * classes :]
    received = rest[:tokens] if told else None
    values = np.frombuffer(body, _TYPES[form], tokens * hidden, floats.nbytes).reshape(tokens, hidden)
    values = values.astype(np.float32)
    if form is Form.INT8:
        with np.errstate(over="ignore", invalid="ignore"):
            values *= rest[tokens * told :][:, None]
    if not (np.isfinite(floats).all() and np.isfinite(values).all()):
        raise BadState("the state has values that are not finite")
    if max(np.abs(values).max(), np.abs(exits).max(initial=0)) > LARGEST:
        raise BadState(f"the state has values beyond {LARGEST:g}, which no network computes")
    if rest.size and rest.min() < 0:
        raise BadState("the state has negative scales, or attention below zero")
    return State(values, exits.astype(np.float32), None if received is None else received.astype(np.float32))
