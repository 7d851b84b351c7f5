"""The ledger: every decision on record, one JSON line per answered text, written by the tier that was asked.

A line holds what one policy needs to be judged from another's log: seed and draw, confidence and offload probability
of every hop, the path, words, bytes and times. Of the text it holds the sha256 alone, unless `texts` is set.

    {"time", "id", "seed", "index", "text_sha256", "tier", "model", "policy", "max_tier", "deadline_ms", "label",
     "probabilities", "confidence", "answered_by", "exit_layer", "words_in", "truncated", "degraded", "hops",
     "timings_ms"}                                            hops are those of the answer (shared/contracts.py)

One thread appends the lines of a request in one write, so that several tiers may share a file. A line that cannot be
written never fails a request: it is logged and counted as lost. Left out: rotation (logrotate's `copytruncate` works).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from threading import BoundedSemaphore
from typing import Any, Literal

import structlog

from shared.contracts import ClassifyRequest, ClassifyResponse, TextPair
from shared.errors import BadSetting

log = structlog.get_logger()
Outcome = Literal["kept", "lost"]
BACKLOG = 10_000  # requests that may wait for a slow disk; further ones are lost


def text_sha256(text: str, pair: str | None = None) -> str:
    """Names a text without showing it: of one text its sha256 (UTF-8), of a pair the sha256 of both digests.

    >>> text_sha256("a fine film")[:16]
    'bac6d0ff1e0a93ed'
    """
    first = hashlib.sha256(text.encode())
    if pair is None:
        return first.hexdigest()
    return hashlib.sha256(first.digest() + hashlib.sha256(pair.encode()).digest()).hexdigest()


class Ledger:
    """An append-only file of decisions. `count` is told how many lines were kept or lost.

    Raises:
        BadSetting: the file cannot be opened for writing.
    """

    def __init__(self, path: Path, *, tier: str, texts: bool, count: Callable[[Outcome, int], None]) -> None:
        self._tier, self._texts, self._count, self.path = tier, texts, count, path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
            size = os.fstat(self._file).st_size
            self._torn = size > 0 and os.pread(self._file, 1, size - 1) != b"\n"  # a writer was killed in a line
        except OSError as error:
            raise BadSetting(f"TIERWISE_LEDGER={path}: cannot append to it: {error.strerror}") from error
        self._room = BoundedSemaphore(BACKLOG)
        self._pool = ThreadPoolExecutor(1, "ledger")

    def add(self, request: ClassifyRequest, answer: ClassifyResponse, policy: Mapping[str, Any]) -> None:
        """Put an answered request on record; returns at once."""
        if not self._room.acquire(blocking=False):
            self._lose(len(answer.results), "the disk is too slow")
            return
        self._pool.submit(self._write, datetime.now(UTC), request, answer, policy)

    def _write(
        self, now: datetime, request: ClassifyRequest, answer: ClassifyResponse, policy: Mapping[str, Any]
    ) -> None:
        lines = [json.dumps(line, ensure_ascii=False) + "\n" for line in self._lines(now, request, answer, policy)]
        data = ("\n" if self._torn else "").encode() + "".join(lines).encode()
        try:
            self._torn = os.write(self._file, data) < len(data)
            if self._torn:
                raise OSError("a line was cut: is the disk full?")
            self._count("kept", len(lines))
        except OSError as error:
            self._lose(len(lines), str(error))
        finally:
            self._room.release()

    def _lines(
        self, now: datetime, request: ClassifyRequest, answer: ClassifyResponse, policy: Mapping[str, Any]
    ) -> Iterator[dict[str, Any]]:
        inputs = request.inputs if isinstance(request.inputs, list) else [request.inputs]
        options = request.options
        for item, result in zip(inputs, answer.results, strict=True):
            text = TextPair(text=item) if isinstance(item, str) else item
            said = result.model_dump(mode="json", exclude={"index", "tier", "hops"})
            yield {
                "time": now.isoformat(timespec="milliseconds"),
                "id": answer.id,
                "seed": answer.id if options.seed is None else str(options.seed),
                "index": result.index,
                "text_sha256": text_sha256(text.text, text.text_pair),
                **(text.model_dump() if self._texts else {}),
                "tier": self._tier,
                "model": answer.model,
                "policy": dict(policy),
                "max_tier": options.max_tier,
                "deadline_ms": options.deadline_ms,
                **said,
                "answered_by": result.tier,
                "hops": [hop.model_dump(mode="json", exclude={"exits", "words"}) for hop in result.hops],
                "timings_ms": answer.timings_ms,
            }

    def _lose(self, lines: int, why: str) -> None:
        log.error("ledger_lost", path=str(self.path), lines=lines, detail=why)
        self._count("lost", lines)

    def close(self) -> None:
        """Write what is under way, then close the file."""
        self._pool.shutdown(wait=True)
        os.close(self._file)


def entries(path: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of a ledger, in order; one that a kill cut short is passed over."""
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if isinstance(entry, dict):
                yield entry
