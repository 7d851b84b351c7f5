"""DIMEE's pools: what a text of each pool looks like before any layer runs.

    deploy/models/BUNDLE/pools.safetensors   "sizes" int64 [P]; per kind of signature, float32 [P, its length]

One pool per tier, shallowest first (three tiers: the paper's easy, moderate, hard; Bajpai & Hanawal 2025,
arXiv 2410.05338, section III-B). `lab/fit/pools.py` fills them from validation data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from shared.errors import BadSetting

FILE = "pools.safetensors"


class Signature(StrEnum):
    """What stands for a text, from the first tier's embedding layer alone.

    The paper says "word embedding" and no more; its public repository only hints at token norms in a comment.
    """

    MEAN_WORD = "mean_word"  # mean static word embedding over the text's own tokens
    LAYERNORM_MEAN = "layernorm_mean"  # mean embedding after the layer norm; special tokens left out
    TOKEN_NORMS = "token_norms"  # noqa: S105 - the norm of every embedding of the padded sequence


Vector = tuple[float, ...]


@dataclass(frozen=True)
class Pools:
    """How many validation texts each pool has, and their mean signature by kind."""

    sizes: tuple[int, ...]
    means: Mapping[Signature, tuple[Vector, ...]]

    def save(self, folder: Path) -> None:
        """Write `pools.safetensors`."""
        arrays = {kind.value: np.array(means, dtype=np.float32) for kind, means in self.means.items()}
        (folder / FILE).write_bytes(save({"sizes": np.array(self.sizes, dtype=np.int64), **arrays}))


NO_POOLS = Pools((), {})  # calibration looked for them, and its texts have none


def read_pools(raw: bytes, name: str) -> Pools:
    """Pools from a file's bytes.

    Raises:
        BadSetting: not what `Pools.save` writes.
    """
    try:
        arrays = load(raw)
        sizes = tuple(int(size) for size in arrays.pop("sizes"))
        means = {Signature(kind): tuple(tuple(row) for row in array.tolist()) for kind, array in arrays.items()}
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise BadSetting(f"{name}: cannot read the pools: {error}") from error
    if any(len(rows) != len(sizes) for rows in means.values()):
        raise BadSetting(f"{name}: every signature needs one mean per pool, and there are {len(sizes)} pools")
    return Pools(sizes, means)
