"""Logs: whatever a process says is one JSON object a line on standard error; never a request's text.

    structlog, logging, warnings, uncaught exceptions, what a library prints  ->  Repeats  ->  JSON  ->  Lines  ->  fd 2

A line is put into a queue and written by a thread. One that cannot be written is dropped and counted: standard error
may be closed, full, or a pipe that nobody reads, and no request notices. The same message is written at most 20 times
in 10 seconds; then one line, `repeated`, says how many were left out. A request's line is never left out. Left out:
what C code writes to the descriptor itself, and the one plain line of a start that is refused, which is for a person.
"""

from __future__ import annotations

import io
import json
import logging
import os
import re
import select
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, Literal, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from shared.background import Background

log = structlog.get_logger()
Outcome = Literal["kept", "lost", "repeated"]
OUTCOMES: tuple[Outcome, ...] = ("kept", "lost", "repeated")
BACKLOG = 4_000_000  # bytes of lines that may wait for a slow reader
LIMIT, WINDOW_S = 20, 10.0  # the same message, in so many seconds
_KINDS = 200  # messages told apart in a window; those beyond count as one
_VARIES = re.compile(r"0x[0-9a-f]+|\d+")  # addresses and numbers do not make a message another one
_ALWAYS = ("request", "repeated")


class Lines(io.TextIOBase):
    """A text stream whose lines a thread writes to a descriptor. Null: there is none, and every line is lost."""

    def __init__(self, fd: int | None, *, limit: int = BACKLOG) -> None:
        self._fd, self._thread, self._torn = fd, Background("log", limit=limit), False
        self._lock, self._counted = threading.RLock(), dict.fromkeys(OUTCOMES, 0)

    def write(self, text: str) -> int:
        """Put one line into the queue; never blocks, never raises."""
        line = text.encode(errors="backslashreplace")
        if not self._thread.put(partial(self._write, line), size=len(line)):
            self.count("lost")
        return len(text)

    def count(self, outcome: Outcome) -> None:
        with self._lock:
            self._counted[outcome] += 1

    @property
    def counted(self) -> Mapping[Outcome, int]:
        """What became of the lines so far."""
        return self._counted

    def finish(self, timeout_s: float) -> None:
        """Write what waits, for so long at most; then let go."""
        self._thread.close(timeout_s)

    def _write(self, line: bytes) -> None:
        try:
            self._write_whole(b"\n" + line if self._torn else line)
        except OSError:
            self.count("lost")
        else:
            self._torn = False
            self.count("kept")

    def _write_whole(self, line: bytes) -> None:
        if self._fd is None:
            raise OSError("no standard error")
        while line:
            try:
                line = line[os.write(self._fd, line) :]
                self._torn = True  # until the rest is written
            except BlockingIOError:  # whoever shares the pipe made it non-blocking
                room = select.poll()
                room.register(self._fd, select.POLLOUT)
                room.poll()


class Repeats:
    """Lets the same message through `LIMIT` times in `WINDOW_S` seconds, then logs how many it dropped."""

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, count: Callable[[Outcome], None] = lambda outcome: None
    ) -> None:
        self._clock, self._count, self._lock = clock, count, threading.RLock()
        self._ends, self._seen = clock() + WINDOW_S, dict[tuple[str, str, str], int]()

    def passes(self, source: str, level: str, message: str) -> bool:
        """Whether this message may be written now."""
        self.roll()
        key = (source, level, _VARIES.sub("#", message.partition("\n")[0][:200]))
        with self._lock:
            if key not in self._seen and len(self._seen) >= _KINDS:
                key = (source, level, "other messages")
            self._seen[key] = times = self._seen.get(key, 0) + 1
        if times > LIMIT:
            self._count("repeated")
        return times <= LIMIT

    def roll(self, *, now: bool = False) -> None:
        """If the window has passed (or `now`), begin another, and log how many messages this one dropped."""
        with self._lock:
            if not now and self._clock() < self._ends:
                return
            self._ends, seen, self._seen = self._clock() + WINDOW_S, self._seen, {}
        for (source, level, message), times in seen.items():
            if times > LIMIT:
                log.warning("repeated", message=message, source=source, of_level=level, left_out=times - LIMIT)

    def of_ours(self, _logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
        """As structlog's first processor."""
        if event["event"] in _ALWAYS:
            self.roll()
        elif not self.passes("tierwise", method, str(event["event"])):
            raise structlog.DropEvent
        return event

    def of_others(self, record: logging.LogRecord) -> bool:
        """As a filter of a logging handler: before anything is formatted."""
        return self.passes(record.name, record.levelname.lower(), str(record.msg))


class Printed(io.TextIOBase):
    """Stands for a standard stream: what is printed becomes log lines, and cannot fail or hold who prints."""

    def __init__(self, name: str, fd: int) -> None:
        self._log, self._fd, self._rest = logging.getLogger(name), fd, ""

    def write(self, text: str) -> int:
        *lines, self._rest = re.split(r"[\r\n]", self._rest + text)
        if len(self._rest) > 10_000:
            lines, self._rest = [*lines, self._rest], ""
        for line in lines:
            if line.strip():
                self._log.warning(line)
        return len(text)

    def fileno(self) -> int:
        return self._fd


class _Logger:
    """What structlog calls with a finished line."""

    def __init__(self, out: TextIO | Lines) -> None:
        self._out = out

    def msg(self, line: str) -> None:
        self._out.write(line + "\n")

    debug = info = warning = error = critical = exception = msg


def configure_logs(level: str, out: TextIO | Lines, repeats: Repeats | None = None) -> None:
    """Send what is logged to `out`, a JSON object a line; of libraries, warnings and worse."""
    repeats, least = repeats or Repeats(), logging.getLevelNamesMapping()[level.upper()]
    common: list[Processor] = [
        structlog.contextvars.merge_contextvars,  # request_id, trace_id
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[repeats.of_ours, *common, _json],
        wrapper_class=structlog.make_filtering_bound_logger(least),
        logger_factory=lambda *_: _Logger(out),
    )
    others = logging.StreamHandler(out)
    others.addFilter(repeats.of_others)
    others.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[_named, *common],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, _json],
        )
    )
    logging.root.handlers = [others]
    logging.root.setLevel(max(least, logging.WARNING))  # httpx tells of every call at `info`


def take_over(level: str, lines: Lines) -> Repeats:
    """Send everything that this process logs or prints to `lines`."""
    repeats = Repeats(count=lines.count)
    configure_logs(level, lines, repeats)
    logging.captureWarnings(capture=True)
    sys.stdout, sys.stderr = Printed("stdout", 1), Printed("stderr", 2)
    threading.excepthook = lambda args: _uncaught(args.exc_type, args.exc_value, args.exc_traceback)
    sys.unraisablehook = lambda args: _uncaught(args.exc_type, args.exc_value, args.exc_traceback)
    return repeats


def standard_error() -> Lines:
    """Lines that go to standard error; standard descriptors that were closed are occupied, so that no socket or file
    of ours gets their number.
    """
    fd = None
    if sys.stderr is not None:
        with suppress(OSError, ValueError):
            fd = os.dup(sys.stderr.fileno())
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one
    return Lines(fd)


def _uncaught(kind: type[BaseException], value: BaseException | None, trace: Any) -> None:
    if not issubclass(kind, SystemExit):
        log.error("uncaught", exc_info=(kind, value, trace))


def _named(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Says which library speaks."""
    record = event.get("_record")
    return event if record is None else {**event, "logger": record.name}


def _json(_logger: WrappedLogger, _method: str, event: EventDict) -> str:
    try:
        return json.dumps(event, default=repr, allow_nan=False)
    except Exception as error:  # noqa: BLE001 - whatever cannot be shown must not fail who logs it
        return json.dumps({"event": repr(event["event"])[:1000], "level": "error", "unprintable": type(error).__name__})
