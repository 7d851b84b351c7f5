"""The recorder: run each text once per classifier, at full depth, and keep what every exit said, on disk.

What is kept can answer for any policy with any parameters: the logits of every exit [E, C], the attention received
after every layer [E, S], which word each token belongs to, the signatures. A tier with fewer layers of the same
classifier reads the deepest tier's recording; a differently pruned text is just another text.

    CACHE/replay/SOURCE/KIND/*.safetensors     SOURCE: sha256 over the trained classifier, its base, the layers, the
                                               maximum length, and what computes it; KIND: a kernel, or a signature

Importance comes with another attention kernel, whose logits differ (by about 1e-6 in fp32, up to 0.1 in int8), and live
tiers count only where a text may be pruned. So both kernels are recorded, each when first asked for, and replay takes
the one that the live tier would run. The openvino engine gives a text the same bits whatever shares its pass, on one
thread as on several (tested). torch does so for a text that runs alone, which is how it is recorded: padding moves its
last bits (about 2e-7), and so do several threads under 12 tokens (up to 1e-5). Left out: this noise, and CUDA.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from pydantic_core import to_json
from rich.console import Console

from lab.console import progress
from lab.engine import Computes, computes
from lab.replay.cache import Shelf
from shared.errors import UnreadableText
from shared.model.base import Array, load_tokenizer
from shared.model.bundle import Bundle
from shared.model.classifier import Classifier, read_trained, recipe_of
from shared.model.pools import Signature, Vector
from shared.model.tokens import SpecialTokens
from shared.model.weights import cache_dir
from shared.model.words import Encoded, words_of
from shared.web.ledger import text_sha256

T = TypeVar("T")
FORMAT = 2


class Kernel(StrEnum):
    """Which attention kernel ran."""

    PLAIN = "plain"
    COUNTED = "counted"  # with importance


class Corpus:
    """Every text that a replay has met, numbered; a pruned text joins when it is first pruned."""

    def __init__(self) -> None:
        self.texts: list[tuple[str, str | None]] = []
        self.keys: list[str] = []
        self.shortened: dict[int, int] = {}  # texts without the words that no further tier reads: what they were
        self._numbers: dict[str, int] = {}
        self._counts = np.zeros((0, 2), dtype=np.int64)  # [texts, (words, bytes)]

    def number(self, text: str, pair: str | None) -> int:
        """A text's number, the same for the same text."""
        key = text_sha256(text, pair)
        known = self._numbers.get(key)
        if known is None:
            known = self._numbers[key] = len(self.texts)
            self.texts.append((text, pair))
            self.keys.append(key)
        return known

    @property
    def words(self) -> np.ndarray:
        """[texts] words of each text, both sides of a pair."""
        return self._counted()[:, 0]

    @property
    def json_bytes(self) -> np.ndarray:
        """[texts] bytes of each text as JSON, and of its pair or null."""
        return self._counted()[:, 1]

    def _counted(self) -> np.ndarray:
        new = self.texts[len(self._counts) :]
        if new:
            counts = [(len(words_of(t)) + len(words_of(p or "")), len(to_json(t)) + len(to_json(p))) for t, p in new]
            self._counts = np.concatenate([self._counts, np.array(counts)])
        return self._counts


@dataclass(frozen=True)
class Source:
    """What is run, and by what: the first `layers` layers of a trained classifier, reading `max_tokens` tokens."""

    folder: Path
    layers: int
    max_tokens: int
    computes: Computes

    @property
    def shape(self) -> str:
        """Names what a pass takes: the base, as adapters are merged into it, how deep, how many tokens, by what."""
        base, by = read_trained(self.folder).base, self.computes
        return f"{base} {self.layers} {self.max_tokens} {by} {by.version}"

    @property
    def digest(self) -> str:
        """Names everything that the recorded bits depend on."""
        made_of = recipe_of(read_trained(self.folder), self.layers, self.computes.precision).digest
        what = f"{FORMAT} {made_of} {self.max_tokens} {self.computes} {self.computes.version}"
        return hashlib.sha256(what.encode()).hexdigest()

    def load(self, threads: int) -> Classifier:
        """The classifier, ready to run in this thread."""
        return self.computes.load(self.folder, layers=self.layers, max_tokens=self.max_tokens, threads=threads)

    def computed(self, tokens: Array) -> Array:
        """The tokens that are computed for a text of so many: openvino pads."""
        if self.computes.engine != "openvino":
            return tokens
        from shared.model.openvino_engine import PAD

        return -(-tokens // PAD) * PAD


def source_of(bundle: Bundle, tier: str) -> Source:
    """The deepest tier that runs the same classifier on as many tokens: its recording serves this tier too.

    Raises:
        BadSetting: what the environment asks for is not to be had here.
        WrongWeights: the classifier is not there.
    """
    model = bundle.tiers[tier]
    same = [m for m in bundle.tiers.values() if (m.network, m.max_tokens) == (model.network, model.max_tokens)]
    folder = bundle.folder / model.network
    return Source(folder, max(m.layers for m in same), model.max_tokens, computes(folder))


def runs_on(bundle: Bundle) -> str:
    """ENGINE PRECISION of its classifiers: more than one where only some have a quantization table."""
    return ", ".join(sorted({str(source_of(bundle, tier).computes) for tier in bundle.order}))


def other_engine(bundle: Bundle) -> list[str]:
    """What must be said of a bundle whose card was fitted on answers of another engine."""
    now, fitted = runs_on(bundle), bundle.card.engine
    if now == fitted or not bundle.card.temperatures:
        return []
    return [f"the card of {bundle.name} was fitted on {fitted}; here runs {now}: `tierwise calibrate` fits it anew"]


@dataclass(frozen=True)
class Record:
    """One text under one kernel."""

    word_of: Array  # int32 [S]: the word of each token, -1 for special ones; empty if the text cannot be read
    first_words: int
    truncated: bool
    logits: Array  # [E, C]
    importance: Array | None  # [E, S], accumulated

    @property
    def tokens(self) -> int:
        """S; 0 where the tokenizer knows no word of the text."""
        return len(self.word_of)

    def encoded(self, text: str, pair: str | None) -> Encoded:
        """The text as it was read, less its ids, which are not needed again."""
        unused = [0] * self.tokens
        words = words_of(text) + words_of(pair or "")
        return Encoded(unused, unused, self.word_of.tolist(), words, self.first_words, self.truncated)


class Recorder:
    """The recording of one source. What is asked for comes from memory, from disk, or from running the classifier."""

    def __init__(self, source: Source, corpus: Corpus, classes: int, console: Console, *, threads: int = 1) -> None:
        self.source, self.corpus, self.console = source, corpus, console
        self.classes, self._threads = classes, threads
        self.digest = source.digest
        folder = cache_dir() / "replay" / self.digest[:24]
        self._shelves: dict[str, Shelf[Any]] = {
            **{kernel: Shelf(folder / kernel, _packed, _unpacked) for kernel in Kernel},
            **{kind: Shelf(folder / f"signature-{kind}", _vectors, _tuples) for kind in Signature},
        }
        self._classifier: Classifier | None = None
        self.ran = 0  # texts that no file had

    def records(self, numbers: list[int], kernel: Kernel) -> list[Record]:
        """What a kernel gave for these texts."""
        return self._get(kernel, numbers, lambda missing: self._run(missing, kernel))

    def signatures(self, numbers: list[int], kind: Signature) -> list[Vector | None]:
        """What stands for each text before any layer runs; null where it cannot be read."""
        return self._get(kind, numbers, lambda missing: ((number, self._sign(number, kind)) for number in missing))

    def save(self) -> None:
        """Write what is not on disk yet."""
        for shelf in self._shelves.values():
            shelf.save()

    def _get(self, what: str, numbers: list[int], run: Callable[[list[int]], Iterable[tuple[int, T]]]) -> list[T]:
        """Items by number; `run` gives those that no file has, in any order."""
        shelf, by_key = self._shelves[what], {self.corpus.keys[number]: number for number in numbers}
        if missing := shelf.fetch(by_key):
            self.ran += len(missing)
            quiet = len(missing) == 1 or not self.console.is_terminal
            with progress(self.console, transient=True, disable=quiet) as bar:
                task = bar.add_task(
                    f"{self.source.folder.parent.name}/{self.source.folder.name}, {what}", total=len(missing)
                )
                for number, item in run([by_key[key] for key in missing]):
                    shelf.put(self.corpus.keys[number], item)
                    bar.advance(task)
        return [shelf.items[self.corpus.keys[number]] for number in numbers]

    @cached_property
    def tokens(self) -> SpecialTokens:
        """The classifier's tokenizer, without the classifier."""
        return SpecialTokens(load_tokenizer(read_trained(self.source.folder).base))

    def classifier(self) -> Classifier:
        """The classifier itself, loaded when first needed."""
        if self._classifier is None:
            self._classifier = self.source.load(self._threads)
        return self._classifier

    def _run(self, numbers: list[int], kernel: Kernel) -> Iterator[tuple[int, Record]]:
        entered = False
        for number in numbers:
            encoded = self._read(number)
            record = self._unread() if encoded is None else self._read_before(number, encoded, kernel)
            if record is None and encoded is not None:
                if not entered:
                    self.classifier().engine.enter()  # another classifier may have run in this thread since
                    entered = True
                record = _at_every_exit(self.classifier(), encoded, kernel)
            assert record is not None
            yield number, record

    def _read_before(self, number: int, encoded: Encoded, kernel: Kernel) -> Record | None:
        """What was recorded of the text that this one was shortened from, if of both the same tokens are read."""
        whole = self.corpus.shortened.get(number)
        if whole is None or self._shelves[kernel].fetch([self.corpus.keys[whole]]):
            return None
        read = self._read(whole)
        if read is None or (read.ids, read.segments) != (encoded.ids, encoded.segments):
            return None
        record: Record = self._shelves[kernel].items[self.corpus.keys[whole]]
        word_of = np.array(encoded.word_of, dtype=np.int32)
        return replace(record, word_of=word_of, first_words=encoded.first_words, truncated=encoded.truncated)

    def _unread(self) -> Record:
        """What there is of a text that cannot be read."""
        logits = np.zeros((self.source.layers, self.classes), dtype=np.float32)
        return Record(np.zeros(0, dtype=np.int32), 0, False, logits, None)

    def _sign(self, number: int, kind: Signature) -> Vector | None:
        encoded = self._read(number)
        return None if encoded is None else self.classifier().signature(encoded, kind)

    def _read(self, number: int) -> Encoded | None:
        try:
            return self.tokens.encode(*self.corpus.texts[number], self.source.max_tokens)
        except UnreadableText:
            return None


def _at_every_exit(classifier: Classifier, text: Encoded, kernel: Kernel) -> Record:
    """What every exit says of a text, and what its tokens had received after each layer."""
    engine, counted = classifier.engine, kernel is Kernel.COUNTED
    state = engine.start([text], importance=counted)
    logits: list[Array] = []
    received: list[Array] = []
    for n in range(engine.layers):
        state = engine.layer(n, state)
        logits.append(engine.exits(n, state)[0])
        if counted:
            received.append(np.array(engine.received(state, 0)))  # a copy: an engine may go on adding to its own
    word_of = np.array(text.word_of, dtype=np.int32)
    importance = np.stack(received) if counted else None
    return Record(word_of, text.first_words, text.truncated, np.stack(logits), importance)


class Recorders:
    """Every recorder of a replay, over one corpus: bundles that run the same classifier share its recording."""

    def __init__(self, console: Console, *, threads: int = 1, kind: type[Recorder] = Recorder) -> None:
        self.corpus, self.console = Corpus(), console
        self._threads, self._kind = threads, kind
        self._by_digest: dict[str, Recorder] = {}
        self._by_source: dict[Source, Recorder] = {}

    def of(self, source: Source, classes: int) -> Recorder:
        """The recorder of a source."""
        if source not in self._by_source:
            new = self._kind(source, self.corpus, classes, self.console, threads=self._threads)
            self._by_source[source] = self._by_digest.setdefault(new.digest, new)
        return self._by_source[source]

    @property
    def ran(self) -> int:
        """Texts that were run through a classifier."""
        return sum(recorder.ran for recorder in self._by_digest.values())

    def save(self) -> None:
        """Put what was recorded on disk."""
        for recorder in self._by_digest.values():
            recorder.save()


def _packed(records: list[Record]) -> dict[str, Array]:
    """Records of any lengths as flat arrays, with their lengths."""
    counted = [record.importance.reshape(-1) for record in records if record.importance is not None]
    return {
        "logits": np.stack([record.logits for record in records]),
        "tokens": np.array([record.tokens for record in records]),
        "first_words": np.array([record.first_words for record in records]),
        "truncated": np.array([record.truncated for record in records]),
        "word_of": np.concatenate([record.word_of for record in records]),
        **({"importance": np.concatenate(counted)} if counted else {}),
    }


def _unpacked(packed: dict[str, Array]) -> list[Record]:
    lengths, layers = packed["tokens"], packed["logits"].shape[1]
    counted: Iterable[Array | None] = [None] * len(lengths)
    if "importance" in packed:
        counted = [
            flat.reshape(layers, -1) if len(flat) else None for flat in _split(packed["importance"], lengths * layers)
        ]
    words, first, cut = _split(packed["word_of"], lengths), packed["first_words"].tolist(), packed["truncated"].tolist()
    return [Record(*row) for row in zip(words, first, cut, packed["logits"], counted, strict=True)]


def _split(flat: Array, lengths: Array) -> list[Array]:
    """Parts of these lengths."""
    return np.split(flat, np.cumsum(lengths)[:-1])


def _vectors(signatures: list[Vector | None]) -> dict[str, Array]:
    length = max((len(vector) for vector in signatures if vector), default=1)
    rows = [vector or (float("nan"),) * length for vector in signatures]
    return {"vectors": np.array(rows, dtype=np.float32)}


def _tuples(packed: dict[str, Array]) -> list[Vector | None]:
    return [None if row[0] != row[0] else tuple(row) for row in packed["vectors"].tolist()]
