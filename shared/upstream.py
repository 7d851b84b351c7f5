"""Calls to the next tiers: warm connections, a limit in time, and every failure mapped to a `degraded` reason."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

import httpx
from pydantic import ValidationError

from shared.contracts import (
    CONTRACT_VERSION,
    DegradedReason,
    InferredRow,
    InferRequest,
    InferResponse,
    LinkUse,
    TextPair,
)
from shared.errors import UpstreamFailure
from shared.link import UNSHAPED, Backend, Profile, ShapedLinks, SimulatedLink, profile

_REFUSALS = {400, 401, 403, 404, 405, 408, 413, 415, 422, 429, 503, 504}


@dataclass(frozen=True)
class Carried:
    """One call's answer, what it put on the link, and the seconds it spent there (the callee's own time taken off)."""

    response: InferResponse
    request_bytes: int
    response_bytes: int
    link_s: float


class Upstream:
    """One directed link to a further tier."""

    def __init__(
        self,
        *,
        source: str,
        target: str,
        url: str,
        backend: Backend,
        profile_name: str,
        timeout_s: float,
        shaped: ShapedLinks | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.source, self.target, self.url = source, target, url
        self._backend, self._profile, self._shaped = backend, profile(profile_name), shaped
        self._timeout_s = timeout_s
        self._link = SimulatedLink(self._profile) if backend is Backend.SIMULATED else None
        limits = httpx.Limits(max_connections=64, max_keepalive_connections=64, keepalive_expiry=60)
        self._client = httpx.AsyncClient(base_url=url, transport=transport, limits=limits, timeout=timeout_s)

    @property
    def link(self) -> tuple[Backend, Profile]:
        """Who enforces what on this link now; a link that should be shaped and is not says `none`, `unshaped`."""
        if self._backend is not Backend.NETEM or self._shaped is None:
            return self._backend, self._profile
        shaped = self._shaped.in_force(f"{self.source}-{self.target}")
        return (Backend.NETEM, shaped) if shaped else (Backend.NONE, UNSHAPED)

    async def infer(self, request: InferRequest, headers: dict[str, str]) -> Carried:
        """Send a batch on and wait for its hops.

        Raises:
            UpstreamFailure: with the reason; a late answer is dropped with its connection.
        """
        body = request.model_dump_json().encode()
        late: DegradedReason = "upstream_timeout"
        limit = self._timeout_s
        if request.deadline_ms is not None and request.deadline_ms / 1e3 < limit:
            limit, late = request.deadline_ms / 1e3, "deadline"
        started = time.perf_counter()
        try:
            async with asyncio.timeout(limit):
                answer = await self._post(body, headers)
        except TimeoutError as error:
            raise UpstreamFailure(late, f"{self.target} took over {limit * 1e3:.0f} ms") from error
        seconds = time.perf_counter() - started
        try:
            response = InferResponse.model_validate_json(answer)
        except ValidationError as error:
            raise UpstreamFailure("upstream_invalid", f"{self.target} sent {error.error_count()} errors") from error
        if len(response.rows) != len(request.texts) or response.version != CONTRACT_VERSION:
            raise UpstreamFailure("upstream_invalid", f"{self.target} sent other rows or another contract")
        return Carried(response, len(body), len(answer), max(0.0, seconds - response.total_ms / 1e3))

    async def _post(self, body: bytes, headers: dict[str, str]) -> bytes:
        headers = {"content-type": "application/json", **headers}
        try:
            if self._link:
                await self._link.carry(len(body), "up")
            answer = await self._client.post("/v1/infer", content=body, headers=headers)
            if self._link:
                await self._link.carry(len(answer.content), "down")
        except httpx.TimeoutException as error:
            raise TimeoutError from error
        except httpx.HTTPError as error:
            raise UpstreamFailure("upstream_unavailable", f"{self.target}: {type(error).__name__} {error}") from error
        if answer.status_code in _REFUSALS:
            raise UpstreamFailure("upstream_refused", f"{self.target} answered {answer.status_code}")
        if answer.status_code != 200:
            raise UpstreamFailure("upstream_invalid", f"{self.target} answered {answer.status_code}")
        return answer.content

    def with_link(self, carried: Carried, texts: Sequence[TextPair]) -> list[InferredRow]:
        """The callee's rows, each first hop with this link on record and the row's own share of the bytes."""
        up = _shares(carried.request_bytes, [len(text.text) + len(text.text_pair or "") for text in texts])
        down = _shares(carried.response_bytes, [1] * len(texts))
        backend, on_link = self.link
        rows = []
        for row, up_bytes, down_bytes in zip(carried.response.rows, up, down, strict=True):
            if row.hops and row.hops[0].link is None:
                link = LinkUse(
                    source=self.source,
                    target=self.target,
                    backend=backend.value,
                    profile=on_link.name,
                    request_bytes=up_bytes,
                    response_bytes=down_bytes,
                    ms=round(carried.link_s * 1e3, 3),
                )
                row = row.model_copy(update={"hops": [row.hops[0].model_copy(update={"link": link}), *row.hops[1:]]})
            rows.append(row)
        return rows

    async def close(self) -> None:
        await self._client.aclose()


def _shares(total: int, sizes: Sequence[int]) -> list[int]:
    """Divide `total` in proportion to `sizes`, in whole bytes that add up to it."""
    whole, given, out = max(1, sum(sizes)), 0, []
    for end in range(1, len(sizes) + 1):
        upto = total * sum(sizes[:end]) // whole if end < len(sizes) else total
        out.append(upto - given)
        given = upto
    return out
