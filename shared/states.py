"""What policies that learn have learned: kept from request to request, and on disk if a folder is given.

A state belongs to a policy with its parameters, on the tier that was asked. It changes on the event loop alone, in one
step between two awaits, so no update is lost; the file (`TIER-DIGEST.json`, one per model card) is replaced as a whole,
by one writer at a time. A kill loses at most what was learned since the last write began. Left out: sharing a state
between replicas.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import structlog

from shared.errors import BadSetting, TierwiseError
from shared.policies import Outcome, Policy, State, spec_of

log = structlog.get_logger()
LIMIT = 100  # states: a request may name any parameters, so the one unused for longest goes


class States:
    """States by policy. `fresh` gives the first state of a policy, `build` makes a policy of a spec.

    Raises:
        BadSetting: the folder cannot be written, or holds a file that is not ours.
    """

    def __init__(
        self, path: Path | None, build: Callable[[dict[str, Any]], Policy], fresh: Callable[[Policy], State | None]
    ) -> None:
        self.path, self._fresh, self._build = path, fresh, build
        self._states: dict[str, State] = {}
        self._writer: asyncio.Task[None] | None = None
        self._changes = self._saved = 0
        if path is not None:
            self._states = self._read(path)
            self._write(self._states)  # a folder that cannot be written to is an error now, not after the first answer

    def of(self, policy: Policy) -> State | None:
        """The state of a policy: what it learned, else its first one.

        Raises:
            UnknownPolicy: the bundle lacks what it starts from.
        """
        fresh = self._fresh(policy)
        if fresh is None:  # most policies: nothing to look up
            return None
        key = _key(policy)
        if key in self._states:
            self._states[key] = self._states.pop(key)  # the newest last
        return self._states.get(key, fresh)

    def learn(self, policy: Policy, bound: Policy, outcomes: Sequence[Outcome]) -> None:
        """Take in answered texts, in order."""
        before = state = self.of(policy)
        for outcome in outcomes:
            state = policy.learn(state, bound, outcome)
        if state is None or state is before:
            return
        self._states[_key(policy)] = state
        while len(self._states) > LIMIT:
            self._states.pop(next(iter(self._states)))
        self._changes += 1
        if self.path is not None and (self._writer is None or self._writer.done()):
            self._writer = asyncio.get_running_loop().create_task(self._keep_writing())

    def described(self) -> list[dict[str, Any]]:
        """Every state in short, for `/info`."""
        return [
            {"policy": (spec := json.loads(key)), "state": self._build(spec).described(state)}
            for key, state in self._states.items()
        ]

    async def close(self) -> None:
        """Write what is not yet written."""
        if self._writer is not None and not self._writer.done():
            await self._writer
        if self.path is not None and self._saved != self._changes:
            self._write(dict(self._states))

    async def _keep_writing(self) -> None:
        while self._saved != self._changes:
            changes = self._changes
            try:
                await asyncio.to_thread(self._write, dict(self._states))
            except BadSetting as error:
                log.error("state_not_written", detail=str(error))
            self._saved = changes

    def _write(self, states: dict[str, State]) -> None:
        assert self.path is not None
        new = self.path.with_name(f"{self.path.name}.{os.getpid()}.new")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with new.open("w") as file:
                json.dump(states, file)
                file.flush()
                os.fsync(file.fileno())
            new.replace(self.path)
        except OSError as error:
            raise BadSetting(f"TIERWISE_STATE_DIR: cannot write {self.path}: {error}") from error

    def _read(self, path: Path) -> dict[str, State]:
        if not path.exists():
            return {}
        try:
            states: dict[str, State] = json.loads(path.read_text())
            for key, state in states.items():
                policy = self._build(json.loads(key))
                fresh = self._fresh(policy)
                if key != _key(policy) or fresh is None or _shape(state) != _shape(fresh):
                    raise ValueError(f"no state of {policy.name!r}")
        except (OSError, ValueError, AttributeError, TypeError, TierwiseError) as error:
            raise BadSetting(f"{path}: no state that this tier can go on from ({error}); move it away") from error
        return states


def _key(policy: Policy) -> str:
    return json.dumps(spec_of(policy), sort_keys=True)


def _shape(value: object) -> object:
    """What a state is made of: keys, lengths and numbers; a fresh one and a learned one are alike."""
    if isinstance(value, dict):
        return {key: _shape(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_shape(item) for item in value]
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
