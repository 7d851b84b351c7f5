"""What replicas of a tier kept apart, put together: the states that policies learned, and ledgers.

A state file is called `TIER-DIGEST.json`, and so is the merged one: a tier of that card starts from it. What replicas
began with counts once, so a merge of states that came from an earlier merge must know it (`since`).
A merged ledger holds the lines of all as they were written, ordered by their times; of equal lines one stays, and what
a kill cut short stays out. Memory: about 200 bytes a line. Left out: merging while tiers write.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from lab.outputs import sole_writer, write_json
from shared.errors import BadSetting
from shared.model.bundle import load_bundle
from shared.policies import Where, build, first_state
from shared.policies.states import States
from shared.web.ledger import entry_of


@dataclass(frozen=True)
class MergedLedger:
    """How many lines there are, how many were there more than once, and how many were torn."""

    lines: int
    repeated: int
    torn: int


def merge_states(files: Sequence[Path], folder: Path, bundle: str, since: Path | None = None) -> dict[Path, list[str]]:
    """Write one state file of several into a folder; its path, and the policies in it.

    Raises:
        BadSetting: files of different tiers or cards, or that are no states, or that cannot be merged, or one is there.
    """
    names = {path.name for path in (*files, *([] if since is None else [since]))}
    if len(names) > 1:
        raise BadSetting(f"states of one tier and one card have one name, TIER-DIGEST.json; these are {_all(names)}")
    (name,) = names
    with _new(folder / name, files) as out:
        states = _states(name, bundle)
        merged = states.merge([states.read(path) for path in files], {} if since is None else states.read(since))
        write_json(out, merged)
    return {out: [json.loads(key)["name"] for key in merged]}


def _states(name: str, bundle: str) -> States:
    """What reads the state files of this name."""
    loaded = load_bundle(bundle)
    tier, _, digest = name.removesuffix(".json").rpartition("-")
    if tier not in loaded.order or digest != loaded.digest[:12]:
        known = f"TIER-{loaded.digest[:12]}.json, of {', '.join(loaded.order)}"
        raise BadSetting(f"{name}: state files of the bundle {loaded.name} are called {known}; see --bundle")
    order, sizes = loaded.order, {tier: model.layers for tier, model in loaded.tiers.items()}
    where = Where(tier, order[order.index(tier) + 1 :], sizes)
    return States(
        None,
        lambda spec: build(spec, order, loaded.card.policies),
        lambda policy: first_state(policy, where, loaded.pools),
    )


def merge_ledgers(files: Sequence[Path], target: Path) -> MergedLedger:
    """Write one ledger of several.

    Raises:
        BadSetting: a file with a line of another kind, or no whole line at all, or one is there.
    """
    with _new(target, files) as out:
        seen: set[bytes] = set()
        places: list[tuple[datetime, int, int, int]] = []  # when, and where: file, offset, length
        whole = torn = 0
        for number, path in enumerate(files):
            before = whole
            for at, offset, line in _lines(path):
                when = _time(f"{path}, line {at}", line)
                if when is None:
                    torn += 1
                    continue
                whole += 1
                if (digest := hashlib.sha256(line).digest()[:16]) not in seen:
                    seen.add(digest)
                    places.append((when, number, offset, len(line)))
            if whole == before and path.stat().st_size:
                raise BadSetting(f"{path}: no line of a ledger in it")
        _write(out, files, sorted(places))
    return MergedLedger(len(places), whole - len(places), torn)


def _lines(path: Path) -> Iterator[tuple[int, int, bytes]]:
    """Number, offset and bytes of every line that is not blank, without its end."""
    offset = 0
    with path.open("rb") as file:
        for at, line in enumerate(file, 1):
            if line.strip(b"\0 \t\r\n"):
                yield at, offset, line.rstrip(b"\r\n")
            offset += len(line)


def _time(place: str, line: bytes) -> datetime | None:
    """When a line was written; null for a torn one.

    Raises:
        BadSetting: it is no line of a ledger.
    """
    if (entry := entry_of(line)) is None:
        return None
    try:
        when = datetime.fromisoformat(entry["time"])
        if when.tzinfo is None or not {"id", "index", "tier", "hops"} <= entry.keys():
            raise ValueError("time, id, index, tier and hops")
    except (ValueError, KeyError, TypeError) as error:
        raise BadSetting(f"{place}: no line of a ledger ({error})") from error
    return when


def _write(out: Path, files: Sequence[Path], places: Sequence[tuple[datetime, int, int, int]]) -> None:
    """Copy the lines in this order: whole, or not at all."""
    unfinished = out.with_name(f".{out.name}.{os.getpid()}.part")
    opened = [path.open("rb") for path in files]
    try:
        with open(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            for _, number, offset, length in places:
                opened[number].seek(offset)
                file.write(opened[number].read(length) + b"\n")
        unfinished.replace(out)
    finally:
        unfinished.unlink(missing_ok=True)
        for one in opened:
            one.close()


@contextmanager
def _new(out: Path, files: Sequence[Path]) -> Iterator[Path]:
    """A file that is not there yet, written by nobody else, of files that are each given once.

    Raises:
        BadSetting: it is there, or one of them counts twice.
    """
    if len({path.resolve() for path in files}) < len(files):
        raise BadSetting("a file is given twice: name each once")
    with sole_writer(out):
        if out.exists():
            raise BadSetting(f"{out} is there already: move it away, or choose another --out")
        yield out


def _all(names: set[str]) -> str:
    return ", ".join(sorted(names))
