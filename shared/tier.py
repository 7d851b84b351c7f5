"""A request's life on one tier: decide, infer layer by layer, decide again, prune, send on, put the hops together.

    bind     a policy that learns becomes the plain policy of this request (on the tier that was asked)
    before   the policy may send a text on before any layer runs
    infer    the model runs in its worker; each text leaves at the first exit that the policy's exit rule accepts
    after    confidence -> offload probability -> draw -> answer here, or prune and send the kept words on
    merge    this tier's hop, then the hops that came back; an upstream that failed leaves this tier's answer, flagged

End, edge and cloud run this same code; the last tier has no upstream. The tier that was asked also ensembles, and its
policy learns from what came back.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import structlog

from shared.bundle import Bundle
from shared.call import Call
from shared.contracts import (
    ClassifyRequest,
    DegradedReason,
    InferredRow,
    InferRequest,
    Result,
    TextPair,
)
from shared.dispatch import draw
from shared.ensemble import combine
from shared.errors import BadInput, DeadlinePassed, UnreadableText
from shared.policies import (
    STAY,
    Clues,
    Decision,
    Outcome,
    Policy,
    State,
    Visit,
    Where,
    build,
    name_of,
    spec_of,
)
from shared.rows import Rows, rounded
from shared.sending import MERGE_S, Sender
from shared.states import States
from shared.telemetry import Telemetry
from shared.upstream import Upstream
from shared.worker import Worker

log = structlog.get_logger()
EXPLAINED_WORDS = 10_000


@dataclass(frozen=True)
class Answered:
    """A request's results, the seconds that the ensemble took, and the plain policy that decided."""

    results: list[Result]
    ensemble_s: float
    policy: Policy


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
        default_policy: str | Mapping[str, Any],
        state_dir: Path | None = None,
        deadline_ms: float | None = None,
    ) -> None:
        self._deadline_ms = deadline_ms
        self._away = 0  # texts that another tier reads before any layer ran here
        self.name, self.bundle, self.worker, self.telemetry = name, bundle, worker, telemetry
        self.sender = Sender(name=name, bundle=bundle, upstreams=upstreams, telemetry=telemetry)
        self.upstreams = self.sender.upstreams
        self.rows = Rows(name=name, bundle=bundle, telemetry=telemetry)
        self.layers = bundle.tiers[name].layers
        self.ensemble = bundle.card.ensemble()
        self.default_policy = self.policy(default_policy)
        self.sizes = {tier: model.layers for tier, model in bundle.tiers.items()}
        path = None if state_dir is None else state_dir / f"{name}-{bundle.digest[:12]}.json"
        self.states = States(path, self.policy, self._first_state, keep=self.default_policy)
        if name == bundle.order[0]:  # a deeper one may never be asked first
            self._admit(self.default_policy)

    def policy(self, spec: str | Mapping[str, Any]) -> Policy:
        """The policy that a spec names, with this bundle's parameters for whatever it leaves out."""
        return build(spec, self.bundle.order, self.bundle.card.policies)

    def _first_state(self, policy: Policy) -> State | None:
        return policy.initial_state(Where(self.name, tuple(self.bundle.order[1:]), self.sizes), self.bundle.pools)

    def _admit(self, policy: Policy) -> Policy:
        """The plain policy for one request.

        Raises:
            UnknownPolicy: this bundle lacks what the policy needs.
        """
        order = self.bundle.order
        policy.check(self.sizes, order[order.index(self.name) :])
        return policy.bound(self.states.of(policy))

    # -- the first tier of a request -------------------------------------------------------------------------------

    async def classify(self, request: ClassifyRequest, request_id: str, headers: Mapping[str, str]) -> Answered:
        """Answer every input.

        Raises:
            BadInput: an unknown policy or tier, or a text that cannot be read.
            DeadlinePassed: no exit was reached in time.
        """
        inputs = request.inputs if isinstance(request.inputs, list) else [request.inputs]
        options = request.options
        policy = self.default_policy if options.policy is None else self.policy(options.policy)
        bound = self._admit(policy)
        call = self._resolve(
            InferRequest(
                request_id=request_id,
                seed=request_id if options.seed is None else str(options.seed),
                indices=list(range(len(inputs))),
                texts=[TextPair(text=item) if isinstance(item, str) else item for item in inputs],
                policy=spec_of(bound),
                max_tier=options.max_tier,
                deadline_ms=self._deadline_ms if options.deadline_ms is None else options.deadline_ms,
                explain=options.explain,
            ),
            headers,
            bound,
        )
        rows = await self._run(call)
        unreadable = [str(index) for index, row in enumerate(rows) if not row.hops]
        if unreadable:
            raise UnreadableText(f"no word that the tokenizer knows in input {', '.join(unreadable)}")
        started = time.perf_counter()
        results = [self._result(index, row, bound) for index, row in enumerate(rows)]
        seconds = time.perf_counter() - started
        self.telemetry.stage("ensemble", seconds)
        if policy.learns and options.max_tier in (None, self.bundle.order[-1]):
            self.states.learn(
                policy, bound, [self._outcome(call, r, row) for r, row in enumerate(rows) if not row.degraded]
            )
        return Answered(results, seconds, bound)

    def _outcome(self, call: Call, row: int, answer: InferredRow) -> Outcome:
        """What was seen on a text's way."""
        own = tuple(call.exits.get(row, ()))
        return Outcome(
            call.clues[row],
            tuple(
                Visit(h.tier, h.exit_layer, h.confidence, own if h.tier == self.name else (h.confidence,))
                for h in answer.hops
            ),
        )

    def _result(self, index: int, row: InferredRow, policy: Policy) -> Result:
        confidences = [hop.confidence for hop in row.hops]
        weights = self.ensemble.weights([hop.tier for hop in row.hops], policy.weighting_for(), confidences)
        probabilities = rounded(combine([hop.probabilities for hop in row.hops], weights))
        label = max(probabilities, key=probabilities.__getitem__)
        last = row.hops[-1]
        self.telemetry.answers.labels(self.name, label).inc()
        self.telemetry.answered.labels(self.name, last.tier, name_of(policy)).inc()
        if row.degraded:
            self.telemetry.degraded.labels(self.name, row.degraded).inc()
        hops = [hop.model_copy(update={"weight": round(w, 6)}) for hop, w in zip(row.hops, weights, strict=True)]
        return Result(
            index=index,
            label=label,
            probabilities=probabilities,
            confidence=probabilities[label],
            tier=last.tier,
            exit_layer=last.exit_layer,
            words_in=hops[0].words_in,
            truncated=any(hop.truncated for hop in hops),
            degraded=row.degraded,
            hops=hops,
        )

    # -- every tier ------------------------------------------------------------------------------------------------

    async def infer(self, request: InferRequest, headers: Mapping[str, str]) -> list[InferredRow]:
        """The hops of every text from this tier on; a row without hops could not be read.

        Raises:
            BadInput: an unknown policy or tier, or a target that cannot be reached from here.
            QueueFull, DeadlinePassed: this tier could not start in time.
        """
        return await self._run(self._resolve(request, headers, self.policy(request.policy)))

    async def _run(self, call: Call) -> list[InferredRow]:
        request = call.request
        rows = range(len(request.texts))
        if not rows:
            await self.worker.turn()
        await self._look(call)
        before = {row: self._before(call, row) for row in rows}
        self.telemetry.words.labels(self.name, "in").inc(sum(clues.words for clues in call.clues))
        away = {row: decision for row, decision in before.items() if decision.to is not None}
        stay = [row for row in rows if row not in away]
        texts = {row: request.texts[row] for row in away}
        self._away += len(away)
        sent = asyncio.create_task(self.sender.send(call, away, texts, reserve_s=self._reserve(call)))
        try:
            out = await self._local(call, stay, {})
            relayed = await sent
        finally:
            self._away -= len(away)
            sent.cancel()
        failed = {row: answer.degraded for row, answer in relayed.items() if not answer.hops and answer.degraded}
        out |= {row: answer for row, answer in relayed.items() if row not in failed}
        out |= await self._local(call, list(failed), failed)
        return [out[row] for row in rows]

    def _reserve(self, call: Call) -> float:
        """Seconds of a deadline kept back while texts are away before any layer ran here.

        What running all that are away is measured to take here, since they come back together if their upstream
        fails, and a tenth of what is left (a busy machine's share); half of what is left before anything was measured.
        """
        left = call.remaining()
        if left is None:
            return 0.0
        expected = self.worker.expected(self._away, self.layers)
        return left / 2 if expected is None else min(expected + left / 10, 0.9 * left)

    async def _look(self, call: Call) -> None:
        """Add each text's signature to its clues, where the policy asks for one."""
        kind = call.policy.signature(self.name)
        if kind is None or call.request.target is not None:
            return
        started = time.perf_counter()
        try:
            async with asyncio.timeout(call.remaining()):
                signatures = await self.worker.signatures(call.request.texts, kind, call.expires)
        except TimeoutError as error:
            raise DeadlinePassed("the deadline passed before the first exit was reached") from error
        call.clues[:] = [replace(c, signature=s) for c, s in zip(call.clues, signatures, strict=True)]
        self.telemetry.stage("tokenize", time.perf_counter() - started)

    def _resolve(self, request: InferRequest, headers: Mapping[str, str], policy: Policy) -> Call:
        order = self.bundle.order
        if request.max_tier not in (None, *order):
            raise BadInput(f"unknown tier {request.max_tier!r}: this bundle has {', '.join(order)}")
        depth = order.index(request.max_tier) if request.max_tier is not None else len(order) - 1
        deeper = order[min(map(order.index, self.upstreams), default=len(order)) :]
        reachable = tuple(target for target in deeper if order.index(target) <= depth)
        if request.target not in (None, self.name, *deeper):
            raise BadInput(f"tier {request.target!r} cannot be reached from {self.name}")
        expires = None if request.deadline_ms is None else time.perf_counter() + request.deadline_ms / 1e3
        draws = [draw(request.seed, index, self.name) for index in request.indices]
        clues = [Clues(_count(text)) for text in request.texts]
        if request.explain and (words := sum(own.words for own in clues)) > EXPLAINED_WORDS:
            raise BadInput(f"explain lists every word, at most {EXPLAINED_WORDS} a request; these texts have {words}")
        return Call(request, policy, Where(self.name, reachable, self.sizes), draws, expires, headers, clues)

    def _before(self, call: Call, row: int) -> Decision:
        target = call.request.target
        if target == self.name:
            return STAY
        if target is not None:  # on its way to another tier: pass it on
            return Decision(target, 1.0, "policy", True)
        decision = call.policy.before(call.where, call.clues[row], call.draws[row])
        if decision.to is not None:
            self.telemetry.offloads.labels(self.name, decision.to, decision.reason, name_of(call.policy)).inc()
        return decision

    async def _local(self, call: Call, rows: list[int], failed: dict[int, DegradedReason]) -> dict[int, InferredRow]:
        """Infer here, decide, and send on what should go on; `failed` rows were to go elsewhere and could not.

        A row whose time runs out between two layers stays, with the deepest exit it reached.
        """
        if not rows:
            return {}
        started = time.perf_counter()
        left = call.remaining()
        if left is not None and left <= 0:
            raise DeadlinePassed("the deadline passed before the first exit was reached")
        final = call.request.target == self.name
        stuck = final or bool(failed) or self.sender.stuck(call.where)
        try:
            async with asyncio.timeout(left):
                batch = await self.worker.run(
                    [call.request.texts[row] for row in rows],
                    call.policy.exit_rule(replace(call.where, reachable=()) if stuck else call.where),
                    importance=(not final and call.policy.prunes_at(call.where)) or call.request.explain,
                    explain=call.request.explain,
                    expires=None if call.expires is None else call.expires - MERGE_S,
                )
        except TimeoutError as error:
            raise DeadlinePassed("the deadline passed before the first exit was reached") from error
        cut: dict[int, DegradedReason] = {
            row: "deadline" for row, answer in zip(rows, batch.answers, strict=True) if answer and answer.cut
        }
        failed = cut | failed
        done = self.rows.decide(call, rows, batch, failed, final=final, started=started)
        out = {row: InferredRow(hops=[done[row].hop] if row in done else [], degraded=failed.get(row)) for row in rows}
        onward = {row: item.onward for row, item in done.items() if item.onward is not None}
        for row, answer in (await self.sender.send(call, {r: done[r].decision for r in onward}, onward)).items():
            out[row] = InferredRow(hops=[done[row].hop, *answer.hops], degraded=answer.degraded)
        return out


def _count(text: TextPair) -> int:
    return len(text.text.split()) + len((text.text_pair or "").split())
