"""Scores by which a text's words may be dropped, those with the least first.

    received attention   sum over layers, heads and queries: what Zhang et al. prune by (arXiv 2412.12102)
    share of the margin  |a_j (w . h_j)| at the exit that decided: `shared/model/shares.py`
    keep-head            what `tierwise train-keep` learned, where the bundle has it
    the reader's own share   the share of the margin at the deepest tier's last exit, once it has read all: no tier can
                             send by this score
    head and tail, random words       controls

Left out: floors for short texts.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from lab.fit.keep_head import KeepHead, word_bests
from lab.replay.recorder import Corpus
from lab.replay.walk import Replay
from shared.model.base import Array
from shared.model.encoder import ExitTrace
from shared.model.exits import ExitRule
from shared.model.pruning import keep_words
from shared.model.shares import shares_of
from shared.model.words import Encoded

Score = Callable[["Read"], Array]  # [words]: the least are dropped first


@dataclass(frozen=True)
class Read:
    """A text as the first tier read it, and what it saw."""

    number: int
    encoded: Encoded
    trace: ExitTrace
    needed: Array | None = None  # [words] share of each in the deepest tier's margin
    learned: Array | None = None  # [words] by the bundle's keep-head

    @property
    def words(self) -> Array:
        """The words that were read, ascending."""
        return np.unique([word for word in self.encoded.word_of if word >= 0])


def received(read: Read) -> Array:
    """As `Pruning` ranks: a word is worth its best token."""
    assert read.trace.importance is not None
    return word_bests(read.encoded, read.trace.importance)


def share(read: Read) -> Array:
    """As the exit that decided weighed the words."""
    return shares(read.encoded, read.trace)


def shares(encoded: Encoded, trace: ExitTrace) -> Array:
    """Of each word in the last exit's margin, without its sign, [words]; 0 of one that was not read."""
    assert trace.parts is not None
    logits = trace.logits[-1]
    words = shares_of(encoded, trace.parts, logits, int(logits.argmax())).words
    return np.abs([share or 0.0 for share in words])


def needed(read: Read) -> Array:
    """As the deepest tier would rank."""
    assert read.needed is not None
    return read.needed


def learned(read: Read) -> Array:
    """As the bundle's keep-head ranks."""
    assert read.learned is not None
    return read.learned


def ends(read: Read) -> Array:
    """Distance from the middle of what was read."""
    score, words = np.zeros(len(read.encoded.words)), read.words
    score[words] = np.abs(np.arange(len(words)) - (len(words) - 1) / 2)
    return score


def at_random(read: Read) -> Array:
    """A control: seeded by the text's number."""
    chooser = random.Random(read.number)
    return np.array([chooser.random() for _ in read.encoded.words])


def as_left(replay: Replay, number: int, rule: ExitRule | None, head: KeepHead | None) -> Read:
    """A text at the first tier as it was when it left."""
    station = replay.stations[0]
    classifier = station.recorder.classifier().at(replay.bundle.card.temperatures[station.name])
    classifier.engine.enter()
    encoded = classifier.encode(*replay.corpus.texts[number])
    trace = classifier.run([encoded], rule, importance=True, parts=True, states=head is not None)[0]
    if head is None:
        return Read(number, encoded, trace)
    assert trace.state is not None
    return Read(number, encoded, replace(trace, state=None), learned=head.scores(encoded, trace.state.hidden))


def best(read: Read, score: Score, kept: float) -> Array:
    """The share `kept` of the words that were read, those with the greatest score, in their order."""
    words = read.words
    order = np.argsort(-score(read)[words], kind="stable")
    return np.sort(words[order[: max(1, round(kept * len(words)))]])


def keeping(corpus: Corpus, read: Read, words: Array) -> int:
    """The number of a text of these words alone."""
    keep = np.zeros(len(read.encoded.words), dtype=bool)
    keep[words] = True
    text, pair = corpus.texts[read.number]
    return corpus.number(*keep_words(text, pair, read.encoded, keep.tolist()))


def nll_of(probabilities: Array, truth: Array) -> Array:
    """Nats [N]."""
    return -np.log(np.maximum(probabilities[np.arange(len(truth)), truth], 1e-6))
