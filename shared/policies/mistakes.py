"""Mistakes in a policy of one's own, told to its author: in the words of the policy, not at a line of ours."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Literal

from shared.errors import BadDecision
from shared.policies.base import Decision, Policy, Where

_LONGEST = 100  # characters of a value that is shown


def decision(policy: Policy, method: Literal["before", "after"], where: Where, *known: object) -> Decision:
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


def _told(policy: Policy, what: str) -> str:
    return f"policy {policy.name}: {what} ({Path(inspect.getfile(type(policy))).name})"
