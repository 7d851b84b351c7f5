"""Why an answer ended where it did: one sentence of `Why`, told from the hops alone.

The tier that was asked knows the policy, so it asks it again about the last hop. A tier that kept a text although the
policy would send it on had nobody to send it to: no link, or the text was sent to it for an answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from shared.contracts import DegradedReason, Hop, Why
from shared.policies import Policy, Where

_CHANCE = 1e-3  # of being sent on, at least: confidences are rounded on the wire


def why(hops: Sequence[Hop], degraded: DegradedReason | None, policy: Policy, where: Where) -> Why:
    """The reason for an answer with these hops; `where` is the place of the tier that was asked."""
    if degraded is not None:
        return Why.DEADLINE if degraded == "deadline" else Why.FAILED
    if hops[0].tier != where.tier:  # sent on before any layer ran
        return Why.POLICY
    if len(hops) == 1:
        if not where.reachable:
            return Why.DEEPEST
        return Why.SURE if policy.may_offload_after(where) else Why.POLICY
    sure = _was_sure(hops[-1], policy, where)
    if hops[-2].offload_probability == 1:
        return Why.UNSURE_SURE if sure else Why.UNSURE_DEEPEST
    return Why.DRAWN_SURE if sure else Why.DRAWN_DEEPEST


def _was_sure(last: Hop, policy: Policy, where: Where) -> bool:
    """Whether a deeper tier kept a text that it could have sent on."""
    behind = where.tiers[where.tiers.index(last.tier) + 1 :]
    there = replace(where, tier=last.tier, reachable=tuple(tier for tier in where.reachable if tier in behind))
    if not policy.may_offload_after(there):
        return False
    chance = policy.after(there, last.confidence, last.draw or 0.0).probability
    return last.offload_probability > 0 or chance < _CHANCE
