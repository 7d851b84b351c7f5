"""Every exit of every tier on labelled texts: its logits, and the exit rules that run few layers and lose little.

Logits come from the recorder of the replay, so what one command has run no other runs again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any, TypeVar

import numpy as np

from lab.choice import operating_point
from lab.data.examples import Example
from lab.replay.recorder import Kernel, Recorders, source_of
from shared.model.base import Array
from shared.model.bundle import Bundle
from shared.model.exits import Confidence, Entropy, ExitRule, Patience, Similarity, exit_taken

P = TypeVar("P")  # what names a rule
THETAS = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.08, 0.12, 0.2)
PATIENCES = (1, 2, 3)
LEAST = (0.0, 0.9, 0.93, 0.95, 0.96, 0.97, 0.98, 0.99)  # confidence that leaving needs besides
FINE = (0.96, 0.97, 0.98, 0.99, 0.995)  # above DIMEE's ten points, for rules that must lose little [ours]
ENTROPIES = (0.0, 0.02, 0.04, 0.06, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6)  # nats


def every_exit(bundle: Bundle, texts: Sequence[Example], recorders: Recorders) -> dict[str, Array]:
    """Logits of every exit, [N, E, C] by tier; every text must be readable."""
    numbers, out = [recorders.corpus.number(text.text, text.pair) for text in texts], {}
    for tier, model in bundle.tiers.items():
        records = recorders.of(source_of(bundle, tier), len(bundle.labels)).records(numbers, Kernel.PLAIN)
        out[tier] = np.stack([record.logits[: model.layers] for record in records])
    recorders.save()
    return out


def fewest_layers(
    exits: Array, labels: Array, rules: Mapping[P, ExitRule | None], may_cost: float
) -> tuple[P, float, float]:
    """The rule with the fewest layers that loses at most `may_cost` against the last exit; else the most accurate.

    `exits` are calibrated probabilities [N, E, C]; `rules` are named by their parameters. The result is what names it,
    the mean exit layer and the accuracy.
    """
    rows = []
    for parameter, rule in rules.items():
        layer = exit_taken(exits.swapaxes(0, 1), rule)
        right = exits[np.arange(len(labels)), layer - 1].argmax(-1) == labels
        rows.append((parameter, float(layer.mean()), float(right.mean())))
    _, layers, accuracies = zip(*rows, strict=True)
    return rows[operating_point(layers, accuracies, full_accuracy(exits, labels) - may_cost)]


def full_accuracy(exits: Array, labels: Array) -> float:
    """Accuracy of the last exit, from probabilities [N, E, C]."""
    return float((exits[:, -1].argmax(-1) == labels).mean())


def similarity_rule(probabilities: Mapping[str, Array], labels: Array, may_cost: float) -> dict[str, Any]:
    """The exit rule with the least share of layers run: per tier a theta (0 where none is cheap enough) and a least
    confidence, and one patience.
    """
    shares, chosen = dict[int, float](), dict[int, dict[str, tuple[float, float]]]()
    for patience in PATIENCES:
        rules: dict[tuple[float, float], ExitRule | None] = {(0.0, 0.0): None}
        rules |= {pair: Similarity(pair[0], patience, pair[1]) for pair in product(THETAS, LEAST)}
        found = {tier: fewest_layers(exits, labels, rules, may_cost) for tier, exits in probabilities.items()}
        chosen[patience] = {tier: pair for tier, (pair, _, _) in found.items()}
        shares[patience] = sum(layers / probabilities[tier].shape[1] for tier, (_, layers, _) in found.items())
    best = min(shares, key=lambda patience: shares[patience])
    theta, least = ({tier: pair[at] for tier, pair in chosen[best].items()} for at in (0, 1))
    return {"theta": theta, "patience": best, "exit_min_confidence": least}


def early_exit_rules(exits: Array, labels: Array, may_cost: float) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """For each policy that only exits early, its parameter on all layers [N, E, C]; and what each gives."""
    depth, classes = exits.shape[1:]
    alphas = np.linspace(1 / classes, 1, 10).tolist()
    candidates: dict[tuple[str, str], dict[float, ExitRule | None]] = {
        ("early-exit", "exit_threshold"): {round(alpha, 6): Confidence(round(alpha, 6)) for alpha in (*alphas, *FINE)},
        ("deebert", "entropy_threshold"): {entropy: Entropy(entropy) for entropy in ENTROPIES},
        ("pabee", "patience"): {patience: Patience(patience) for patience in range(1, depth + 1)},
    }
    policies: dict[str, dict[str, Any]] = {}
    report: dict[str, Any] = {"full_accuracy": round(full_accuracy(exits, labels), 4), "may_cost": may_cost}
    for (policy, parameter), rules in candidates.items():
        value, mean, accuracy = fewest_layers(exits, labels, rules, may_cost)
        policies[policy] = {parameter: value}
        report[policy] = {parameter: value, "mean_exit_layer": round(mean, 3), "accuracy": round(accuracy, 4)}
    for splitting in ("splitee", "splitee-s", "i-splitee"):
        policies[splitting] = dict(policies["early-exit"])
    return policies, report
