"""Links that the kernel shapes: what their shaper says is in force.

The shaper that owns a tier's network namespace (`services/shaper`) writes a file; a link can change while the tier
runs, also because the tier asks for it (`ask_shaper`). A damaged file says nothing about what is in force, so its links
count as unshaped.
"""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import math
import stat
from pathlib import Path
from typing import Any

from shared.errors import BadSetting
from shared.links.profile import SHAPER_SOCKET, Profile, radio_of

log = logging.getLogger(__name__)
_MOST = 1_000_000  # bytes of the shaper's file
_MODES = ("profile", "trace", "cut", "waiting")
_Found = tuple[Profile, bool, str | None]  # of a link: what is in force, whether it is cut, its trace
_ANSWER_S = 5.0  # the kernel answers in milliseconds


class ShapedLinks:
    """What the shaper says is in force on this tier's links, read anew whenever its file has changed.

    Raises:
        BadSetting: the file is damaged when the tier starts.
    """

    FILE = "links.json"

    def __init__(self, folder: Path) -> None:
        self.folder, self._path = folder, folder / self.FILE
        self._stamp, self._links = (0, 0, 0), dict[str, _Found]()
        self._look()

    def in_force(self, link: str) -> Profile | None:
        """The profile on a link, `end-edge`; null where nothing shapes it (yet), or the file is damaged."""
        found = self._of(link)
        return found and found[0]

    def is_cut(self, link: str) -> bool:
        """Whether it is cut. Its profile is then a total loss under the name of what was before."""
        found = self._of(link)
        return found is not None and found[1]

    def trace(self, link: str) -> str | None:
        """The trace that it follows, also while it is cut; null: none."""
        found = self._of(link)
        return found and found[2]

    def _of(self, link: str) -> _Found | None:
        try:
            self._look()
        except BadSetting as error:
            log.error("%s", error)  # once: until the file changes again
        return self._links.get(link)

    def _look(self) -> None:
        try:
            found = self._path.stat()
            stamp = found.st_mtime_ns, found.st_ino, found.st_size
        except OSError as error:
            stamp = error.errno or 0, 0, 0
        if stamp == self._stamp:
            return
        self._stamp, self._links = stamp, {}
        if stamp[0] == errno.ENOENT:  # no shaper yet
            return
        try:
            self._links = _read(self._path)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
            raise BadSetting(f"{self._path} is damaged ({error!r}): start this tier's shaper again") from error


async def ask_shaper(folder: Path, **command: str) -> None:
    """Have the shaper that writes to `folder` change its own end of a link: `do`, `link`, `profile`.

    Raises:
        BadSetting: it refuses, or takes no changes.
    """
    path = folder / SHAPER_SOCKET
    try:
        async with asyncio.timeout(_ANSWER_S):
            reader, writer = await asyncio.open_unix_connection(path)
            try:
                writer.write(json.dumps(command).encode() + b"\n")
                answer = json.loads(await reader.readline())
            finally:
                writer.close()
    except (OSError, ValueError) as error:  # a timeout is an OSError
        raise BadSetting(
            f"no shaper takes changes at {path} ({type(error).__name__}): start it with TIERWISE_LINK_CONTROL=true too"
        ) from error
    if "error" in answer:
        raise BadSetting(f"the shaper refused: {answer['error']}")


def _read(path: Path) -> dict[str, _Found]:
    found = path.stat()
    if not stat.S_ISREG(found.st_mode) or found.st_size > _MOST:
        raise ValueError("not a file of the shaper's")
    links = json.loads(path.read_text("utf-8"))["links"]
    return {name: _found(raw) for name, raw in links.items() if raw["mode"] != "waiting"}


def _found(raw: dict[str, Any]) -> _Found:
    trace = raw.get("trace")
    if not isinstance(trace, str | None):
        raise ValueError(f"trace {trace!r}")
    return _shaped(raw), raw["mode"] == "cut", trace


def _shaped(raw: dict[str, Any]) -> Profile:
    # A shaper knows the rate of its own end alone; it stands for both directions.
    numbers = [raw["rate"], raw["rate"], raw["rtt"], raw["jitter"], raw["loss"]]
    if not isinstance(raw["profile"], str) or raw["mode"] not in _MODES:
        raise ValueError(f"profile {raw['profile']!r}, mode {raw['mode']!r}")
    if any(isinstance(n, bool) or not 0 <= n < math.inf for n in numbers) or raw["loss"] > 1:
        raise ValueError(f"profile {raw['profile']!r}: {numbers}")
    rate, _, rtt, jitter, loss = map(float, numbers)
    return Profile(raw["profile"], rate, rate, rtt, jitter, loss, radio_of(raw["profile"]))
