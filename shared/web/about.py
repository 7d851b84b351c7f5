"""What a tier says of itself at `/info`, beside its links."""

from __future__ import annotations

from typing import Any

from shared import __version__
from shared.contracts import CONTRACT_VERSION
from shared.model.classifier import Classifier
from shared.pipeline.front import Front
from shared.policies import own, spec_of
from shared.web.guard import Keys
from shared.web.machine import cpus
from shared.web.settings import Settings

_LIMITS = {"max_inputs", "max_body_bytes", "queue_limit", "queue_wait_ms", "upstream_timeout_ms"}


def about(front: Front, classifier: Classifier, settings: Settings, keys: Keys) -> dict[str, Any]:
    """The model, the policy in force, and what limits a request; no key."""
    bundle, engine = front.tier.bundle, classifier.engine
    model, segment = bundle.tiers[front.tier.name], classifier.segment  # what /v1/continue goes on with
    return {
        "tier": front.tier.name,
        "bundle": bundle.name,
        "card_sha256": bundle.digest,
        "calibrated": bundle.card.calibrated,
        "labels": list(bundle.labels),
        "tiers": [
            {"name": name, "layers": tier.layers, "max_tokens": tier.max_tokens} for name, tier in bundle.tiers.items()
        ],
        "layers": model.layers,
        "exits": model.layers,
        "max_tokens": model.max_tokens,
        "segment": {"network": segment.digest, "first": segment.first + 1, "last": segment.last},
        "carry": settings.carry.value,
        "state_form": settings.state_form.value,
        "policy": spec_of(front.default_policy),
        "own_policies": own(),
        "learned": front.states.described(),
        "limits": settings.model_dump(include=_LIMITS),
        "keys": {"door": keys.door is not None, "tier": keys.tier is not None},
        "engine": engine.name,
        "precision": engine.precision.value,
        "card_engine": bundle.card.engine,
        "device": engine.device,
        "threads": settings.threads,
        "cpus": cpus(),
        "versions": {"tierwise": __version__, "contract": CONTRACT_VERSION, engine.name: engine.version},
    }
