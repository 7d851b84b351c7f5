"""Our torch engine on one device, plain and with recorded layers, beside transformers' whole model: times by shape.

    every exit     full depth, each exit's logits fetched: what an exit rule costs
    last exit      full depth, the last exit alone: nothing waits for the device between layers
    transformers   its own whole model with the last exit's head, eager or SDPA, in the same precision

All sides are measured in turns in one process; texts are cut to so many tokens.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from rich.console import Console

from lab.console import tracked
from lab.whole.build import whole_model
from lab.whole.runtimes import INPUTS, inputs_of
from shared.errors import BadSetting
from shared.model.base import Array
from shared.model.bundle import Bundle
from shared.model.calibration import calibrated
from shared.model.classifier import Classifier, load_classifier, read_trained
from shared.model.encoder import Precision
from shared.model.torch_engine import TorchEngine
from shared.model.torch_graphs import cuda_capture
from shared.model.words import Encoded
from tests.bench.engines import alternately, ratio, texts_of

TIERS = ("end", "cloud")  # whose classifiers are measured, at full depth
PLAIN, GRAPHS = "ours, plain", "ours, graphs"
EAGER, SDPA = "transformers eager", "transformers SDPA"


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    lengths: Sequence[int]
    batches: Sequence[int]
    rounds: int
    warm: int  # rounds that do not count: the first one of a shape records its graphs


FULL, QUICK = Plan((64, 128, 256), (1, 8, 32), 21, 3), Plan((64,), (1, 3), 2, 1)


def synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


@dataclass(frozen=True)
class Contest:
    """One classifier twice on a device, and transformers' model; `missing` says why one of these is not there."""

    name: str
    device: str
    ours: Mapping[str, Classifier]
    rivals: Mapping[str, Callable[[Sequence[Encoded]], Array]]
    missing: Mapping[str, str]

    def texts(self, tokens: int, count: int) -> list[Encoded]:
        """Texts of exactly so many tokens.

        Raises:
            BadSetting: there are too few.
        """
        tokenizer = self.ours[PLAIN].tokens
        read = (tokenizer.encode(text, None, tokens) for text in texts_of(None, 0).timed)
        found = [text for text in read if len(text.ids) == tokens][:count]
        if len(found) < count:
            raise BadSetting(f"only {len(found)} texts have {tokens} tokens")
        return found


def contest(bundle: Bundle, tier: str, device: str) -> Contest:
    """The contest of a tier's classifier."""
    model = bundle.tiers[tier]
    folder = bundle.folder / model.network
    plain = load_classifier(folder, layers=model.layers, max_tokens=model.max_tokens, engine="torch", device=device).at(
        bundle.card.temperatures[tier]
    )
    engine, pad_id = plain.engine, plain.tokens.pad_id
    torch.set_num_threads(1)  # as a tier; threads that wait for each other take the processor from all
    assert isinstance(engine, TorchEngine)
    capture = cuda_capture() if device == "cuda" else (lambda step: step)
    ours = {
        PLAIN: replace(plain, engine=TorchEngine(engine.encoder, pad_id)),
        GRAPHS: replace(plain, engine=TorchEngine(engine.encoder, pad_id, capture=capture)),
    }
    rivals, missing = {}, {}
    for name, attention in ((EAGER, "eager"), (SDPA, "sdpa")):
        module = whole_model(read_trained(folder), model.layers, attention)
        if attention == "sdpa" and not module.base._supports_sdpa:  # it would take eager's and say nothing
            missing[name] = "transformers has only eager attention for this family"
        else:
            rivals[name] = _asked(module.to(device), engine.precision, pad_id, device)
    return Contest(model.network, device, ours, rivals, missing)


def _asked(module: Any, precision: Precision, pad_id: int, device: str) -> Callable[[Sequence[Encoded]], Array]:
    if precision is Precision.BF16:
        module.base.bfloat16()

    def answer(texts: Sequence[Encoded]) -> Array:
        given = inputs_of(texts, pad_id)
        with torch.inference_mode():
            return module(*(torch.from_numpy(given[name]).to(device) for name in INPUTS)).cpu().numpy()

    return answer


def speeds(contest: Contest, plan: Plan, console: Console) -> dict[str, list[dict[str, Any]]]:
    """Times of whole passes and of single layers, a row for each length and batch."""
    kinds = [(S, B) for S in plan.lengths for B in plan.batches]
    whole, layers = [], []
    for S, B in tracked(kinds, console, contest.name):
        texts = contest.texts(S, B)
        whole.append(_whole(contest, texts, plan))
        layers.append(_layers(contest, texts, plan))
    return {"whole": whole, "layers": layers}


def _whole(contest: Contest, texts: Sequence[Encoded], plan: Plan) -> dict[str, Any]:
    def ours(classifier: Classifier, *, every: bool) -> Callable[[int], object]:
        return lambda _: classifier.run(texts, None, every_exit=every)

    sides: dict[str, Callable[[int], object]] = {}
    for name, classifier in contest.ours.items():
        sides[f"{name}, every exit"] = ours(classifier, every=True)
        sides[f"{name}, last exit"] = ours(classifier, every=False)
    for name, rival in contest.rivals.items():
        sides[name] = lambda _, rival=rival: rival(texts)
    ms = alternately(sides, plan.rounds, plan.warm)
    best = min(contest.rivals, key=lambda name: float(np.median(ms[name])))
    last = f"{GRAPHS}, last exit"
    return {
        **_shape(contest, texts),
        "ms": {name: float(np.median(times)) for name, times in ms.items()},
        "best": best,
        "graphs_over_best": ratio(ms[last], ms[best]),
        "graphs_over_plain": ratio(ms[last], ms[f"{PLAIN}, last exit"]),
        "dp": differences(contest, texts),
    }


def differences(contest: Contest, texts: Sequence[Encoded]) -> dict[str, float]:
    """How far the last exit's probabilities are from those of our plain layers, at most."""

    def last(classifier: Classifier) -> Array:
        return np.stack([trace.logits[-1] for trace in classifier.run(texts, None)])

    expected = calibrated(last(contest.ours[PLAIN]), 1.0)
    logits = {GRAPHS: last(contest.ours[GRAPHS])} | {name: rival(texts) for name, rival in contest.rivals.items()}
    return {name: float(np.abs(calibrated(found, 1.0) - expected).max()) for name, found in logits.items()}


def _layers(contest: Contest, texts: Sequence[Encoded], plan: Plan) -> dict[str, Any]:
    """Medians of each layer alone, the device idle before and after it."""
    ms: dict[str, list[list[float]]] = {name: [] for name in contest.ours}
    for number in range(-plan.warm, plan.rounds):
        for name in list(ms)[:: 1 if number % 2 else -1]:
            times = _layer_ms(contest, contest.ours[name], texts)
            if number >= 0:
                ms[name].append(times)
    return {**_shape(contest, texts), "ms": {name: np.median(times, axis=0).tolist() for name, times in ms.items()}}


def _layer_ms(contest: Contest, classifier: Classifier, texts: Sequence[Encoded]) -> list[float]:
    engine, out = classifier.engine, []
    state = engine.start(texts, importance=False)
    for n in range(engine.layers):
        synchronise(contest.device)
        started = time.perf_counter()
        state = engine.layer(n, state)
        synchronise(contest.device)
        out.append((time.perf_counter() - started) * 1e3)
    return out


def _shape(contest: Contest, texts: Sequence[Encoded]) -> dict[str, Any]:
    return {"classifier": contest.name, "tokens": len(texts[0].ids), "batch": len(texts)}
