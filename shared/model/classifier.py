"""A trained classifier: a base encoder, its merged adapters, its exit heads and its tokenizer.

deploy/models/BUNDLE/NETWORK/adapters.safetensors   fp16: "<linear map>.A" [R, in], "<linear map>.B" [out, R],
                                                    "heads.<n>.query|weight|bias"
deploy/models/BUNDLE/NETWORK/network.json           base, layers, classes, scale, and how it was trained
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel

from shared.errors import BadSetting, WrongWeights
from shared.model.encoder import SUPPORTED, ExitTrace, MultiExitEncoder
from shared.model.exits import ExitRule
from shared.model.pools import Signature, Vector
from shared.model.tokens import SpecialTokens
from shared.model.weights import base_folder
from shared.model.words import Encoded

# neither a pickled checkpoint nor code that lies beside the weights
_TRUST_NOTHING = {"use_safetensors": True, "trust_remote_code": False, "local_files_only": True}
FEWEST_PIECES = 26  # of a vocabulary
_HEAD = {"query": "query", "weight": "classify.weight", "bias": "classify.bias"}


@dataclass(frozen=True)
class Classifier:
    """An encoder ready to run, with the tokenizer that feeds it."""

    encoder: MultiExitEncoder
    tokens: SpecialTokens
    max_tokens: int

    def encode(self, text: str, pair: str | None = None) -> Encoded:
        return self.tokens.encode(text, pair, self.max_tokens)

    def run(
        self,
        texts: list[Encoded],
        rule: ExitRule | None,
        *,
        importance: bool = False,
        every_exit: bool = False,
        over: Callable[[list[int]], list[bool]] | None = None,
    ) -> list[ExitTrace]:
        return self.encoder.run(texts, self.tokens, rule, importance=importance, every_exit=every_exit, over=over)

    def signature(self, text: Encoded, kind: Signature) -> Vector:
        """What stands for a text before any layer runs: [D], or for token norms [max_tokens]."""
        ids, segments = text.ids, text.segments
        if kind is Signature.TOKEN_NORMS:
            missing = self.max_tokens - len(ids)
            ids, segments = ids + [self.tokens.pad_id] * missing, segments + [0] * missing
        embedded = self.encoder.embed(ids, segments, words_only=kind is Signature.MEAN_WORD)  # [S, D]
        if kind is Signature.TOKEN_NORMS:
            return tuple(embedded.norm(dim=-1).tolist())
        own = torch.tensor([word >= 0 for word in text.word_of], device=embedded.device)
        return tuple(embedded[own].mean(0).tolist())


def read_config(name: str) -> PretrainedConfig:
    """What a base says of itself: known before its weights are read.

    Raises:
        WrongWeights: the base cannot be had, or is no encoder.
        BadSetting: an encoder of a family that we cannot read.
    """
    folder = base_folder(name)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise WrongWeights(f"{folder}: transformers cannot load an encoder from it: {_one_line(error)}") from error
    if config.model_type not in SUPPORTED:
        raise BadSetting(f"{name}: a {config.model_type!r} encoder; supported families are {', '.join(SUPPORTED)}")
    return config


def positions(config: PretrainedConfig) -> int:
    """How many tokens an encoder can read."""
    return int(config.max_position_embeddings) - (0 if config.model_type == "bert" else 2)


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
        raise WrongWeights(f"{folder}: has no tokenizer that can be read: {_one_line(error)}") from error


def load_base(name: str) -> tuple[PreTrainedModel, Tokenizer]:
    """transformers' own encoder in fp32 and its fast tokenizer.

    Raises:
        WrongWeights: the base cannot be had, is no encoder, or has no tokenizer.
        BadSetting: an encoder of a family that we cannot read.
    """
    transformers.logging.set_verbosity_error()  # its report says that a pooler, which we never use, was not loaded
    transformers.logging.disable_progress_bar()
    folder = base_folder(name)
    read_config(name)
    try:
        model = AutoModel.from_pretrained(folder, add_pooling_layer=False, dtype=torch.float32, **_TRUST_NOTHING)
    except (OSError, ValueError, SafetensorError) as error:
        raise WrongWeights(f"{folder}: transformers cannot load an encoder from it: {_one_line(error)}") from error
    return model, load_tokenizer(name)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def base_of(folder: Path) -> str:
    """The name of the base that a trained classifier stands on.

    Raises:
        WrongWeights: `network.json` is missing or does not say it.
    """
    try:
        return str(json.loads((folder / "network.json").read_text())["base"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WrongWeights(f"{folder}: cannot read the trained classifier: {_one_line(error)}") from error


def load_classifier(folder: Path, *, layers: int, max_tokens: int, device: str = "cpu") -> Classifier:
    """The first `layers` layers of a trained classifier, adapters merged.

    Raises:
        WrongWeights: files missing or unreadable, or adapters whose names do not fit the base.
        BadSetting: a family, a number of layers or of tokens that the encoder does not have.
    """
    try:
        meta = json.loads((folder / "network.json").read_text())
        name, classes, scale = meta["base"], meta["classes"], meta["scale"]
        trained = load_file(folder / "adapters.safetensors")
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise WrongWeights(f"{folder}: cannot read the trained classifier: {error}") from error
    base, tokenizer = load_base(name)
    if max_tokens > (most := positions(base.config)):
        raise BadSetting(f"{name} reads at most {most} tokens, the bundle says {max_tokens}")
    merge_adapters(base, {k: v for k, v in trained.items() if not k.startswith("heads.")}, scale)
    encoder = MultiExitEncoder(base, layers=layers, classes=classes)
    try:
        for n, head in enumerate(encoder.heads):
            head.load_state_dict({own: trained[f"heads.{n}.{key}"].float() for key, own in _HEAD.items()})
    except (KeyError, RuntimeError) as error:
        raise WrongWeights(f"{folder}: exit heads do not fit {layers} layers: {error}") from error
    encoder.eval().requires_grad_(False)
    if device == "cuda":
        encoder.half()
    return Classifier(encoder.to(device), SpecialTokens(tokenizer), max_tokens)


@torch.no_grad()
def merge_adapters(base: PreTrainedModel, factors: dict[str, Tensor], scale: float) -> None:
    """W <- W + scale * B @ A for every pair of factors (Hu et al. 2021, LoRA).

    Raises:
        WrongWeights: a factor without its partner, or a linear map the base does not have. A wrong prefix would
            otherwise leave every weight as it was, silently.
    """
    names = {key.rpartition(".")[0] for key in factors}
    if {f"{name}.{factor}" for name in names for factor in "AB"} != set(factors):
        raise WrongWeights("adapters: every linear map needs exactly the factors A and B")
    for name in names:
        try:
            weight = base.get_submodule(name).weight
        except AttributeError as error:
            raise WrongWeights(f"adapters: the base has no linear map {name!r}") from error
        a, b = factors[f"{name}.A"].float(), factors[f"{name}.B"].float()  # [R, in], [out, R]
        if not isinstance(weight, Tensor) or len(a) != b.shape[1] or weight.shape != (len(b), a.shape[1]):
            raise WrongWeights(f"adapters: {name!r} does not fit the base")
        weight += scale * b @ a


def save_classifier(folder: Path, factors: dict[str, Tensor], encoder: MultiExitEncoder, meta: dict[str, Any]) -> None:
    """Write what was trained: adapter factors and heads in fp16, and how they came to be."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {key: value.detach().half().contiguous() for key, value in factors.items()}
    for n, head in enumerate(encoder.heads):
        state = head.state_dict()
        tensors |= {f"heads.{n}.{key}": state[own].half().contiguous() for key, own in _HEAD.items()}
    save_file(tensors, folder / "adapters.safetensors")
    (folder / "adapters.safetensors").chmod(0o644)  # safetensors: the owner alone; tiers may run as another
    (folder / "network.json").write_text(json.dumps(meta, indent=2) + "\n")
