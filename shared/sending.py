"""Sending texts on: one call per destination; a failure gives rows without hops, and the reason. Never an error."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from itertools import pairwise

import structlog

from shared.bundle import Bundle
from shared.call import Call
from shared.contracts import Hop, InferredRow, InferRequest, TextPair
from shared.errors import UpstreamFailure
from shared.policies import Decision, Where
from shared.telemetry import Telemetry
from shared.upstream import Upstream

log = structlog.get_logger()
_HOP = 1_000  # bytes of a hop, and of a row, at most: what they hold besides labels and words
MERGE_S = 0.005  # kept back of every deadline for putting an answer together


class Sender:
    """The links of one tier, nearest first."""

    def __init__(self, *, name: str, bundle: Bundle, upstreams: Sequence[Upstream], telemetry: Telemetry) -> None:
        self._name, self._bundle, self._telemetry = name, bundle, telemetry
        self.upstreams = {upstream.target: upstream for upstream in upstreams}

    async def send(
        self, call: Call, decisions: Mapping[int, Decision], texts: Mapping[int, TextPair], *, reserve_s: float = 0.0
    ) -> dict[int, InferredRow]:
        """Every row that a decision sends on, with what came back; a row without hops says why in `degraded`.

        `reserve_s` of the deadline are kept back for what this tier does if nothing comes.
        """
        left = call.remaining()
        until = None if left is None else left - reserve_s - MERGE_S
        groups: dict[tuple[str, bool], list[int]] = {}
        for row, decision in decisions.items():
            assert decision.to is not None
            groups.setdefault((decision.to, decision.final), []).append(row)
        answers = await asyncio.gather(
            *(
                self._ask(call, rows, [texts[row] for row in rows], to, final, until)
                for (to, final), rows in groups.items()
            )
        )
        out: dict[int, InferredRow] = {}
        for rows, came in zip(groups.values(), answers, strict=True):
            for row, answer in zip(rows, came, strict=True):
                lost = not answer.hops and answer.degraded is None
                out[row] = answer.model_copy(update={"degraded": "upstream_refused"}) if lost else answer
        return out

    async def _ask(
        self, call: Call, rows: list[int], texts: list[TextPair], to: str, final: bool, left_s: float | None
    ) -> list[InferredRow]:
        request = call.request
        onward = request.model_copy(
            update={
                "indices": [request.indices[row] for row in rows],
                "texts": texts,
                "target": to if final else None,
            }
        )
        upstream = self._toward(to)
        try:
            limit = self._longest_answer(onward)
            carried = await upstream.infer(onward, dict(call.headers), left_s=left_s, limit=limit, sound=self._sound)
        except UpstreamFailure as failure:
            if failure.reason != "breaker_open":  # said once, when it opened
                log.warning("upstream_failed", tier=self._name, to=to, reason=failure.reason, detail=str(failure))
            return [InferredRow(index=index, hops=[], degraded=failure.reason) for index in onward.indices]
        self._telemetry.stage("link", carried.link_s)
        name = f"{self._name}-{upstream.target}"
        self._telemetry.link_bytes.labels(name, "up").inc(carried.request_bytes)
        self._telemetry.link_bytes.labels(name, "down").inc(carried.response_bytes)
        return upstream.with_link(carried, texts)

    def stuck(self, where: Where) -> bool:
        """Whether the nearest tier that a text could go to is known to be down."""
        return bool(where.reachable) and self._toward(where.reachable[0]).breaker.open

    def _longest_answer(self, request: InferRequest) -> int:
        """Bytes that the answer to a request can have: a hop of every deeper tier for each text."""
        order = self._bundle.order
        exit_size = sum(6 * len(label) + 40 for label in self._bundle.labels)  # a character is \\u1234 at worst
        size = 0
        for tier in order[order.index(self._name) + 1 :]:
            exits = 1 + request.explain * self._bundle.tiers[tier].layers
            size += len(request.texts) * (2 * _HOP + exits * exit_size)
            if request.explain:
                size += sum(6 * len(part) + 80 * len(part.split()) for text in request.texts for part in _parts(text))
        return size + _HOP

    def _sound(self, hops: Sequence[Hop]) -> bool:
        """Whether these can be the hops of a text that was sent on from here, ever deeper."""
        order = self._bundle.order
        if not all(hop.tier in order and self._possible(hop) for hop in hops):
            return False
        depths = [order.index(hop.tier) for hop in hops]
        return all(above < below for above, below in pairwise([order.index(self._name), *depths]))

    def _possible(self, hop: Hop) -> bool:
        """Whether a hop can be one of this bundle's."""
        values, layers = hop.probabilities, self._bundle.tiers[hop.tier].layers
        return (
            hop.layers == layers
            and 1 <= hop.exit_layer <= layers
            and hop.offloaded_to in (None, *self._bundle.order)
            and all(exit_.keys() == set(self._bundle.labels) for exit_ in (values, *(hop.exits or ())))
            and abs(sum(values.values()) - 1) < 0.001  # each is rounded to 6 digits
            and hop.label in values
            and hop.confidence == values[hop.label] == max(values.values())
        )

    def _toward(self, tier: str) -> Upstream:
        """The link that leads to a tier: its own, or that of the deepest tier before it, which passes the text on."""
        order = self._bundle.order
        return self.upstreams[max((u for u in self.upstreams if order.index(u) <= order.index(tier)), key=order.index)]


def _parts(text: TextPair) -> tuple[str, ...]:
    return (text.text,) if text.text_pair is None else (text.text, text.text_pair)
