"""The tier that a client asked: it binds the policy, combines the tiers' answers, and lets the policy learn.

A client may ask any tier. Each text passes here once, on the first tier of its way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import structlog

from shared.contracts import ClassifyRequest, Combination, Hop, InferRequest, Result
from shared.errors import UnreadableText
from shared.model.ensemble import combine
from shared.pipeline.hops import rounded
from shared.pipeline.text import Call, Text
from shared.pipeline.tier import Tier
from shared.pipeline.watch import Watch
from shared.pipeline.why import why
from shared.policies import (
    Learner,
    Outcome,
    Policy,
    State,
    Visit,
    Where,
    bind,
    first_state,
    name_of,
    names,
    travelling,
)
from shared.policies.mistakes import weighting
from shared.policies.states import States

log = structlog.get_logger()


@dataclass(frozen=True)
class Answered:
    """A request's results, the seconds that the ensemble took, and the plain policy that decided."""

    results: list[Result]
    ensemble_s: float
    policy: Policy


class Front:
    """Answers clients' requests with a tier.

    Raises:
        UnknownPolicy: the bundle lacks what the default policy needs.
        BadSetting: the states on disk cannot be used.
    """

    def __init__(
        self,
        tier: Tier,
        *,
        default_policy: str | Mapping[str, Any],
        state_dir: Path | None = None,
        deadline_ms: float | None = None,
    ) -> None:
        self.tier, self._deadline_ms = tier, deadline_ms
        self._bundle, self._telemetry = tier.bundle, tier.telemetry
        self._ensemble = tier.bundle.card.ensemble()
        self._skew_logged: set[tuple[str, str]] = set()  # tiers and their cards, other than this tier's
        policy = self.default_policy = tier.policy(default_policy)
        order = tier.bundle.order
        self._where = Where(tier.name, order[order.index(tier.name) + 1 :], tier.sizes)
        path = None if state_dir is None else state_dir / f"{tier.name}-{tier.bundle.digest[:12]}.json"
        self.states = States(path, tier.policy, self._first_state, keep=policy)
        self._check(policy)

    def use(self, default_policy: str | Mapping[str, Any]) -> None:
        """Decide by another default policy from the next request on.

        Raises:
            UnknownPolicy: it does not exist, or the bundle lacks what it needs; the policy in force stays.
        """
        policy = self.tier.policy(default_policy)
        self._check(policy)
        self.default_policy = policy
        self.states.keep(policy)
        self._telemetry.policies = frozenset(names(self._bundle.order))

    def _check(self, policy: Policy) -> None:
        """Whether the first tier can decide by it; a deeper one may never be asked first."""
        if self.tier.name == self._bundle.order[0]:
            self.admit(policy)

    @property
    def prunes(self) -> bool:
        """Whether the default policy may prune what leaves this tier."""
        return self.default_policy.prunes_at(replace(self._where, reachable=self.tier.route.reachable(None)))

    def _first_state(self, policy: Policy) -> State | None:
        return first_state(policy, self._where, self._bundle.pools)

    def admit(self, policy: Policy) -> Policy:
        """The plain policy for one request; UnknownPolicy where this bundle lacks what it needs."""
        policy.check(self._where)
        return bind(policy, self.states.of(policy))

    async def classify(
        self, request: ClassifyRequest, request_id: str, headers: Mapping[str, str], watch: Watch | None = None
    ) -> Answered:
        """Answer every input; `watch` is told of exits and hops meanwhile.

        Raises:
            BadInput: an unknown policy or tier, or a text that cannot be read.
            DeadlinePassed: no exit was reached in time.
        """
        options = request.options
        policy = self.default_policy if options.policy is None else self.tier.policy(options.policy)
        bound = self.admit(policy).settled(self.tier.place(options.max_tier))
        call = self.tier.resolve(self._inner(request, request_id, bound), bound, headers, watch)
        await self.tier.answer(call)
        if unreadable := [str(text.index) for text in call.texts if not text.hops]:
            problem = "no word that the tokenizer knows"
            places = [f"inputs.{at}" for at in unreadable] if isinstance(request.inputs, list) else ["inputs"]
            errors = [{"at": place, "problem": problem} for place in places]
            raise UnreadableText(f"{problem} in input {', '.join(unreadable)}", errors=errors)
        started = call.clock()
        results = [self._result(call, text) for text in call.texts]
        seconds = call.clock() - started
        self._telemetry.stage("ensemble", seconds)
        whole = options.max_tier in (None, self._bundle.order[-1])
        if whole and isinstance(policy, Learner) and policy.learns:
            self.states.learn(policy, bound, [self._outcome(text) for text in call.texts if not text.degraded])
        return Answered(results, seconds, bound)

    def _inner(self, request: ClassifyRequest, request_id: str, policy: Policy) -> InferRequest:
        """A client's request in the form that tiers send each other."""
        options, texts = request.options, request.pairs()
        return InferRequest(
            request_id=request_id,
            call=request_id,
            seed=request_id if options.seed is None else str(options.seed),
            indices=list(range(len(texts))),
            texts=texts,
            policy=travelling(policy, self._bundle.card.policies),
            max_tier=options.max_tier,
            deadline_ms=self._deadline_ms if options.deadline_ms is None else options.deadline_ms,
            explain=options.explain,
        )

    def _outcome(self, text: Text) -> Outcome:
        """The facts about an answered text that a policy may learn from."""
        visits = []
        for hop in text.hops:
            probabilities = tuple(hop.probabilities[label] for label in self._bundle.labels)
            exits = text.answer.rounded if text.answer is not None and hop is text.hop else (probabilities,)
            confidences = tuple(map(max, exits))
            visits.append(Visit(hop.tier, hop.exit_layer, hop.confidence, confidences, probabilities, exits))
        return Outcome(text.clues, tuple(visits))

    def _result(self, call: Call, text: Text) -> Result:
        """One text's answer: the weighted mean over its hops."""
        policy, hops, last = call.policy, text.hops, text.hops[-1]
        confidences = [hop.confidence for hop in hops]
        shares = self._ensemble.weights([hop.tier for hop in hops], weighting(policy), confidences)
        weights = [round(weight, 6) for weight in shares]
        probabilities = rounded(combine([hop.probabilities for hop in hops], shares))
        label = max(probabilities, key=probabilities.__getitem__)
        self._count(text, label, policy)
        return Result(
            index=text.index,
            label=label,
            probabilities=probabilities,
            confidence=probabilities[label],
            why=why(hops, text.degraded, policy, call.where, final=text.decision.final),
            tier=last.tier,
            exit_layer=last.exit_layer,
            words_in=hops[0].words_in,
            truncated=any(_some_unread(hop, policy) for hop in hops),
            degraded=text.degraded,
            card_skew=self._skewed(hops),
            modelled_joules=_joules(hops),
            ensemble=Combination(
                weights={hop.tier: weight for hop, weight in zip(hops, weights, strict=True)},
                overruled=label != last.label,
            ),
            hops=[hop.model_copy(update={"weight": w}) for hop, w in zip(hops, weights, strict=True)],
        )

    def _count(self, text: Text, label: str, policy: Policy) -> None:
        """Count an answer by its label, by the tier that ran last, and by the reason why it is degraded."""
        here = self.tier.name
        self._telemetry.answers.labels(here, label).inc()
        self._telemetry.answered.labels(here, text.hops[-1].tier, name_of(policy)).inc()
        if text.degraded:
            self._telemetry.degraded.labels(here, text.degraded).inc()

    def _skewed(self, hops: list[Hop]) -> bool:
        """Whether a tier answered with another model card than this tier's: logged once a card, counted always."""
        others = {(hop.tier, hop.card) for hop in hops if hop.card != self._bundle.card_name}
        for tier, card in others - self._skew_logged:
            log.warning("card_skew", tier=self.tier.name, by=tier, card=card, own=self._bundle.card_name)
        self._skew_logged |= others
        for tier, _ in others:
            self._telemetry.card_skew.labels(self.tier.name, tier).inc()
        return bool(others)


def _joules(hops: Sequence[Hop]) -> float | None:
    """Modelled joules of the links on a text's way; null where none has a model."""
    calls = [call for hop in hops for call in (hop.link, hop.hedge) if call is not None]
    known = [call.modelled_joules for call in calls if call.modelled_joules is not None]
    return round(sum(known), 6) if known else None


def _some_unread(hop: Hop, policy: Policy) -> bool:
    """Whether a tier left words unread, or words behind that no further tier would have read."""
    left_behind = hop.words_kept is not None and hop.words_kept < hop.words_in
    return hop.truncated or (left_behind and policy.pruning(hop.tier).cuts_middle)
