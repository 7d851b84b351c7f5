"""A trained network: a base encoder, its merged adapters, its exit heads and its tokenizer.

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
from transformers import AutoModel, PreTrainedModel

from shared.encoder import ExitTrace, MultiExitEncoder
from shared.errors import BadSetting, WrongWeights
from shared.exits import ExitRule
from shared.pools import Signature, Vector
from shared.tokens import SpecialTokens
from shared.weights import base_folder
from shared.words import Encoded

# neither a pickled checkpoint nor code that lies beside the weights
_TRUST_NOTHING = {"use_safetensors": True, "trust_remote_code": False, "local_files_only": True}
_HEAD = {"query": "query", "weight": "classify.weight", "bias": "classify.bias"}


@dataclass(frozen=True)
class Network:
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


def load_base(name: str) -> tuple[PreTrainedModel, Tokenizer]:
    """transformers' own encoder in fp32 and its fast tokenizer.

    Raises:
        WrongWeights: the base cannot be had, or is no encoder.
    """
    transformers.logging.set_verbosity_error()  # its report says that a pooler, which we never use, was not loaded
    transformers.logging.disable_progress_bar()
    folder = base_folder(name)
    try:
        model = AutoModel.from_pretrained(folder, add_pooling_layer=False, dtype=torch.float32, **_TRUST_NOTHING)
    except (OSError, ValueError, SafetensorError) as error:
        raise WrongWeights(f"{folder}: transformers cannot load an encoder from it: {error}") from error
    if (folder / "tokenizer.json").exists():
        return model, Tokenizer.from_file(str(folder / "tokenizer.json"))
    from transformers import AutoTokenizer

    return model, AutoTokenizer.from_pretrained(folder, use_fast=True, trust_remote_code=False).backend_tokenizer


def load_network(folder: Path, *, layers: int, max_tokens: int, device: str = "cpu") -> Network:
    """The first `layers` layers of a trained network, adapters merged.

    Raises:
        WrongWeights: files missing or unreadable, or adapters whose names do not fit the base.
        BadSetting: a family, a number of layers or of tokens that the encoder does not have.
    """
    try:
        meta = json.loads((folder / "network.json").read_text())
        name, classes, scale = meta["base"], meta["classes"], meta["scale"]
        trained = load_file(folder / "adapters.safetensors")
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise WrongWeights(f"{folder}: cannot read the trained network: {error}") from error
    base, tokenizer = load_base(name)
    positions = base.config.max_position_embeddings - (0 if base.config.model_type == "bert" else 2)
    if max_tokens > positions:
        raise BadSetting(f"{name} reads at most {positions} tokens, the bundle says {max_tokens}")
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
    return Network(encoder.to(device), SpecialTokens(tokenizer), max_tokens)


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


def save_network(folder: Path, factors: dict[str, Tensor], encoder: MultiExitEncoder, meta: dict[str, Any]) -> None:
    """Write what was trained: adapter factors and heads in fp16, and how they came to be."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {key: value.detach().half().contiguous() for key, value in factors.items()}
    for n, head in enumerate(encoder.heads):
        state = head.state_dict()
        tensors |= {f"heads.{n}.{key}": state[own].half().contiguous() for key, own in _HEAD.items()}
    save_file(tensors, folder / "adapters.safetensors")
    (folder / "adapters.safetensors").chmod(0o644)  # safetensors: the owner alone; tiers may run as another
    (folder / "network.json").write_text(json.dumps(meta, indent=2) + "\n")
