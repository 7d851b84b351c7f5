"""A request's life on one tier: decide, infer layer by layer, decide again, prune, send on, put the hops together.

    before   the policy may send a text on before any layer runs
    infer    the model runs in its worker; each text leaves at the first exit that the policy's exit rule accepts
    after    confidence -> offload probability -> draw -> answer here, or go on
    prune    a text that goes on leaves behind the words that received little attention
    send     one call per destination; its hops come behind this tier's; if it failed, this tier's answer stands alone

Every tier runs this same code; the last one has no upstream. The tier that a client asked does more: it binds the
policy, combines the hops into an answer and lets the policy learn (`shared/pipeline/front.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import structlog

from shared.contracts import HOP_STAGES, HopTiming, InferredRow, InferRequest, Rule
from shared.errors import BadInput, BadState, DeadlinePassed, UnknownPolicy
from shared.links.upstream import Upstream
from shared.model.bundle import Bundle
from shared.model.exits import ExitRule
from shared.model.state import State
from shared.model.words import Encoded
from shared.pipeline.carry import States
from shared.pipeline.hops import new_exit, new_hop, visits_before, words_in
from shared.pipeline.queue import Work
from shared.pipeline.sender import MERGE_S, Sender
from shared.pipeline.sight import LiveSight, Steady
from shared.pipeline.speculation import Ahead, Budget
from shared.pipeline.text import Answer, Call, Text
from shared.pipeline.watch import Watch
from shared.pipeline.worker import Batch, Worker
from shared.policies import STAY, Clues, Decision, Policy, Where, build, name_of
from shared.policies.base import draw
from shared.policies.mistakes import decision
from shared.telemetry import Telemetry

log = structlog.get_logger()
EXPLAINED_WORDS = 10_000


class Tier:
    """The pipeline of one tier. `upstreams` are its links, nearest first."""

    def __init__(
        self,
        *,
        name: str,
        bundle: Bundle,
        worker: Worker,
        upstreams: Sequence[Upstream],
        telemetry: Telemetry,
        budget: Budget,
        hedges: Budget,
        states: States | None = None,
    ) -> None:
        self.name, self.bundle, self.worker, self.telemetry = name, bundle, worker, telemetry
        self.sender = Sender(
            name=name,
            bundle=bundle,
            upstreams=upstreams,
            telemetry=telemetry,
            hedges=hedges,
            clock=worker.clock,
            states=states,
        )
        self.upstreams, self.route = self.sender.upstreams, self.sender.route
        self.sizes = {tier: model.layers for tier, model in bundle.tiers.items()}
        # Where a policy that was sent on is checked: only the tier that was asked may have to hold all layers.
        self._whole = Where(max(self.sizes, key=self.sizes.__getitem__), (), self.sizes)
        self._clock = worker.clock
        self.budget = budget  # of speculative sending
        self.steady = Steady()  # what policies compare with what they saw before
        self._away = 0  # texts that another tier reads before any layer ran here

    async def answer(self, call: Call) -> None:
        """Take every text of a call through its life here: it gets this tier's hop, and those of the tiers behind."""
        if not call.texts:  # a probe asks whether the model still takes work
            await self.worker.turn()
        await self._add_signatures(call)
        for text in call.texts:
            self._decide_before(call, text)
        unread = [text for text in call.texts if text.decision.to]  # they go on before any layer runs here
        here = [text for text in call.texts if not text.decision.to]
        for text in unread:
            self._choose_way(call, text, None)
        if not unread:
            await self._infer_and_send(call, here)
            return
        self._away += len(unread)
        sent = asyncio.create_task(self.sender.send(call, unread, reserve_s=self._reserve_s(call)))
        try:
            await self._infer_and_send(call, here)
            await sent
        finally:
            self._away -= len(unread)
            sent.cancel()
        await self._infer_and_send(call, [text for text in unread if text.came_back])  # their upstream failed

    # -- before any layer runs -------------------------------------------------------------------------------------

    async def _add_signatures(self, call: Call) -> None:
        """Add each text's signature to its clues, where the policy asks for one."""
        kind = call.policy.signature(self.name)
        if kind is None or call.request.target is not None:
            return
        started = self._clock()
        async with call.in_time():
            signatures = await self.worker.signatures(call.request.texts, kind, call.expires)
        for text, signature in zip(call.texts, signatures, strict=True):
            text.clues = replace(text.clues, signature=signature)
        self.telemetry.stage("tokenize", self._clock() - started)

    def _decide_before(self, call: Call, text: Text) -> None:
        """Decide where a text goes before any layer runs. One that leaves now travels unpruned."""
        target = call.request.target
        if target is None:
            text.decision = decision(call.policy, "before", self.where(call, text), text.clues, text.draw)
            self._count(call, text)
        elif target != self.name:  # on its way to another tier: pass it on
            text.decision = Decision(target, 1.0, "policy", True)

    # -- inference here --------------------------------------------------------------------------------------------

    async def _infer_and_send(self, call: Call, texts: Sequence[Text]) -> None:
        """Run the model here, decide about each text, and send on those that leave.

        A degraded text stays, since its upstream failed. So does one whose time runs out between two layers: its answer
        is the deepest exit it reached.
        """
        if not texts:
            return
        ahead = Ahead.of(self, call, texts)
        try:
            await self._infer(call, texts, ahead)
            if onward := [text for text in texts if text.decision.to]:
                await self.sender.send(call, onward)
        finally:
            if ahead is not None:
                ahead.end()

    async def _infer(self, call: Call, texts: Sequence[Text], ahead: Ahead | None) -> None:
        """Run the model here, decide about each text, and put this tier's part on record."""
        started = self._clock()
        batch = await self._run(call, texts, ahead)
        inferred = self._clock()
        for text, answer in zip(texts, batch.answers, strict=True):
            text.decision, text.way = STAY, None  # where it was sent before inference, that upstream has failed
            if answer is not None:  # else the tokenizer knows no word of it
                text.answer = answer
                self._decide_after(call, text, answer)
                self._prune(call, text, answer)
        if ahead is not None:
            ahead.settle()
        own_s = _token_layer_s(texts, batch)
        for text in texts:
            self._choose_way(call, text, own_s)
        ended = self._clock()
        times_s: dict[HopTiming, float] = {**batch.times_s, "prune": ended - inferred, "total": ended - started}
        self._add_hops(call, texts, times_s, batch.rule)

    async def _run(self, call: Call, texts: Sequence[Text], ahead: Ahead | None) -> Batch:
        """Run the model in its worker, with the policy's exit rule, until the deadline.

        Where that comes within a layer, each text has the deepest exit that it reached.
        """
        stuck = call.final or any(text.degraded for text in texts) or self._next_is_down(call.where)
        work = Work(
            [text.source for text in texts],
            call.policy.exit_rule(replace(call.where, reachable=()) if stuck else call.where),
            importance=(not call.final and call.policy.prunes_at(call.where)) or call.request.explain,
            explain=call.request.explain,
            max_tokens=self._reads(call.policy),
            expires=None if call.expires is None else call.expires - MERGE_S,
            tell=None if call.watch is None else partial(self._tell, call.watch, texts),
            passed=None if ahead is None else ahead.passed,
            begun=[text.begun for text in texts if text.begun is not None] or None,
            states=self.sender.states is not None and self.sender.states.wanted(call),
        )
        try:
            async with call.in_time(reserve_s=MERGE_S):
                return await self.worker.run(work)
        except DeadlinePassed:
            if (batch := await self.worker.taken_from(work)) is None:
                raise
            return batch

    def _tell(
        self, watch: Watch, texts: Sequence[Text], at: int, n: int, probabilities: list[float], met: bool | None
    ) -> None:
        """Tell who watches that a text has reached exit `n`; the model's thread does."""
        watch.exit(texts[at].index, self.name, new_exit(self.bundle, n, probabilities), met)

    def _decide_after(self, call: Call, text: Text, answer: Answer) -> None:
        """Decide where a text goes, now that the model has read it."""
        if answer.cut:
            text.degraded = text.degraded or "deadline"
        if not (call.final or text.degraded):
            where = self.where(call, text)
            text.decision = decision(call.policy, "after", where, max(answer.probabilities), text.draw)
            self.telemetry.offload_probability.labels(self.name).observe(text.decision.probability)

    def _prune(self, call: Call, text: Text, answer: Answer) -> None:
        """Choose the words that travel on, for a text that leaves or whose answer is explained."""
        if not (text.decision.to or call.request.explain):
            return
        if text.keep is None:  # else it may have been sent on already
            text.keep = text.unread = self.unread(call, text, answer.encoded)
        if text.keep is None and answer.importance is not None:
            text.keep = call.policy.pruning(self.name).mask(answer.encoded, answer.importance)

    def _choose_way(self, call: Call, text: Text, own_s: float | None) -> None:
        """Choose whether a text that leaves goes by text or by state, which takes along the words that were read.

        `own_s` is what a token's layer has just taken here.
        """
        states, to = self.sender.states, text.decision.to
        if states is None or to is None or text.ahead is not None or call.request.explain:
            return
        text.way = states.way(text, self.sender.upstream(to), own_s=own_s, limit=call.policy.token_limit)
        if text.by_state:
            text.keep = text.unread

    def unread(self, call: Call, text: Text, encoded: Encoded) -> list[bool] | None:
        """The words that travel on where those stay behind that no further tier reads; null: all of them."""
        policy = call.policy
        behind = self.bundle.read_behind(self.name, policy.token_limit)
        if behind is None or not policy.pruning(self.name).cuts_middle:
            return None
        return self.worker.unread_middle(text.source, encoded, self._reads(policy), behind)

    def _add_hops(
        self, call: Call, texts: Sequence[Text], times_s: Mapping[HopTiming, float], rule: ExitRule | None
    ) -> None:
        """Put this tier's part on record, for each text that its model has read."""
        for stage in HOP_STAGES:
            self.telemetry.stage(stage, times_s[stage])
        for text in texts:
            if text.answer is not None:
                sends, scores = self._rules(call, text, rule) if call.request.explain else (None, [])
                text.hop = new_hop(
                    self.bundle,
                    self.name,
                    text,
                    times_s=times_s,
                    exit_rule=rule,
                    offload_rule=sends,
                    scores=scores,
                )
                self._count(call, text)
                if call.watch is not None:
                    call.watch.hop(text.index, text.hop)

    def _rules(
        self, call: Call, text: Text, rule: ExitRule | None
    ) -> tuple[Rule | None, Sequence[Mapping[str, float]]]:
        """For an explanation: the rule by which a text may leave, and what gates gave each action it could take."""
        where, stays = self.where(call, text), call.final or text.degraded is not None
        able = replace(where, reachable=()) if stays else where
        scores = [] if rule is None else call.policy.scores(able)
        return None if stays else call.policy.offload_rule(where), scores

    # -- from a request to a call, and to its rows -------------------------------------------------------------------

    async def infer(
        self, request: InferRequest, headers: Mapping[str, str], begun: Sequence[State] = ()
    ) -> list[InferredRow]:
        """The hops of every text from this tier on; a row without hops could not be read.

        With `begun`, one state for each text, all after the same layer, the model goes on from these.

        Raises:
            BadInput: an unknown policy or tier, a policy that lacks what this bundle's tiers need, or a target that
                cannot be reached from here.
            BadState: a state that does not belong to its text, or states after different layers.
            QueueFull, DeadlinePassed: this tier could not start in time.
        """
        try:
            policy = self.policy(request.policy)
            policy.check(self._whole)
        except UnknownPolicy as error:  # the tiers differ: their operator must know, and the caller is a tier
            log.warning("policy_refused", tier=self.name, detail=str(error))
            raise
        call = self.resolve(request, policy, headers)
        if len({state.done for state in begun}) > 1:
            raise BadState("states of one call must all be after the same layer")
        for text, state in zip(call.texts, begun, strict=bool(begun)):
            text.begun = state
        await self.answer(call)
        return [InferredRow(index=text.index, hops=text.hops, degraded=text.degraded) for text in call.texts]

    def resolve(
        self, request: InferRequest, policy: Policy, headers: Mapping[str, str], watch: Watch | None = None
    ) -> Call:
        """Resolve a request once: its texts with their draws, its deadline, and the tiers that it may reach.

        Raises:
            BadInput: a tier that does not exist or cannot be reached, or too many words to explain.
        """
        expires = None if request.deadline_ms is None else self._clock() + request.deadline_ms / 1e3
        where = self.place(request.max_tier, expires)
        if request.target not in (None, self.name, *self.route.deeper):
            raise BadInput(f"tier {request.target!r} cannot be reached from {self.name}")
        texts = [
            Text(index, source, draw(request.seed, index, self.name), Clues(words_in(source)), before)
            for index, source, before in zip(
                request.indices, request.texts, visits_before(self.bundle, self.name, request), strict=True
            )
        ]
        words = sum(text.clues.words for text in texts)
        if request.explain and words > EXPLAINED_WORDS:
            raise BadInput(f"explain lists every word, at most {EXPLAINED_WORDS} a request; these texts have {words}")
        self.telemetry.words.labels(self.name, "in").inc(words)
        return Call(request, policy, where, texts, expires, self._clock, headers, watch)

    def place(self, max_tier: str | None, expires: float | None = None) -> Where:
        """This tier as policies see it, its links as they are when one looks.

        Raises:
            BadInput: there is no tier `max_tier`.
        """
        order = self.bundle.order
        if max_tier not in (None, *order):
            raise BadInput(f"unknown tier {max_tier!r}: this bundle has {', '.join(order)}")
        return Where(self.name, self.route.reachable(max_tier), self.sizes, LiveSight(self, expires, None))

    def policy(self, spec: str | Mapping[str, Any]) -> Policy:
        """The policy that a spec names, with this bundle's parameters for whatever it leaves out."""
        return build(spec, self.bundle.order, self.bundle.card.policies)

    # -- what the steps above need -----------------------------------------------------------------------------------

    def where(self, call: Call, text: Text) -> Where:
        """The place where a text is decided on. It costs microseconds; what a policy looks at costs more."""
        where = call.where
        return Where(where.tier, where.reachable, where.layers, LiveSight(self, call.expires, text))

    def _reads(self, policy: Policy) -> int:
        """How many tokens this tier reads of a text at most."""
        return self.bundle.reads(self.name, policy.token_limit(self.name))

    def _next_is_down(self, where: Where) -> bool:
        """Whether the nearest tier that a text could go to is known to be down."""
        return bool(where.reachable) and self.sender.upstream(where.reachable[0]).is_down

    def _reserve_s(self, call: Call) -> float:
        """Seconds of a deadline kept back while texts are away before any layer ran here.

        If their upstream fails, all of them come back together. The reserve is the time to run them here, as measured,
        and a tenth of the remaining time, since the machine may be busy. Before any measurement it is half of it.
        """
        remaining_s = call.remaining_s()
        if remaining_s is None:
            return 0.0
        expected_s = self.worker.expected_s(self._away, self.sizes[self.name])
        return remaining_s / 2 if expected_s is None else min(expected_s + remaining_s / 10, 0.9 * remaining_s)

    def _count(self, call: Call, text: Text) -> None:
        """Count where a text left this tier's model, if it ran, and where the text goes."""
        if (hop := text.hop) is not None:
            self.telemetry.exits.labels(self.name, str(hop.exit_layer)).inc()
            self.telemetry.confidence.labels(self.name).observe(hop.confidence)
            self.telemetry.words.labels(self.name, "kept").inc(hop.words_kept or 0)
        if (to := text.decision.to) is not None:
            self.telemetry.offloads.labels(self.name, to, text.decision.reason, name_of(call.policy)).inc()


def _token_layer_s(texts: Sequence[Text], batch: Batch) -> float | None:
    """Seconds of a token's layer in a pass; null where none ran."""
    ran = sum(
        len(answer.encoded.ids) * max(0, answer.exit_layer - (text.begun.done if text.begun else 0))
        for text, answer in zip(texts, batch.answers, strict=True)
        if answer is not None
    )
    return batch.times_s["infer"] / ran if ran else None
