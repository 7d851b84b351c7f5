"""What policies that learn have learned: kept from request to request, and on disk if a folder is given.

A state belongs to a policy with its parameters, on the tier that was asked. It changes on the event loop alone, in one
step between two awaits, so no update is lost; the file (`TIER-DIGEST.json`, one per model card) is replaced as a whole,
by a thread, at most once a second. What could not be written is tried again, and once more when the tier stops. A kill
loses at most what was learned since the last write began. Replicas learn apart; `merge` puts together what they have.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import structlog

from shared.background import Background
from shared.errors import BadSetting, TierwiseError, UnknownPolicy
from shared.policies.base import Policy
from shared.policies.learner import Learner, Outcome, State
from shared.policies.registry import spec_of

log = structlog.get_logger()
LIMIT = 100  # states: a request may name any parameters, so the one unused for longest goes
PAUSE_S = 1.0  # between two writes; after one that failed, twice as long each time, up to
LONGEST_PAUSE_S = 30.0
CLOSE_S = 2.0  # for the last write when the tier stops
_DAMAGED = (OSError, ValueError, AttributeError, TypeError, RecursionError, ArithmeticError, LookupError)
_OLD_S = 60.0  # an older draft was abandoned, even if a process has its number now


class States:
    """States by policy. `fresh` gives the first state of a policy, `build` makes a policy of a spec.

    The state of the policy `keep` never goes.

    Raises:
        BadSetting: the folder cannot be written, or holds a file that is not ours.
    """

    def __init__(
        self,
        path: Path | None,
        build: Callable[[dict[str, Any]], Policy],
        fresh: Callable[[Policy], State | None],
        keep: Policy | None = None,
    ) -> None:
        self.path, self._fresh, self._build = path, fresh, build
        self._kept = None if keep is None else _key(keep)
        self._states: dict[str, State] = {}  # a state is replaced, never changed
        self._encoded: dict[str, tuple[State, str]] = {}  # of the last write: most states are as they were
        self._writer = Background("states", limit=2)  # one that writes, one that looks for later changes
        self._latest = self._saved = self._states  # the states after the last change, and those on disk
        if path is not None:
            self._latest = self._saved = self._states = self.read(path)
            self._write(self._states)  # a folder that cannot be written to is an error now, not after the first answer
            _clear(path.parent)

    def keep(self, policy: Policy) -> None:
        """From now on it is the state of this policy that never goes."""
        self._kept = _key(policy)

    def of(self, policy: Policy) -> State | None:
        """The state of a policy: what it learned, else its first one (raises as `Learner.initial_state`)."""
        fresh = self._fresh(policy)
        if fresh is None:  # most policies: nothing to look up
            return None
        key = _key(policy)
        if key in self._states:
            self._states[key] = self._states.pop(key)  # the newest last
        return self._states.get(key, fresh)

    def learn(self, policy: Learner, bound: Policy, outcomes: Sequence[Outcome]) -> None:
        """Take in answered texts, in order."""
        before = state = self.of(policy)
        if state is None:
            return
        for outcome in outcomes:
            state = policy.learn(state, bound, outcome)
        if state is before:
            return
        self._states[_key(policy)] = state
        while len(self._states) > LIMIT:
            self._states.pop(next(key for key in self._states if key != self._kept))
        if self.path is not None:
            self._latest = dict(self._states)
            self._writer.put(self._save)  # refused if one has yet to begin: that one will write this change too

    def described(self) -> list[dict[str, Any]]:
        """Every state in short, for `/info`."""
        return [
            {"policy": json.loads(key), "state": policy.described(state)}
            for key, state in self._states.items()
            if isinstance(policy := self._policy(key), Learner)
        ]

    async def close(self) -> None:
        """Write what is not yet written, for a bounded time."""
        self._writer.close(CLOSE_S)
        if self._saved is not self._latest:
            log.error("state_lost", path=str(self.path))

    def _save(self) -> None:
        """Write until everything is written. When the tier stops no pause is waited for, and one more write is all."""
        pause = PAUSE_S
        while self._saved is not self._latest:
            last = self._writer.closing.wait(pause)
            states = self._latest
            try:
                self._write(states)
                self._saved, pause = states, PAUSE_S
            except BadSetting as error:
                log.error("state_not_written", detail=str(error))
                pause = min(2 * pause, LONGEST_PAUSE_S)
            if last:
                return

    def _write(self, states: dict[str, State]) -> None:
        assert self.path is not None
        new = self.path.with_name(f"{self.path.name}.{os.getpid()}.new")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with new.open("w") as file:
                file.write(self._encode(states))
                file.flush()
                os.fsync(file.fileno())
            new.replace(self.path)
        except OSError as error:
            with suppress(OSError):
                new.unlink()
            raise BadSetting(f"TIERWISE_STATE_DIR: cannot write {self.path}: {error}") from error

    def _encode(self, states: dict[str, State]) -> str:
        """All states as JSON. One that did not change is not encoded again, and requests get a turn between two."""
        encoded = {}
        for key, state in states.items():
            known = self._encoded.get(key)
            encoded[key] = known if known and known[0] is state else (state, json.dumps(state))
        self._encoded = encoded
        return "{" + ", ".join(f"{json.dumps(key)}: {text}" for key, (_, text) in encoded.items()) + "}"

    def read(self, path: Path) -> dict[str, State]:
        """The states of a file, by policy, each of which this tier could go on from; none where there is no file.

        Raises:
            BadSetting: a file that holds anything else.
        """
        try:
            if path.exists() and not path.is_file():
                raise OSError("not a regular file")
            states: dict[str, State] = json.loads(path.read_text("utf-8"))
            for key in [key for key in states if self._policy(key) is None]:
                log.warning("state_left_out", policy=json.loads(key)["name"], why="its file has changed, or is gone")
                del states[key]
            for key, state in states.items():
                self._check(key, state)
        except (FileNotFoundError, NotADirectoryError):  # the folder is not there yet, or is none: writing will tell
            return {}
        except (*_DAMAGED, TierwiseError) as error:
            raise BadSetting(f"{path}: no state that this tier can go on from ({error}); move it away") from error
        return states

    def merge(self, files: Sequence[dict[str, State]], start: dict[str, State]) -> dict[str, State]:
        """One state for each policy that a replica has one of; all replicas began with those of `start`, or afresh.

        Raises:
            BadSetting: a policy whose states cannot be merged.
        """
        merged = {}
        for key in dict.fromkeys(key for file in files for key in file):
            policy = self._policy(key)
            assert isinstance(policy, Learner)  # `read` has seen to it
            first = start.get(key) or self._fresh(policy)
            assert first is not None
            try:
                merged[key] = policy.merge([file.get(key, first) for file in files], first)
                self._check(key, json.loads(json.dumps(merged[key])))
            except ValueError as error:
                raise BadSetting(f"policy {policy.name!r}: its states cannot be merged: {error}") from error
        return merged

    def _policy(self, key: str) -> Policy | None:
        """The policy of a state; null for one of a file that has changed since, or is gone."""
        spec = json.loads(key)
        try:
            return self._build(spec)
        except UnknownPolicy:
            if "sha256" in spec:
                return None
            raise

    def _check(self, key: str, state: State) -> None:
        """Whether a request could be answered with this state; whatever goes wrong here would go wrong there."""
        policy = self._build(json.loads(key))
        fresh = self._fresh(policy)
        if not isinstance(policy, Learner) or not policy.learns or fresh is None:
            raise ValueError(f"{policy.name!r} learns nothing")
        if key != _key(policy) or not _alike(state, fresh):
            raise ValueError(f"no state of {policy.name!r}")
        policy.check_state(state, fresh)
        policy.bound(state)
        policy.described(state)


def _key(policy: Policy) -> str:
    return json.dumps(spec_of(policy), sort_keys=True)


def _clear(folder: Path) -> None:
    """Remove the drafts of processes that were killed in a write. One that is still at it would write again."""
    for draft in folder.glob("*.json.*.new"):
        pid = draft.suffixes[-2].removeprefix(".")
        with suppress(OSError):
            gone = pid == str(os.getpid()) or not Path("/proc", pid).exists()
            if pid.isdecimal() and (gone or time.time() - draft.stat().st_mtime > _OLD_S):
                draft.unlink()


def _alike(state: Any, fresh: Any) -> bool:
    """Whether a state has the keys, lengths and numbers of a fresh one. A list that starts empty may have grown."""
    if isinstance(fresh, dict):
        same = isinstance(state, dict) and state.keys() == fresh.keys()
        return same and all(_alike(state[key], fresh[key]) for key in fresh)
    if isinstance(fresh, list | tuple):
        if not isinstance(state, list) or (fresh and len(state) != len(fresh)):
            return False
        return all(map(_alike, state, fresh)) if fresh else all(map(_is_number, state))
    return _is_number(state) == _is_number(fresh)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
