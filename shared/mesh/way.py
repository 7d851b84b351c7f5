"""The way to one neighbour: texts that go on, and reports, over one link.

A neighbour that is gone is found by its silence (`node.py`), not by a breaker: it is asked for its report ten times a
second anyway, and joins again with the first one.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from typing import TypeVar

import httpx
from pydantic import ValidationError

from shared.errors import UpstreamFailure
from shared.links.http import UpstreamHttp
from shared.links.profile import Backend, Profile
from shared.links.simulated import SimulatedLink
from shared.mesh.node import Report
from shared.mesh.wire import BINARY, Answered, Asking, Going, Reported, framed

M = TypeVar("M", Answered, Reported)
_HELD_S = 600.0  # a text that is held for longer is lost; a holder that is gone is found by its silence
_STATE = {"content-type": BINARY}
_MOST, _ANSWER = 512, 65_536  # texts that a neighbour may hold at a time; bytes of an answer


class Way:
    """To the neighbour `target` at `url`."""

    def __init__(
        self,
        *,
        source: str,
        target: str,
        url: str,
        profile: Profile,
        backend: Backend,
        key: str | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
        silent_s: float = 1.0,
    ) -> None:
        self._silent_s = silent_s
        self.source, self.target, self.profile, self.backend = source, target, profile, backend
        self.simulated = SimulatedLink(profile) if backend is Backend.SIMULATED else None
        self.bytes_up = 0  # of bodies that were answered
        self._http = UpstreamHttp(
            target=target,
            url=url,
            link=self.simulated,
            timeout_s=_HELD_S,
            key=key,
            transport=transport,
            most=_MOST,
        )

    async def go_on(self, going: Going, packed: bytes) -> tuple[Answered, float]:
        """A text's answer, and the seconds that its state took to get there.

        Raises:
            UpstreamFailure: it got none.
        """
        began, body = time.monotonic(), framed(going, packed)
        try:
            answer = await self._http.post(body, _STATE, call=going.call, limit_bytes=_ANSWER, path="continue")
        except TimeoutError as error:
            raise UpstreamFailure("upstream_timeout", f"{self.target} held a text for {_HELD_S:.0f} s") from error
        answered = self._read(Answered, answer, going.call)
        self.bytes_up += len(body)
        link_s = time.monotonic() - began - answered.held_ms / 1e3
        return answered, max(0.0, link_s - self.profile.rtt_s / 2)

    async def ask(self) -> Report:
        """The neighbour's report.

        Raises:
            UpstreamFailure: it gave none.
            TimeoutError: within `silent_s`.
        """
        asking = Asking(call=secrets.token_hex(8), sender=self.source)
        body = asking.model_dump_json().encode()
        async with asyncio.timeout(self._silent_s):
            answer = await self._http.post(body, {}, call=asking.call, limit_bytes=_ANSWER, path="report")
        return self._read(Reported, answer, asking.call).report

    def _read(self, kind: type[M], answer: bytes, call: str) -> M:
        try:
            read = kind.model_validate_json(answer)
        except ValidationError as error:
            raise UpstreamFailure("upstream_invalid", f"{self.target} sent {error.error_count()} errors") from error
        if read.call != call:
            raise UpstreamFailure("upstream_invalid", f"{self.target} sent an answer to something else")
        return read

    async def close(self) -> None:
        """Close its connections."""
        await self._http.close()
