"""Int8 for an encoder's linear maps: static ranges that calibration found, weights rounded per output channel.

    y = W x + b,   x' = x / s,  W' = W diag(s)            s: SmoothQuant's factors (Xiao et al. 2023, arXiv 2211.10438)
    s_j = max|x_j|^a / max_i|W_ij|^(1-a),  a = 0.95       outliers move from the inputs to the weights
    x' is rounded to 256 levels between `low` and `high`, W'_i to 255 levels between -max|W'_i| and max|W'_i|

Ranges are static, so a text gives the same bits whatever shares its batch. Attention itself, layer norms and exit
heads are not quantized. A table belongs to one classifier: `adapters` is the sha256 of the adapters it was found for.

    deploy/models/BUNDLE/CLASSIFIER/quantization.safetensors   fp16 "<layer>.<input>.smooth" [D], fp32 "....range" [2]

Left out: ranges that follow the text, quantized attention, weights below 8 bits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from shared.errors import WrongWeights
from shared.model.base import Array, Layer

FILE = "quantization.safetensors"
SMOOTHING = 0.95
INPUTS = {"qkv": ("q", "k", "v"), "o": ("o",), "up": ("up",), "down": ("down",)}  # what reads the same input


@dataclass(frozen=True)
class Input:
    """How the input of one or more linear maps is rounded: after x / `smooth` [D], between `low` and `high`."""

    low: float
    high: float
    smooth: Array


LayerTable = Mapping[str, Input]  # by the names of INPUTS


def smoothing(most: Array, weights: Sequence[Array]) -> Array:
    """SmoothQuant's factors [D] with geometric mean 1, from max|x_j| [D] and the maps [out, D] that read x."""
    inputs = np.maximum(most, 1e-5)
    maps = np.maximum(np.abs(np.concatenate(weights)).max(0), 1e-5)
    factors = inputs**SMOOTHING / maps ** (1 - SMOOTHING)
    return (factors / np.exp(np.log(factors).mean())).astype(np.float16).astype(np.float32)


def rounded(weight: Array) -> tuple[Array, Array]:
    """A map as int8 [out, in] and its step per output channel, float32 [out, 1].

    >>> rounded(np.array([[1.27, -0.64]], dtype=np.float32))[0].tolist()
    [[127, -64]]
    """
    step = (np.maximum(np.abs(weight).max(1, keepdims=True), 1e-12) / 127).astype(np.float32)
    return np.clip(np.rint(weight / step), -127, 127).astype(np.int8), step


def smoothed(layer: Layer, table: LayerTable) -> Layer:
    """A layer whose maps take smoothed inputs: W diag(s). For `o` its input's 1/s moves into `v`, which makes it."""
    out = dict(layer)
    for name, maps in INPUTS.items():
        for part in maps:
            weight, bias = out[part]
            out[part] = (weight * table[name].smooth, bias)
    weight, bias = out["v"]
    factors = table["o"].smooth
    out["v"] = (weight / factors[:, None], bias / factors)
    return out


def save_table(folder: Path, layers: Sequence[LayerTable]) -> None:
    """Write the table of the classifier in `folder`."""
    tensors: dict[str, Array] = {}
    for n, table in enumerate(layers):
        for name, given in table.items():
            tensors[f"{n}.{name}.smooth"] = given.smooth.astype(np.float16)
            tensors[f"{n}.{name}.range"] = np.array([given.low, given.high], dtype=np.float32)
    (folder / FILE).write_bytes(save(tensors, {"adapters": adapters_digest(folder)}))


def load_table(folder: Path, layers: int) -> list[LayerTable] | None:
    """The table of the classifier in `folder`, for its first layers; null where it has none.

    Raises:
        WrongWeights: damaged, or found for other adapters.
    """
    path = folder / FILE
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        tensors = load(raw)
        header = raw[8 : 8 + int.from_bytes(raw[:8], "little")].decode()
        out = [
            {
                name: Input(float(low), float(high), tensors[f"{n}.{name}.smooth"].astype(np.float32))
                for name in INPUTS
                for low, high in [tensors[f"{n}.{name}.range"]]
            }
            for n in range(layers)
        ]
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise WrongWeights(f"{path}: cannot read the quantization table: {error}") from error
    if adapters_digest(folder) not in header:
        raise WrongWeights(f"{path}: found for other adapters: run `tierwise calibrate`, or delete the file")
    return out  # type: ignore[return-value]


def adapters_digest(folder: Path) -> str:
    """The sha256 of a classifier's adapters."""
    return hashlib.sha256((folder / "adapters.safetensors").read_bytes()).hexdigest()
