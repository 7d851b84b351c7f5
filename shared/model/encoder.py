"""A multi-exit encoder: transformers' own BERT, RoBERTa or MPNet layers, run one by one, with an exit after each.

The layers are transformers' modules with their own weights; only the attention *kernel* is ours, because we need two
things that the library does not offer together: the fastest kernel when nobody asks for importance, and the attention
received by each token, without keeping [H, S, S] matrices, when somebody does.

    importance_j = sum over layers that ran, heads and queries of A[h, q, j]     (arXiv 2412.12102, section III-B)

Keys for shapes: B batch, S sequence, H heads, D hidden, C classes, E exits. Left out: decoder use, cross attention,
head masks, gradient checkpointing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel
from transformers.models.mpnet.modeling_mpnet import MPNetSelfAttention

from shared.errors import BadSetting
from shared.model.calibration import calibrated
from shared.model.exits import ExitRule
from shared.model.tokens import SpecialTokens
from shared.model.words import Encoded

SUPPORTED = ("bert", "roberta", "mpnet")


class Received:
    """Accumulates the attention that each token receives, [B, S]; queries at padding do not count."""

    def __init__(self, ids: Tensor, padding: Tensor | None) -> None:
        self.total = torch.zeros(ids.shape, dtype=torch.float32, device=ids.device)
        self.queries = None if padding is None else (~padding)[:, None, None, :].float()  # [B, 1, 1, S]

    def add(self, attention: Tensor) -> None:
        """Add the column sums of one layer's attention [B, H, S, S]."""
        if self.queries is None:
            self.total += attention.sum(dim=(1, 2), dtype=torch.float32)
        else:
            self.total += torch.matmul(self.queries.to(attention.dtype), attention).sum(dim=(1, 2))

    def keep(self, rows: Tensor) -> None:
        """Drop the rows that left; `rows` is bool [B]."""
        self.total = self.total[rows]
        self.queries = None if self.queries is None else self.queries[rows]


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


@dataclass(frozen=True)
class ExitTrace:
    """What one text got: where it left, and what every exit that was evaluated up to there said."""

    exit_layer: int  # 1-based
    logits: Tensor  # [E', C] fp32 on the CPU; E' is exit_layer, or 1 when only the last exit was evaluated
    importance: Tensor | None  # [S] fp32 on the CPU: attention received by each of the text's own tokens
    cut: bool = False  # it left because its time was over, not by the rule


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
        self.embeddings: nn.Module = base.embeddings
        self.layers = nn.ModuleList(base.encoder.layer[:layers])
        self.heads = nn.ModuleList(ExitHead(base.config.hidden_size, classes) for _ in range(layers))
        self.temperatures: nn.Buffer = nn.Buffer(torch.ones(layers))
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
        """Embeddings and layers in bf16 (CUDA only); heads and temperatures stay fp32."""
        self.embeddings.bfloat16()
        self.layers.bfloat16()
        if self.family == "mpnet":
            self.relative_attention_bias.bfloat16()
        return self

    def forward(
        self, ids: Tensor, segments: Tensor, padding: Tensor | None, received: Received | None = None
    ) -> Tensor:
        """Logits of every exit, [E, B, C], from ids and segments [B, S] and padding (True where padded) [B, S]."""
        hidden = self._embed(ids, segments)
        bias = self._bias(hidden, padding)
        logits = []
        for layer, head in zip(self.layers, self.heads, strict=True):
            hidden = self._layer(layer, hidden, bias, received)
            logits.append(head(hidden, padding))
        return torch.stack(logits)

    @torch.inference_mode()
    def run(
        self,
        texts: list[Encoded],
        specials: SpecialTokens,
        rule: ExitRule | None,
        *,
        importance: bool = False,
        every_exit: bool = False,
        over: Callable[[list[int]], list[bool]] | None = None,
    ) -> list[ExitTrace]:
        """Run layer by layer; each row leaves where `rule` first accepts, and is not computed further.

        Without a rule all layers run and only the last exit is evaluated, unless `every_exit`. `over` is asked between
        layers which of the texts (by number) must leave now with the exit they have reached.
        """
        ids, segments, padding = specials.batch(texts, self.device)
        hidden = self._embed(ids, segments)
        bias = self._bias(hidden, padding)
        B = hidden.shape[0]
        received = Received(ids, padding) if importance else None
        rows = list(range(B))  # the texts still here
        seen: list[Tensor] = []  # logits [rows, C] of the exits so far, for the rows still here
        done: list[ExitTrace | None] = [None] * B
        for depth, (layer, head) in enumerate(zip(self.layers, self.heads, strict=True), start=1):
            last = depth == len(self.layers)
            hidden = self._layer(layer, hidden, bias, received)
            cut = [False] * len(rows) if last or over is None else over(rows)
            if not (last or rule is not None or every_exit or any(cut)):
                continue
            newest = head(hidden, padding)
            seen = [*seen, newest] if rule is not None or every_exit else [newest]
            history = torch.stack(seen)  # [E, rows, C]
            leave = torch.tensor([last or late for late in cut], device=hidden.device)
            if rule is not None and not last:
                accepted = rule(self.calibrate(history))
                cut = [late and not own for late, own in zip(cut, accepted.tolist(), strict=True)]
                leave |= accepted
            if not bool(leave.any()):
                continue
            for row in leave.nonzero()[:, 0].tolist():
                S = len(texts[rows[row]].ids)
                took = received.total[row, :S].cpu() if received is not None else None
                done[rows[row]] = ExitTrace(depth, history[:, row].cpu(), took, cut[row])
            stay = ~leave
            if last or not bool(stay.any()):
                break
            rows, hidden = [row for row, gone in zip(rows, leave.tolist(), strict=True) if not gone], hidden[stay]
            seen = [logits[stay] for logits in seen]
            padding = padding[stay] if padding is not None else None
            if received is not None:
                received.keep(stay)
            bias = bias[stay] if bias is not None and bias.shape[0] > 1 else bias
        return [trace for trace in done if trace is not None]

    @torch.inference_mode()
    def embed(self, ids: list[int], segments: list[int], *, words_only: bool) -> Tensor:
        """What the first layer of one text gets, fp32 [S, D]; `words_only`: the static word embeddings alone."""
        rows = torch.tensor([ids], device=self.device)
        if words_only:
            return self.embeddings.get_submodule("word_embeddings")(rows)[0].float()
        return self._embed(rows, torch.tensor([segments], device=self.device))[0].float()

    def calibrate(self, logits: Tensor, *, last: int | None = None) -> Tensor:
        """Probabilities from logits [E, ..., C] of E neighbouring exits: eq. 5-6 with each exit's temperature.

        They end with the exit after layer `last`; without it they begin with the first.
        """
        end = logits.shape[0] if last is None else last
        return calibrated(logits, self.temperatures[end - logits.shape[0] : end])

    def _embed(self, ids: Tensor, segments: Tensor) -> Tensor:
        if self.family == "bert":
            return self.embeddings(input_ids=ids, token_type_ids=segments)
        return self.embeddings(input_ids=ids)

    def _bias(self, hidden: Tensor, padding: Tensor | None) -> Tensor | None:
        """Added to the attention scores: -inf at padding [B, 1, 1, S], MPNet's relative positions [1, H, S, S]."""
        mask = None
        if padding is not None:
            mask = torch.zeros(padding.shape, dtype=hidden.dtype, device=hidden.device)
            mask = mask.masked_fill(padding, torch.finfo(hidden.dtype).min)[:, None, None, :]
        if self.position_bias is None:
            return mask
        relative = self.position_bias(hidden[:1]).to(hidden.dtype)
        return relative if mask is None else relative + mask

    def _layer(self, layer: nn.Module, hidden: Tensor, bias: Tensor | None, received: Received | None) -> Tensor:
        if self.family == "mpnet":
            return layer(hidden, bias, output_attentions=received or False)[0]
        return layer(hidden, bias, received=received)
