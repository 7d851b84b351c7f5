"""The ledger: every decision on record, one JSON line per answered text, written by the tier that was asked.

A line holds what one policy needs to be judged from another's log: seed and draw, confidence and offload probability
of every hop, the path, words, bytes and times. Of the text it holds the sha256 alone, unless `texts` is set.

    {"time", "id", "seed", "index", "text_sha256", "tier", "model", "policy", "max_tier", "deadline_ms", "label",
     "probabilities", "confidence", "why", "answered_by", "exit_layer", "words_in", "truncated", "degraded", "hops",
     "timings_ms"}                                            hops are those of the answer (shared/contracts.py)

One thread appends the lines of a request in one write, under a lock, so that several tiers may share a file. Lines that
cannot be written whole are cut off again, logged and counted as lost; no request notices. The torn line of a killed
writer is cut off before the next one. The file may be renamed or deleted at any time (logrotate, `copytruncate` or
not): the next line makes a new one. Left out: fsync.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal

import structlog

from shared.background import Background
from shared.contracts import ClassifyRequest, ClassifyResponse
from shared.errors import BadSetting

log = structlog.get_logger()
Outcome = Literal["kept", "lost"]
BACKLOG = 64_000_000  # characters of texts that may wait for a slow disk; further ones are lost
CLOSE_S = 3.0  # for what waits when the tier stops
_TEXT = 2_000  # characters that an answer counts as, beside its text
_LONGEST = 1 << 26  # bytes of a line of ours


def text_sha256(text: str, pair: str | None = None) -> str:
    """Names a text without showing it: of one text its sha256 (UTF-8), of a pair the sha256 of both digests.

    >>> text_sha256("a fine film")[:16]
    'bac6d0ff1e0a93ed'
    """
    first = hashlib.sha256(text.encode())
    if pair is None:
        return first.hexdigest()
    return hashlib.sha256(first.digest() + hashlib.sha256(pair.encode()).digest()).hexdigest()


class AppendOnly:
    """A file of JSON lines that others may write, rename, delete and truncate meanwhile.

    Raises:
        OSError: it is no regular file, or cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._file = path, -1
        self._follow()

    def append(self, data: bytes) -> None:
        """Append whole lines, or nothing.

        Raises:
            OSError: nothing was written.
        """
        for _ in range(2):
            self._follow()
            with self._locked():
                self._write(self._mend() + data)
            if os.fstat(self._file).st_nlink or self._named():  # else it was deleted between the two
                return

    def close(self) -> None:
        os.close(self._file)

    def _named(self) -> bool:
        """Whether the path still names the file that is open."""
        try:
            return self._file >= 0 and os.path.samestat(self._path.stat(), os.fstat(self._file))
        except FileNotFoundError:
            return False

    def _follow(self) -> None:
        """Open what the path names now, if that is another file. One that may block is not even opened."""
        if self._named():
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if self._path.exists() and not self._path.is_file():
            raise OSError("it is not a regular file")
        file = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK, 0o600)
        if self._file >= 0:
            os.close(self._file)
        self._file = file

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Keeps the other writers out; a file system without locks lets them in."""
        with suppress(OSError):
            fcntl.flock(self._file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            with suppress(OSError):
                fcntl.flock(self._file, fcntl.LOCK_UN)

    def _write(self, data: bytes) -> None:
        written = 0
        try:
            while written < len(data):
                written += os.write(self._file, data[written:])
        except OSError:
            if written:  # back to where it began
                os.ftruncate(self._file, os.fstat(self._file).st_size - written)
            raise

    def _mend(self) -> bytes:
        """Cut off the torn line of a killed writer; tell which bytes have to come before the next line."""
        size = os.fstat(self._file).st_size
        if not size or os.pread(self._file, 1, size - 1) == b"\n":
            return b""
        end = os.pread(self._file, _LONGEST, max(0, size - _LONGEST))
        last = end.rpartition(b"\n")[2]
        if not last.strip(b"\0") or (last.startswith(b"{") and entry_of(last) is None):
            os.ftruncate(self._file, size - len(last))
            return b""
        return b"\n"  # whole but for its end, or nothing of ours


def entry_of(line: bytes | str) -> dict[str, Any] | None:
    """A whole line's entry; null where it is not one."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return entry if isinstance(entry, dict) else None


class Ledger:
    """An append-only file of decisions. `count` is told how many lines were kept or lost.

    Raises:
        BadSetting: the file cannot be opened for writing.
    """

    def __init__(self, path: Path, *, tier: str, texts: bool, count: Callable[[Outcome, int], None]) -> None:
        self._tier, self._texts, self._count, self.path = tier, texts, count, path
        try:
            self._file = AppendOnly(path)
        except OSError as error:
            raise BadSetting(f"TIERWISE_LEDGER={path}: cannot append to it: {error.strerror or error}") from error
        self._thread = Background("ledger", limit=BACKLOG)
        self._put = self._done = 0  # lines, by the event loop and by the thread

    def add(self, request: ClassifyRequest, answer: ClassifyResponse) -> None:
        """Put an answered request on record; returns at once."""
        size = sum(_TEXT + len(pair.text) + len(pair.text_pair or "") for pair in request.pairs())
        if not self._thread.put(partial(self._write, datetime.now(UTC), request, answer), size=size):
            self._lose(len(answer.results), "the disk is too slow")
            return
        self._put += len(answer.results)

    def _write(self, now: datetime, request: ClassifyRequest, answer: ClassifyResponse) -> None:
        lines = [json.dumps(line, ensure_ascii=False) + "\n" for line in self._lines(now, request, answer)]
        try:
            self._file.append("".join(lines).encode())
        except OSError as error:
            self._lose(len(lines), str(error))
        else:
            self._count("kept", len(lines))
        self._done += len(lines)

    def _lines(self, now: datetime, request: ClassifyRequest, answer: ClassifyResponse) -> Iterator[dict[str, Any]]:
        options = request.options
        for text, result in zip(request.pairs(), answer.results, strict=True):
            yield {
                "time": now.isoformat(timespec="milliseconds"),
                "id": answer.id,
                "seed": answer.id if options.seed is None else str(options.seed),
                "index": result.index,
                "text_sha256": text_sha256(text.text, text.text_pair),
                **(text.model_dump() if self._texts else {}),
                "tier": self._tier,
                "model": answer.model,
                "policy": answer.policy,
                "max_tier": options.max_tier,
                "deadline_ms": options.deadline_ms,
                **result.model_dump(mode="json", exclude={"index", "tier", "ensemble", "hops"}),
                "answered_by": result.tier,
                "hops": [hop.model_dump(mode="json", exclude={"exits", "words", "explained"}) for hop in result.hops],
                "timings_ms": answer.timings_ms,
            }

    def _lose(self, lines: int, why: str) -> None:
        log.error("ledger_lost", path=str(self.path), lines=lines, detail=why)
        self._count("lost", lines)

    def close(self, timeout_s: float = CLOSE_S) -> None:
        """Write what waits, for so long at most; the rest is lost."""
        if self._thread.close(timeout_s):
            self._file.close()
        else:
            self._lose(self._put - self._done, "the disk is too slow, and the tier stops")


def entries(path: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of a ledger, in order; one that a kill cut short is passed over."""
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            if (entry := entry_of(line)) is not None:
                yield entry
