"""A whole model behind HTTP, as one would serve it without tiers: FastAPI and uvicorn, one text a request.

    python -m lab.whole.service '{"model": "openvino int8", "folder": ..., ...}'     the fields of `Serving`

It reads the tokens that the tier with the same classifier reads. Lengths are padded to the multiple that our engine
has: a runtime prepares each shape that it has not met, so this is faster than exact lengths.
Left out: batches, queues, limits, keys, logs.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import uvicorn
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel

from lab.whole.runtimes import inputs_of, load
from shared.errors import UnreadableText
from shared.model.base import load_tokenizer
from shared.model.openvino_engine import PAD
from shared.model.tokens import SpecialTokens
from shared.web.parent import end_with_parent


@dataclass(frozen=True)
class Serving:
    """What to serve, and where."""

    model: str  # a name of `runtimes.FILES`
    folder: str
    base: str  # whose tokenizer reads the texts
    max_tokens: int
    labels: Sequence[str]
    threads: int
    port: int


class Asked(BaseModel):
    text: str


class Answer(BaseModel):
    label: str
    probabilities: dict[str, float]
    truncated: bool
    tokenize_ms: float
    infer_ms: float


def create_app(serving: Serving) -> FastAPI:
    """The service, its model loaded."""
    app, model = FastAPI(), load(serving.model, Path(serving.folder), threads=serving.threads)
    tokens, one_at_a_time = SpecialTokens(load_tokenizer(serving.base)), threading.Lock()

    @app.get("/readyz")
    def ready() -> None:
        pass

    @app.post("/classify")
    def classify(asked: Asked) -> Answer:
        began = time.perf_counter()
        try:
            text = tokens.encode(asked.text, None, serving.max_tokens)
        except UnreadableText as error:
            raise HTTPException(422, str(error)) from error
        given = inputs_of([text], tokens.pad_id, multiple=PAD)
        read = time.perf_counter()
        with one_at_a_time:
            logits = model(given)[0]
        shares = np.exp(logits - logits.max())
        shares = (shares / shares.sum()).tolist()
        return Answer(
            label=serving.labels[int(logits.argmax())],
            probabilities=dict(zip(serving.labels, shares, strict=True)),
            truncated=text.truncated,
            tokenize_ms=(read - began) * 1e3,
            infer_ms=(time.perf_counter() - read) * 1e3,
        )

    return app


if __name__ == "__main__":
    end_with_parent()
    chosen = Serving(**json.loads(sys.argv[1]))
    # idle connections stay open as a tier's do
    uvicorn.run(
        create_app(chosen), host="127.0.0.1", port=chosen.port, log_level="warning", timeout_keep_alive=75, ws="none"
    )
