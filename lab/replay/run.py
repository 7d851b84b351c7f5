"""What a policy did to every text of a data set."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lab.replay.recorder import Corpus
from shared.policies import Policy

NONE = -1  # no tier, no text


@dataclass
class Run:
    """What a policy did to every text. T tiers, N texts; zeros or NONE where a tier did not run."""

    policy: Policy
    bound: Policy  # the plain policy that it was; of one that learns, the last
    tiers: tuple[str, ...]
    layers: tuple[int, ...]  # that each tier holds
    replay_only: bool
    numbers: np.ndarray  # [T, N] the text that each tier read
    exit_layer: np.ndarray  # [T, N]
    counted: np.ndarray  # [T, N] whether importance was computed
    confidence: np.ndarray  # [T, N], as on the wire
    probability: np.ndarray  # [T, N] of leaving
    sent_to: np.ndarray  # [T, N] the tier that `after` chose
    carried: dict[tuple[int, int], np.ndarray]  # per link that was crossed: [N] the text on it
    target: dict[tuple[int, int], np.ndarray]  # the same links: [N] the tier that must answer, NONE if it may decide
    label: np.ndarray  # [N]; NONE where no tier could read the text
    last_label: np.ndarray  # [N] what the last tier alone says
    probabilities: np.ndarray  # [N, C]
    corpus: Corpus

    @property
    def words(self) -> np.ndarray:
        """Words of every text, by its number."""
        return self.corpus.words

    @property
    def json_bytes(self) -> np.ndarray:
        """Bytes of every text as JSON, by its number."""
        return self.corpus.json_bytes

    @property
    def ran(self) -> np.ndarray:
        """Bool [T, N]: which tiers ran their model."""
        return self.exit_layer > 0

    @property
    def answered_by(self) -> np.ndarray:
        """[N]: the last tier that ran, the deepest one."""
        return len(self.tiers) - 1 - self.ran[::-1].argmax(0)
