"""The engine for CUDA and for training, and the reference: transformers' BERT, RoBERTa or MPNet layers, one by one.

The layers are transformers' modules with their own weights; only the attention *kernel* is ours, because we need two
things that the library does not offer together: the fastest kernel when nobody asks for importance, and the attention
received by each token, without keeping [H, S, S] matrices, when somebody does.

Keys for shapes: B batch, S sequence, H heads, D hidden, C classes, E exits. Left out: decoder use, cross attention,
head masks, gradient checkpointing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AutoModel, PreTrainedModel
from transformers.models.mpnet.modeling_mpnet import MPNetSelfAttention

from shared.errors import BadSetting, WrongWeights, one_line
from shared.model.base import SUPPORTED, Array, adapter, load_tokenizer, positions_of, read_config
from shared.model.encoder import Precision
from shared.model.state import State
from shared.model.torch_graphs import Capture, Graphs, Pass, bucket_tokens
from shared.model.weights import base_folder
from shared.model.words import Encoded

if TYPE_CHECKING:
    from shared.model.classifier import Trained


class Received:
    """Accumulates the attention that each token receives, [B, S]; queries at padding do not count."""

    def __init__(self, total: Tensor, padding: Tensor | None) -> None:
        self.total = total  # [B, S] float32, so far
        self.queries = None if padding is None else (~padding)[:, None, None, :].float()  # [B, 1, 1, S]

    def add(self, attention: Tensor) -> None:
        """Add the column sums of one layer's attention [B, H, S, S]."""
        if self.queries is None:
            self.total += attention.sum(dim=(1, 2), dtype=torch.float32)
        else:
            self.total += torch.matmul(self.queries.to(attention.dtype), attention).sum(dim=(1, 2))


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, received: Received | None, dropout: float) -> Tensor:
    """Attention of [B, H, S, D/H] tensors; its column sums go to `received` if somebody asked for them.

    `bias` is additive and broadcasts to [B, H, S, S]; `None` means every position sees every other one.
    """
    if received is None:
        return scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout)
    scores = torch.matmul(q * (1 / math.sqrt(q.shape[-1])), k.transpose(-1, -2))  # [B, H, S, S]
    if bias is not None:
        scores += bias
    attention = torch.softmax(scores, dim=-1)
    received.add(attention)
    return torch.matmul(attention, v)


def _registered_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    dropout: float = 0.0,
    received: Received | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    return attend(query, key, value, attention_mask, received, dropout).transpose(1, 2), None


class _MPNetAttention(MPNetSelfAttention):
    """MPNet's attention over the same kernel (transformers has only the eager one). An MPNetLayer passes nothing
    through but `output_attentions`: truthy or not, so that is where our accumulator travels."""

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_bias: Tensor | None = None,
        output_attentions: Received | bool = False,
        **_: Any,
    ) -> tuple[Tensor]:
        assert position_bias is None, "the relative positions are part of the additive mask here"
        B, S, _D = hidden_states.shape
        q, k, v = (
            project(hidden_states).view(B, S, self.num_attention_heads, -1).transpose(1, 2)
            for project in (self.q, self.k, self.v)
        )
        received = output_attentions if isinstance(output_attentions, Received) else None
        dropout = self.dropout.p if self.training else 0.0
        mixed = attend(q, k, v, attention_mask, received, dropout)
        return (self.o(mixed.transpose(1, 2).reshape(B, S, -1)),)


class ExitHead(nn.Module):
    """Pools [B, S, D] to [B, D] by a learned query (mean pooling where it is zero) and maps to logits [B, C], in fp32.

    bf16 would make .999 and .99999 equal: the difference of neighbouring exits would be 0 and every theta would fire.
    """

    def __init__(self, hidden: int, classes: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.zeros(hidden))
        self.classify = nn.Linear(hidden, classes)

    def forward(self, hidden: Tensor, padding: Tensor | None) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            hidden = hidden.float()
            scores = torch.matmul(hidden, self.query)  # [B, S]
            if padding is not None:
                scores = scores.masked_fill(padding, -torch.inf)
            pooled = torch.matmul(scores.softmax(-1).unsqueeze(1), hidden).squeeze(1)  # [B, D]
            return self.classify(pooled)

    def parts(self, hidden: Tensor) -> Tensor:
        """What each token of one text [S, D] adds to the logits, [S, C]."""
        hidden = hidden.float()
        pooling = torch.mv(hidden, self.query).softmax(-1)  # [S]
        return pooling[:, None] * (hidden @ self.classify.weight.T)


class MultiExitEncoder(nn.Module):
    """The first `layers` layers of `base`, with an exit head after each.

    Raises:
        BadSetting: a family other than BERT, RoBERTa and MPNet, or more layers than the base has.
    """

    def __init__(self, base: PreTrainedModel, *, layers: int, classes: int) -> None:
        super().__init__()
        family = base.config.model_type
        if family not in SUPPORTED:
            raise BadSetting(f"cannot read a {family!r} encoder: supported families are {', '.join(SUPPORTED)}")
        if not 1 <= layers <= base.config.num_hidden_layers:
            raise BadSetting(f"asked for {layers} layers of an encoder that has {base.config.num_hidden_layers}")
        self.family: str = family
        self.classes = classes
        self.positions = positions_of(family, base.config.max_position_embeddings)
        self.embeddings: nn.Module = base.embeddings
        self.layers = nn.ModuleList(base.encoder.layer[:layers])
        self.heads = nn.ModuleList(ExitHead(base.config.hidden_size, classes) for _ in range(layers))
        self.position_bias: Callable[[Tensor], Tensor] | None = None
        if family == "mpnet":
            self.relative_attention_bias = base.encoder.relative_attention_bias
            self.position_bias = base.encoder.compute_position_bias
            for layer in self.layers:
                layer.attention.attn.__class__ = _MPNetAttention  # type: ignore[union-attr]
        else:
            AttentionInterface.register("tierwise", _registered_attention)
            base.config._attn_implementation = "tierwise"

    @property
    def device(self) -> torch.device:
        return self.heads[0].query.device  # type: ignore[return-value]

    def half(self) -> MultiExitEncoder:
        """Embeddings and layers in bf16 (CUDA only); heads stay fp32."""
        self.embeddings.bfloat16()
        self.layers.bfloat16()
        if self.family == "mpnet":
            self.relative_attention_bias.bfloat16()
        return self

    def forward(
        self, ids: Tensor, segments: Tensor, padding: Tensor | None, received: Received | None = None
    ) -> Tensor:
        """Logits of every exit, [E, B, C], from ids and segments [B, S] and padding (True where padded) [B, S]."""
        hidden = self.embed(ids, segments)
        bias = self.bias(hidden, padding)
        logits = []
        for layer, head in zip(self.layers, self.heads, strict=True):
            hidden = self.layer(layer, hidden, bias, received)
            logits.append(head(hidden, padding))
        return torch.stack(logits)

    def embed(self, ids: Tensor, segments: Tensor) -> Tensor:
        if self.family == "bert":
            return self.embeddings(input_ids=ids, token_type_ids=segments)
        return self.embeddings(input_ids=ids)

    def bias(self, hidden: Tensor, padding: Tensor | None) -> Tensor | None:
        """Added to the attention scores: -inf at padding [B, 1, 1, S], MPNet's relative positions [1, H, S, S]."""
        mask = None
        if padding is not None:
            mask = torch.zeros(padding.shape, dtype=hidden.dtype, device=hidden.device)
            mask = mask.masked_fill(padding, torch.finfo(hidden.dtype).min)[:, None, None, :]
        if self.position_bias is None:
            return mask
        relative = self.position_bias(hidden[:1]).to(hidden.dtype)
        return relative if mask is None else relative + mask

    def layer(self, layer: nn.Module, hidden: Tensor, bias: Tensor | None, received: Received | None) -> Tensor:
        if self.family == "mpnet":
            return layer(hidden, bias, output_attentions=received or False)[0]
        return layer(hidden, bias, received=received)


@dataclass(frozen=True)
class Between:
    """A padded batch between two layers."""

    at: Pass
    tokens: list[int]  # of each row


class TorchEngine:
    """Runs a `MultiExitEncoder`: in bf16 on CUDA, in fp32 elsewhere. With a `capture`, layers are recorded graphs."""

    name = "torch"
    version: str = torch.__version__

    def __init__(
        self,
        encoder: MultiExitEncoder,
        pad_id: int,
        *,
        threads: int = 1,
        capture: Capture | None = None,
        first: int = 0,
    ) -> None:
        self.encoder, self._pad_id, self._threads, self.first = encoder, pad_id, threads, first
        self.layers, self.device = len(encoder.layers), str(encoder.device)
        half = next(encoder.layers.parameters()).dtype is torch.bfloat16
        self.precision = Precision.BF16 if half else Precision.FP32
        self._graphs = None if capture is None else Graphs(self._record, capture, classes=encoder.classes)

    def enter(self) -> None:
        """Prepare the thread that will run it: torch keeps its thread count per thread."""
        torch.set_num_threads(self._threads)

    @torch.inference_mode()
    def start(self, texts: Sequence[Encoded], *, importance: bool) -> Between:
        """Embed texts: the state before the first layer."""
        tokens = [len(text.ids) for text in texts]
        ids, segments, padding = batch(texts, self._pad_id, self.encoder.device, self._width(tokens))
        hidden = self.encoder.embed(ids, segments)
        received = torch.zeros(ids.shape, device=ids.device) if importance else None
        return Between(Pass(hidden, self.encoder.bias(hidden, padding), padding, received), tokens)

    @torch.inference_mode()
    def resume(self, texts: Sequence[State], *, importance: bool) -> Between:
        """The state of texts that all ran through the same layers, here or elsewhere."""
        tokens, device = [text.tokens for text in texts], self.encoder.device
        S = self._width(tokens)
        hidden = np.zeros((len(texts), S, texts[0].hidden.shape[1]), dtype=np.float32)
        seen, received = np.ones((len(texts), S), dtype=bool), np.zeros((len(texts), S), dtype=np.float32)
        for row, text in enumerate(texts):
            hidden[row, : text.tokens], received[row, : text.tokens] = text.hidden, text.attention()
            seen[row, : text.tokens] = False
        padding = torch.from_numpy(seen).to(device) if seen.any() else None
        at = torch.from_numpy(hidden).to(device, next(self.encoder.layers.parameters()).dtype)
        counted = torch.from_numpy(received).to(device) if importance else None
        return Between(Pass(at, self.encoder.bias(at, padding), padding, counted), tokens)

    def _width(self, tokens: Sequence[int]) -> int:
        """Tokens of a batch with padding."""
        return max(tokens) if self._graphs is None else bucket_tokens(max(tokens), self.encoder.positions)

    @torch.inference_mode()
    def layer(self, n: int, state: Between) -> Between:
        """The state after layer `n`, counted from 0."""
        recorded = None if self._graphs is None else self._graphs.layer(n, state.at)
        return replace(state, at=recorded or self._plain(n, state.at))

    def _plain(self, n: int, at: Pass) -> Pass:
        received = None if at.received is None else Received(at.received.clone(), at.padding)
        hidden = self.encoder.layer(self.encoder.layers[n], at.hidden, at.bias, received)
        return Pass(hidden, at.bias, at.padding, None if received is None else received.total)

    def _record(self, n: int, buffers: Pass) -> None:
        """A layer and its exit, in place."""
        done = self._plain(n, buffers)
        buffers.hidden.copy_(done.hidden)
        if buffers.received is not None and done.received is not None:
            buffers.received.copy_(done.received)
        assert buffers.logits is not None
        buffers.logits.copy_(self.encoder.heads[n](done.hidden, buffers.padding))

    @torch.inference_mode()
    def exits(self, n: int, state: Between) -> Array:
        """Logits of the exit after layer `n`, float32 [B, C]."""
        at = state.at
        logits = self.encoder.heads[n](at.hidden, at.padding) if at.logits is None else at.logits
        return logits.cpu().numpy()

    @torch.inference_mode()
    def parts(self, n: int, state: Between, row: int) -> Array:
        """What each token of a row adds to the logits of the exit after layer `n`, [S, C]."""
        head = self.encoder.heads[n]
        assert isinstance(head, ExitHead)
        return head.parts(state.at.hidden[row, : state.tokens[row]]).cpu().numpy()

    def received(self, state: Between, row: int) -> Array | None:
        """Attention that each of a text's own tokens received so far, [S]."""
        received = state.at.received
        return None if received is None else received[row, : state.tokens[row]].cpu().numpy()

    @torch.inference_mode()
    def hidden(self, state: Between, row: int) -> Array:
        """What each of a text's own tokens is now, [S, D]."""
        return state.at.hidden[row, : state.tokens[row]].float().cpu().numpy().copy()

    @torch.inference_mode()
    def keep(self, state: Between, rows: Sequence[int]) -> Between:
        """The state of some rows alone."""
        at, stay = state.at, torch.tensor(rows, device=state.at.hidden.device)
        bias = at.bias if at.bias is None or len(at.bias) == 1 else at.bias[stay]
        return Between(
            Pass(
                at.hidden[stay],
                bias,
                None if at.padding is None else at.padding[stay],
                None if at.received is None else at.received[stay],
                None if at.logits is None else at.logits[stay],
            ),
            [state.tokens[row] for row in rows],
        )


def batch(
    texts: Sequence[Encoded], pad_id: int, device: torch.device, width: int | None = None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Ids and segments, int64 [B, S], and padding, bool [B, S] (True where padded), or None where nothing is.

    S is `width`, or without it the tokens of the longest text.
    """
    S = width or max(len(text.ids) for text in texts)
    ids = torch.tensor([t.ids + [pad_id] * (S - len(t.ids)) for t in texts])
    segments = torch.tensor([t.segments + [0] * (S - len(t.ids)) for t in texts])
    padding = None
    if any(len(text.ids) < S for text in texts):
        padding = torch.tensor([[False] * len(t.ids) + [True] * (S - len(t.ids)) for t in texts]).to(device)
    return ids.to(device), segments.to(device), padding


# neither a pickled checkpoint nor code that lies beside the weights
_TRUST_NOTHING = {"use_safetensors": True, "trust_remote_code": False, "local_files_only": True}
_HEAD = {"query": "query", "weight": "classify.weight", "bias": "classify.bias"}


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
        raise WrongWeights(f"{folder}: transformers cannot load an encoder from it: {one_line(error)}") from error
    return model, load_tokenizer(name)


@torch.no_grad()
def load_encoder(base: PreTrainedModel, trained: Trained, layers: int) -> MultiExitEncoder:
    """The first `layers` layers of a trained classifier, adapters merged into its base.

    Raises:
        WrongWeights: adapters or heads that do not fit.
    """
    factors = trained.factors
    for name in {key.rpartition(".")[0] for key in factors}:
        weight = base.get_submodule(name).weight
        assert isinstance(weight, Tensor)
        weight += torch.from_numpy(adapter(factors, name, trained.scale, tuple(weight.shape)))
    encoder = MultiExitEncoder(base, layers=layers, classes=trained.classes)
    load_heads(encoder, trained)
    return encoder.eval().requires_grad_(False)


def load_heads(encoder: MultiExitEncoder, trained: Trained) -> None:
    """Give an encoder the exit heads of a trained classifier.

    Raises:
        WrongWeights: heads that do not fit.
    """
    try:
        for n, head in enumerate(encoder.heads):
            state = {own: trained.tensors[f"heads.{n}.{key}"] for key, own in _HEAD.items()}
            head.load_state_dict({key: torch.from_numpy(value).float() for key, value in state.items()})
    except (KeyError, RuntimeError) as error:
        layers = len(encoder.heads)
        raise WrongWeights(f"{trained.folder}: exit heads do not fit {layers} layers: {one_line(error)}") from error


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
