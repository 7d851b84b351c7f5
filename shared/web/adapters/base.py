"""An adapter: how one request of an API asks, how it is answered, and how it is refused. It decides nothing else."""

from __future__ import annotations

from typing import Any

from fastapi import Response
from pydantic import BaseModel

from shared.contracts import ClassifyResponse, Problem
from shared.web.body import parse

JSON = "application/json"
DEGRADED = "x-tierwise-degraded"  # of an answer whose format has no place for it


class Adapter:
    """Our own API; one object a request, since an answer's shape may depend on what was asked."""

    media = frozenset({JSON})  # content types of a body; "" stands for none

    def ask(self, body: bytes) -> Any:
        """The request as JSON of our contract, not yet validated.

        Raises:
            Refused, BadInput: it is no request of this API, or asks for what a tier cannot do.
        """
        return parse(body)

    def tell(self, answer: ClassifyResponse) -> Response:
        """The answer in this API's form."""
        return Response(answer.model_dump_json(by_alias=True), media_type=JSON)

    def refuse(self, problem: Problem) -> BaseModel:
        """An error in this API's form."""
        return problem


def marks(answer: ClassifyResponse) -> dict[str, str]:
    """Headers of an answer in a format without hops: where less was done than planned."""
    reasons = sorted({result.degraded for result in answer.results if result.degraded})
    return {DEGRADED: ", ".join(reasons)} if reasons else {}


OURS = Adapter()
