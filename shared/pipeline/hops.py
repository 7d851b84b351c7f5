"""Hops: this tier makes one from its model's answer about a text, and checks those that come from another tier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from shared.contracts import Exit, Hop, HopTiming, InferredRow, InferRequest, TextPair, WordUse
from shared.errors import UpstreamFailure
from shared.model.bundle import Bundle
from shared.model.words import words_of
from shared.pipeline.text import Answer, Text
from shared.policies.base import draw

_ROUNDING = 1e-9  # of a draw, written as JSON and read again
_LEAST = 1_000  # bytes that a hop, and a row, may have besides labels and words


def new_hop(bundle: Bundle, tier: str, text: Text, *, explain: bool, times_s: Mapping[HopTiming, float]) -> Hop:
    """This tier's part in the answer to a text that its model has read."""
    answer, keep, to = text.answer, text.keep, text.decision.to
    assert answer is not None
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
        timings_ms={stage: round(value * 1e3, 3) for stage, value in times_s.items()},
        exits=_exits(bundle, answer) if explain else None,
        words=_explained(answer, keep) if explain and keep is not None else None,
    )


def _explained(answer: Answer, keep: Sequence[bool]) -> list[WordUse]:
    """Each word with the most attention that one of its tokens received."""
    best: dict[int, float] = {}
    for word, value in zip(answer.encoded.word_of, answer.importance or [], strict=True):
        if word >= 0:
            best[word] = max(best.get(word, 0.0), value)
    return [
        WordUse(word=word, importance=round(best[i], 4) if i in best else None, kept=keep[i])
        for i, word in enumerate(answer.encoded.words)
    ]


def _exits(bundle: Bundle, answer: Answer) -> list[Exit]:
    """Every exit that was evaluated, with its number."""
    first = answer.exit_layer - len(answer.exits) + 1
    return [new_exit(bundle, n, probabilities) for n, probabilities in enumerate(answer.exits, first)]


def new_exit(bundle: Bundle, n: int, probabilities: Sequence[float]) -> Exit:
    """What the exit after layer `n`, counted from 1, said."""
    named = by_label(bundle, probabilities)
    return Exit(exit=n, probabilities=named, confidence=max(named.values()))


def by_label(bundle: Bundle, probabilities: Sequence[float]) -> dict[str, float]:
    """Probabilities [C] by label, rounded as on the wire."""
    return rounded(dict(zip(bundle.labels, probabilities, strict=True)))


def rounded(probabilities: Mapping[str, float]) -> dict[str, float]:
    """Probabilities to six digits."""
    return {label: round(value, 6) for label, value in probabilities.items()}


def check_rows(bundle: Bundle, sender: str, request: InferRequest, rows: Sequence[InferredRow]) -> None:
    """Check an answer to a request that `sender` sent on: each row's hops are ever deeper, and of its text's words.

    A hop's draw follows from the request's seed, the text's index and the tier, so the hops of another text differ.

    Raises:
        UpstreamFailure: no tier of this bundle can answer so.
    """
    order = bundle.order
    for text, row in zip(request.texts, rows, strict=True):
        words, above = words_in(text), sender
        for hop in row.hops:
            if not (
                hop.tier in order
                and order.index(above) < order.index(hop.tier)
                and _possible(bundle, hop)
                and hop.draw is not None
                and abs(hop.draw - draw(request.seed, row.index, hop.tier)) <= _ROUNDING
                and hop.words_in == len(words)
                and (hop.words is None or [use.word for use in hop.words] == words)
            ):
                raise UpstreamFailure("upstream_invalid", f"no tier of this bundle answers text {row.index} like this")
            words, above = _sent_on(hop, words), hop.tier


def _sent_on(hop: Hop, words: list[str]) -> list[str]:
    """The words that a hop let go on; unknown ones where it does not list them."""
    if hop.words is not None:
        return [use.word for use in hop.words if use.kept]
    return words if hop.words_kept in (None, len(words)) else [""] * hop.words_kept


def words_in(text: TextPair) -> list[str]:
    """The words of a text, or of both of a pair."""
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
    exit_size = sum(6 * len(label) + 40 for label in bundle.labels)  # a character is \\u1234 at worst
    size = _LEAST
    for tier in order[order.index(sender) + 1 :]:
        exits = 1 + request.explain * bundle.tiers[tier].layers
        size += len(request.texts) * (2 * _LEAST + exits * exit_size)
        if request.explain:
            size += sum(6 * len(part) + 80 * len(part.split()) for text in request.texts for part in sides(text))
    return size


def sides(text: TextPair) -> tuple[str, ...]:
    """The text, or both of a pair."""
    return (text.text,) if text.text_pair is None else (text.text, text.text_pair)
