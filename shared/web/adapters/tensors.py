"""Tensors of the Open Inference Protocol: texts and numbers as JSON, or as bytes behind it.

A text is four bytes of its length, least first, and its UTF-8. Numbers are FP32, least byte first.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import Field

from shared.contracts import Message, says
from shared.errors import BadInput, TooLarge


class V2Input(Message):
    """A tensor of texts."""

    name: str = says("text, or text_pair", "text")
    shape: list[int] = says("[N], or [N, 1]", [1])
    datatype: str = says("BYTES", "BYTES")
    parameters: dict[str, Any] = Field(
        {}, description="binary_data_size: bytes of the tensor behind the JSON", examples=[{}]
    )
    data: list[Any] | None = Field(None, description="the texts; null: behind the JSON", examples=[["A joy."]])


class V2Output(Message):
    """A tensor of an answer."""

    name: str = says("the output", "label")
    datatype: str = says("BYTES or FP32", "BYTES")
    shape: list[int] = says("its shape", [1])
    parameters: dict[str, int] | None = Field(
        None, description="binary_data_size, where it stands behind the JSON", examples=[None]
    )
    data: list[str] | list[float] | None = Field(None, description="its values", examples=[["positive"]])


def texts_of(tensor: V2Input, raw: bytes | None, most: int) -> list[str]:
    """The texts of a tensor, from its JSON or from `raw`.

    Raises:
        BadInput: it is none of texts, or its values do not fit its shape.
        TooLarge: over `most` texts.
    """
    shape, name = tensor.shape, tensor.name
    if tensor.datatype != "BYTES" or len(shape) not in (1, 2) or shape[1:] not in ([], [1]) or shape[0] < 0:
        raise BadInput(f"{name}: expected BYTES of shape [N] or [N, 1], got {tensor.datatype[:20]} of {shape[:4]}")
    if shape[0] > most:
        raise TooLarge(f"{shape[0]} inputs; at most {most} in one request")
    if (raw is None) == (tensor.data is None):
        raise BadInput(f"{name}: expected either data or binary_data_size")
    texts = list(_flat(tensor.data or []) if raw is None else _unpacked(raw, shape[0], name))
    if len(texts) != shape[0] or not all(isinstance(text, str) for text in texts):
        raise BadInput(f"{name}: expected {shape[0]} texts, as its shape says")
    return texts


def _flat(data: list[Any]) -> Iterator[Any]:
    for value in data:
        yield from value if isinstance(value, list) else [value]


def _unpacked(raw: bytes, count: int, name: str) -> Iterator[str]:
    at = 0
    for _ in range(count):
        start = at + 4
        at = start + int.from_bytes(raw[at:start], "little")
        if max(start, at) > len(raw):
            raise BadInput(f"{name}: its bytes end within a text")
        try:
            yield raw[start:at].decode()
        except UnicodeDecodeError as error:
            raise BadInput(f"{name}: its bytes are not UTF-8") from error
    if at != len(raw):
        raise BadInput(f"{name}: more bytes than its shape says")


def packed(values: Sequence[str] | Sequence[float]) -> bytes:
    """Values as bytes.

    >>> packed(["no"]), packed([0.5])
    (b'\\x02\\x00\\x00\\x00no', b'\\x00\\x00\\x00?')
    """
    return b"".join(
        struct.pack("<I", len(text := value.encode())) + text if isinstance(value, str) else struct.pack("<f", value)
        for value in values
    )
