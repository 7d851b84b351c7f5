"""Files of a replay's cache: a few dozen items each, whole files only, so that a killed recording goes on."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Generic, TypeVar

from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from shared.errors import BadSetting
from shared.model.base import Array

T = TypeVar("T")
CHUNK, CHUNK_S = 32, 20.0  # items in a file at most, and seconds of work that a kill may cost


class Shelf(Generic[T]):
    """Items by key, in memory and in the files of one folder. `pack` makes arrays of items, `unpack` the reverse.

    Raises:
        BadSetting: a file is damaged.
    """

    def __init__(
        self, folder: Path, pack: Callable[[list[T]], dict[str, Array]], unpack: Callable[[dict[str, Array]], list[T]]
    ) -> None:
        self.folder, self._pack, self._unpack = folder, pack, unpack
        self.items: dict[str, T] = {}
        self._unsaved: list[str] = []
        self._saved_at = time.monotonic()
        self._files: dict[str, Path] = {}
        for path in folder.glob("*.safetensors"):
            with _opened(path) as file:
                self._files.update(dict.fromkeys(json.loads(file.metadata()["keys"]), path))

    def fetch(self, keys: Iterable[str]) -> list[str]:
        """Read these items into memory; the keys that no file has, each once."""
        missing = [key for key in keys if key not in self.items]
        for path in {self._files[key] for key in missing if key in self._files}:
            with _opened(path) as file:
                names = json.loads(file.metadata()["keys"])
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
            self.items.update(zip(names, self._unpack(arrays), strict=True))
        return list(dict.fromkeys(key for key in missing if key not in self.items))

    def put(self, key: str, item: T) -> None:
        """Add an item; it is on disk after `save`, which is called when it is time."""
        self.items[key] = item
        self._unsaved.append(key)
        if len(self._unsaved) >= CHUNK or time.monotonic() - self._saved_at > CHUNK_S:
            self.save()

    def save(self) -> None:
        """Write what is not on disk yet."""
        self._saved_at = time.monotonic()
        if not self._unsaved:
            return
        name = hashlib.sha256("".join(self._unsaved).encode()).hexdigest()[:24]
        path = self.folder / f"{name}.safetensors"
        unfinished = path.with_suffix(f".{id(self)}.part")  # two replays may record the same texts at once
        self.folder.mkdir(parents=True, exist_ok=True)
        arrays = self._pack([self.items[key] for key in self._unsaved])
        save_file(arrays, unfinished, {"keys": json.dumps(self._unsaved)})
        unfinished.replace(path)
        self._files.update(dict.fromkeys(self._unsaved, path))
        self._unsaved = []


def _opened(path: Path) -> Any:  # safetensors does not name the type
    try:
        return safe_open(path, "np")
    except SafetensorError as error:
        raise BadSetting(f"{path}: damaged ({error}): delete it, and its texts are run again") from error
