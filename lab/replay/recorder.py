"""The recorder: run each text once per classifier, at full depth and alone, and keep what every exit said, on disk.

What is kept can answer for any policy with any parameters: the logits of every exit [E, C], the attention received
after every layer [E, S], which word each token belongs to, the signatures. A tier with fewer layers of the same
classifier reads the deepest tier's recording; a differently pruned text is just another text.

    CACHE/replay/SOURCE/KIND/*.safetensors     SOURCE: sha256 over the trained classifier, its base, the layers, the
                                               maximum length, and what computes it; KIND: a kernel, or a signature

Importance comes with another attention kernel, whose logits differ by about 1e-6, and live tiers count only where a
text may be pruned. So both kernels are recorded, each when first asked for, and replay takes the one that the live
tier would run. On a CPU a text alone gives the same bits every time, on one thread as on several (tested) but for texts
under 12 tokens, whose MPNet logits differ by up to 1e-5 on several. Left out: the noise of padded batches (about 2e-7)
and of GPUs, so several texts in one request, and CUDA.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from pydantic_core import to_json
from rich.console import Console
from torch import Tensor

from lab.console import tracked
from lab.replay.cache import Shelf
from shared.errors import UnreadableText
from shared.model.bundle import Bundle
from shared.model.classifier import Classifier, load_classifier
from shared.model.encoder import Received
from shared.model.pools import Signature, Vector
from shared.model.weights import PINNED, base_folder, cache_dir, sha256
from shared.model.words import Encoded, words_of
from shared.web.ledger import text_sha256

T = TypeVar("T")
FORMAT = 1


class Kernel(StrEnum):
    """Which attention kernel ran."""

    PLAIN = "plain"
    COUNTED = "counted"  # with importance


class Corpus:
    """Every text that a replay has met, numbered; a pruned text joins when it is first pruned."""

    def __init__(self) -> None:
        self.texts: list[tuple[str, str | None]] = []
        self.keys: list[str] = []
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
    """What is run: the first `layers` layers of a trained classifier, reading `max_tokens` tokens."""

    folder: Path
    layers: int
    max_tokens: int

    @property
    def shape(self) -> str:
        """Names what a pass takes: the base, as adapters are merged into it, how deep, and how many tokens."""
        return f"{json.loads((self.folder / 'network.json').read_text())['base']} {self.layers} {self.max_tokens}"

    @property
    def digest(self) -> str:
        """Names everything that the recorded bits depend on."""
        meta = json.loads((self.folder / "network.json").read_text())
        base = meta["base"]
        if base in PINNED:
            weights = PINNED[base].files["model.safetensors"]
        else:
            weights = "+".join(sha256(path) for path in sorted(base_folder(base).glob("*.safetensors")))
        runs = f"{torch.__version__} {torch.backends.cpu.get_cpu_capability()}"
        what = f"{FORMAT} {weights} {meta['scale']} {self.layers} {self.max_tokens} {runs} "
        return hashlib.sha256(what.encode() + (self.folder / "adapters.safetensors").read_bytes()).hexdigest()


def source_of(bundle: Bundle, tier: str) -> Source:
    """The deepest tier that runs the same classifier on as many tokens: its recording serves this tier too."""
    model = bundle.tiers[tier]
    same = [m for m in bundle.tiers.values() if (m.network, m.max_tokens) == (model.network, model.max_tokens)]
    return Source(bundle.folder / model.network, max(m.layers for m in same), model.max_tokens)


@dataclass(frozen=True)
class Record:
    """One text under one kernel."""

    word_of: Tensor  # [S] int32: the word of each token, -1 for special ones; empty if the text cannot be read
    first_words: int
    truncated: bool
    logits: Tensor  # [E, C]
    importance: Tensor | None  # [E, S], accumulated

    @property
    def tokens(self) -> int:
        """S; 0 where the tokenizer knows no word of the text."""
        return len(self.word_of)

    def encoded(self, text: str, pair: str | None) -> Encoded:
        """The text as it was read, less its ids, which are not needed again."""
        unused = [0] * self.tokens
        words = words_of(text) + words_of(pair or "")
        return Encoded(unused, unused, self.word_of.tolist(), words, self.first_words, self.truncated)


class _AfterEachLayer(Received):
    """Remembers what had been received after each layer, of a batch of one."""

    def __init__(self, ids: Tensor) -> None:
        super().__init__(ids, None)
        self.after: list[Tensor] = []

    def add(self, attention: Tensor) -> None:
        super().add(attention)
        self.after.append(self.total[0].clone())


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
        return self._get(kernel, numbers, lambda number: self._run(number, kernel))

    def signatures(self, numbers: list[int], kind: Signature) -> list[Vector | None]:
        """What stands for each text before any layer runs; null where it cannot be read."""
        return self._get(kind, numbers, lambda number: self._sign(number, kind))

    def save(self) -> None:
        """Write what is not on disk yet."""
        for shelf in self._shelves.values():
            shelf.save()

    def _get(self, what: str, numbers: list[int], run: Callable[[int], T]) -> list[T]:
        shelf, by_key = self._shelves[what], {self.corpus.keys[number]: number for number in numbers}
        if missing := shelf.fetch(by_key):
            torch.set_num_threads(self._threads)
            self.ran += len(missing)
            folder = self.source.folder
            for key in tracked(missing, self.console, f"{folder.parent.name}/{folder.name}, {what}"):
                shelf.put(key, run(by_key[key]))
        return [shelf.items[self.corpus.keys[number]] for number in numbers]

    def classifier(self) -> Classifier:
        """The classifier itself, loaded when first needed."""
        if self._classifier is None:
            source = self.source
            self._classifier = load_classifier(source.folder, layers=source.layers, max_tokens=source.max_tokens)
        return self._classifier

    @torch.inference_mode()
    def _run(self, number: int, kernel: Kernel) -> Record:
        classifier, encoded = self.classifier(), self._read(number)
        if encoded is None:
            logits = torch.zeros(self.source.layers, self.classes)
            return Record(torch.zeros(0, dtype=torch.int32), 0, False, logits, None)
        ids, segments, padding = classifier.tokens.batch([encoded], classifier.encoder.device)
        received = _AfterEachLayer(ids) if kernel is Kernel.COUNTED else None
        logits = classifier.encoder(ids, segments, padding, received)[:, 0]  # [E, C]
        importance = torch.stack(received.after) if received else None
        word_of = torch.tensor(encoded.word_of, dtype=torch.int32)
        return Record(word_of, encoded.first_words, encoded.truncated, logits, importance)

    def _sign(self, number: int, kind: Signature) -> Vector | None:
        classifier, encoded = self.classifier(), self._read(number)
        return None if encoded is None else classifier.signature(encoded, kind)

    def _read(self, number: int) -> Encoded | None:
        try:
            return self.classifier().encode(*self.corpus.texts[number])
        except UnreadableText:
            return None


class Recorders:
    """Every recorder of a replay, over one corpus: bundles that run the same classifier share its recording."""

    def __init__(self, console: Console, *, threads: int = 1, kind: type[Recorder] = Recorder) -> None:
        self.corpus, self.console = Corpus(), console
        self._threads, self._kind = threads, kind
        torch.set_num_threads(threads)  # what is computed here is small: more would only wait for each other
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


def _packed(records: list[Record]) -> dict[str, Tensor]:
    """Records of any lengths as flat tensors, with their lengths."""
    counted = [record.importance.reshape(-1) for record in records if record.importance is not None]
    return {
        "logits": torch.stack([record.logits for record in records]),
        "tokens": torch.tensor([record.tokens for record in records]),
        "first_words": torch.tensor([record.first_words for record in records]),
        "truncated": torch.tensor([record.truncated for record in records]),
        "word_of": torch.cat([record.word_of for record in records]),
        **({"importance": torch.cat(counted)} if counted else {}),
    }


def _unpacked(packed: dict[str, Tensor]) -> list[Record]:
    lengths, layers = packed["tokens"].tolist(), packed["logits"].shape[1]
    counted: Iterable[Tensor | None] = [None] * len(lengths)
    if "importance" in packed:
        counted = [
            flat.view(layers, len(flat) // layers) for flat in packed["importance"].split([n * layers for n in lengths])
        ]
    words, first, cut = packed["word_of"].split(lengths), packed["first_words"].tolist(), packed["truncated"].tolist()
    return [Record(*row) for row in zip(words, first, cut, packed["logits"], counted, strict=True)]


def _vectors(signatures: list[Vector | None]) -> dict[str, Tensor]:
    length = max((len(vector) for vector in signatures if vector), default=1)
    rows = [vector or (float("nan"),) * length for vector in signatures]
    return {"vectors": torch.tensor(rows, dtype=torch.float32)}


def _tuples(packed: dict[str, Tensor]) -> list[Vector | None]:
    return [None if row[0] != row[0] else tuple(row) for row in packed["vectors"].tolist()]
