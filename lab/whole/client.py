"""Asks one whole model, over its simulated link; its answer takes the form of a tier's, so that one report has both."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Any

import httpx
from pydantic import ValidationError

from lab.data.examples import Example
from lab.live.client import LIMITS, NoAnswer, TextRefused, detail_of
from lab.whole.service import Answer
from shared.contracts import Hop, HopTiming, LinkUse, Result
from shared.errors import UpstreamFailure
from shared.links.clients import AsyncClient
from shared.links.profile import profile
from shared.links.simulated import SimulatedLink
from shared.model.words import words_of


@dataclass(frozen=True)
class Place:
    """Where a whole model answers, and the link that leads there."""

    url: str
    name: str  # its row in a report
    tier: str  # whose place it takes
    layers: int
    built: str  # names what was built
    source: str  # the tier that the link begins at
    link: str | None  # its profile; none: the model is on the device


class WholeClient:
    """Asks one whole model, over its link."""

    def __init__(self, place: Place, *, transport: httpx.AsyncBaseTransport | None = None) -> None:
        self._place = place
        self._link = None if place.link is None else SimulatedLink(profile(place.link))
        self._http = AsyncClient(place.url, timeout=120, limits=LIMITS, transport=transport)

    async def ask(self, example: Example, _seed: str = "") -> Result:
        """What it answers, as a tier would say it.

        Raises:
            TextRefused: it knows no word of the text.
            NoAnswer: it is not there, or its link is out.
        """
        if example.pair is not None:
            raise NoAnswer(f"{example}: whole models read one text, and this is a pair")
        began, body = time.perf_counter(), json.dumps({"text": example.text}).encode()
        try:
            await self._carry(len(body), "up")
            got = await self._http.post("/classify", content=body, headers={"content-type": "application/json"})
            await self._carry(len(got.content), "down")
        except (httpx.HTTPError, UpstreamFailure) as error:
            raise NoAnswer(f"{self._place.name}: {error or type(error).__name__}") from error
        total_ms = (time.perf_counter() - began) * 1e3
        answer = self._read(got)
        link = self._use(len(body), len(got.content), total_ms - computed_ms(answer))
        return self._result(example.text, answer, link)

    def _read(self, got: httpx.Response) -> Answer:
        told = f"{got.status_code}: {detail_of(got)}"
        if got.status_code == 422:
            raise TextRefused(told)
        told = f"{self._place.name} answered {told}"
        if got.status_code != 200:
            raise NoAnswer(told)
        try:
            return Answer.model_validate_json(got.content)
        except ValidationError as error:
            raise NoAnswer(told) from error

    async def _carry(self, size: int, direction: str) -> None:
        if self._link is not None:
            await self._link.carry(size, direction)

    def _use(self, up: int, down: int, ms: float) -> LinkUse | None:
        place = self._place
        if place.link is None:
            return None
        return LinkUse(
            source=place.source,
            target=place.tier,
            backend="simulated",
            profile=place.link,
            request_bytes=up,
            response_bytes=down,
            ms=max(0.0, ms),
        )

    def _result(self, text: str, answer: Answer, link: LinkUse | None) -> Result:
        place = self._place
        alike: dict[str, Any] = {
            "label": answer.label,
            "probabilities": answer.probabilities,
            "confidence": max(answer.probabilities.values()),
            "tier": place.tier,
            "exit_layer": place.layers,
            "words_in": len(words_of(text)),
            "truncated": answer.truncated,
        }
        stages: dict[HopTiming, float] = {
            "tokenize": answer.tokenize_ms,
            "queue": 0.0,
            "infer": answer.infer_ms,
            "prune": 0.0,
        }
        hop = Hop(
            card=f"whole@{place.built}",
            layers=place.layers,
            offload_probability=0.0,
            link=link,
            timings_ms=stages | {"total": computed_ms(answer)},
            **alike,
        )
        return Result(index=0, degraded=None, hops=[hop], **alike)

    async def close(self) -> None:
        await self._http.aclose()


def computed_ms(answer: Answer) -> float:
    """What the service says that it took."""
    return answer.tokenize_ms + answer.infer_ms
