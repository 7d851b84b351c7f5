"""Files that a command writes: whole or not at all, and one writer at a time."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from shared.errors import BadSetting

REPLACED = " (over earlier ones)"


def write_json(path: Path, value: Any) -> bool:
    """Write a JSON file at once, so that a killed run leaves the old one; whether there was one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    before = path.exists()
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.part")
    unfinished.write_text(json.dumps(value, indent=1) + "\n")
    unfinished.replace(path)
    return before


@contextmanager
def sole_writer(out: Path) -> Iterator[None]:
    """Hold `.OUT.lock` beside what is written under this name; the lock ends with the process, however it ends.

    Raises:
        BadSetting: another run holds it.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    path = out.with_name(f".{out.name}.lock")
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise BadSetting(f"{out}: another run is writing there: wait for it, or choose another --out") from None
        with suppress(FileNotFoundError):
            if os.fstat(descriptor).st_ino == path.stat().st_ino:
                break
        os.close(descriptor)  # its last holder removed this file between our two steps
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)
