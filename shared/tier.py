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
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import structlog

from shared.bundle import Bundle
from shared.contracts import (
    ClassifyRequest,
    DegradedReason,
    Hop,
    InferredRow,
    InferRequest,
    Result,
    TextPair,
    WordUse,
)
from shared.dispatch import draw
from shared.ensemble import combine
from shared.errors import BadInput, DeadlinePassed, UnreadableText, UpstreamFailure
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
from shared.pruning import keep_words
from shared.states import States
from shared.telemetry import Telemetry
from shared.upstream import Upstream
from shared.worker import Answer, Batch, Worker

log = structlog.get_logger()


@dataclass(frozen=True)
class _Call:
    """An InferRequest on its way through this tier, with what was resolved from it once."""

    request: InferRequest
    policy: Policy
    where: Where
    draws: list[float]
    expires: float | None  # perf_counter time
    headers: Mapping[str, str]
    clues: list[Clues]
    exits: dict[int, list[float]] = field(default_factory=dict)  # confidences of the exits evaluated here, by row

    def remaining(self) -> float | None:
        return None if self.expires is None else self.expires - time.perf_counter()


@dataclass(frozen=True)
class _Row:
    """One text after local inference."""

    hop: Hop
    decision: Decision
    onward: TextPair | None  # the pruned text, if it leaves


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
    ) -> None:
        self.name, self.bundle, self.worker, self.telemetry = name, bundle, worker, telemetry
        self.upstreams = {upstream.target: upstream for upstream in upstreams}
        self.layers = bundle.tiers[name].layers
        self.ensemble = bundle.card.ensemble()
        self.default_policy = self.policy(default_policy)
        self.sizes = {tier: model.layers for tier, model in bundle.tiers.items()}
        path = None if state_dir is None else state_dir / f"{name}-{bundle.digest[:12]}.json"
        self.states = States(path, self.policy, self._first_state)
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
                deadline_ms=options.deadline_ms,
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

    def _outcome(self, call: _Call, row: int, answer: InferredRow) -> Outcome:
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
        probabilities = _rounded(combine([hop.probabilities for hop in row.hops], weights))
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

    async def _run(self, call: _Call) -> list[InferredRow]:
        request = call.request
        rows = range(len(request.texts))
        await self._look(call)
        before = {row: self._before(call, row) for row in rows}
        self.telemetry.words.labels(self.name, "in").inc(sum(clues.words for clues in call.clues))
        out: dict[int, InferredRow] = {}
        away = {row: decision for row, decision in before.items() if decision.to is not None}
        groups = _by_destination(away)
        relayed = await asyncio.gather(
            *(self._send(call, group, [request.texts[r] for r in group], to, final) for (to, final), group in groups)
        )
        failed: dict[int, DegradedReason] = {}
        for (_, group), answer in zip(groups, relayed, strict=True):
            for row, came in zip(group, answer, strict=True):
                if came.hops:
                    out[row] = came
                else:
                    failed[row] = came.degraded or "upstream_refused"
        here = [row for row in rows if row not in out]
        if here:
            out |= await self._local(call, here, failed)
        return [out[row] for row in rows]

    async def _look(self, call: _Call) -> None:
        """Add each text's signature to its clues, where the policy asks for one."""
        kind = call.policy.signature(self.name)
        if kind is None or call.request.target is not None:
            return
        started = time.perf_counter()
        try:
            async with asyncio.timeout(call.remaining()):
                signatures = await self.worker.signatures(call.request.texts, kind)
        except TimeoutError as error:
            raise DeadlinePassed("the deadline passed before the first exit was reached") from error
        call.clues[:] = [replace(c, signature=s) for c, s in zip(call.clues, signatures, strict=True)]
        self.telemetry.stage("tokenize", time.perf_counter() - started)

    def _resolve(self, request: InferRequest, headers: Mapping[str, str], policy: Policy) -> _Call:
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
        return _Call(request, policy, Where(self.name, reachable, self.sizes), draws, expires, headers, clues)

    def _before(self, call: _Call, row: int) -> Decision:
        target = call.request.target
        if target == self.name:
            return STAY
        if target is not None:  # on its way to another tier: pass it on
            return Decision(target, 1.0, "policy", True)
        decision = call.policy.before(call.where, call.clues[row], call.draws[row])
        if decision.to is not None:
            self.telemetry.offloads.labels(self.name, decision.to, decision.reason, name_of(call.policy)).inc()
        return decision

    async def _local(
        self, call: _Call, rows: list[int], failed: Mapping[int, DegradedReason]
    ) -> dict[int, InferredRow]:
        """Infer here, decide, and send on what should go on; `failed` rows were to go elsewhere and could not."""
        started = time.perf_counter()
        left = call.remaining()
        if left is not None and left <= 0:
            raise DeadlinePassed("the deadline passed before the first exit was reached")
        final = call.request.target == self.name
        try:
            async with asyncio.timeout(left):
                batch = await self.worker.run(
                    [call.request.texts[row] for row in rows],
                    call.policy.exit_rule(self.name),
                    importance=(not final and call.policy.prunes_at(call.where)) or call.request.explain,
                    explain=call.request.explain,
                )
        except TimeoutError as error:
            raise DeadlinePassed("the deadline passed before the first exit was reached") from error
        done = self._decide(call, rows, batch, failed, final=final, started=started)
        groups = _by_destination({row: item.decision for row, item in done.items() if item.onward is not None})
        came = await asyncio.gather(
            *(self._send(call, g, [_onward(done[r]) for r in g], to, final) for (to, final), g in groups)
        )
        out = {row: InferredRow(hops=[done[row].hop] if row in done else [], degraded=failed.get(row)) for row in rows}
        for (_, group), answers in zip(groups, came, strict=True):
            for row, answer in zip(group, answers, strict=True):
                degraded = answer.degraded if answer.hops else answer.degraded or "upstream_refused"
                out[row] = InferredRow(hops=[done[row].hop, *answer.hops], degraded=degraded)
        return out

    def _decide(
        self,
        call: _Call,
        rows: list[int],
        batch: Batch,
        failed: Mapping[int, DegradedReason],
        *,
        final: bool,
        started: float,
    ) -> dict[int, _Row]:
        """What every readable text of a batch got here, and where it goes next."""
        pruning_started = time.perf_counter()
        done: dict[int, _Row] = {}
        for row, answer in zip(rows, batch.answers, strict=True):
            if answer is None:
                continue
            stay = final or row in failed
            decision = STAY if stay else call.policy.after(call.where, max(answer.probabilities), call.draws[row])
            if not stay:
                self.telemetry.offload_probability.labels(self.name).observe(decision.probability)
            keep = None
            if answer.importance is not None and (decision.to is not None or call.request.explain):
                keep = call.policy.pruning(self.name).mask(answer.encoded, answer.importance)
            call.exits[row] = [round(max(exit_), 6) for exit_ in answer.exits]
            hop = self._hop(call, row, answer, decision, keep)
            onward = None if decision.to is None else _onward_text(call.request.texts[row], answer, keep)
            done[row] = _Row(hop, decision, onward)
        prune = time.perf_counter() - pruning_started
        seconds = {"tokenize": batch.tokenize, "queue": batch.queue, "infer": batch.infer, "prune": prune}
        for stage, value in seconds.items():
            self.telemetry.stage(stage, value)
        seconds["total"] = time.perf_counter() - started
        times = {stage: round(value * 1e3, 3) for stage, value in seconds.items()}
        return {row: replace(r, hop=r.hop.model_copy(update={"timings_ms": times})) for row, r in done.items()}

    def _hop(self, call: _Call, row: int, answer: Answer, decision: Decision, keep: list[bool] | None) -> Hop:
        probabilities = self._by_label(answer.probabilities)
        label = max(probabilities, key=probabilities.__getitem__)
        words = len(answer.encoded.words)
        kept = None if decision.to is None else words if keep is None else sum(keep)
        self.telemetry.exits.labels(self.name, str(answer.exit_layer)).inc()
        self.telemetry.confidence.labels(self.name).observe(probabilities[label])
        if decision.to is not None:
            self.telemetry.offloads.labels(self.name, decision.to, decision.reason, name_of(call.policy)).inc()
            self.telemetry.words.labels(self.name, "kept").inc(kept or 0)
        explain = call.request.explain
        return Hop(
            tier=self.name,
            exit_layer=answer.exit_layer,
            layers=self.layers,
            label=label,
            probabilities=probabilities,
            confidence=probabilities[label],
            offload_probability=round(decision.probability, 6),
            draw=call.draws[row],
            offloaded_to=decision.to,
            words_in=words,
            words_kept=kept,
            truncated=answer.encoded.truncated,
            timings_ms={},
            exits=[self._by_label(probs) for probs in answer.exits] if explain else None,
            words=_explained(answer, keep) if explain and keep is not None else None,
        )

    def _by_label(self, probabilities: Sequence[float]) -> dict[str, float]:
        return _rounded(dict(zip(self.bundle.labels, probabilities, strict=True)))

    async def _send(
        self, call: _Call, rows: list[int], texts: list[TextPair], to: str, final: bool
    ) -> list[InferredRow]:
        """Ask another tier; a failure gives rows without hops and with the reason. Never raises for the upstream."""
        request, left = call.request, call.remaining()
        onward = request.model_copy(
            update={
                "indices": [request.indices[row] for row in rows],
                "texts": texts,
                "target": to if final else None,
                "deadline_ms": None if left is None else max(0.0, left * 1e3),
            }
        )
        upstream = self._toward(to)
        try:
            if left is not None and left <= upstream.link[1].rtt:
                raise UpstreamFailure("deadline", f"{left * 1e3:.0f} ms are left, the link to {to} takes longer")
            carried = await upstream.infer(onward, dict(call.headers))
            labels, tiers = set(self.bundle.labels), self.bundle.order
            hops = [hop for row in carried.response.rows for hop in row.hops]
            if any(hop.probabilities.keys() != labels or hop.tier not in tiers for hop in hops):
                raise UpstreamFailure("upstream_invalid", f"{to} answers with other labels, or for other tiers")
        except UpstreamFailure as failure:
            log.warning("upstream_failed", tier=self.name, to=to, reason=failure.reason, detail=str(failure))
            return [InferredRow(hops=[], degraded=failure.reason) for _ in rows]
        self.telemetry.stage("link", carried.link_s)
        name = f"{self.name}-{upstream.target}"
        self.telemetry.link_bytes.labels(name, "up").inc(carried.request_bytes)
        self.telemetry.link_bytes.labels(name, "down").inc(carried.response_bytes)
        return upstream.with_link(carried, texts)

    def _toward(self, tier: str) -> Upstream:
        """The link that leads to a tier: its own, or that of the deepest tier before it, which passes the text on."""
        order = self.bundle.order
        return self.upstreams[max((u for u in self.upstreams if order.index(u) <= order.index(tier)), key=order.index)]


def _by_destination(decisions: Mapping[int, Decision]) -> list[tuple[tuple[str, bool], list[int]]]:
    groups: dict[tuple[str, bool], list[int]] = {}
    for row, decision in decisions.items():
        assert decision.to is not None
        groups.setdefault((decision.to, decision.final), []).append(row)
    return list(groups.items())


def _onward(row: _Row) -> TextPair:
    assert row.onward is not None
    return row.onward


def _onward_text(text: TextPair, answer: Answer, keep: list[bool] | None) -> TextPair:
    if keep is None:
        return text
    kept, pair = keep_words(text.text, text.text_pair, answer.encoded, keep)
    return TextPair(text=kept, text_pair=pair)


def _explained(answer: Answer, keep: list[bool]) -> list[WordUse]:
    """Each word with the most attention that one of its tokens received."""
    best: dict[int, float] = {}
    for word, value in zip(answer.encoded.word_of, answer.importance or [], strict=True):
        if word >= 0:
            best[word] = max(best.get(word, 0.0), value)
    return [
        WordUse(word=word, importance=round(best[i], 4) if i in best else None, kept=keep[i])
        for i, word in enumerate(answer.encoded.words)
    ]


def _count(text: TextPair) -> int:
    return len(text.text.split()) + len((text.text_pair or "").split())


def _rounded(probabilities: Mapping[str, float]) -> dict[str, float]:
    return {label: round(value, 6) for label, value in probabilities.items()}
