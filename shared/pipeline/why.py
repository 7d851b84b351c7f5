"""Why an answer ended where it did: one sentence of `Why`, told from the hops alone.

A deeper tier decides by its own draw, or because it is the last one that this request or the policy lets answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from shared.contracts import DegradedReason, Hop, Why
from shared.policies import Policy, Where


def why(hops: Sequence[Hop], degraded: DegradedReason | None, policy: Policy, where: Where, *, final: bool) -> Why:
    """The reason for an answer with these hops.

    `where` is the place of the tier that was asked; `final`: it sent the text on for an answer.
    """
    if degraded is not None:
        return Why.DEADLINE if degraded == "deadline" else Why.FAILED
    if len(hops) == 1:
        if hops[0].tier != where.tier:  # sent on before any layer ran
            return Why.POLICY
        if not where.reachable:
            return Why.DEEPEST
        if not policy.may_offload_after(where):
            return Why.POLICY
        return Why.GATED if policy.gated else Why.NOT_WORTH if policy.weighs_time else Why.SURE
    last = hops[-1]
    there = replace(where, tier=last.tier, reachable=where.reachable[where.reachable.index(last.tier) + 1 :])
    drew = bool(there.reachable) and not final and (last.offload_probability > 0 or policy.may_offload_after(there))
    if policy.gated and not final:
        return Why.GATED_NEXT if drew else Why.GATED_DEEPEST
    if hops[-2].offload_probability == 1:
        return Why.UNSURE_NEXT if drew else Why.UNSURE_DEEPEST
    return Why.DRAWN_NEXT if drew else Why.DRAWN_DEEPEST
