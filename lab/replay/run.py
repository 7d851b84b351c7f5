"""What a policy did to every text of a data set."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from lab.replay.recorder import Corpus
from shared.pipeline.speculation import Budget
from shared.policies import Policy

NONE = -1  # no tier, no text
Link = tuple[int, int]  # from a tier to a tier, by number


class Run:
    """What a policy did to every text. T tiers, N texts, C labels; zeros or NONE where a tier did not run.

    `layers` says how many each tier holds, in order.
    """

    def __init__(
        self, policy: Policy, layers: Mapping[str, int], corpus: Corpus, *, texts: int, labels: int, replay_only: bool
    ) -> None:
        T, N, C = len(layers), texts, labels
        self.bound = policy  # the plain policy that ran; of one that learns, the last
        self.tiers, self.layers = tuple(layers), tuple(layers.values())
        self.replay_only, self.corpus = replay_only, corpus
        self.numbers = np.full((T, N), NONE)  # the text that each tier read
        self.exit_layer = np.zeros((T, N), dtype=np.int64)
        self.counted = np.zeros((T, N), dtype=bool)  # whether importance was computed
        self.hops = np.zeros((T, N, C))  # the probabilities that each tier gave, as on the wire
        self.probability = np.zeros((T, N))  # of leaving
        self.sent_to = np.full((T, N), NONE)  # the tier that `after` chose
        self.carried: dict[Link, np.ndarray] = {}  # per link that was crossed: [N] the text on it
        self.target: dict[Link, np.ndarray] = {}  # the same links: [N] the tier that must answer; NONE: it may decide
        self.watched = [False] * T  # whether a tier's exits were asked where a text would go
        self.ahead_layer = np.zeros((T, N), dtype=np.int64)  # whose exit sent a text on ahead of the answer; 0: none
        self.ahead_used = np.zeros((T, N), dtype=bool)  # whether it was sent where it went in the end
        self.vain: dict[Link, tuple[np.ndarray, np.ndarray]] = {}  # `carried` and `target` of calls that were cancelled
        self._budgets: dict[int, Budget] = {}  # of speculative sending, by tier
        self.label = np.full(N, NONE)  # NONE where no tier could read the text
        self.probabilities = np.zeros((N, C))  # the ensemble's

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
    def confidence(self) -> np.ndarray:
        """[T, N]: of each tier's answer, as on the wire."""
        return self.hops.max(-1)

    @property
    def answered_by(self) -> np.ndarray:
        """[N]: the last tier that ran, the deepest one."""
        return len(self.tiers) - 1 - self.ran[::-1].argmax(0)

    @property
    def last_label(self) -> np.ndarray:
        """[N]: what the last tier that ran says alone."""
        return self.hops[self.answered_by, np.arange(len(self.label))].argmax(-1)

    def cross(self, link: Link, rows: np.ndarray, numbers: np.ndarray, target: int) -> None:
        """Note that these texts crossed a link, and which tier must answer them."""
        for noted, values in ((self.carried, numbers), (self.target, target)):
            noted.setdefault(link, np.full(len(self.label), NONE))[rows] = values

    def cross_in_vain(self, link: Link, rows: np.ndarray, numbers: np.ndarray, target: int) -> None:
        """Note the same of a call that was cancelled."""
        nothing = np.full(len(self.label), NONE), np.full(len(self.label), NONE)
        for noted, values in zip(self.vain.setdefault(link, nothing), (numbers, target), strict=True):
            noted[rows] = values

    def budget(self, at: int, share: float) -> Budget:
        """A tier's budget of speculative sending, begun with `share` when first asked for."""
        return self._budgets.setdefault(at, Budget(share))
