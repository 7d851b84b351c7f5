"""DIMEE (Bajpai & Hanawal 2025, arXiv 2410.05338): who answers is decided before any layer runs.

    e(x)  = the text's signature, from the embedding layer of the tier that is asked     (section III-E, [S001])
    pool  = argmin_g || e(x) - mu_g ||,  one pool per tier: easy stays, moderate goes to the edge, hard to the cloud
    exit  = the first layer with C_l >= alpha; the last tier runs all its layers         (Algorithm 1, [S001])
    DIMEE-D:  mu_g <- mu_g + (e(x) - mu_g) / (n_g + 1),  n_g <- n_g + 1                  (Algorithm 2, [S001])

Where we differ: C is calibrated (the paper's is not), and the paper does not say what e(x) is: three kinds, [R]. Its
public repository does not implement the method. alpha and the pools come from validation: `lab/fit/pools.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

from pydantic import Field, PrivateAttr

from shared.errors import UnknownPolicy
from shared.model.pools import NO_POOLS, Pools, Signature, Vector
from shared.policies.base import Clues, Policy, Where
from shared.policies.baselines.fixed import Pooled
from shared.policies.learner import Learner, Outcome, State


class Dimee(Pooled, Learner):
    """DIMEE-F, or DIMEE-D where `adaptive`. The state is each pool's size and mean; F's never changes."""

    name = "dimee"

    adaptive: bool = Field(False, description="DIMEE-D: the means follow the texts that arrive")
    signature_kind: Annotated[Signature, Field(strict=False)] = Field(
        Signature.MEAN_WORD,
        alias="signature",
        description="what stands for a text: mean_word, layernorm_mean, token_norms",
    )
    half_life: Annotated[float, Field(gt=0, le=1e9)] | None = Field(
        None, description="adaptive: texts after which an old one counts half; null: every text counts the same"
    )
    _means: tuple[Vector, ...] = PrivateAttr(())  # of the pools, once bound

    def signature(self, tier: str) -> Signature | None:
        return self.signature_kind

    def pool(self, clues: Clues) -> int | None:
        """The pool with the nearest mean."""
        if clues.signature is None or not self._means:
            return None
        distances = [math.dist(clues.signature, mean) for mean in self._means]
        return distances.index(min(distances))

    @property
    def learns(self) -> bool:
        return self.adaptive

    def initial_state(self, where: Where, pools: Pools | None) -> State:
        if pools == NO_POOLS:
            raise UnknownPolicy(
                "policy 'dimee' cannot be used with this bundle: calibration found no pools in its texts"
            )
        if pools is None or self.signature_kind not in pools.means:
            raise UnknownPolicy("policy 'dimee' needs pools.safetensors beside the card: run `tierwise calibrate`")
        first, tiers = where.tiers[0], len(where.tiers)
        if len(pools.sizes) != tiers:
            raise UnknownPolicy(f"policy 'dimee': {len(pools.sizes)} pools for {tiers} tiers: calibrate again")
        if where.tier != first:
            raise UnknownPolicy(f"policy 'dimee' knows the pools of {first}'s embeddings: ask that tier")
        return {"sizes": list(pools.sizes), "means": list(pools.means[self.signature_kind])}

    def check_state(self, state: State, fresh: State) -> None:
        sizes = zip(state["sizes"], fresh["sizes"], strict=True)
        if any(not isinstance(now, int) or now < first for now, first in sizes):
            raise ValueError(f"pools of {fresh['sizes']} texts cannot have become {state['sizes']}")

    def bound(self, state: State) -> Policy:
        copy = self.model_copy()
        copy._means = tuple(map(tuple, state["means"]))
        return copy

    def learn(self, state: State, bound: Policy, outcome: Outcome) -> State:
        signature = outcome.clues.signature
        assert isinstance(bound, Dimee)
        pool = bound.pool(outcome.clues)
        if not self.adaptive or pool is None or signature is None:
            return state
        sizes, means = list(state["sizes"]), list(state["means"])
        rate = 1 / (sizes[pool] + 1) if self.half_life is None else 1 - 2 ** (-1 / self.half_life)
        sizes[pool] += 1
        means[pool] = tuple(m + rate * (e - m) for m, e in zip(means[pool], signature, strict=True))
        return {"sizes": sizes, "means": means}

    def merge(self, states: Sequence[State], start: State) -> State:
        """Sizes add up, and each mean is that of all texts of its pool. Means that forget cannot be put together."""
        if self.half_life is not None:
            raise ValueError("with half_life its means forget, and do not say which texts they still hold")
        sizes, means = [], []
        for pool, (first, mean) in enumerate(zip(start["sizes"], start["means"], strict=True)):
            news = [state["sizes"][pool] - first for state in states]
            if min(news) < 0:
                raise ValueError(f"a pool of {first + min(news)} texts cannot have begun with {first}")
            sums = [first * m for m in mean]
            for state, new in zip(states, news, strict=True):
                pairs = zip(state["means"][pool], mean, strict=True)
                sums = [s + (first + new) * m - first * m0 for s, (m, m0) in zip(sums, pairs, strict=True)]
            size = first + sum(news)
            sizes.append(size)
            means.append([s / size for s in sums] if size else list(mean))
        return {"sizes": sizes, "means": means}

    def described(self, state: State) -> State:
        norms = [round(math.hypot(*mean), 6) for mean in state["means"]]
        return {"sizes": state["sizes"], "norms_of_means": norms}
