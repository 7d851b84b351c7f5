"""A keep-head: one linear map that scores words by the states in which a text leaves the first tier.

    score of a word = mean over its tokens of (h_j . v) + b      h_j [D]: the state of token j at the tier's last layer

`tierwise train-keep` learns v and b from what a deeper tier needs. BUNDLE/keep.safetensors holds "v" [D] and "b" [1].
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from shared.errors import BadSetting, WrongWeights, one_line
from shared.model.base import Array
from shared.model.bundle import Bundle
from shared.model.words import Encoded

FILE = "keep.safetensors"


@dataclass(frozen=True)
class KeepHead:
    v: Array  # [D] float32
    b: float

    def scores(self, encoded: Encoded, hidden: Array) -> Array:
        """Of each word [words], from the states [S, D] of the tokens; 0 of one that was not read.

        Raises:
            WrongWeights: it was learned from a network of another width.
        """
        if hidden.shape[-1] != len(self.v):
            width = f"{len(self.v)} values a state, the first tier has {hidden.shape[-1]}"
            raise WrongWeights(f"{FILE} is of another network ({width}): run `tierwise train-keep` again")
        return word_means(encoded, hidden @ self.v + self.b)

    def save(self, folder: Path) -> None:
        """Write it into a bundle's folder."""
        save_file({"v": self.v.astype(np.float32), "b": np.array([self.b], dtype=np.float32)}, folder / FILE)


def read_keep_head(folder: Path) -> KeepHead | None:
    """The keep-head of a bundle; null where it has none.

    Raises:
        WrongWeights: the file cannot be read, or holds something else.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        tensors = load_file(path)
        return KeepHead(tensors["v"], float(tensors["b"][0]))
    except (OSError, KeyError, IndexError, SafetensorError) as error:
        raise WrongWeights(f"{path}: no keep-head: {one_line(error)}") from error


def check_first_tier(bundle: Bundle) -> None:
    """Whether the first tier has states of its own to learn from.

    Raises:
        BadSetting: it shares its network with a deeper one, so a recording of it is of that tier's layers.
    """
    first, *deeper = bundle.tiers.values()
    if any(model.network == first.network for model in deeper):
        raise BadSetting(f"bundle {bundle.name}: its first tier needs a network of its own, not {first.network}")


def word_means(encoded: Encoded, values: Array) -> Array:
    """The mean of each word's tokens, [words] or [words, D], from one value per token, [S] or [S, D]; 0 of no token.

    >>> word_means(Encoded([0] * 4, [0] * 4, [-1, 0, 0, 2], list("abc"), 3, False), np.array([9.0, 1.0, 2.0, 4.0]))
    array([1.5, 0. , 4. ])
    """
    owner = np.array(encoded.word_of)
    own, count = values[owner >= 0], np.bincount(owner[owner >= 0], minlength=len(encoded.words))
    out = np.zeros((len(encoded.words), *values.shape[1:]))
    np.add.at(out, owner[owner >= 0], own)
    return out / np.maximum(count, 1).reshape(-1, *[1] * (values.ndim - 1))


def word_bests(encoded: Encoded, values: Array) -> Array:
    """The greatest value among each word's tokens, [words], from [S]; 0 of no token. `Pruning` ranks words so."""
    out, owner = np.zeros(len(encoded.words)), np.array(encoded.word_of)
    np.maximum.at(out, owner[owner >= 0], values[owner >= 0])
    return out
