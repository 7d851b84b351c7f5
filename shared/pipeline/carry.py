"""Text or state: how a text goes on to a tier that holds the same network, whichever is cheaper now.

    text    (bytes of the text) * s + r * tokens that are sent on * layers
    state   (bytes of the text and of the state) * s + r * tokens * (layers - done)

    s   seconds a byte on the link's way up: measured of late, else by its profile
    r   seconds of a token's layer at the receiver: measured by its answers of late, else as this tier just took

What both take alike is left out: the round trip, the queue, the answer; and that the text may leave before the last
layer, which both do alike. The text goes along with its state: the receiver counts its words, and sends them on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from shared.contracts import InferredRow, Onward
from shared.links.estimates import Smoothed
from shared.links.profile import on_the_wire
from shared.links.upstream import Upstream
from shared.model.bundle import Bundle
from shared.model.state import Form, Segment, pack, packed_bytes
from shared.pipeline.text import Call, Text

_HEAD = 2_000  # bytes of a call besides its texts and states, for each text
_FORGET_S = 60.0  # an older measured time of a receiver says nothing


class Carry(StrEnum):
    """How texts go on to a tier that holds the same network; to others they go as text."""

    AUTO = "auto"  # whichever is cheaper
    TEXT = "text"
    STATE = "state"  # where the receiver can go on from it


@dataclass(frozen=True)
class Costs:
    """Seconds."""

    text_s: float
    state_s: float

    @property
    def cheaper(self) -> Carry:
        """Text, where both cost the same."""
        return Carry.STATE if self.state_s < self.text_s else Carry.TEXT


def costs_of(text_bytes: int, state_bytes: int, byte_s: float, *, whole_s: float, rest_s: float) -> Costs:
    """Of bodies, the state's with its text, and of the seconds that the receiver runs: all layers, or the rest.

    >>> costs_of(1000, 99_000, 0.0, whole_s=0.6, rest_s=0.3)
    Costs(text_s=0.6, state_s=0.3)
    """
    return Costs(on_the_wire(text_bytes) * byte_s + whole_s, on_the_wire(state_bytes) * byte_s + rest_s)


@dataclass(frozen=True)
class Load:
    """One text that may go on either way, after layer `done`, to a receiver with so many layers."""

    text_bytes: int  # of the words that are sent on as text
    whole_bytes: int  # of those that go with the state
    state_bytes: int
    sent_tokens: int  # that the receiver reads of the text: fewer than the state has where it was pruned
    tokens: int  # of the state
    done: int
    layers: int

    def costs(self, byte_s: float, token_layer_s: float) -> Costs:
        """What both ways take, with `byte_s` seconds a byte and so many for a token's layer at the receiver."""
        whole_s = token_layer_s * self.sent_tokens * self.layers
        rest_s = token_layer_s * self.tokens * (self.layers - self.done)
        both = self.whole_bytes + self.state_bytes
        return costs_of(self.text_bytes, both, byte_s, whole_s=whole_s, rest_s=rest_s)


class States:
    """States that leave the tier `name`, which holds `segment`, packed in a form; no call has over `most_bytes`."""

    def __init__(
        self, *, name: str, bundle: Bundle, segment: Segment, carry: Carry, form: Form, most_bytes: int
    ) -> None:
        self.name, self._bundle, self._segment, self.carry, self.form = name, bundle, segment, carry, form
        self._most_bytes = most_bytes
        self._takes = {tier for tier in bundle.order if tier != name and bundle.shares(name, tier)}
        self._pace = {tier: Smoothed(forget_s=_FORGET_S) for tier in self._takes}  # milliseconds of a token's layer

    def wanted(self, call: Call) -> bool:
        """Whether a text of this call may go on by state: explanations need every layer in one place."""
        return not (call.final or call.request.explain) and not self._takes.isdisjoint(call.where.reachable)

    def way(
        self, text: Text, upstream: Upstream, *, own_s: float | None, limit: Callable[[str], int | None]
    ) -> Onward | None:
        """How a text goes on to the tier behind a link that is to have it; null where it can only be as text.

        `own_s` is what a token's layer has just taken here, and `limit` a policy's token limits by tier.
        """
        to, state = upstream.target, text.state
        if state is None or text.decision.to != to or to not in self._takes or not upstream.takes_states:
            return None
        layers, reads = (
            self._bundle.tiers[to].layers,
            [self._bundle.reads(tier, limit(tier)) for tier in (self.name, to)],
        )
        same = reads[0] == reads[1] or state.tokens < min(reads)
        load = Load(
            text_bytes=_bytes(text),
            whole_bytes=_bytes(text, whole=True),
            state_bytes=self._packed_bytes(text),
            sent_tokens=_sent_tokens(text),
            tokens=state.tokens,
            done=state.done,
            layers=layers,
        )
        if not same or state.done >= layers or self._size(text) > self._most_bytes:
            return None
        pace = self._pace[to].mean
        costs = load.costs(upstream.byte_s, (own_s or 0.0) if pace is None else pace / 1e3)
        by_state = self.carry is Carry.STATE or costs.cheaper is Carry.STATE
        text_ms, state_ms = round(costs.text_s * 1e3, 3), round(costs.state_s * 1e3, 3)
        return Onward(by="state" if by_state else "text", layer=state.done, text_ms=text_ms, state_ms=state_ms)

    def learn(self, to: str, texts: Sequence[Text], rows: Sequence[InferredRow], *, by_state: bool) -> None:
        """Take in how fast the tier `to` ran these texts, by the hops of its answer."""
        hops = [row.hops[0] for row in rows if row.hops and row.hops[0].tier == to]
        if to not in self._pace or len(hops) < len(texts) or any(text.state is None for text in texts):
            return
        token_layers = sum(
            _sent_tokens(text, whole=by_state)
            * max(0, hop.exit_layer - (text.way.layer if by_state and text.way else 0))
            for text, hop in zip(texts, hops, strict=True)
        )
        if token_layers:
            self._pace[to].add(hops[0].timings_ms.get("infer", 0.0) / token_layers)  # all rows have the call's time

    def parts(self, texts: Sequence[Text]) -> list[list[Text]]:
        """Texts in as many calls as it takes for none to be too large."""
        calls: list[list[Text]] = []
        room = 0
        for text in texts:
            if (size := self._size(text)) > room:
                calls.append([])
                room = self._most_bytes
            calls[-1].append(text)
            room -= size
        return calls

    def packed(self, text: Text) -> bytes:
        """A text's state as it travels."""
        assert text.state is not None
        return pack(text.state, self._segment, self.form)

    def _packed_bytes(self, text: Text) -> int:
        state = text.state
        assert state is not None
        return packed_bytes(self._segment, state.tokens, state.done, self.form, received=state.received is not None)

    def _size(self, text: Text) -> int:
        return _HEAD + 2 * _bytes(text, whole=True) + self._packed_bytes(text)


def _bytes(text: Text, *, whole: bool = False) -> int:
    """Bytes of a text as it goes on; `whole`: with its state, unpruned."""
    onward = text.unpruned if whole else text.onward
    return len((onward.text + (onward.text_pair or "")).encode())


def _sent_tokens(text: Text, *, whole: bool = False) -> int:
    """Tokens that the receiver reads of a text as it goes on."""
    assert text.state is not None
    if whole or text.answer is None or text.keep is None or text.keep == text.unread:
        return text.state.tokens
    return sum(word < 0 or text.keep[word] for word in text.answer.encoded.word_of)
