"""A tier whose time is slept: its real app, over layers that sleep. So replicas on one machine have a processor each.

HTTP, queue, refusals, metrics and drain are a tier's own, and so is the tokenizer. A text takes as long as one that
`tierwise bench` measured on this tier (`demand.py`), drawn anew for each; every exit says the same. `/info` and
`tierwise_build_info` name the engine `slept`. Started by `tierwise scale`; by hand: `python -m lab.scale.replica`, with
the settings of a tier and the two below.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from fastapi import FastAPI
from pydantic import Field
from tokenizers import Tokenizer

from lab.live.stack import role_of
from lab.scale.demand import Stop, measured
from shared import __version__
from shared.model.base import Array
from shared.model.built import built, digest_of
from shared.model.bundle import Bundle, load_bundle
from shared.model.classifier import Classifier, read_trained, recipe_of
from shared.model.encoder import Precision
from shared.model.state import Segment, State
from shared.model.tokens import SpecialTokens
from shared.model.words import Encoded
from shared.web import app
from shared.web.settings import Settings

KIND = "slept"


class SleptSettings(Settings):
    """A tier's settings, and what it sleeps for."""

    demand: Path = Field(description="file of `tierwise bench` that says what a text takes on this tier")
    demand_policy: str = Field("collaborative", description="policy of that file whose texts come")


@dataclass(frozen=True)
class Pass:
    """Texts that run, each with its seconds for all layers, and when the next layer begins."""

    seconds: tuple[float, ...]
    begins: float


class SleptEngine:
    """Layers that sleep. Texts run one after the other, as on the CPU engine; a late wake-up is made good."""

    name, version, device, precision, first = KIND, __version__, "none", Precision.FP32, 0

    def __init__(self, stop: Stop, layers: int, classes: int) -> None:
        self.layers, self._stop = layers, stop
        self._logits = np.eye(classes, dtype=np.float32)[:1]  # [1, C]
        self._chance = random.Random()

    def enter(self) -> None:
        """Nothing to prepare."""

    def start(self, texts: Sequence[Encoded], *, importance: bool) -> Pass:
        """Draw what the texts take; there is no importance."""
        return Pass(tuple(self._chance.choices(self._stop.seconds, self._stop.weights, k=len(texts))), time.monotonic())

    def resume(self, texts: Sequence[State], *, importance: bool) -> Pass:
        raise NotImplementedError("nobody goes on from slept layers")  # TIERWISE_CARRY is not read

    def layer(self, n: int, state: Pass) -> Pass:
        """Sleep until layer `n` is over."""
        ends = state.begins + sum(state.seconds) / self.layers
        time.sleep(max(0.0, ends - time.monotonic()))
        return replace(state, begins=ends)

    def exits(self, n: int, state: Pass) -> Array:
        """The same logits for every text, [B, C]."""
        return np.repeat(self._logits, len(state.seconds), axis=0)

    def parts(self, n: int, state: Pass, row: int) -> Array:
        raise NotImplementedError("slept layers explain nothing")

    def received(self, state: Pass, row: int) -> Array | None:
        """None: words have no importance here."""
        return None

    def hidden(self, state: Pass, row: int) -> Array:
        raise NotImplementedError("slept layers have no states")

    def keep(self, state: Pass, rows: Sequence[int]) -> Pass:
        """The state of some rows alone."""
        return replace(state, seconds=tuple(state.seconds[row] for row in rows))


def slept(bundle: Bundle, tier: str, stop: Stop) -> Classifier:
    """A tier's classifier, slept; its tokenizer and embeddings are the built ones.

    Raises:
        WrongWeights: these cannot be had.
    """
    model = bundle.tiers[tier]
    trained = read_trained(bundle.folder / model.network)
    found = built(recipe_of(trained, model.layers, Precision.INT8 if trained.quantized else Precision.FP32))
    return Classifier(
        engine=SleptEngine(stop, model.layers, trained.classes),
        temperatures=np.ones(model.layers, dtype=np.float32),
        embeddings=found.embeddings,
        tokens=SpecialTokens(Tokenizer.from_file(str(found.tokenizer))),
        max_tokens=model.max_tokens,
        segment=Segment(
            digest=digest_of(trained),
            first=0,
            last=model.layers,
            hidden=found.embeddings.config.hidden,
            classes=trained.classes,
            max_tokens=model.max_tokens,
        ),
    )


def create_app(settings: SleptSettings) -> FastAPI:
    """The tier as an ASGI app.

    Raises:
        BadSetting: as for any tier, or a file of demand that has nothing of it.
    """
    bundle = load_bundle(settings.bundle)
    settings.check(bundle.order)
    stop = measured(settings.demand, settings.demand_policy).alone(settings.tier).stops[0]
    return app.create_app(settings, classifier=slept(bundle, settings.tier, stop))


if __name__ == "__main__":
    import os

    from shared.web.service import serve

    serve(role_of(os.environ.get("TIERWISE_TIER", "cloud")), SleptSettings, "lab.scale.replica")
