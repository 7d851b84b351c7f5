"""What a training run is made of, and the loss that it lowers: every exit learns, the deeper the more.

    loss = sum_l w_l * CE(exit l) / sum_l w_l,   w_l = l   (the layer-weighted loss of PABEE and DIMEE, section III-A),
    an exit that ends a tier counting `tier_end_weight` times; optionally + `distill` * KL(teacher || exit l), where the
    teacher is the last exit of another classifier (`teacher`), or else the deepest exit.

With `gatekeeper` = a an exit learns to be sure only where it is right (Rabanser et al. 2025, arXiv 2502.19335):

    a * 1[right] * CE(exit l) + (1 - a) * 1[wrong] * KL(exit l || uniform)      stands for CE(exit l)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, log_softmax, softmax


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what comes out, given the data."""

    base: str
    layers: int
    classes: int
    max_tokens: int = 192
    rank: int = 16
    scale: float = 2.0  # LoRA's alpha / rank
    epochs: float = 1.0
    batch: int = 16
    adapter_lr: float = 3e-4
    head_lr: float = 2e-3
    warmup: float = 0.06  # share of the steps
    tier_ends: tuple[int, ...] = ()
    tier_end_weight: float = 3.0
    distill: float = 0.0
    teacher: str = ""  # folder of the classifier to learn from
    start: str = ""  # folder of the classifier to go on from
    gatekeeper: float = 0.0  # how much being right weighs against not being sure; 0: plain CE
    pruned_share: float = 0.0
    prune_with: str = "sentence-transformers/all-MiniLM-L6-v2"  # a base, or the folder of a trained classifier
    unsure: float = 0.0  # only texts of which `prune_with` is less sure than this, before any temperature; 0: all
    prune_coefficients: tuple[float, ...] = (0.75, 0.9, 1.0, 1.1)
    bf16: bool = True  # autocast; heads, losses and trained factors stay fp32
    seed: int = 0

    @property
    def prunes(self) -> bool:
        """Whether `prune_with` reads any text."""
        return self.pruned_share > 0 or self.unsure > 0


def joint_loss(logits: Tensor, labels: Tensor, recipe: Recipe, taught: Tensor | None = None) -> Tensor:
    """The layer-weighted loss over all exits, from logits [E, B, C], labels [B] and what the teacher says [B, C]."""
    E = logits.shape[0]
    weights = [layer * (recipe.tier_end_weight if layer in recipe.tier_ends else 1.0) for layer in range(1, E + 1)]
    losses = torch.stack([_own_loss(exit_logits, labels, recipe.gatekeeper) for exit_logits in logits])
    if recipe.distill:
        teacher = softmax(logits[-1].detach(), -1) if taught is None else taught
        losses = losses + recipe.distill * torch.stack(
            [kl_div(log_softmax(exit_logits, -1), teacher, reduction="batchmean") for exit_logits in logits]
        )
    return (losses * torch.tensor(weights)).sum() / sum(weights)


def _own_loss(logits: Tensor, labels: Tensor, gatekeeper: float) -> Tensor:
    """What one exit loses on its labels, from logits [B, C]."""
    if not gatekeeper:
        return cross_entropy(logits, labels)
    right = logits.detach().argmax(-1) == labels
    log_p = log_softmax(logits, -1)
    surprise = cross_entropy(logits, labels, reduction="none")
    from_uniform = (log_p.exp() * log_p).sum(-1) + math.log(logits.shape[-1])
    return torch.where(right, gatekeeper * surprise, (1 - gatekeeper) * from_uniform).mean()
