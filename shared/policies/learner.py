"""Policies that learn: the further questions that such a policy is asked, and the facts it learns from.

A policy itself never changes. The tier that was asked keeps its state (`shared/policies/states.py`), and `bound(state)`
gives the plain, stateless policy of one request: its arm chosen, its pools fixed. That one travels, and a replay runs
it. A batch is bound once and learned from text by text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from shared.errors import BadSetting
from shared.model.pools import Pools
from shared.policies.base import Clues, Policy, Visit, Where

State = dict[str, Any]  # JSON


@dataclass(frozen=True)
class Outcome:
    """What was seen on a text's way, in order: all that a policy may learn from. Never the label."""

    clues: Clues
    visits: tuple[Visit, ...]


class Learner(Policy):
    """A policy with a state. Subclasses say what the state is, and what a text teaches."""

    @property
    def learns(self) -> bool:
        """Whether its state changes from text to text; a parameter may forbid that."""
        return True

    def initial_state(self, where: Where, pools: Pools | None) -> State | None:
        """The state before the first text, JSON-able; null where the parameters leave nothing to learn.

        Raise UnknownPolicy where the bundle lacks what the policy starts from.
        """
        raise NotImplementedError

    def bound(self, state: State) -> Policy:
        """The plain policy that this state makes of it, for one request."""
        raise NotImplementedError

    def learn(self, state: State, bound: Policy, outcome: Outcome) -> State:
        """The state after one more text; `bound` is the policy that answered it. The state given is left alone."""
        raise NotImplementedError

    def check_state(self, state: State, fresh: State) -> None:
        """Raise ValueError where `state`, read from a file and shaped like `fresh`, cannot have come from it."""

    def merge(self, states: Sequence[State], start: State) -> State:
        """One state for what replicas learned apart, all from `start` on: what they began with counts once.

        Raise ValueError where they cannot have begun with it.

        Raises:
            BadSetting: the policy does not say how.
        """
        raise BadSetting(f"policy {self.name!r} does not say how its states are merged: give it a method `merge`")

    def described(self, state: State) -> State:
        """The state in short, for `/info`."""
        return state


def first_state(policy: Policy, where: Where, pools: Pools | None) -> State | None:
    """The state that a policy starts from; null for one without any. Raises as `Learner.initial_state`."""
    return policy.initial_state(where, pools) if isinstance(policy, Learner) else None


def bind(policy: Policy, state: State | None) -> Policy:
    """The plain policy for one request: the policy itself where it has no state."""
    return policy.bound(state) if isinstance(policy, Learner) and state is not None else policy
