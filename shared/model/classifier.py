"""A trained classifier: a base encoder, its adapters, its exit heads and its tokenizer, on an engine.

deploy/models/BUNDLE/NETWORK/adapters.safetensors   fp16: "<linear map>.A" [R, in], "<linear map>.B" [out, R],
                                                    "heads.<n>.query|weight|bias"
deploy/models/BUNDLE/NETWORK/network.json           base, layers, classes, scale, and how it was trained; of an own
                                                    base the sha256 of its files too
deploy/models/BUNDLE/NETWORK/quantization.safetensors   what int8 needs (`quantization.py`); may be missing
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from shared.errors import BadSetting, WrongWeights, one_line
from shared.model.base import Array, Checkpoint, Embeddings, check_factors, read_config
from shared.model.built import Progress, Recipe, built, digest_of
from shared.model.encoder import Encoder, Engine, EngineName, Precision, PrecisionName
from shared.model.pools import Signature, Vector
from shared.model.quantization import FILE as QUANTIZATION
from shared.model.state import Segment
from shared.model.tokens import SpecialTokens
from shared.model.weights import as_path, base_folder
from shared.model.words import Encoded


@dataclass(frozen=True, kw_only=True)
class Classifier(Encoder):
    """An encoder on an engine, with the tokenizer that feeds it."""

    embeddings: Embeddings
    tokens: SpecialTokens
    max_tokens: int
    segment: Segment  # of its network

    @property
    def runs_on(self) -> str:
        """ENGINE PRECISION: names what computes, as in `Card.engine`."""
        return f"{self.engine.name} {self.engine.precision}"

    def at(self, temperatures: Sequence[float]) -> Classifier:
        """The same classifier with these temperatures, one per exit."""
        assert len(temperatures) == self.engine.layers
        return replace(self, temperatures=np.array(temperatures, dtype=np.float32))

    def encode(self, text: str, pair: str | None = None, max_tokens: int | None = None) -> Encoded:
        """A text as it is read, into at most `max_tokens` tokens, which are no more than this classifier's."""
        assert max_tokens is None or max_tokens <= self.max_tokens
        return self.tokens.encode(text, pair, max_tokens or self.max_tokens)

    def signature(self, text: Encoded, kind: Signature) -> Vector:
        """What stands for a text before any layer runs: [D], or for token norms [max_tokens]."""
        ids, segments = text.ids, text.segments
        if kind is Signature.TOKEN_NORMS:
            missing = self.max_tokens - len(ids)
            padded = self.embeddings(ids + [self.tokens.pad_id] * missing, segments + [0] * missing)
            return tuple(np.linalg.norm(padded, axis=-1).tolist())
        words_only = kind is Signature.MEAN_WORD
        embedded = self.embeddings.words(ids) if words_only else self.embeddings(ids, segments)  # [S, D]
        return tuple(embedded[np.array(text.word_of) >= 0].mean(0).tolist())


@dataclass(frozen=True)
class Trained:
    """What lies in a classifier's folder."""

    folder: Path
    base: str
    classes: int
    scale: float
    base_files: Mapping[str, str] = field(default_factory=dict)  # sha256 of an own base's files when it was trained

    @cached_property
    def tensors(self) -> dict[str, Array]:
        """Adapter factors and exit heads, by name."""
        try:
            return load_file(self.folder / "adapters.safetensors")
        except (OSError, SafetensorError) as error:
            raise WrongWeights(f"{self.folder}: cannot read the trained classifier: {one_line(error)}") from error

    @property
    def factors(self) -> dict[str, Array]:
        """The adapters' alone."""
        return {key: value for key, value in self.tensors.items() if not key.startswith("heads.")}

    @property
    def quantized(self) -> bool:
        """Whether it has a quantization table."""
        return (self.folder / QUANTIZATION).is_file()


def read_trained(folder: Path) -> Trained:
    """What `network.json` says; a base that is a relative path is one from its folder.

    Raises:
        WrongWeights: it is missing or does not say it.
    """
    try:
        told = json.loads((folder / "network.json").read_text())
        base, files = str(told["base"]), dict(told.get("base_files", {}))
        path = as_path(base)
        whole = base if path is None else str((folder / path).resolve())
        return Trained(folder, whole, int(told["classes"]), float(told["scale"]), files)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WrongWeights(f"{folder}: cannot read the trained classifier: {one_line(error)}") from error


def load_classifier(
    folder: Path,
    *,
    layers: int,
    max_tokens: int,
    engine: EngineName = "auto",
    precision: PrecisionName = "auto",
    device: str = "auto",
    threads: int = 1,
    progress: Progress = lambda done, of: None,
    first: int = 0,
) -> Classifier:
    """The first `layers` layers of a trained classifier, warm, adapters merged, temperatures 1.

    With `first`, so many of them are left out: it goes on from states after that layer.

    Raises:
        WrongWeights: files missing or unreadable, or adapters whose names do not fit the base.
        BadSetting: a family, a number of layers or of tokens that the encoder does not have, or an engine or a
            precision that is not to be had here.
    """
    trained = read_trained(folder)
    name, chosen = choice(trained, engine, precision, device)
    if name == "torch":
        loaded, embeddings, tokenizer = _on_torch(trained, (first, layers), chosen, device, threads)
    else:
        loaded, embeddings, tokenizer = _on_openvino(trained, (first, layers), chosen, threads, progress)
    if max_tokens > (most := embeddings.config.positions):
        raise BadSetting(f"{trained.base} reads at most {most} tokens, the bundle says {max_tokens}")
    classifier = Classifier(
        engine=loaded,
        temperatures=np.ones(layers, dtype=np.float32),
        embeddings=embeddings,
        tokens=SpecialTokens(tokenizer),
        max_tokens=max_tokens,
        segment=Segment(
            digest=digest_of(trained),
            first=first,
            last=layers,
            hidden=embeddings.config.hidden,
            classes=trained.classes,
            max_tokens=max_tokens,
        ),
    )
    classifier.warm_up()
    return classifier


def choice(
    trained: Trained, engine: EngineName, precision: PrecisionName, device: str
) -> tuple[Literal["openvino", "torch"], Precision]:
    """The engine and the precision that a classifier gets for what was asked.

    Raises:
        BadSetting: they are not to be had here.
    """
    if engine == "torch" or (engine == "auto" and device != "cpu" and (device == "cuda" or has_cuda())):
        return "torch", _torch_precision(precision, device)
    if device == "cuda":
        raise BadSetting("TIERWISE_DEVICE=cuda: the openvino engine runs on CPUs; set TIERWISE_ENGINE=torch")
    from shared.model.openvino_engine import capabilities

    return "openvino", precision_of(precision, capabilities(), quantized=trained.quantized)


def has_cuda() -> bool:
    """Whether torch is installed and sees a CUDA device; without a driver, torch is not even imported."""
    if find_spec("torch") is None or not any(Path("/dev").glob("nvidia[0-9]*")):
        return False
    import torch

    return torch.cuda.is_available()


def _on_openvino(
    trained: Trained, layers: tuple[int, int], precision: Precision, threads: int, progress: Progress
) -> tuple[Engine, Embeddings, Tokenizer]:
    from shared.model.openvino_engine import OpenVinoEngine

    found = built(recipe_of(trained, layers[1], precision), progress)
    tokenizer = Tokenizer.from_file(str(found.tokenizer))
    engine = OpenVinoEngine(found, precision=precision, threads=threads, first=layers[0])
    return engine, found.embeddings, tokenizer


def recipe_of(trained: Trained, layers: int, precision: Precision) -> Recipe:
    """What the first layers of a classifier are built from."""
    return Recipe(trained, layers, quantized=precision is Precision.INT8)


def precision_of(asked: PrecisionName, able: Sequence[str], *, quantized: bool) -> Precision:
    """The precision asked for, or the best that this processor and this classifier have.

    Raises:
        BadSetting: it is not to be had.
    """
    if asked == "auto":
        if quantized and "INT8" in able:
            return Precision.INT8
        return Precision.BF16 if "BF16" in able else Precision.FP32
    if asked == "int8" and not quantized:
        raise BadSetting("TIERWISE_PRECISION=int8: this classifier has no quantization table; `tierwise quantize` it")
    if asked == "bf16" and "BF16" not in able:
        raise BadSetting("TIERWISE_PRECISION=bf16: this processor has no bfloat16")
    return Precision(asked)


def _torch_precision(precision: PrecisionName, device: str) -> Precision:
    """The precision that torch has on this device.

    Raises:
        BadSetting: there is no torch, no such device, or no such precision.
    """
    if find_spec("torch") is None:
        raise BadSetting("TIERWISE_ENGINE=torch: torch is not installed; install tierwise[torch]")
    if precision == "int8":
        raise BadSetting("TIERWISE_PRECISION=int8: the torch engine has bf16 and fp32")
    if device == "cuda" and not has_cuda():
        raise BadSetting("TIERWISE_DEVICE=cuda: torch sees no CUDA device; use auto or cpu")
    halves = precision == "bf16" or (precision == "auto" and device != "cpu" and has_cuda())
    return Precision.BF16 if halves else Precision.FP32


def _on_torch(
    trained: Trained, layers: tuple[int, int], precision: Precision, device: str, threads: int
) -> tuple[Engine, Embeddings, Tokenizer]:
    from shared.model.torch_engine import TorchEngine, load_base, load_encoder
    from shared.model.torch_graphs import cuda_capture

    where = "cuda" if device != "cpu" and has_cuda() else "cpu"
    base, tokenizer = load_base(trained.base)
    check_factors(trained.factors, read_config(trained.base))
    encoder = load_encoder(base, trained, layers[1])
    if precision is Precision.BF16:
        encoder.half()
    embeddings = Embeddings.of_base(Checkpoint(base_folder(trained.base)), read_config(trained.base))
    capture = cuda_capture() if where == "cuda" else None
    pad = SpecialTokens(tokenizer).pad_id
    engine = TorchEngine(encoder.to(where), pad, threads=threads, capture=capture, first=layers[0])
    return engine, embeddings, tokenizer
