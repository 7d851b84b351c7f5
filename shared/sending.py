"""Sending texts on: one call per destination; a failure gives rows without hops, and the reason. Never an error."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

import structlog

from shared.bundle import Bundle
from shared.call import Call
from shared.contracts import InferredRow, TextPair
from shared.errors import UpstreamFailure
from shared.policies import Decision
from shared.telemetry import Telemetry
from shared.upstream import Upstream

log = structlog.get_logger()


class Sender:
    """The links of one tier, nearest first."""

    def __init__(self, *, name: str, bundle: Bundle, upstreams: Sequence[Upstream], telemetry: Telemetry) -> None:
        self._name, self._bundle, self._telemetry = name, bundle, telemetry
        self.upstreams = {upstream.target: upstream for upstream in upstreams}

    async def send(
        self, call: Call, decisions: Mapping[int, Decision], texts: Mapping[int, TextPair]
    ) -> dict[int, InferredRow]:
        """Every row that a decision sends on, with what came back; a row without hops says why in `degraded`."""
        groups: dict[tuple[str, bool], list[int]] = {}
        for row, decision in decisions.items():
            assert decision.to is not None
            groups.setdefault((decision.to, decision.final), []).append(row)
        answers = await asyncio.gather(
            *(self._ask(call, rows, [texts[row] for row in rows], to, final) for (to, final), rows in groups.items())
        )
        out: dict[int, InferredRow] = {}
        for rows, came in zip(groups.values(), answers, strict=True):
            for row, answer in zip(rows, came, strict=True):
                lost = not answer.hops and answer.degraded is None
                out[row] = answer.model_copy(update={"degraded": "upstream_refused"}) if lost else answer
        return out

    async def _ask(self, call: Call, rows: list[int], texts: list[TextPair], to: str, final: bool) -> list[InferredRow]:
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
            labels, tiers = set(self._bundle.labels), self._bundle.order
            hops = [hop for row in carried.response.rows for hop in row.hops]
            if any(hop.probabilities.keys() != labels or hop.tier not in tiers for hop in hops):
                raise UpstreamFailure("upstream_invalid", f"{to} answers with other labels, or for other tiers")
        except UpstreamFailure as failure:
            log.warning("upstream_failed", tier=self._name, to=to, reason=failure.reason, detail=str(failure))
            return [InferredRow(hops=[], degraded=failure.reason) for _ in rows]
        self._telemetry.stage("link", carried.link_s)
        name = f"{self._name}-{upstream.target}"
        self._telemetry.link_bytes.labels(name, "up").inc(carried.request_bytes)
        self._telemetry.link_bytes.labels(name, "down").inc(carried.response_bytes)
        return upstream.with_link(carried, texts)

    def _toward(self, tier: str) -> Upstream:
        """The link that leads to a tier: its own, or that of the deepest tier before it, which passes the text on."""
        order = self._bundle.order
        return self.upstreams[max((u for u in self.upstreams if order.index(u) <= order.index(tier)), key=order.index)]
