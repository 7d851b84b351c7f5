"""`tierwise train-keep`: learn, without labels, which words a deeper tier needs (`keep_head.py`).

The teacher reads a text whole. A word's need is gradient x input of its own answer, summed over the word's tokens:

    need_w = |sum_j in w  e_j . d(z_top - z_second) / d e_j|       e_j: the embedding of token j, z: the last exit

The student sees the states of the first tier and learns (logistic regression) which words are in the upper half of
their text. Texts are those that the first tier is unsure of: no other is sent. Needs are kept on disk, so a killed run
goes on. Left out: masks that are tried out (a pass each), and heads for exits before the last.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch.nn.functional import binary_cross_entropy_with_logits

from lab.console import progress
from lab.data.examples import Example
from lab.fit.augment import surest
from lab.fit.keep_head import KeepHead, check_first_tier, word_bests, word_means
from lab.replay.cache import Shelf
from lab.replay.recorder import Kernel, Recorder, Recorders, source_of
from shared.errors import BadSetting, UnreadableText
from shared.model.base import Array
from shared.model.bundle import Bundle
from shared.model.classifier import load_classifier
from shared.model.shares import shares_of
from shared.model.torch_engine import MultiExitEncoder, TorchEngine, batch
from shared.model.weights import cache_dir
from shared.model.words import Encoded, words_of

JUDGED = 0.2  # share of the texts that the student does not learn from
FEWEST = 10  # texts
PENALTY = 1e-3  # of the squared weights, over standardized states


@dataclass(frozen=True)
class Pupil:
    """A text as the student meets it; words are those that both tiers read."""

    states: Array  # [words, D], the mean of each word's tokens
    need: Array  # [words]
    rivals: dict[str, Array]  # other scores of the same words

    @property
    def upper(self) -> Array:
        """Bool [words]: the words whose need is above the median."""
        return self.need > np.median(self.need)


def train_keep(
    bundle: Bundle, examples: Sequence[Example], *, most: int, unsure: float, threads: int, console: Console
) -> dict[str, Any]:
    """Write the bundle's keep-head; how often each score finds a word of the upper half, on texts not learned from.

    It learns from the first `most` texts of which the first tier's last exit is less sure than `unsure` (0: any).
    Texts that a tier cannot read are left out.

    Raises:
        BadSetting: the first tier has no network of its own, there are too few such texts, or none has two words that
            both tiers read.
    """
    check_first_tier(bundle)
    recorders = Recorders(console, threads=threads)
    numbers = [recorders.corpus.number(e.text, e.pair) for e in examples]
    first, last = (recorders.of(source_of(bundle, bundle.order[at]), len(bundle.labels)) for at in (0, -1))
    chosen = _unsure(first, numbers, most, unsure)
    needs = _needs(last, chosen, console, threads=threads)
    met = [_pupil(first, number, needs[number]) for number in chosen]
    pupils = [pupil for pupil in met if pupil is not None]
    if len(pupils) < FEWEST:
        raise BadSetting(f"{len(pupils)} texts are less sure than {unsure:g}: a keep-head needs at least {FEWEST}")
    judged = pupils[: max(1, round(JUDGED * len(pupils)))]
    learned = pupils[len(judged) :]
    head = fit(np.concatenate([p.states for p in learned]), np.concatenate([p.upper for p in learned]))
    head.save(bundle.folder)
    found: dict[str, list[float]] = {}
    for pupil in judged:
        for name, score in (pupil.rivals | {"keep-head": pupil.states @ head.v + head.b}).items():
            found.setdefault(name, []).append(hit(pupil, score))
    hits = {name: float(np.mean(shares)) for name, shares in found.items()}
    return {"learned": len(learned), "judged": len(judged), "upper_half_found": hits}


def hit(pupil: Pupil, score: Array) -> float:
    """Share of the upper half that the words with the greatest score, as many, hold."""
    upper = pupil.upper
    best = np.argsort(-score, kind="stable")[: int(upper.sum())]
    return float(upper[best].mean())


def fit(states: Array, upper: Array) -> KeepHead:
    """Logistic regression of `upper`, bool [N], on standardized states [N, D]; the head takes them as they are."""
    middle, spread = states.mean(0), np.maximum(states.std(0), 1e-6)
    x = torch.from_numpy((states - middle) / spread).float()
    y = torch.from_numpy(upper).float()
    w, b = torch.zeros(x.shape[1], requires_grad=True), torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.LBFGS([w, b], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> float:
        optimizer.zero_grad()
        loss = binary_cross_entropy_with_logits(x @ w + b, y) + PENALTY * w.square().sum()
        loss.backward()
        return loss.item()

    optimizer.step(closure)
    v = w.detach().numpy() / spread
    return KeepHead(v.astype(np.float32), float(b.item() - v @ middle))


def need(encoder: MultiExitEncoder, encoded: Encoded) -> Array:
    """What each word adds to the margin of the last exit's answer, by gradient x input, [words]."""
    ids, segments, padding = batch([encoded], 0, encoder.device)
    embedded = encoder.embed(ids, segments).detach().requires_grad_()
    hidden, bias = embedded, encoder.bias(embedded.detach(), padding)
    for layer in encoder.layers:
        hidden = encoder.layer(layer, hidden, bias, None)
    top, second = encoder.heads[-1](hidden, padding)[0].topk(2).values
    (gradient,) = torch.autograd.grad(top - second, embedded)
    added = (gradient * embedded.detach()).sum(-1)[0].numpy()  # [S]
    words = np.zeros(len(encoded.words))
    owner = np.array(encoded.word_of)
    np.add.at(words, owner[owner >= 0], added[owner >= 0])
    return np.abs(words)


def _unsure(first: Recorder, numbers: list[int], most: int, unsure: float) -> list[int]:
    """The first `most` of these texts that the first tier would send."""
    chosen: list[int] = []
    for at in range(0, len(numbers), 100):
        some = numbers[at : at + 100]
        for number, record in zip(some, first.records(some, Kernel.COUNTED), strict=True):
            if record.tokens and (not unsure or surest(record) < unsure):
                chosen.append(number)
        if len(chosen) >= most:
            break
    first.save()
    return chosen[:most]


def _needs(last: Recorder, numbers: list[int], console: Console, *, threads: int) -> dict[int, Array]:
    """The need of each word, by text; nan of a word that the deepest tier does not read."""
    digest = hashlib.sha256(f"gradient x input {last.digest}".encode()).hexdigest()[:24]
    shelf = Shelf[Array](cache_dir() / "keep" / digest, _packed, _unpacked)
    keys = last.corpus.keys
    missing = shelf.fetch([keys[number] for number in numbers])
    encoder = None
    todo = [number for number in numbers if keys[number] in set(missing)]
    with progress(console) as bar:
        for number in bar.track(todo, description="what a deeper tier needs"):
            encoder = encoder or _reference(last, threads)
            shelf.put(keys[number], _need(last, encoder, number))
    shelf.save()
    return {number: shelf.items[keys[number]] for number in numbers}


def _need(last: Recorder, encoder: MultiExitEncoder, number: int) -> Array:
    text, pair = last.corpus.texts[number]
    try:
        encoded = last.tokens.encode(text, pair, last.source.max_tokens)
    except UnreadableText:
        return np.full(len(words_of(text)) + len(words_of(pair or "")), np.nan)
    found = need(encoder, encoded)
    found[np.setdiff1d(np.arange(len(found)), encoded.word_of)] = np.nan
    return found


def _reference(recorder: Recorder, threads: int) -> MultiExitEncoder:
    """A recorder's classifier where gradients can be had: torch, fp32."""
    source = recorder.source
    loaded = load_classifier(
        source.folder, layers=source.layers, max_tokens=source.max_tokens, engine="torch", device="cpu"
    )
    assert isinstance(loaded.engine, TorchEngine)
    torch.set_num_threads(threads)
    return loaded.engine.encoder


def _pupil(first: Recorder, number: int, need: Array) -> Pupil | None:
    classifier = first.classifier()
    classifier.engine.enter()
    encoded = classifier.encode(*first.corpus.texts[number])
    trace = classifier.run([encoded], None, importance=True, parts=True, states=True)[0]
    assert trace.state is not None
    assert trace.importance is not None
    assert trace.parts is not None
    words = np.intersect1d(encoded.word_of, np.flatnonzero(~np.isnan(need)))
    if len(words) < 2:
        return None
    logits = trace.logits[-1]
    share = shares_of(encoded, trace.parts, logits, int(logits.argmax())).words
    rivals = {
        "received attention": word_bests(encoded, trace.importance),
        "share of the margin": np.abs([one or 0.0 for one in share]),
        "random words": np.random.default_rng(number).random(len(encoded.words)),
    }
    states = word_means(encoded, trace.state.hidden)
    return Pupil(states[words], need[words], {name: score[words] for name, score in rivals.items()})


def _packed(items: list[Array]) -> dict[str, Array]:
    return {"words": np.array([len(item) for item in items]), "needs": np.concatenate(items)}


def _unpacked(packed: dict[str, Array]) -> list[Array]:
    return np.split(packed["needs"], np.cumsum(packed["words"])[:-1])
