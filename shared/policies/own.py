"""Policies of one's own: a file of a folder, or a module or class that an installed package names as an entry point.

A file runs from the bytes that its sha256 is taken of, so what travels names the very code that decides. Python's
own import would put compiled files beside it, and take an old one for a file that was changed within a second.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import re
import sys
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType

from pydantic import ValidationError

from shared.errors import BadSetting
from shared.policies.base import Policy

DIGITS = 12  # of a sha256, as it travels
_NAME = re.compile(r"[A-Za-z0-9_.+-]{1,64}")  # as a request can say it


@dataclass(frozen=True)
class Source:
    """The policies of one file, in order."""

    sha256: str
    policies: tuple[type[Policy], ...]

    @property
    def names(self) -> set[str]:
        return {policy.name for policy in self.policies}

    def check(self, taken: Collection[str]) -> None:
        """Raise BadSetting where there is no policy, or one that could not be asked for by its name."""
        if not self.policies:
            raise BadSetting("no class in it derives from Policy and has a `name`")
        names = [policy.name for policy in self.policies]
        for policy in self.policies:
            if not isinstance(policy.name, str) or not _NAME.fullmatch(policy.name):
                raise BadSetting(f"{policy.__name__}: the name {policy.name!r} must be 1 to 64 of A-Z a-z 0-9 _ . + -")
            if policy.name in taken or policy.name.endswith("-only") or names.count(policy.name) > 1:
                raise BadSetting(f"{policy.__name__}: the name {policy.name!r} is taken: choose another")
            if reserved := {"name", "sha256"} & policy.model_fields.keys():
                raise BadSetting(f"{policy.__name__}: no parameter can be called {', '.join(reserved)}")
            _check_travels(policy)


def _check_travels(policy: type[Policy]) -> None:
    """Raise BadSetting where a policy is not the same after a journey as JSON to the next tier."""
    try:
        here = policy()
    except ValidationError:  # a parameter without a default: each request gives it, as JSON
        return
    try:
        there = policy.model_validate(json.loads(here.model_dump_json(by_alias=True)))
    except ValidationError as error:
        names = ", ".join(dict.fromkeys(str(problem["loc"][0]) for problem in error.errors() if problem["loc"]))
        raise BadSetting(
            f"{policy.__name__}: {names or 'a parameter'} does not travel as JSON: "
            "use numbers that are finite, strings, booleans, lists or dictionaries"
        ) from error
    if there != here:
        raise BadSetting(f"{policy.__name__}: it is another policy after its journey as JSON")


def from_file(path: Path) -> Source:
    """Run a file. Whatever its code raises comes through, and it is a user's code."""
    code = path.read_bytes()
    sha256 = _digest(code)
    module = ModuleType(f"tierwise_policy_{path.stem}_{sha256}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # pydantic looks there for the names in annotations
    try:
        exec(compile(code, str(path), "exec"), module.__dict__)  # noqa: S102 - the operator put the file there
    except BaseException:
        del sys.modules[module.__name__]
        raise
    return _source(sha256, policies_of(module))


def from_entry_point(point: EntryPoint) -> Source:
    """Import what a package names: a policy, or a module with policies. Whatever that raises comes through."""
    found = point.load()
    policies = policies_of(found) if isinstance(found, ModuleType) else [found]
    if not all(isinstance(policy, type) and issubclass(policy, Policy) for policy in policies):
        raise BadSetting(f"{point.value} is no policy, and no module")
    file = inspect.getsourcefile(found)
    if file is None:
        raise BadSetting(f"{point.value} has no source file")
    return _source(_digest(Path(file).read_bytes()), policies)


def policies_of(module: ModuleType) -> list[type[Policy]]:
    """The policies that a module defines itself, in order."""
    return [
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, Policy)
        and "name" in vars(value)
        and value.__module__ == module.__name__
    ]


def _source(sha256: str, policies: Iterable[type[Policy]]) -> Source:
    source = Source(sha256, tuple(policies))
    for policy in source.policies:
        policy.sha256 = sha256
    return source


def _digest(code: bytes) -> str:
    return hashlib.sha256(code).hexdigest()[:DIGITS]
