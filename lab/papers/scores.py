"""Which words to drop: scores of a word compared, on the texts that the first tier really sends on.

The first tier's words are ranked by each score, the same share of them is kept, in their order, and the deepest tier
answers at its last exit. It is compared, text by text, with its answer to the words that the first tier read.

    received attention   sum over layers, heads and queries: what Zhang et al. prune by (arXiv 2412.12102)
    share of the margin  |a_j (w . h_j)| at the exit that decided: `shared/model/shares.py`; also smoothed over 5 words
    the reader's own share   the same at the deepest tier's last exit, which has read all of it before: no tier can run
                             this score, but one that is learned from what the reader needs aims at it
    keep-head            what `tierwise train-keep` learned, where the bundle has it
    head and tail, random words       controls, with the same number of words

Left out: floors for short texts.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lab.console import tracked
from lab.fit.keep_head import KeepHead, read_keep_head, word_bests
from lab.replay.recorder import Corpus, Kernel
from lab.replay.run import NONE
from lab.replay.station import Numbers
from lab.replay.trial import Trial
from lab.replay.walk import Replay
from lab.stats import accuracy_of, paired_difference, paired_shares
from shared.model.base import Array
from shared.model.calibration import calibrated
from shared.model.encoder import ExitTrace
from shared.model.exits import ExitRule
from shared.model.pruning import keep_words
from shared.model.shares import shares_of
from shared.model.words import Encoded
from shared.policies import Where

KEPT = (2 / 3, 0.5)  # shares of the words that were read
NEIGHBOURS = np.ones(5) / 5
Score = Callable[["Read"], Array]  # [words]: the least are dropped first


@dataclass(frozen=True)
class Read:
    """A text as the first tier read it, and what it saw."""

    number: int
    encoded: Encoded
    trace: ExitTrace
    needed: Array | None = None  # [words] share of each in what the deepest tier makes of these words alone
    learned: Array | None = None  # [words] by the bundle's keep-head

    @property
    def words(self) -> Array:
        """The words that were read, ascending."""
        return np.unique([word for word in self.encoded.word_of if word >= 0])


def received(read: Read) -> Array:
    """As `Pruning` ranks: a word is worth its best token."""
    assert read.trace.importance is not None
    return word_bests(read.encoded, read.trace.importance)


def _share(read: Read) -> Array:
    return _shares(read.encoded, read.trace)


def _shares(encoded: Encoded, trace: ExitTrace) -> Array:
    """Of each word, without its sign; 0 of one that was not read."""
    assert trace.parts is not None
    logits = trace.logits[-1]
    words = shares_of(encoded, trace.parts, logits, int(logits.argmax())).words
    return np.abs([share or 0.0 for share in words])


def _needed(read: Read) -> Array:
    assert read.needed is not None
    return read.needed


def learned(read: Read) -> Array:
    """As the bundle's keep-head ranks."""
    assert read.learned is not None
    return read.learned


def _smoothed(read: Read) -> Array:
    return np.convolve(_share(read), NEIGHBOURS, "same")


def ends(read: Read) -> Array:
    """Distance from the middle of what was read."""
    score, words = np.zeros(len(read.encoded.words)), read.words
    score[words] = np.abs(np.arange(len(words)) - (len(words) - 1) / 2)
    return score


def at_random(read: Read) -> Array:
    """A control: seeded by the text's number."""
    chooser = random.Random(read.number)
    return np.array([chooser.random() for _ in read.encoded.words])


SCORES: dict[str, Score] = {
    "received attention": received,
    "share of the margin": _share,
    "share of the margin, smoothed": _smoothed,
    "the reader's own share": _needed,
    "head and tail": ends,
    "random words": at_random,
}


def table(trial: Trial) -> dict[str, Any]:
    """Per share and score: accuracy and negative log-likelihood of the deepest tier, less those on all words read."""
    texts = _sent(trial)
    if not texts:
        return {"sent": 0, "rows": []}
    whole = _answers(trial, np.array([keeping(trial.replay.corpus, read, read.words) for read in texts]))
    label_of = dict(zip(trial.replay.numbers.tolist(), trial.replay.labels.tolist(), strict=True))
    truth = np.array([label_of[read.number] for read in texts])
    right, nll = whole.argmax(-1) == truth, nll_of(whole, truth)
    rows = [_row("every word that was read", 1.0, whole, truth)]
    tried = SCORES | ({} if texts[0].learned is None else {"keep-head": learned})
    for kept in KEPT:
        for name, score in tried.items():
            numbers = np.array([keeping(trial.replay.corpus, read, best(read, score, kept)) for read in texts])
            own = _answers(trial, numbers)
            rows.append(
                _row(name, kept, own, truth)
                | {
                    "points": paired_shares(own.argmax(-1) == truth, right),
                    "nll_more": paired_difference(nll_of(own, truth), nll),
                }
            )
            trial.conditions.recorders.save()
    return {"sent": len(texts), "rows": rows}


def _row(score: str, kept: float, own: Array, truth: Array) -> dict[str, Any]:
    right = own.argmax(-1) == truth
    return {"score": score, "kept": kept, **accuracy_of(right), "nll": float(nll_of(own, truth).mean())}


def _sent(trial: Trial) -> list[Read]:
    """What the first tier sends on under the bundle's own point, each as it was when it left."""
    replay = trial.replay
    policy = replay.policy("collaborative")
    run = trial.of("collaborative").run
    rows = np.flatnonzero(run.sent_to[0] != NONE)
    first = replay.stations[0]
    rule = policy.exit_rule(Where(first.name, replay.order[1:], dict(zip(run.tiers, run.layers, strict=True))))
    console, numbers = trial.conditions.recorders.console, replay.numbers[rows].tolist()
    head = read_keep_head(trial.bundle.folder)
    return [_as_left(trial, number, rule, head) for number in tracked(numbers, console, f"{first.name} reads")]


def _as_left(trial: Trial, number: int, rule: ExitRule | None, head: KeepHead | None) -> Read:
    read = as_left(trial.replay, number, rule, head)
    reader = trial.replay.stations[-1].recorder.classifier()
    reader.engine.enter()
    corpus = trial.replay.corpus
    again = reader.encode(*corpus.texts[keeping(corpus, read, read.words)])
    needed = np.zeros(len(read.encoded.words))
    needed[read.words] = _shares(again, reader.run([again], None, parts=True)[0])
    return replace(read, needed=needed)


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


def _answers(trial: Trial, numbers: Numbers) -> Array:
    """Calibrated probabilities [N, C] of the deepest tier's last exit."""
    last = trial.replay.stations[-1].recorder
    logits = np.stack([record.logits[-1] for record in last.records(numbers.tolist(), Kernel.PLAIN)])
    temperature = trial.bundle.card.temperatures[trial.replay.order[-1]][-1]
    return calibrated(logits[None], np.array([temperature], dtype=np.float32))[0]


def nll_of(probabilities: Array, truth: Array) -> Array:
    """Nats [N]."""
    return -np.log(np.maximum(probabilities[np.arange(len(truth)), truth], 1e-6))
