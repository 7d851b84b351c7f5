"""A base encoder as arrays: its configuration, embeddings and layers, read from safetensors without torch.

    BERT      word + position + type embeddings, layer norm; then layers
    RoBERTa   the same; positions count the tokens that are no padding, from the one after the padding's
    MPNet     no types; the same positions; every layer adds one relative bias to its attention scores

Each layer is a dict of the eight maps in `MAPS`: (weight [out, in], bias [out]), or (gain [D], bias [D]) for a norm.
Keys for shapes: D hidden, H heads, V vocabulary, S sequence. Left out: pickled checkpoints, activations other than
GELU, positions that are not absolute.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer

from shared.errors import BadSetting, WrongWeights, one_line
from shared.model.weights import base_folder

SUPPORTED = ("bert", "roberta", "mpnet")
MAPS = ("q", "k", "v", "o", "attention_norm", "up", "down", "norm")
_BERT = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "o": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "up": "intermediate.dense",
    "down": "output.dense",
    "norm": "output.LayerNorm",
}
_MPNET = _BERT | {name: f"attention.attn.{name}" for name in "qkvo"} | {"attention_norm": "attention.LayerNorm"}
NAMES = {"bert": _BERT, "roberta": _BERT, "mpnet": _MPNET}
_PREFIX = re.compile(r"^.*?\b(embeddings|encoder)\.")  # whatever the model around the encoder is called
_OF_OLD = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}  # BERT's first checkpoints
FEWEST_PIECES = 26  # of a vocabulary
_FARTHEST = 128  # MPNet's relative positions: from here on all distances share a bucket

Array = np.ndarray[Any, np.dtype[Any]]
Layer = dict[str, tuple[Array, Array]]


@dataclass(frozen=True)
class BaseConfig:
    """What a base says of itself in `config.json`."""

    family: str
    layers: int
    hidden: int
    heads: int
    positions: int  # tokens that it can read
    eps: float  # of its layer norms
    pad_id: int
    relative_buckets: int = 0


def read_config(name: str) -> BaseConfig:
    """What a base says of itself: known before its weights are read.

    Raises:
        WrongWeights: the base cannot be had, or is no encoder.
        BadSetting: an encoder of a family that we cannot read, or with parts that we do not have.
    """
    folder = base_folder(name)
    try:
        told = json.loads((folder / "config.json").read_text())
        family = str(told["model_type"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WrongWeights(f"{folder}: cannot read an encoder's config.json: {one_line(error)}") from error
    if family not in SUPPORTED:
        raise BadSetting(f"{name}: a {family!r} encoder; supported families are {', '.join(SUPPORTED)}")
    if told.get("hidden_act", "gelu") != "gelu" or told.get("position_embedding_type", "absolute") != "absolute":
        raise BadSetting(f"{name}: only GELU and absolute positions are supported")
    try:
        return BaseConfig(
            family=family,
            layers=int(told.get("num_hidden_layers", 12)),
            hidden=int(told.get("hidden_size", 768)),
            heads=int(told.get("num_attention_heads", 12)),
            positions=positions_of(family, int(told.get("max_position_embeddings", 512))),
            eps=float(told.get("layer_norm_eps", 1e-12)),
            pad_id=int(told.get("pad_token_id", 0 if family == "bert" else 1)),
            relative_buckets=int(told.get("relative_attention_num_buckets", 32)) if family == "mpnet" else 0,
        )
    except (ValueError, TypeError) as error:
        raise WrongWeights(f"{folder}: cannot read an encoder's config.json: {one_line(error)}") from error


def positions_of(family: str, embedded: int) -> int:
    """Tokens that an encoder reads: RoBERTa and MPNet count positions from 2.

    >>> positions_of("bert", 512), positions_of("mpnet", 514)
    (512, 512)
    """
    return embedded - (0 if family == "bert" else 2)


def load_tokenizer(name: str) -> Tokenizer:
    """The fast tokenizer of a base.

    Raises:
        WrongWeights: the base cannot be had, or has no tokenizer that can be read.
    """
    folder = base_folder(name)
    try:
        if (folder / "tokenizer.json").exists():
            return Tokenizer.from_file(str(folder / "tokenizer.json"))
        from transformers import AutoTokenizer

        found = AutoTokenizer.from_pretrained(
            folder, use_fast=True, trust_remote_code=False, local_files_only=True
        ).backend_tokenizer
        if len(found.get_vocab()) < FEWEST_PIECES:  # where no file is there, transformers makes up a void one
            raise ValueError("no tokenizer.json, no vocabulary")
        return found
    except Exception as error:  # tokenizers raises plain Exception; transformers what its parts raise
        raise WrongWeights(f"{folder}: has no tokenizer that can be read: {one_line(error)}") from error


class Checkpoint:
    """The tensors of a folder's safetensors files by name, whatever they were prefixed with; read when asked for."""

    def __init__(self, folder: Path) -> None:
        """Index the files.

        Raises:
            WrongWeights: there are none, or they are damaged.
        """
        self._folder = folder
        self._files: dict[str, tuple[Path, str]] = {}
        try:
            for path in sorted(folder.glob("*.safetensors")):
                with safe_open(path, "np") as file:
                    keys = list(file.keys())
                self._files |= {_plain(key): (path, key) for key in keys}
        except (OSError, SafetensorError) as error:
            raise WrongWeights(f"{folder}: cannot read an encoder from it: {one_line(error)}") from error

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def get(self, name: str) -> Array:
        """One tensor as float32.

        Raises:
            WrongWeights: it is not there.
        """
        if name not in self._files:
            raise WrongWeights(f"{self._folder}: cannot read an encoder from it: no tensor {name!r}")
        path, key = self._files[name]
        try:
            return read_tensor(path, key)
        except (OSError, SafetensorError) as error:
            raise WrongWeights(f"{path}: damaged: {one_line(error)}") from error


def _plain(key: str) -> str:
    """A tensor's name without prefix, in today's words."""
    name = _PREFIX.sub(r"\1.", key)
    for old, new in _OF_OLD.items():
        name = name.replace(old, new)
    return name


def read_tensor(path: Path, key: str) -> Array:
    """A tensor of a safetensors file as float32; numpy has no bfloat16, so its bits are widened here."""
    with safe_open(path, "np") as file:
        if file.get_slice(key).get_dtype() != "BF16":
            return np.asarray(file.get_tensor(key), dtype=np.float32)
    with path.open("rb") as raw:
        length = int.from_bytes(raw.read(8), "little")
        entry = json.loads(raw.read(length))[key]
        first, end = entry["data_offsets"]
        raw.seek(8 + length + first)
        halves = np.frombuffer(raw.read(end - first), dtype="<u2").astype(np.uint32)
    return (halves << 16).view(np.float32).reshape(entry["shape"])


def read_layer(checkpoint: Checkpoint, config: BaseConfig, n: int) -> Layer:
    """The eight maps of layer `n`, counted from 0."""
    return {
        part: tuple(checkpoint.get(f"encoder.layer.{n}.{name}.{kind}") for kind in ("weight", "bias"))  # type: ignore[misc]
        for part, name in NAMES[config.family].items()
    }


def merge_adapters(layer: Layer, config: BaseConfig, n: int, factors: Mapping[str, Array], scale: float) -> Layer:
    """W <- W + scale * B @ A for every pair of factors of layer `n` (Hu et al. 2021, LoRA).

    Raises:
        WrongWeights: factors that do not fit the layer's maps.
    """
    merged = dict(layer)
    for part, name in NAMES[config.family].items():
        key = f"encoder.layer.{n}.{name}"
        if f"{key}.A" not in factors:
            continue
        weight, bias = layer[part]
        merged[part] = (weight + adapter(factors, key, scale, weight.shape), bias)
    return merged


def adapter(factors: Mapping[str, Array], name: str, scale: float, shape: tuple[int, ...]) -> Array:
    """scale * B @ A of one linear map, float32 `shape`.

    Raises:
        WrongWeights: it has another shape.
    """
    a, b = (factors[f"{name}.{factor}"].astype(np.float32) for factor in "AB")  # [R, in], [out, R]
    if len(a) != b.shape[1] or shape != (len(b), a.shape[1]):
        raise WrongWeights(f"adapters: {name!r} does not fit the base")
    return np.asarray(np.float32(scale) * (b @ a))


def check_factors(factors: Mapping[str, Array], config: BaseConfig) -> None:
    """Every factor belongs to a linear map that the base has, and has its partner.

    Raises:
        WrongWeights: a wrong prefix would otherwise leave every weight as it was, silently.
    """
    names = {key.rpartition(".")[0] for key in factors}
    if {f"{name}.{factor}" for name in names for factor in "AB"} != set(factors):
        raise WrongWeights("adapters: every linear map needs exactly the factors A and B")
    known = {
        f"encoder.layer.{n}.{name}"
        for n in range(config.layers)
        for part, name in NAMES[config.family].items()
        if "norm" not in part
    }
    for name in sorted(names - known):
        raise WrongWeights(f"adapters: the base has no linear map {name!r}")


@dataclass(frozen=True)
class Embeddings:
    """What the first layer gets. `tables` are those of `of_base`; any of them may be mapped from disk."""

    config: BaseConfig
    tables: Mapping[str, Array]

    @classmethod
    def of_base(cls, checkpoint: Checkpoint, config: BaseConfig) -> Embeddings:
        """The tables of a base: word [V, D], position [P, D], gain and bias [D]; of some families type, relative."""
        names = {
            "word": "embeddings.word_embeddings.weight",
            "position": "embeddings.position_embeddings.weight",
            "gain": "embeddings.LayerNorm.weight",
            "bias": "embeddings.LayerNorm.bias",
        }
        if config.family != "mpnet":
            names["type"] = "embeddings.token_type_embeddings.weight"
        else:
            names["relative"] = "encoder.relative_attention_bias.weight"
        return cls(config, {table: checkpoint.get(name) for table, name in names.items()})

    def words(self, ids: list[int]) -> Array:
        """The static word embeddings alone, [S, D]."""
        return self.tables["word"][ids]

    def __call__(self, ids: list[int], segments: list[int]) -> Array:
        """What the first layer gets, float32 [S, D]."""
        positions = np.arange(len(ids))
        if self.config.family != "bert":
            real = np.array(ids) != self.config.pad_id
            positions = np.cumsum(real) * real + self.config.pad_id
        embedded = self.words(ids) + self.tables["position"][positions]
        if "type" in self.tables:
            embedded = embedded + self.tables["type"][segments if self.config.family == "bert" else [0] * len(ids)]
        centred = embedded - embedded.mean(-1, keepdims=True)
        spread = np.sqrt((centred**2).mean(-1, keepdims=True) + np.float32(self.config.eps))
        return np.asarray(centred / spread * self.tables["gain"] + self.tables["bias"], dtype=np.float32)

    def relative_bias(self, length: int) -> Array | None:
        """MPNet's relative positions as an additive bias, float32 [H, S, S]; null for the other families."""
        if "relative" not in self.tables:
            return None
        buckets = relative_buckets(length, self.config.relative_buckets)  # [S, S]
        return np.ascontiguousarray(self.tables["relative"][buckets].transpose(2, 0, 1))


def relative_buckets(length: int, buckets: int) -> Array:
    """The bucket of each distance, [S, S]: half for each direction, of these half exact and the rest logarithmic."""
    at = np.arange(length)
    distance = at[None, :] - at[:, None]  # key - query
    half = buckets // 2
    far = np.abs(distance)
    exact = half // 2
    with np.errstate(divide="ignore"):
        scaled = exact + (np.log(far.astype(np.float32) / exact) / math.log(_FARTHEST / exact) * (half - exact))
    logarithmic = np.minimum(np.where(far < exact, 0, scaled).astype(np.int64), half - 1)
    return np.where(distance > 0, half, 0) + np.where(far < exact, far, logarithmic)
