"""`tierwise check-pruning`: does it pay to send, or to compute, fewer words? On the texts that the first tier sends.

    words    the first tier sends the words with the greatest score; the deepest tier reads no others
    states   it sends all; the deepest tier drops the states of the others after its first layers (`dropped.py`)

Each row is compared, text by text, with the deepest tier's answer to the whole text. `work` is what its layers compute:
padded tokens x layers, as a share of that for whole texts. `--other` names a bundle whose deepest classifier was
trained for pruned texts: it is asked too. A row is accepted where it takes at most `WORK` of the work, and loses no
more than `LOSS` allows. Left out: measured times; temperatures of their own for pruned texts.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lab.console import tracked
from lab.data.examples import Example, digest
from lab.fit.keep_head import check_first_tier, read_keep_head, word_bests
from lab.live.bench_report import cpu
from lab.outputs import write_json
from lab.papers.dropped import after, last_exit, tokens_of
from lab.papers.scores import (
    Read,
    Score,
    as_left,
    at_random,
    best,
    ends,
    keeping,
    learned,
    needed,
    nll_of,
    received,
    share,
    shares,
)
from lab.replay.cache import Shelf
from lab.replay.recorder import Kernel, Recorders, runs_on, source_of
from lab.replay.run import NONE
from lab.replay.walk import Replay
from lab.stats import accuracy_of, paired_difference, paired_shares
from shared.errors import BadSetting
from shared.model.base import Array
from shared.model.bundle import Bundle
from shared.model.calibration import calibrated
from shared.model.weights import cache_dir
from shared.policies import Where

WORDS, STATES = 2 / 3, 0.5  # shares that are kept
DROPS = (2, 3, 4, 5)  # layers on every token
WORK = 0.8
LOSS = {"nll": 0.01, "nll_bound": 0.03, "points": 0.003, "points_bound": 0.008}
OWN = "the reader's own attention"
NEEDED = "the reader's own share"


@dataclass(frozen=True)
class Drop:
    """States that are dropped: after how many layers, by which score."""

    after: int
    score: str


@dataclass(frozen=True)
class Answers:
    """What one way of asking gave: probabilities [N, C], and the work for each text [N]."""

    probabilities: Array
    work: Array


class Reader:
    """A deepest tier: what it says of texts."""

    def __init__(self, name: str, bundle: Bundle, recorders: Recorders, temperature: float) -> None:
        self.name, self._temperature = name, np.array([temperature], dtype=np.float32)
        self.recorder = recorders.of(source_of(bundle, bundle.order[-1]), len(bundle.labels))

    def texts(self, numbers: Sequence[int]) -> Answers:
        """Its last exit on texts of the corpus."""
        records = self.recorder.records(list(numbers), Kernel.PLAIN)
        tokens = np.array([record.tokens for record in records])
        work = self._padded(tokens) * self.recorder.source.layers
        return self._answers([record.logits[-1] for record in records], work)

    def needed(self, number: int) -> Array:
        """What each word adds to its margin, once it has read the whole text, [words]."""
        classifier = self.recorder.classifier()
        classifier.engine.enter()
        encoded = classifier.encode(*self.recorder.corpus.texts[number])
        return shares(encoded, classifier.run([encoded], None, parts=True)[0])

    def dropping(self, reads: Sequence[Read], drops: Sequence[Drop], scores: dict[str, Score]) -> Iterator[Answers]:
        """Its last exit on whole texts whose states are dropped, for each of `drops`; kept on disk."""
        folder = cache_dir() / "dropped" / self.recorder.digest[:24]
        shelf = Shelf[Array](folder, lambda items: {"found": np.stack(items)}, lambda packed: list(packed["found"]))
        classes = self.recorder.classes
        keys: dict[Drop, list[str]] = {drop: [] for drop in drops}
        for read in tracked(reads, self.recorder.console, f"{self.name} drops states"):
            own = {drop: self._key(read, drop, scores) for drop in drops}
            missing = shelf.fetch(list(own.values()))
            todo = [drop for drop in drops if own[drop] in missing]
            for drop, found in self._drop(read, todo, scores) if todo else ():
                shelf.put(own[drop], found)
            for drop in drops:
                keys[drop].append(own[drop])
        shelf.save()
        for drop in drops:
            found = np.stack([shelf.items[key] for key in keys[drop]])  # logits and work
            yield self._answers(list(found[:, :classes]), found[:, classes])

    def _key(self, read: Read, drop: Drop, scores: dict[str, Score]) -> str:
        """With the score itself, which is another tier's."""
        worth = b"" if drop.score == OWN else scores[drop.score](read).astype(np.float32).tobytes()
        told = hashlib.sha256(worth).hexdigest()[:16]
        return f"{self.recorder.corpus.keys[read.number]} {drop.after} {drop.score} {STATES} {told}"

    def _drop(self, read: Read, drops: Sequence[Drop], scores: dict[str, Score]) -> Iterator[tuple[Drop, Array]]:
        classifier = self.recorder.classifier()
        engine, layers = classifier.engine, classifier.engine.layers
        engine.enter()
        encoded = classifier.encode(*self.recorder.corpus.texts[read.number])
        own = np.unique([word for word in encoded.word_of if word >= 0])
        for drop in drops:
            row = after(engine, encoded, drop.after, importance=drop.score == OWN)
            if drop.score == OWN:
                assert row.received is not None
                worth = word_bests(encoded, row.received)
            else:
                worth = scores[drop.score](read)
            order = own[np.argsort(-worth[own], kind="stable")]
            keep = tokens_of(encoded, order[: max(1, round(STATES * len(own)))])
            logits = last_exit(engine, row, drop.after, keep)
            whole, rest = (float(self._padded(np.array([count]))[0]) for count in (len(encoded.ids), len(keep)))
            yield drop, np.append(logits, whole * drop.after + rest * (layers - drop.after))

    def _padded(self, tokens: Array) -> Array:
        return self.recorder.source.computed(tokens)

    def _answers(self, logits: Sequence[Array], work: Array) -> Answers:
        return Answers(calibrated(np.stack(logits)[None].astype(np.float32), self._temperature)[0], np.asarray(work))


def check(
    bundle: Bundle,
    others: Sequence[Bundle],
    examples: Sequence[Example],
    recorders: Recorders,
    out: Path,
    *,
    states: int,
) -> dict[str, Any]:
    """Write OUT.json, anew after each row. States are dropped of the first `states` texts that are sent.

    Raises:
        BadSetting: the bundle is not calibrated, the first tier sends nothing, or another bundle has other labels.
    """
    if not bundle.card.calibrated:
        raise BadSetting(f"bundle {bundle.name} is not calibrated: nobody knows what its first tier would send")
    if odd := [other.name for other in others if other.labels != bundle.labels]:
        raise BadSetting(f"bundle {odd[0]} has other labels than {bundle.name}")
    check_first_tier(bundle)
    if (runs := runs_on(bundle).split()[0]) != "openvino":
        raise BadSetting(f"check-pruning drops states in the openvino engine alone; here runs {runs}")
    replay = Replay(bundle, examples, recorders)
    reads = sent(replay)
    label_of = dict(zip(replay.numbers.tolist(), replay.labels.tolist(), strict=True))
    truth = np.array([label_of[read.number] for read in reads])
    temperature = bundle.card.temperatures[bundle.order[-1]][-1]
    readers = [Reader(one.name, one, recorders, temperature) for one in (bundle, *others)]
    known = [
        replace(read, needed=readers[0].needed(read.number))
        for read in tracked(reads, recorders.console, f"{bundle.name}: what its deepest tier needs")
    ]
    report: dict[str, Any] = {
        "made": {
            "bundle": bundle.name,
            "card_sha256": bundle.digest,
            "others": {one.name: one.recorder.digest for one in readers[1:]},
            "n": len(examples),
            "sent": len(reads),
            "data_sha256": digest(list(examples)),
            "engine": runs_on(bundle),
            "hardware": f"{cpu()}, {os.cpu_count()} cores",
            "accepted_where": {"work": WORK, **LOSS},
        },
        "rows": [],
    }
    whole = readers[0].texts([read.number for read in reads])
    for told, answers in _asked(readers, known, states, recorders):
        report["rows"].append({**told, **_against(answers, whole, truth)})
        recorders.save()
        write_json(out.with_suffix(".json"), report)
    return report


def sent(replay: Replay) -> list[Read]:
    """What the first tier sends under the bundle's own point, each as it was when it left.

    Raises:
        BadSetting: it sends nothing.
    """
    policy = replay.policy("collaborative")
    run = replay.run(policy)
    first = replay.order[0]
    numbers = replay.numbers[np.flatnonzero(run.sent_to[0] != NONE)].tolist()
    if not numbers:
        raise BadSetting(f"{first} sends none of these {len(replay.numbers)} texts")
    rule = policy.exit_rule(Where(first, replay.order[1:], dict(zip(run.tiers, run.layers, strict=True))))
    head, console = read_keep_head(replay.bundle.folder), replay.stations[0].recorder.console
    return [as_left(replay, number, rule, head) for number in tracked(list(dict.fromkeys(numbers)), console, first)]


def _asked(
    readers: Sequence[Reader], reads: Sequence[Read], states: int, recorders: Recorders
) -> Iterator[tuple[dict[str, Any], Answers]]:
    """Every row: what it is, and the answers. The others are asked about words alone."""
    scores: dict[str, Score] = {"received attention": received, "share of the margin": share}
    if reads[0].learned is not None:
        scores["keep-head"] = learned
    controls: dict[str, Score] = {"random words": at_random, "head and tail": ends}
    first, *others = readers
    yield from _words(first, reads, scores | {NEEDED: needed} | controls, recorders)
    yield from _states(first, reads[:states], scores, controls)
    for reader in others:
        yield from _words(reader, reads, scores | controls, recorders)


def _words(
    reader: Reader, reads: Sequence[Read], scores: dict[str, Score], recorders: Recorders
) -> Iterator[tuple[dict[str, Any], Answers]]:
    told = {"reader": reader.name, "after": 0}
    yield told | {"sent": "every word", "score": "", "kept": 1.0}, reader.texts([read.number for read in reads])
    for name, score in scores.items():
        numbers = [keeping(recorders.corpus, read, best(read, score, WORDS)) for read in reads]
        yield told | {"sent": "words", "score": name, "kept": WORDS}, reader.texts(numbers)


def _states(
    reader: Reader, reads: Sequence[Read], scores: dict[str, Score], controls: dict[str, Score]
) -> Iterator[tuple[dict[str, Any], Answers]]:
    """Every score after one layer, and the tier's own after the others."""
    layers = [n for n in DROPS if n < reader.recorder.source.layers]
    if not layers:
        return
    middle = layers[(len(layers) - 1) // 2]
    drops = [Drop(middle, name) for name in (*scores, OWN, "random words")]
    drops += [Drop(n, "received attention") for n in layers if n != middle]
    for drop, answers in zip(drops, reader.dropping(reads, drops, scores | controls), strict=True):
        told = {"reader": reader.name, "sent": "states", "score": drop.score, "kept": STATES, "after": drop.after}
        yield told, answers


def _against(answers: Answers, whole: Answers, truth: Array) -> dict[str, Any]:
    """A row's figures, over the texts that it has."""
    n = len(answers.probabilities)
    base, truth = whole.probabilities[:n], truth[:n]
    right, nll = answers.probabilities.argmax(-1) == truth, nll_of(answers.probabilities, truth)
    points = paired_shares(right, base.argmax(-1) == truth)
    more = paired_difference(nll, nll_of(base, truth))
    work = float(answers.work.sum() / whole.work[:n].sum())
    keeps = more[0] <= LOSS["nll"] and more[2] <= LOSS["nll_bound"]
    keeps = keeps and points[0] >= -LOSS["points"] and points[1] >= -LOSS["points_bound"]
    return {
        **accuracy_of(right),
        "n": n,
        "nll": float(nll.mean()),
        "points": points,
        "nll_more": more,
        "work": work,
        "accepted": bool(keeps and work <= WORK),
    }
