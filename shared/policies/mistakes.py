"""Mistakes in a policy of one's own, told to its author: in the words of the policy, not at a line of ours."""

from __future__ import annotations

import inspect
from dataclasses import fields
from pathlib import Path
from types import FunctionType
from typing import Literal

from pydantic import BaseModel

from shared.errors import BadDecision, did_you_mean
from shared.model.ensemble import Weighting
from shared.policies.base import Decision, Policy, Where
from shared.policies.learner import Learner

_LONGEST = 100  # characters of a value that is shown
_METHODS = (FunctionType, classmethod, staticmethod, property)
_ASKED = {
    base: {name for name in dir(base) if not name.startswith("_") and not hasattr(BaseModel, name)}
    for base in (Policy, Learner)
}


def decision(policy: Policy, method: Literal["before", "after", "speculate"], where: Where, *known: object) -> Decision:
    """What a policy decides, live and in a replay, if a tier can follow it. `known` is what else the method takes.

    Raises:
        BadDecision: it is no decision, or its tier cannot be reached from here. What the method raises comes through.
    """
    said = getattr(policy, method)(where, *known)
    if not isinstance(said, Decision):
        shown = repr(said)[:_LONGEST]
        raise BadDecision(_told(policy, f"`{method}` returned {shown}; return a Decision or STAY"))
    if said.to is not None and said.to not in where.reachable:
        reachable = ", ".join(where.reachable) or "none"
        told = f"`{method}`, at {where.tier}: tier {said.to!r} is not in `where.reachable`: {reachable}"
        raise BadDecision(_told(policy, told))
    return said


def weighting(policy: Policy) -> Weighting:
    """How a policy weights the ensemble, live and in a replay.

    Raises:
        BadDecision: it names no weighting. What the method raises comes through.
    """
    said = policy.ensemble_weighting()
    if not isinstance(said, Weighting):
        shown, offer = repr(said)[:_LONGEST], ", ".join(f"Weighting.{one.name}" for one in Weighting)
        raise BadDecision(_told(policy, f"`ensemble_weighting` returned {shown}; return one of {offer}"))
    return said


def strangers(policy: type[Policy]) -> list[str]:
    """A warning for each public method that Tierwise never calls: its name may be mistyped."""
    base = Learner if issubclass(policy, Learner) else Policy
    told = []
    for name, value in vars(policy).items():
        known = not isinstance(value, _METHODS) or name.startswith("_") or hasattr(base, name)
        if known or name in _of_pydantic(policy):
            continue
        hint = did_you_mean(name, _ASKED[base], likeness=0.7)
        if hasattr(Learner, name):
            hint = " (it is a method of Learner: derive from that)"
        told.append(f"policy {policy.name}: Tierwise never calls `{name}`{hint}; begin the name of a helper with _")
    return told


def _of_pydantic(policy: type[Policy]) -> set[str]:
    """The methods of a class that pydantic calls: validators and serializers."""
    found = policy.__pydantic_decorators__
    return {name for kind in fields(found) for name in getattr(found, kind.name) or ()}


def _told(policy: Policy, what: str) -> str:
    return f"policy {policy.name}: {what} ({Path(inspect.getfile(type(policy))).name})"
