"""The one registry of policies: every class with a `name` in this folder's modules and in `baselines/`.

A module that cannot be used breaks nothing but itself: it is left out, logged once, and named in the error of a request
for its policy.
"""

from __future__ import annotations

import importlib
import json
import logging
import pkgutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from shared import policies
from shared.errors import BadSetting, UnknownPolicy, plain
from shared.failures import in_short
from shared.policies.base import Policy
from shared.policies.baselines.fixed import Only, Oracle

_log = logging.getLogger(__name__)  # a command says it on standard error, a tier in its log
_FIRST = (
    "collaborative",
    *(f"baselines.{name}" for name in ("dimee", "bandits", "recserve", "leaving", "fixed")),
)
POLICIES: dict[str, type[Policy]] = {}
BROKEN: dict[str, str] = {}  # module of this folder that cannot be used -> why


def names(tiers: Sequence[str]) -> list[str]:
    """Every policy that a bundle with these tiers offers."""
    return [*POLICIES, *(f"{tier}-only" for tier in tiers)]


def build(spec: str | Mapping[str, Any], tiers: Sequence[str], defaults: Mapping[str, Mapping[str, Any]]) -> Policy:
    """A policy from its name or from `{name, ...parameters}`; parameters not given come from `defaults[name]`.

    Raises:
        UnknownPolicy: no such policy or tier, a parameter it does not have, or a value out of range.
    """
    given = {"name": spec} if isinstance(spec, str) else dict(spec)
    name = given.pop("name", None)
    if isinstance(name, str) and name in BROKEN and name not in POLICIES:
        raise UnknownPolicy(f"policy {name!r}: its module cannot be used: {BROKEN[name]}")
    if name not in names(tiers):
        known = ", ".join(one for one in names(tiers) if one != Oracle.name)
        left_out = f"; left out, as they cannot be used: {', '.join(BROKEN)}" if BROKEN else ""
        raise UnknownPolicy(f"unknown policy {name!r}: choose one of {known} (or oracle, in replay only){left_out}")
    named_tiers = [tier for value in given.values() if isinstance(value, dict) for tier in value]
    named_tiers += [given["tier"]] if isinstance(given.get("tier"), str) else []
    if elsewhere := [tier for tier in named_tiers if tier not in tiers]:
        raise UnknownPolicy(f"policy {name!r}: unknown tier {elsewhere[0]!r}: this bundle has {', '.join(tiers)}")
    try:
        if name in POLICIES:
            return POLICIES[name].model_validate({**defaults.get(name, {}), **given})
        if given:
            raise UnknownPolicy(f"policy {name!r} has no parameters; got {', '.join(sorted(given))}")
        return Only(tier=name.removesuffix("-only"))
    except ValidationError as error:
        unknown = any(problem["type"] == "extra_forbidden" for problem in error.errors())
        known = f" (parameters: {', '.join(POLICIES[name].model_fields)})" if unknown else ""
        raise UnknownPolicy(f"policy {name!r}: {_problems(error)}{known}") from error


def _problems(error: ValidationError) -> str:
    """What is wrong with each parameter, once: one that may be a number or one per tier fails as both."""
    faults: dict[str, str] = {}
    for problem in error.errors():
        loc, message = problem["loc"], plain(problem["msg"])
        name = str(loc[0]) if loc else "parameters"
        if len(loc) > 2:  # inside of a value per tier
            faults[name] = f"{name}.{loc[-1]}: {message}"
        elif problem["type"] == "dict_type" and name in faults:
            faults[name] += ', or one per tier, {"end": 0.9}'
        else:
            faults.setdefault(name, f"{name}: {message}")
    return "; ".join(faults.values())


def named(setting: str) -> str | dict[str, Any]:
    """The policy spec that a setting names: a policy's name, or a file FILE.json with `{"name": ..., ...parameters}`.

    Raises:
        BadSetting: no such file, or it holds something else.
    """
    if not setting.endswith(".json"):
        return setting
    try:
        spec = json.loads(Path(setting).read_text("utf-8"))
    except OSError as error:
        raise BadSetting(f"policy file {setting}: {error.strerror}") from error
    except ValueError as error:  # not UTF-8, not JSON
        raise BadSetting(f"policy file {setting}: not JSON: {error}") from error
    if not isinstance(spec, dict) or not isinstance(spec.get("name"), str):
        raise BadSetting(f'policy file {setting}: expected {{"name": "collaborative", ...its parameters}}')
    return spec


def name_of(policy: Policy) -> str:
    """One of `names`: what `build` knows this policy by."""
    return f"{policy.tier}-only" if isinstance(policy, Only) else policy.name


def spec_of(policy: Policy) -> dict[str, Any]:
    """The spec that builds this very policy on another tier: every parameter spelled out."""
    parameters = {} if isinstance(policy, Only) else policy.model_dump(mode="json", by_alias=True)
    return {"name": name_of(policy), **parameters}


def _named(base: type[Policy]) -> Iterator[type[Policy]]:
    for policy in base.__subclasses__():
        if "name" in vars(policy) and policy is not Only:
            yield policy
        yield from _named(policy)


def _add(module: str) -> None:
    """Import a module of this folder and offer its policies; BadSetting where a name is no text, or taken."""
    importlib.import_module(f"{policies.__name__}.{module}")
    here = f"{policies.__name__}.{module}."
    found = [policy for policy in _named(Policy) if f"{policy.__module__}.".startswith(here)]
    for policy in found:
        if not isinstance(policy.name, str) or policy.name in POLICIES or policy.name.endswith("-only"):
            raise BadSetting(f"{policy.__name__}: the name {policy.name!r} is no text, or taken: choose another")
    POLICIES.update({policy.name: policy for policy in found})


_theirs = [module.name for module in pkgutil.iter_modules(policies.__path__) if module.name not in _FIRST]
for _module in (*_FIRST, *(name for name in _theirs if name not in ("base", "baselines", "registry"))):
    try:
        _add(_module)
    except (Exception, SystemExit) as _error:  # noqa: BLE001 - a user's code may raise anything
        BROKEN[_module] = in_short(_error)
        _log.warning("policy module %s is left out: %s", _module, BROKEN[_module])
