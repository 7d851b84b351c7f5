"""Our encoder and its rivals, measured alternately in one process: times by shape, the card's exit rule, accuracy.

    ours              full depth, every exit evaluated
    ours, importance  the same, and the attention that each token receives
    ours, rule        until the card's exit rule lets a text go

The order changes every round, so that what else the machine does falls on all alike: ratios within a round are what
counts. Texts are cut to so many tokens, so nothing is padded.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from rich.console import Console

from lab.console import tracked
from lab.data.examples import Example, digest, load, training_rows, unseen, without
from lab.live.demo import REVIEWS
from lab.stats import accuracy_of, paired_shares, resampled
from lab.whole.build import CALIBRATION, TRANSFORMERS, Maker
from lab.whole.runtimes import ONNXRUNTIME, Inputs, Rival, inputs_of
from shared.errors import BadSetting
from shared.model.base import Array
from shared.model.bundle import Bundle
from shared.model.classifier import Classifier, load_classifier
from shared.model.exits import ExitRule
from shared.model.words import Encoded
from shared.policies.base import Where
from shared.policies.collaborative import Collaborative

LENGTHS, BATCHES, WARM = (64, 128, 256), (1, 8), 2
TIERS = ("end", "cloud")  # whose classifiers are measured, at full depth
OURS, IMPORTANCE, RULE = "ours", "ours, importance", "ours, rule"


@dataclass(frozen=True)
class Texts:
    """What is read: `timed` for times, `fitted` for quantization; `labelled` is empty where there are no labels."""

    about: dict[str, Any]
    timed: Sequence[str]
    fitted: Sequence[str]
    labelled: Sequence[Example]


def texts_of(data: str | None, labelled: int) -> Texts:
    """Unseen texts of a data file, and training texts to quantize with; without a file, the demo's reviews.

    Raises:
        BadSetting: the file cannot be read.
    """
    if data is None:
        about = {"texts": "the demo's reviews in random order, repeated to length"}
        timed = [_long(seed) for seed in range(200)]
        return Texts(about, timed, [_long(1000 + seed) for seed in range(CALIBRATION)], [])
    seen, _ = training_rows(data, None)
    tests = without(load(data, unseen(data)), seen)
    about = {"texts": "unseen texts of a data set", "data_sha256": digest(tests[:labelled])}
    return Texts(about, [e.text for e in tests], [e.text for e in seen[-CALIBRATION:]], tests[:labelled])


def _long(seed: int) -> str:
    order = random.Random(seed).sample(REVIEWS, len(REVIEWS))
    return " ".join(order)


@dataclass(frozen=True)
class Contest:
    """One classifier at full depth on our engine, and its rivals."""

    name: str
    classifier: Classifier
    rule: ExitRule | None
    rivals: Mapping[str, Rival]
    texts: Texts

    @cached_property
    def by_length(self) -> dict[int, list[Encoded]]:
        """Texts of exactly so many tokens."""
        out: dict[int, list[Encoded]] = {}
        for S in LENGTHS:
            read = (self.classifier.tokens.encode(text, None, S) for text in self.texts.timed[:400])
            out[S] = [text for text in read if len(text.ids) == S]
            if len(out[S]) < max(BATCHES):
                raise BadSetting(f"only {len(out[S])} texts have {S} tokens: give more, or longer ones")
        return out

    def inputs(self, texts: Sequence[Encoded]) -> Inputs:
        return inputs_of(texts, self.classifier.tokens.pad_id)


def contest(bundle: Bundle, tier: str, texts: Texts) -> Contest:
    """The contest of a tier's classifier.

    Raises:
        BadSetting: rivals that are not installed.
    """
    model = bundle.tiers[tier]
    folder = bundle.folder / model.network
    ours = load_classifier(
        folder, layers=model.layers, max_tokens=model.max_tokens, engine="openvino", device="cpu"
    ).at(bundle.card.temperatures[tier])
    policy = Collaborative(**bundle.card.policies[Collaborative.name])
    rule = policy.exit_rule(Where(tier, (), {name: held.layers for name, held in bundle.tiers.items()}))
    fitted = [inputs_of([ours.encode(text)], ours.tokens.pad_id) for text in texts.fitted]
    return Contest(model.network, ours, rule, Maker(folder, model.layers, fitted).rivals(), texts)


# -- full depth --------------------------------------------------------------------------------------------------------


def shapes(contest: Contest, pairs: int, console: Console) -> list[dict[str, Any]]:
    """Times at full depth, a row for each length and batch."""
    kinds = [(S, B) for S in LENGTHS for B in BATCHES]
    return [_shape(contest, S, B, pairs) for S, B in tracked(kinds, console, f"{contest.name}, full depth")]


def _shape(contest: Contest, S: int, B: int, pairs: int) -> dict[str, Any]:
    texts, run = contest.by_length[S], contest.classifier.run
    batches = [texts[at : at + B] for at in range(0, len(texts) - B + 1, B)]
    given = [contest.inputs(batch) for batch in batches[: pairs + WARM]]

    def asked(rival: Rival) -> Callable[[int], object]:
        return lambda number: rival(given[number % len(given)])

    sides: dict[str, Callable[[int], object]] = {
        OURS: lambda number: run(batches[number % len(given)], None, every_exit=True),
        IMPORTANCE: lambda number: run(batches[number % len(given)], None, every_exit=True, importance=True),
        **{name: asked(rival) for name, rival in contest.rivals.items()},
    }
    ms = alternately(sides, pairs, WARM)
    best = min(contest.rivals, key=lambda name: float(np.median(ms[name])))
    return {
        "classifier": contest.name,
        "tokens": S,
        "batch": B,
        "ms": {name: float(np.median(times)) for name, times in ms.items()},
        "best": best,
        "ours_over_best": ratio(ms[OURS], ms[best]),
        "ours_over_onnxruntime": ratio(ms[OURS], ms[ONNXRUNTIME]),
        "importance_over_ours": ratio(ms[IMPORTANCE], ms[OURS]),
        "importance_over_best": ratio(ms[IMPORTANCE], ms[best]),
    }


def alternately(sides: Mapping[str, Callable[[int], object]], rounds: int, warm: int = 0) -> dict[str, Array]:
    """Milliseconds [rounds] of each side, which is told the round's number; after `warm` rounds that do not count."""
    names = list(sides)
    ms: dict[str, list[float]] = {name: [] for name in names}
    for number in range(-warm, rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            started = time.perf_counter()
            sides[name](number)
            if number >= 0:
                ms[name].append((time.perf_counter() - started) * 1e3)
    return {name: np.array(times) for name, times in ms.items()}


def ratio(a: Array, b: Array) -> list[float]:
    """Median of the paired ratios a / b, with its 95 % bootstrap interval.

    >>> ratio(np.array([2.0, 4.0]), np.array([1.0, 2.0]))
    [2.0, 2.0, 2.0]
    """
    ratios = a / b
    return [float(np.median(ratios)), *_interval(np.median, ratios)]


def ratio_of_means(a: Array, b: Array) -> list[float]:
    """Mean of a over mean of b, over the same texts, with its 95 % bootstrap interval.

    >>> ratio_of_means(np.array([1.0, 1.0]), np.array([2.0, 2.0]))
    [0.5, 0.5, 0.5]
    """
    return [float(a.mean() / b.mean()), *_interval(lambda a, b, axis=-1: a.mean(axis) / b.mean(axis), a, b)]


def _interval(statistic: Callable[..., Any], *samples: Array) -> tuple[float, float]:
    if all(len(set(sample.tolist())) == 1 for sample in samples):  # nothing to resample
        return (float(statistic(*samples)),) * 2
    return resampled(statistic, *samples, paired=len(samples) > 1)


# -- the card's exit rule ----------------------------------------------------------------------------------------------


def rules(contest: Contest, count: int, console: Console) -> list[dict[str, Any]]:
    """The card's exit rule on texts one at a time against the rivals on the same texts, a row for each length."""
    return [_rule(contest, S, count) for S in tracked(LENGTHS, console, f"{contest.name}, exit rule")]


def _rule(contest: Contest, S: int, count: int) -> dict[str, Any]:
    texts = contest.by_length[S][:count]
    given = [contest.inputs([text]) for text in texts]
    depths = [trace.exit_layer for text in texts for trace in contest.classifier.run([text], contest.rule)]  # and warm

    def asked(rival: Rival) -> Callable[[int], object]:
        return lambda number: rival(given[number])

    quick = {name: asked(rival) for name, rival in contest.rivals.items() if name != TRANSFORMERS}
    ms = alternately({RULE: lambda number: contest.classifier.run([texts[number]], contest.rule), **quick}, len(texts))
    best = min(quick, key=lambda name: float(ms[name].mean()))
    return {
        "classifier": contest.name,
        "tokens": S,
        "n": len(texts),
        "rule": str(contest.rule),
        "mean_exit": float(np.mean(depths)),
        "mean_ms": {name: float(times.mean()) for name, times in ms.items()},
        "best": best,
        "rule_over_best": ratio_of_means(ms[RULE], ms[best]),
    }


# -- accuracy ----------------------------------------------------------------------------------------------------------


def accuracies(contest: Contest, console: Console) -> list[dict[str, Any]]:
    """The last exit's accuracy of our engine and of each rival on the same texts, one at a time."""
    examples = contest.texts.labelled
    if not examples:
        return []
    labels = np.array([example.label for example in examples])
    read = [contest.classifier.encode(example.text, example.pair) for example in examples]
    said: dict[str, list[int]] = {name: [] for name in (OURS, RULE, *contest.rivals)}
    for text in tracked(read, console, f"{contest.name}, accuracy"):
        said[OURS].append(int(contest.classifier.run([text], None)[0].logits[-1].argmax()))
        said[RULE].append(int(contest.classifier.run([text], contest.rule)[0].logits[-1].argmax()))
        for name, rival in contest.rivals.items():
            said[name].append(int(rival(contest.inputs([text]))[0].argmax()))
    right = {name: np.array(labels_said) == labels for name, labels_said in said.items()}
    return [
        {
            "classifier": contest.name,
            "engine": name,
            "n": len(labels),
            **accuracy_of(hits),
            "ours_minus_it": list(paired_shares(right[OURS], hits)),
        }
        for name, hits in right.items()
    ]
