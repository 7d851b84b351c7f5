"""The one registry of policies: those that come with Tierwise, those of installed packages, those of a folder.

The folder (`TIERWISE_POLICY_DIR`) is loaded when a tier or a command starts, and again by `reload`. What cannot be used
breaks nothing but itself: it is left out, or its last version stays, which is logged and told to who asks for it. A
name belongs to who had it first: Tierwise, then packages, then files by their names.
"""

from __future__ import annotations

import importlib
import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from shared.errors import BadSetting, UnknownPolicy, did_you_mean, in_words
from shared.failures import in_short
from shared.policies.base import Policy
from shared.policies.baselines.fixed import Only, Oracle
from shared.policies.own import Source, from_entry_point, from_file, policies_of

_log = logging.getLogger(__name__)  # a command says it on standard error, a tier in its log
_SHIPPED = (
    "collaborative",
    "path_gates",
    "link_aware",
    *(f"baselines.{name}" for name in ("dimee", "bandits", "recserve", "leaving", "fixed")),
)
GROUP = "tierwise.policies"  # of packages' entry points
POLICIES: dict[str, type[Policy]] = {}
BROKEN: dict[str, str] = {}  # file or entry point that cannot be used -> why
_meant: dict[str, tuple[str, ...]] = {}  # what the policies of a broken file are probably called
_NAMED = re.compile(r"""\bname\b[^=\n]*=\s*["']([^"'\n]+)""")
_files: dict[str, Source] = {}  # of the folder, by name
_versions: dict[tuple[str, str], type[Policy]] = {}  # every policy of one's own that was in force, by name and sha256
_folder: Path | None = None


def load(folder: Path) -> None:
    """Offer the policies of a folder's files (`*.py`, but none that begins with `_`) instead of those of the last one.

    All of it takes effect at once, after every file has run. A file that cannot be used keeps its last version.

    Raises:
        BadSetting: there is no such folder; nothing has changed then.
    """
    global _folder
    if not folder.is_dir():
        raise BadSetting(f"TIERWISE_POLICY_DIR={folder}: no such folder")
    theirs = {name for source in _files.values() for name in source.names}
    taken, found, broken = POLICIES.keys() - theirs, dict[str, Source](), dict[str, str]()
    for path in sorted(folder.glob("[!_]*.py")):
        last = _files.get(path.name) if folder == _folder else None
        source = _used(path.name, partial(from_file, path), taken, broken, last)
        if source is not None:
            found[path.name] = source
            taken |= source.names
    for name in theirs - taken:
        del POLICIES[name]
    for name in [name for name in BROKEN if name.endswith(".py")]:
        del BROKEN[name]
    _meant.clear()
    _meant.update({name: _names_in(folder / name) for name in broken})
    _files.clear()
    _files.update(found)
    _folder = folder
    BROKEN.update(broken)
    for source in found.values():
        _offer(source)


def reload() -> None:
    """Load the folder again, if there is one. Policies of packages stay as they are until a restart.

    Raises:
        BadSetting: the folder is gone; the policies stay as they are.
    """
    if _folder is not None:
        load(_folder)


def add(path: Path) -> list[str]:
    """Offer the policies of one more file, also in place of those of a file of its name. Returns their names.

    Raises:
        BadSetting: it cannot be used.
    """
    last = _files.get(path.name)
    try:
        source = from_file(path)
        source.check(POLICIES.keys() - (last.names if last else set()))
    except (Exception, SystemExit) as error:  # a user's code may raise anything
        raise BadSetting(f"{path}: {_why(error)}") from error
    _files[path.name] = source
    _offer(source)
    return [policy.name for policy in source.policies]


def own() -> dict[str, str]:
    """The policies that did not come with Tierwise, each with its file's sha256."""
    return {name: policy.sha256 for name, policy in POLICIES.items() if policy.sha256}


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
    sha256 = given.pop("sha256", None)
    if not isinstance(name, str):
        raise UnknownPolicy(f'a policy needs its name, a text: {{"name": "collaborative"}}; {_choice(names(tiers))}')
    if name not in names(tiers) and (name, sha256) not in _versions:
        raise UnknownPolicy(_unknown(name, names(tiers)))
    named_tiers = [tier for value in given.values() if isinstance(value, dict) for tier in value]
    named_tiers += [given["tier"]] if isinstance(given.get("tier"), str) else []
    if elsewhere := [tier for tier in named_tiers if tier not in tiers]:
        raise UnknownPolicy(f"policy {name!r}: unknown tier {elsewhere[0]!r}: this bundle has {', '.join(tiers)}")
    policy = _version(name, sha256)
    try:
        if policy is not None:
            card = _on_card(policy, name, defaults)
            return policy.model_validate({**card, **given}, context=card)
        if given:
            raise UnknownPolicy(f"policy {name!r} has no parameters; got {', '.join(sorted(given))}")
        return Only(tier=name.removesuffix("-only"))
    except ValidationError as error:
        unknown = any(problem["type"] == "extra_forbidden" and len(problem["loc"]) == 1 for problem in error.errors())
        known = f" (parameters: {', '.join(policy.model_fields)})" if unknown and policy is not None else ""
        raise UnknownPolicy(f"policy {name!r}: {_problems(error)}{known}") from error


def _on_card(policy: type[Policy], name: str, defaults: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What a card says of a policy; of parameters that it shares with the one that it is `like`, what it says there."""
    shared = {} if policy.like is None else defaults.get(policy.like, {})
    alike = {parameter: value for parameter, value in shared.items() if parameter in policy.model_fields}
    return {**alike, **defaults.get(name, {})}


def _unknown(name: str, offered: Sequence[str]) -> str:
    """Why there is no such policy. What most likely helps comes first: a caller reads only the beginning.

    A broken file may be to blame if it has such a policy, or if no other was probably meant.
    """
    hint = did_you_mean(name, _choosable(offered))
    mine = [file for file in BROKEN if name in _meant.get(file, (file,))]
    others = [] if hint else [file for file in BROKEN if file not in mine]
    if not mine and len(others) == 1:
        mine, others = others, []
    told = [f"{file} cannot be used: {BROKEN[file]}" for file in mine]
    if others:
        few = ", ".join(others[:3]) + (", ..." if len(others) > 3 else "")
        told.append(f"{few} cannot be used {'either ' if mine else ''}(see the log)")
    told.append(_choice(offered))
    return f"unknown policy {name!r}{hint}: {'; '.join(told)}"


def _choosable(offered: Sequence[str]) -> list[str]:
    return [one for one in offered if one != Oracle.name]


def _choice(offered: Sequence[str]) -> str:
    return f"choose one of {', '.join(_choosable(offered))} (or oracle, in replay only)"


def _names_in(path: Path) -> tuple[str, ...]:
    """What the policies of a broken file are probably called: it says so, or its own name does."""
    try:
        code = path.read_text("utf-8", errors="replace")
    except OSError:
        code = ""
    return (path.stem, path.stem.replace("_", "-"), *_NAMED.findall(code))


def _version(name: str, sha256: object) -> type[Policy] | None:
    """The policy of this name, as its file was with this sha256; null for that of one tier."""
    policy = POLICIES.get(name)
    here = policy.sha256 if policy is not None else None
    if sha256 is None or sha256 == here:
        return policy
    if not isinstance(sha256, str) or (name, sha256) not in _versions:
        raise UnknownPolicy(
            f"policy {name!r}: asked for with sha256 {sha256!r}, and this tier has {here or 'none of a file'}: "
            "give every tier the same file"
        )
    return _versions[name, sha256]


def _problems(error: ValidationError) -> str:
    """What is wrong with each parameter, once: one that may be a number or one per tier fails as both.

    The place inside of a value is told as in JSON: by tier, and by number from 0 in a list.
    """
    faults, whole = dict[str, str](), set[str]()
    for problem in error.errors():
        loc, kind = problem["loc"], problem["type"]
        message = "unknown parameter" if kind == "extra_forbidden" else in_words(kind, problem["msg"])
        name = str(loc[0]) if loc else "parameters"
        if kind.startswith("int_") or problem.get("ctx", {}).get("ge", 0) > 1:
            whole.add(name)  # a share would be a bad example
        place = [str(part) for part in loc[1:] if not str(part).startswith(("dict[", "constrained-"))]
        if len(loc) > 2:
            faults[name] = f"{'.'.join((name, *place))}: {message}"
        elif kind == "dict_type" and name in faults:
            faults[name] += f', or one per tier, {{"end": {128 if name in whole else 0.9}}}'
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
    version = {} if policy.sha256 is None else {"sha256": policy.sha256}
    return {"name": name_of(policy), **version, **parameters}


def travelling(policy: Policy, defaults: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The same as it travels to tiers with these defaults: what they have goes by its digest, and is checked there."""
    return {**spec_of(policy), **policy.by_digest(defaults.get(name_of(policy), {}))}


def _used(
    name: str, read: Callable[[], Source], taken: set[str], broken: dict[str, str], last: Source | None
) -> Source | None:
    """What `read` finds, else the last version where that still can be used; why not is noted and logged."""
    try:
        source = read()
        if last is not None and source.sha256 == last.sha256:
            source = last
        source.check(taken)
    except BaseException as error:  # noqa: BLE001 - a user's code may raise anything, and breaks nothing but itself
        broken[name] = _why(error)
        stays = last is not None and not last.names & taken
        what = "keeps its last version" if stays else "is left out"
        _log.warning("policy file %s %s: %s", name, what, broken[name])
        return last if stays else None
    return source


def _why(error: BaseException) -> str:
    """Why a file cannot be used, with the line that raised."""
    return str(error) if isinstance(error, BadSetting) else in_short(error)


def _offer(source: Source) -> None:
    POLICIES.update({policy.name: policy for policy in source.policies})
    _versions.update({(policy.name, source.sha256): policy for policy in source.policies})


for _module in _SHIPPED:
    POLICIES.update(
        {policy.name: policy for policy in policies_of(importlib.import_module(f"shared.policies.{_module}"))}
    )
for _point in sorted(entry_points(group=GROUP), key=lambda point: point.name):
    if (_source := _used(_point.name, partial(from_entry_point, _point), set(POLICIES), BROKEN, None)) is not None:
        _offer(_source)
