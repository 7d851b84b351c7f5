"""What one text becomes on a tier, once the model has seen it: a hop, a decision, and the words that go on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from shared.bundle import Bundle
from shared.call import Call
from shared.contracts import DegradedReason, Hop, TextPair, WordUse
from shared.policies import STAY, Decision, name_of
from shared.pruning import keep_words
from shared.telemetry import Telemetry
from shared.worker import Answer, Batch


@dataclass(frozen=True)
class Row:
    """One text after local inference."""

    hop: Hop
    decision: Decision
    onward: TextPair | None  # the pruned text, if it leaves


class Rows:
    """Makes the rows of one tier."""

    def __init__(self, *, name: str, bundle: Bundle, telemetry: Telemetry) -> None:
        self._name, self.bundle, self._telemetry = name, bundle, telemetry
        self._layers = bundle.tiers[name].layers

    def decide(
        self,
        call: Call,
        rows: list[int],
        batch: Batch,
        failed: Mapping[int, DegradedReason],
        *,
        final: bool,
        started: float,
    ) -> dict[int, Row]:
        """What every readable text of a batch got here, and where it goes next."""
        pruning_started = call.clock()
        done: dict[int, Row] = {}
        for row, answer in zip(rows, batch.answers, strict=True):
            if answer is None:
                continue
            stay = final or row in failed
            decision = STAY if stay else call.policy.after(call.where, max(answer.probabilities), call.draws[row])
            if not stay:
                self._telemetry.offload_probability.labels(self._name).observe(decision.probability)
            keep = None
            if answer.importance is not None and (decision.to is not None or call.request.explain):
                keep = call.policy.pruning(self._name).mask(answer.encoded, answer.importance)
            call.exits[row] = [round(max(exit_), 6) for exit_ in answer.exits]
            hop = self._hop(call, row, answer, decision, keep)
            onward = None if decision.to is None else _onward_text(call.request.texts[row], answer, keep)
            done[row] = Row(hop, decision, onward)
        prune = call.clock() - pruning_started
        seconds = {"tokenize": batch.tokenize, "queue": batch.queue, "infer": batch.infer, "prune": prune}
        for stage, value in seconds.items():
            self._telemetry.stage(stage, value)
        seconds["total"] = call.clock() - started
        times = {stage: round(value * 1e3, 3) for stage, value in seconds.items()}
        return {row: replace(r, hop=r.hop.model_copy(update={"timings_ms": times})) for row, r in done.items()}

    def _hop(self, call: Call, row: int, answer: Answer, decision: Decision, keep: list[bool] | None) -> Hop:
        probabilities = self._by_label(answer.probabilities)
        label = max(probabilities, key=probabilities.__getitem__)
        words = len(answer.encoded.words)
        kept = None if decision.to is None else words if keep is None else sum(keep)
        self._telemetry.exits.labels(self._name, str(answer.exit_layer)).inc()
        self._telemetry.confidence.labels(self._name).observe(probabilities[label])
        if decision.to is not None:
            self._telemetry.offloads.labels(self._name, decision.to, decision.reason, name_of(call.policy)).inc()
            self._telemetry.words.labels(self._name, "kept").inc(kept or 0)
        explain = call.request.explain
        return Hop(
            tier=self._name,
            card=self.bundle.card_name,
            exit_layer=answer.exit_layer,
            layers=self._layers,
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
        return rounded(dict(zip(self.bundle.labels, probabilities, strict=True)))


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


def rounded(probabilities: Mapping[str, float]) -> dict[str, float]:
    """As probabilities stand on the wire."""
    return {label: round(value, 6) for label, value in probabilities.items()}
