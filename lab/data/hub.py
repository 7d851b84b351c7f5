"""Data sets on the Hugging Face hub: which parquet files hold a split.

    hub:OWNER/NAME            test-00000-of-00002.parquet, test.parquet, imdb-test.parquet, test/0000.parquet
    hub:OWNER/NAME/CONFIG     the same below the folder CONFIG; needed where several folders have the split

A split is a whole word of a file's name: `latest-reviews.parquet` is no test split. Left out: other formats; data sets
made by code.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import IO, Any, Protocol

from shared.errors import BadSetting, TierwiseError

PREFIX = "hub:"
KNOWN = ("train", "test", "dev", "validation")
_SHARD = re.compile(r"-\d+(-of-\d+)?$")
_NAME = re.compile(r"[\w.-]+(@[\w.-]+)?")


class Filesystem(Protocol):
    """What is needed of fsspec's file systems."""

    def glob(self, path: str) -> Any: ...

    def open(self, path: str, mode: str) -> Any: ...


def hub_files(source: str, split: str | None, filesystem: Filesystem | None = None) -> list[str]:
    """The parquet files of a split, or of every split; the paths are the file system's.

    Raises:
        BadSetting: no such data set or split, several configurations have it, or the hub gives no answer.
    """
    root, config = _named(source)
    with _ours(source):
        found = sorted(str(path).lstrip("/") for path in (filesystem or _hub()).glob(f"{root}/**/*.parquet"))
    inside = [PurePosixPath(path.removeprefix(f"{root}/")) for path in found]
    if config is not None:
        inside = [path for path in inside if PurePosixPath(config) in path.parents]
    if not inside:
        raise BadSetting(f"{source}: no parquet file there")
    chosen = inside if split is None else _of_split(source, inside, split)
    configs = sorted({str(_config(path)) for path in chosen})
    if len(configs) > 1:
        base = f"{PREFIX}{root.removeprefix('datasets/')}"
        raise BadSetting(f"{source}: several configurations: {', '.join(configs)}; name one: {base}/{configs[0]}")
    return [f"{root}/{path}" for path in chosen]


def hub_splits(source: str, filesystem: Filesystem | None = None) -> list[str]:
    """The usual splits that the file names tell of."""
    paths = [PurePosixPath(path) for path in hub_files(source, None, filesystem)]
    return [split for split in KNOWN if any(_has(path, split) for path in paths)]


@contextmanager
def opened(source: str, path: str, filesystem: Filesystem | None = None) -> Iterator[IO[bytes]]:
    """A file of the hub, to be read.

    Raises:
        BadSetting: the hub does not give it.
    """
    with _ours(source), (filesystem or _hub()).open(path, "rb") as file:
        yield file


def _named(source: str) -> tuple[str, str | None]:
    parts = source.removeprefix(PREFIX).split("/")
    if not all(_NAME.fullmatch(part) for part in parts):
        raise BadSetting(f"{source}: names no data set: say hub:OWNER/NAME, or hub:OWNER/NAME/CONFIG")
    return f"datasets/{'/'.join(parts[:2])}", "/".join(parts[2:]) or None


def _hub() -> Filesystem:
    from huggingface_hub import HfFileSystem

    return HfFileSystem()


@contextmanager
def _ours(source: str) -> Iterator[None]:
    """A client's errors are one line of ours: no network, no such data set, no access, a proxy that it cannot use."""
    try:
        yield
    except TierwiseError:
        raise
    except Exception as error:  # the hub's HTTP library, and so its errors, differ by version
        why = " ".join(str(error).split())[:300] or type(error).__name__
        raise BadSetting(f"{source}: the hub does not give it: {why}") from error


def _of_split(source: str, paths: Sequence[PurePosixPath], split: str) -> list[PurePosixPath]:
    exact = [path for path in paths if _SHARD.sub("", path.stem) == split]
    chosen = exact or [path for path in paths if _has(path, split)]
    if not chosen:
        raise BadSetting(f"{source}: no parquet file for split {split!r}; there are {_some(paths)}")
    others = [path for path in chosen if not exact and any(_has(path, name) for name in KNOWN if name != split)]
    if others:
        raise BadSetting(f"{source}: which split is {_some(others)}? its name has several")
    return chosen


def _has(path: PurePosixPath, split: str) -> bool:
    word = re.compile(rf"(?<![^\W_]){re.escape(split)}(?![^\W_])", re.IGNORECASE)
    return bool(word.search(path.stem)) or path.parent.name == split


def _config(path: PurePosixPath) -> PurePosixPath:
    """The folder of a file, less one that only names the split."""
    return path.parent.parent if path.parent.name in KNOWN else path.parent


def _some(paths: Sequence[PurePosixPath]) -> str:
    return ", ".join(map(str, paths[:5])) + (f" and {len(paths) - 5} more" if len(paths) > 5 else "")
