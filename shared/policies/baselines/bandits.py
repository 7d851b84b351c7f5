"""Bandits: a threshold (AdaEE) or a split layer (SplitEE) is learned from confidences alone, without any label.

    each arm once, then   argmax_a  Q_a / N_a + c * sqrt(ln t / N_a)          (UCB1; t texts so far, SplitEE: t + 1)

    adaee       arm = threshold a in 0, .2, ..., 1 on the first tier's last exit (Pacheco et al. 2023, [C:UCBEE])
                r = 0 if C_1 >= a, else max(dC, 0) - o;   dC = (C_L if C_L >= a else max(C_1, C_L)) - C_1
    splitee     arm = layer s at which the device answers or hands over (Bajpai et al. 2024, [C:Div290/SplitEE])
                r = C_s - lambda*s if C_s >= alpha or s = L, else C_L - o - lambda*s
    splitee-s   the same, and what the exits before s said counts for their arms too
    i-splitee   splitee-s with an arm every third layer, alpha = o = .5 ([C:Div290/I-SplitEE], whose code re-credits
                its history at every step: rewritten, not ported)

Where we differ: C is calibrated. A text that left at s never saw the cloud, so for arms below s that would have
offloaded C_s stands in for C_L [R] (the public code knows every C_L). "Offload" goes straight to the last tier, and
raw text travels, not hidden states. A text that should have been offloaded and could not teaches nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, ClassVar

from pydantic import Field

from shared.contracts import Rule
from shared.errors import UnknownPolicy
from shared.model.ensemble import Weighting
from shared.model.exits import AtLayer, ExitRule
from shared.model.pools import Pools
from shared.policies.base import STAY, Decision, Policy, Ratio, Where, needs_all_layers
from shared.policies.learner import Learner, Outcome, State

Cost = Annotated[float, Field(ge=0, le=10)]


class Bandit(Learner):
    """UCB1 over arms. State: the arms, texts so far, and each arm's count and sum of rewards."""

    exploration: Annotated[float, Field(ge=0, le=100)] = Field(1.0, description="weight of an arm's uncertainty (c)")

    arm: float | int | None
    rounds_ahead: ClassVar[int] = 0  # what t is more than the texts so far

    @property
    def threshold(self) -> float | None:
        """The confidence below which a text goes to the last tier."""
        raise NotImplementedError

    @property
    def learns(self) -> bool:
        return self.arm is None

    def arms(self, where: Where) -> list[float]:
        """What there is to choose from, at the tier that is asked."""
        raise NotImplementedError

    def rewards(self, state: State, outcome: Outcome) -> dict[float, float]:
        """What a text says about arms, asked of the bound policy; empty where it says nothing."""
        raise NotImplementedError

    def initial_state(self, where: Where, pools: Pools | None) -> State | None:
        if self.arm is not None:
            return None
        arms = self.arms(where)
        return {"arms": arms, "rounds": 0, "counts": [0] * len(arms), "totals": [0.0] * len(arms)}

    def check_state(self, state: State, fresh: State) -> None:
        rounds, counts = state["rounds"], state["counts"]
        whole = all(isinstance(number, int) for number in (rounds, *counts))
        if not whole or min(counts) < 0 or not max(counts) <= rounds <= sum(counts):
            raise ValueError(f"{rounds} rounds cannot have counts {counts}")
        if state["arms"] != fresh["arms"]:
            raise ValueError(f"arms {state['arms']} are not {fresh['arms']}")

    def bound(self, state: State) -> Policy:
        return self.model_copy(update={"arm": state["arms"][self.choose(state)]})

    def choose(self, state: State) -> int:
        """The index of the arm to play: one never tried, else the greatest upper confidence bound."""
        counts, totals = state["counts"], state["totals"]
        if 0 in counts:
            return int(counts.index(0))
        log = math.log(state["rounds"] + self.rounds_ahead)
        bounds = [q / n + self.exploration * math.sqrt(log / n) for q, n in zip(totals, counts, strict=True)]
        return bounds.index(max(bounds))

    def after(self, where: Where, confidence: float, draw: float) -> Decision:
        if self.threshold is None or confidence >= self.threshold or not self.may_offload_after(where):
            return STAY
        return Decision(where.reachable[-1], 1.0, "confidence", final=True)

    def may_offload_after(self, where: Where) -> bool:
        return bool(where.reachable)

    def offload_rule(self, where: Where) -> Rule | None:
        if self.threshold is None or not self.may_offload_after(where):
            return None
        return Rule(name="step", parameters={"threshold": self.threshold})

    def learn(self, state: State, bound: Policy, outcome: Outcome) -> State:
        assert isinstance(bound, Bandit)
        rewards = bound.rewards(state, outcome) if outcome.visits else {}
        if not rewards:
            return state
        arms = state["arms"]
        return {
            "arms": arms,
            "rounds": state["rounds"] + 1,
            "counts": [n + (arm in rewards) for arm, n in zip(arms, state["counts"], strict=True)],
            "totals": [q + rewards.get(arm, 0.0) for arm, q in zip(arms, state["totals"], strict=True)],
        }

    def merge(self, states: Sequence[State], start: State) -> State:
        """Rounds, counts and totals add up."""

        def added(before: float, after: Sequence[float]) -> float:
            return before + sum(one - before for one in after)

        for state in states:
            if any(n < before for n, before in zip(state["counts"], start["counts"], strict=True)):
                raise ValueError(f"counts {state['counts']} cannot have begun with {start['counts']}")
        each = {
            key: [added(*pair) for pair in zip(start[key], zip(*(s[key] for s in states), strict=True), strict=True)]
            for key in ("counts", "totals")
        }
        rounds = added(start["rounds"], [state["rounds"] for state in states])
        return {"arms": start["arms"], "rounds": rounds, **each}


class AdaEE(Bandit):
    """Learns the threshold; the answer is the more confident one of the two tiers."""

    name = "adaee"

    arm: Ratio | None = Field(None, description="fixes the threshold; null: learned")
    offload_cost: Cost = Field(0.1, description="what offloading costs, in confidence (o)")

    def arms(self, where: Where) -> list[float]:
        return [round(0.2 * step, 1) for step in range(6)]

    @property
    def threshold(self) -> float | None:
        return self.arm

    def ensemble_weighting(self) -> Weighting:
        return Weighting.SUREST

    def rewards(self, state: State, outcome: Outcome) -> dict[float, float]:
        first, last, arm = outcome.visits[0].confidence, outcome.visits[-1].confidence, self.arm
        assert arm is not None
        if len(outcome.visits) == 1:  # it stayed, or it should have gone and could not
            return {arm: 0.0} if first >= arm else {}
        gain = (last if last >= arm else max(first, last)) - first
        return {arm: max(gain, 0.0) - self.offload_cost}


class SplitEE(Bandit):
    """Learns the layer at which a text is answered on the device, or handed over to the last tier."""

    name = "splitee"
    rounds_ahead = 1
    side: ClassVar[bool] = False  # whether the exits before the split teach their arms too

    arm: Annotated[int, Field(ge=1, le=64)] | None = Field(None, description="fixes the split layer; null: learned")
    exit_threshold: Ratio = Field(0.7, description="confidence at which the device answers (alpha)")
    layer_cost: Cost = Field(0.1, description="what a layer on the device costs, in confidence (lambda)")
    offload_cost: Cost = Field(0.1, description="what offloading costs, in confidence (o)")

    def check(self, where: Where) -> None:
        needs_all_layers(self.name, where)
        held = where.layers[where.tier]
        if self.arm is not None and self.arm > held:
            raise UnknownPolicy(f"policy {self.name!r}: arm {self.arm} is deeper than {where.tier}'s {held}")

    def arms(self, where: Where) -> list[float]:
        return list(range(1, where.layers[where.tier] + 1))

    def exit_rule(self, where: Where) -> ExitRule | None:
        return None if self.arm is None or where.is_last else AtLayer(self.arm)

    @property
    def threshold(self) -> float | None:
        return None if self.arm is None else self.exit_threshold

    def may_offload_after(self, where: Where) -> bool:
        return bool(where.reachable) and (self.arm is None or self.arm < where.layers[where.tier])

    def rewards(self, state: State, outcome: Outcome) -> dict[float, float]:
        here, arm, deepest = outcome.visits[0], self.arm, state["arms"][-1]
        stays = len(outcome.visits) == 1
        could_not_go = stays and arm != deepest and here.confidence < self.exit_threshold
        if arm is None or here.exit_layer != arm or could_not_go:
            return {}
        handed_over = outcome.visits[-1].confidence - self.offload_cost  # C_L where it was seen, else C_s
        gains = {arm: here.confidence if stays else handed_over}
        if self.side and len(here.confidences) == arm:
            for a in [a for a in state["arms"] if a < arm]:
                confidence = here.confidences[a - 1]
                gains[a] = confidence if confidence >= self.exit_threshold else handed_over
        return {a: gain - self.layer_cost * a for a, gain in gains.items()}


class SplitEES(SplitEE):
    """SplitEE with side observations."""

    name = "splitee-s"
    side = True


class ISplitEE(SplitEES):
    """SplitEE-S with an arm every third layer, and the constants of its own code."""

    name = "i-splitee"

    exit_threshold: Ratio = Field(0.5, description="confidence at which the device answers (alpha)")
    offload_cost: Cost = Field(0.5, description="what offloading costs, in confidence (o)")

    def arms(self, where: Where) -> list[float]:
        layers = where.layers[where.tier]
        return sorted({*range(3, layers, 3), layers})
