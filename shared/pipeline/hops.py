"""Hops: this tier makes one from its model's answer about a text, and checks those that come from another tier."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass

from shared.contracts import (
    Exit,
    Explained,
    Hop,
    HopTiming,
    InferredRow,
    InferRequest,
    Rule,
    TextPair,
    Visited,
    WordUse,
)
from shared.errors import BadInput, UpstreamFailure
from shared.model.bundle import Bundle
from shared.model.exits import ExitRule
from shared.model.shares import Shares
from shared.model.words import count_words, words_of
from shared.pipeline.text import Answer, Text
from shared.policies import Visit
from shared.policies.base import draw

_ROUNDING = 1e-9  # of a draw, written as JSON and read again
_LEAST = 1_000  # bytes that a hop, and a row, may have besides labels and words


def new_hop(
    bundle: Bundle,
    tier: str,
    text: Text,
    *,
    times_s: Mapping[HopTiming, float],
    exit_rule: ExitRule | None,
    offload_rule: Rule | None,
    scores: Sequence[Mapping[str, float]] = (),
) -> Hop:
    """This tier's part in the answer to a text that its model has read; `scores` of its exits, in order."""
    answer, keep, to = text.answer, text.keep, text.decision.to
    assert answer is not None
    shares = answer.shares
    probabilities = by_label(bundle, answer.probabilities)
    label = max(probabilities, key=probabilities.__getitem__)
    words = len(answer.encoded.words)
    return Hop(
        tier=tier,
        card=bundle.card_name,
        exit_layer=answer.exit_layer,
        layers=bundle.tiers[tier].layers,
        label=label,
        probabilities=probabilities,
        confidence=probabilities[label],
        offload_probability=round(text.decision.probability, 6),
        draw=text.draw,
        offloaded_to=to,
        words_in=words,
        words_kept=None if to is None else words if keep is None else sum(keep),
        truncated=answer.encoded.truncated,
        speculation=text.speculation,
        onward=text.way,
        timings_ms={stage: round(value * 1e3, 3) for stage, value in times_s.items()},
        exits=None if shares is None else _exits(bundle, answer, scores),
        words=None if shares is None or keep is None else _words(answer, shares, keep),
        explained=None if shares is None else _explained(shares, exit_rule, offload_rule),
    )


def _words(answer: Answer, shares: Shares, keep: Sequence[bool]) -> list[WordUse]:
    """Each word with the most attention that one of its tokens received, and its share."""
    best: dict[int, float] = {}
    for word, value in zip(answer.encoded.word_of, answer.importance or [], strict=True):
        if word >= 0:
            best[word] = max(best.get(word, 0.0), value)
    return [
        WordUse(word=word, importance=round(best[i], 4) if i in best else None, share=_round(share), kept=keep[i])
        for i, (word, share) in enumerate(zip(answer.encoded.words, shares.words, strict=True))
    ]


def _round(share: float | None) -> float | None:
    return None if share is None else round(share, 6)


def _explained(shares: Shares, exit_rule: ExitRule | None, offload_rule: Rule | None) -> Explained:
    return Explained(
        exit_rule=None if exit_rule is None else _told(exit_rule),
        offload_rule=offload_rule,
        special_share=round(shares.special, 6),
        bias_share=round(shares.bias, 6),
    )


def _told(rule: ExitRule) -> Rule:
    """A rule's name and parameters, less those that its representation leaves out; a user's may be no dataclass."""
    name = re.sub(r"(?<=[a-z])(?=[A-Z])", "-", type(rule).__name__).lower()
    shown: dict[str, object] = {}
    if is_dataclass(rule) and not isinstance(rule, type):
        shown = {own.name: getattr(rule, own.name) for own in fields(rule) if own.repr}
    return Rule(name=name, parameters={key: _number_or_text(value) for key, value in shown.items()})


def _number_or_text(value: object) -> int | float | str:
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return value
    return str(value)


def _exits(bundle: Bundle, answer: Answer, scores: Sequence[Mapping[str, float]]) -> list[Exit]:
    """Every exit that was evaluated, with its number, and what its gates gave."""
    first = answer.exit_layer - len(answer.exits) + 1
    exits = [new_exit(bundle, n, probabilities) for n, probabilities in enumerate(answer.exits, first)]
    gated = [exit_.model_copy(update={"scores": rounded(own)}) for exit_, own in zip(exits, scores, strict=False)]
    return [*gated, *exits[len(gated) :]]


def new_exit(bundle: Bundle, n: int, probabilities: Sequence[float]) -> Exit:
    """What the exit after layer `n`, counted from 1, said."""
    named = by_label(bundle, probabilities)
    return Exit(exit=n, probabilities=named, confidence=max(named.values()))


def by_label(bundle: Bundle, probabilities: Sequence[float]) -> dict[str, float]:
    """Probabilities [C] by label, rounded as on the wire."""
    return rounded(dict(zip(bundle.labels, probabilities, strict=True)))


def rounded(values: Mapping[str, float]) -> dict[str, float]:
    """Probabilities, or scores, to six digits."""
    return {name: round(value, 6) for name, value in values.items()}


def carried(bundle: Bundle, visits: Sequence[Visit]) -> list[Visited]:
    """Visits as they travel."""
    return [
        Visited(
            tier=visit.tier,
            exit_layer=visit.exit_layer,
            probabilities=dict(zip(bundle.labels, visit.probabilities, strict=True)),
        )
        for visit in visits
    ]


def visits_before(bundle: Bundle, here: str, request: InferRequest) -> list[list[Visit]]:
    """For each text of a request, what the tiers before this one said; nothing where that did not travel.

    Raises:
        BadInput: no tiers before this one can have said so.
    """
    if request.visits is None:
        return [[] for _ in request.texts]
    if len(request.visits) != len(request.texts):
        raise BadInput("expected one list of visits per text")
    return [_visits(bundle, here, way) for way in request.visits]


def _visits(bundle: Bundle, here: str, way: Sequence[Visited]) -> list[Visit]:
    ran, before, labels = [said.tier for said in way], bundle.order[: bundle.order.index(here)], bundle.labels
    if ran != [tier for tier in before if tier in ran] or any(
        said.probabilities.keys() != set(labels) or not 1 <= said.exit_layer <= bundle.tiers[said.tier].layers
        for said in way
    ):
        raise BadInput(f"visits: no tiers before {here} answer like this")
    values = [tuple(said.probabilities[label] for label in labels) for said in way]
    return [Visit(s.tier, s.exit_layer, max(v), (max(v),), v, (v,)) for s, v in zip(way, values, strict=True)]


def check_rows(bundle: Bundle, sender: str, request: InferRequest, rows: Sequence[InferredRow]) -> None:
    """Check an answer to a request that `sender` sent on: each row's hops are ever deeper, and of its text's words.

    A hop's draw follows from the request's seed, the text's index and the tier, so the hops of another text differ.

    Raises:
        UpstreamFailure: no tier of this bundle can answer so.
    """
    order = bundle.order
    for text, row in zip(request.texts, rows, strict=True):
        words, above = _words_of_both(text) if request.explain else [""] * words_in(text), sender
        for hop in row.hops:
            if not (
                hop.tier in order
                and order.index(above) < order.index(hop.tier)
                and _possible(bundle, hop)
                and hop.draw is not None
                and abs(hop.draw - draw(request.seed, row.index, hop.tier)) <= _ROUNDING
                and hop.words_in == len(words)
                and (hop.words is None or (request.explain and [use.word for use in hop.words] == words))
            ):
                raise UpstreamFailure("upstream_invalid", f"no tier of this bundle answers text {row.index} like this")
            words, above = _sent_on(hop, words), hop.tier


def _sent_on(hop: Hop, words: list[str]) -> list[str]:
    """The words that a hop let go on; unknown ones where it does not list them."""
    if hop.words is not None:
        return [use.word for use in hop.words if use.kept]
    return words if hop.words_kept in (None, len(words)) else [""] * hop.words_kept


def words_in(text: TextPair) -> int:
    """How many words a text has, or both of a pair."""
    return sum(map(count_words, sides(text)))


def _words_of_both(text: TextPair) -> list[str]:
    return [word for side in sides(text) for word in words_of(side)]


def _possible(bundle: Bundle, hop: Hop) -> bool:
    """Whether a tier of this bundle can have made this hop."""
    values, layers = hop.probabilities, bundle.tiers[hop.tier].layers
    return (
        hop.layers == layers
        and 1 <= hop.exit_layer <= layers
        and hop.offloaded_to in (None, *bundle.order)
        and all(exit_.keys() == set(bundle.labels) for exit_ in (values, *(e.probabilities for e in hop.exits or ())))
        and abs(sum(values.values()) - 1) < 0.001  # each is rounded to 6 digits
        and hop.label in values
        and hop.confidence == values[hop.label] == max(values.values())
    )


def most_bytes(bundle: Bundle, sender: str, request: InferRequest) -> int:
    """Bytes that the answer to a request can have: for each text a hop of every tier deeper than `sender`."""
    order = bundle.order
    exit_size = 80 + sum(6 * len(label) + 40 for label in bundle.labels)  # a character is \\u1234 at worst
    size = _LEAST
    for tier in order[order.index(sender) + 1 :]:
        exits = 1 + request.explain * bundle.tiers[tier].layers
        size += len(request.texts) * (2 * _LEAST + exits * exit_size)
        if request.explain:
            size += sum(6 * len(part) + 90 * len(part.split()) for text in request.texts for part in sides(text))
    return size


def sides(text: TextPair) -> tuple[str, ...]:
    """The text, or both of a pair."""
    return (text.text,) if text.text_pair is None else (text.text, text.text_pair)
