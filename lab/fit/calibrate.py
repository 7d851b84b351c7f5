"""Calibrate a bundle on validation data and write its model card.

    1. a temperature per exit and per model, from every text at full depth
    2. theta and patience: the fewest layers that keep each tier's own accuracy within `EXIT_COST`
    3. the pruning coefficient: the strongest one that keeps the next tier's accuracy on texts the first is unsure of
    4. every tier on the texts as they would reach it: pruned, leaving early
    5. alpha, pools, length bins and exit thresholds of the other policies (`lab/fit/pools.py`)
    6. thresholds and ensemble weights: the fastest expected setting within `within` of cloud-only (the deepest tier,
       whole texts, all layers); the weighting is the one with the least expected NLL

Latency is modelled: compute measured here, links from their profiles. All of it goes into the card with its reasons.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from lab.console import aside
from lab.data.examples import Example, check_labels, digest
from lab.data.readable import readable, readers_of
from lab.fit.checks import check_bundle, check_validation
from lab.fit.collect import Left, classifier_of, every_exit, under_rule
from lab.fit.evaluate import exit_row, nll_ece_brier
from lab.fit.operating import Stage, expectation, fastest, fitted, paths, sweep, threshold_for
from lab.fit.pools import Chosen, choose
from lab.outputs import write_json
from lab.stats import wilson
from shared.errors import BadSetting
from shared.links.profile import profile
from shared.model.bundle import Bundle, Card, load_bundle
from shared.model.calibration import T_MAX, T_MIN, calibrated, fit_temperature, quality
from shared.model.classifier import Classifier
from shared.model.ensemble import Ensemble, Weighting
from shared.model.exits import ExitRule, Similarity, exit_taken
from shared.model.pruning import Pruning, keep_words

THETAS = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.08, 0.12, 0.2)
PATIENCES = (1, 2, 3)
EXIT_COST = 0.0025  # accuracy that early exit may cost a tier
COEFFICIENTS = (0.75, 0.9, 1.0, 1.1, 1.25)
PRUNING_COST = 0.005  # accuracy that pruning may cost the next tier
PRUNING_TEXTS = 300
SHARE_WITHIN = 0.02  # of the share that is to be sent on
WEIGHTINGS = (Weighting.ACCURACY, Weighting.FITTED, Weighting.LAST)
ENVELOPE = 420  # bytes of an infer request besides its text, measured
ANSWER = 450  # bytes of an infer answer with one hop, measured


@dataclass(frozen=True)
class Exits:
    """The similarity rule's parameters: a theta per tier, one patience."""

    theta: dict[str, float]
    patience: int

    def rule(self, tier: str) -> ExitRule | None:
        return Similarity(self.theta[tier], self.patience) if self.theta[tier] else None


class Job:
    """One calibration of one bundle."""

    def __init__(
        self, bundle: str, texts: list[Example], *, access: str, backbone: str, threads: int, console: Console
    ) -> None:
        """Check everything that would end a calibration late.

        Raises:
            BadSetting: a bundle, labels or links that do not fit, or texts that cannot tell anything.
        """
        self.bundle: Bundle = load_bundle(bundle)
        self.asked, self.console, self.threads = texts, console, threads
        self.access, self.backbone = access, backbone
        for name in (access, backbone):
            profile(name)
        check_bundle(self.bundle)
        check_labels(texts, self.bundle.labels, f"bundle {self.bundle.name}")
        self.texts, self.left_out = readable(texts, readers_of(self.bundle))
        self.left_out.tell(aside())
        self.notes: list[str] = []
        for note in check_validation(self.texts, self.bundle.labels):
            self._note(note)
        self.labels = torch.tensor([text.label for text in self.texts])
        torch.set_num_threads(threads)

    def run(self, *, within: float, offload_share: float | None, pruning: bool = True) -> bool:
        """Fit everything, write `card.json`, print what was chosen and why; whether the share asked for is met."""
        order = self.bundle.order
        logits = {tier: every_exit(self.bundle, tier, self.texts, self.console) for tier in order}
        card, exits_report = self._temperatures(logits)
        self._doubt(card.temperatures, logits[order[-1]])
        accuracy = {tier: exits[-1]["accuracy"] for tier, exits in exits_report.items()}
        probabilities = _probabilities(logits, card.temperatures)
        exits = choose_exits(probabilities, self.labels)
        self.console.print(f"exit rule: {exits}")
        classifiers = {tier: classifier_of(self.bundle, tier) for tier in order}
        for tier, network in classifiers.items():
            network.encoder.temperatures.copy_(torch.tensor(card.temperatures[tier]))
        others = choose(self.bundle, classifiers[order[0]], probabilities, self.texts, within=within)
        long = sum(_words((text.text, text.pair)) > Pruning().whole_below_words for text in self.texts)
        if pruning and long >= PRUNING_TEXTS:
            coefficient, pruning_report = self._choose_pruning(classifiers, exits, logits)
        else:
            coefficient, pruning_report = 0.0, {"chosen": 0.0, "by": [], "not_tried": f"{long} texts are long enough"}
        stages, stage_report = self._stages(classifiers, exits, coefficient, logits)
        target = accuracy[order[-1]] - within
        chosen = self._operating_point(stages, accuracy, target, offload_share)
        parameters = {
            "offload_threshold": chosen["thresholds"],
            "steepness": chosen["steepness"],
            "patience": exits.patience,
            "pruning_coefficient": coefficient,
            "weighting": chosen["weighting"],
        }
        card = card.model_copy(
            update={
                "accuracy": accuracy,
                "fitted_weights": chosen.pop("fitted_weights"),
                "policies": {
                    "collaborative": {**parameters, "theta": exits.theta},
                    "tabi": parameters,
                    **others.policies,
                },
                "report": {
                    "validation": {
                        "n": len(self.asked),
                        "data_sha256": digest(self.asked),
                        "left_out": self.left_out.report(),
                    },
                    "notes": self.notes,
                    "metric": self.bundle.metric.value,
                    "exits": exits_report,
                    **others.report,
                    "exit_rule": {**asdict(exits), "may_cost": EXIT_COST},
                    "pruning": pruning_report,
                    "stages": stage_report,
                    "operating_point": {**chosen, "target_accuracy": target, "within": within},
                },
            }
        )
        self._write(card, others)
        self.console.print_json(json.dumps({"operating_point": chosen}))
        return bool(chosen["offload_share"]["reached"])

    def _note(self, said: str) -> None:
        """Something that whoever uses the card must know."""
        self.notes.append(said)
        aside().print(f"calibrate: {said}", style="yellow")

    def _doubt(self, temperatures: dict[str, list[float]], deepest: Tensor) -> None:
        """Say what makes a fit doubtful: temperatures at their bounds, and tiers that are no better than no model."""
        at_bound = [
            f"{tier} exit {layer} ({temperature:g})"
            for tier, own in temperatures.items()
            for layer, temperature in enumerate(own, start=1)
            if not 1.01 * T_MIN < temperature < T_MAX / 1.01
        ]
        if at_bound:
            self._note(
                f"temperatures at their bound, so confidences mean little: {', '.join(at_bound)}; the texts may be "
                "too easy, too few, or labelled at random"
            )
        n, most = len(self.labels), int(self.labels.bincount().max())
        right = int((deepest[:, -1].argmax(-1) == self.labels).sum())
        if wilson(right, n)[0] <= most / n:
            self._note(
                f"the deepest tier is right on {right / n:.1%} of the texts, no better than always saying their most "
                f"frequent label ({most / n:.1%}): are the labels right, and in the order of the bundle's?"
            )

    def others(self, *, within: float) -> None:
        """Step 5 alone, on the card's own temperatures; what the card says otherwise stays as it is.

        Raises:
            BadSetting: the bundle has no card yet.
        """
        card, order = self.bundle.card, self.bundle.order
        if card.temperatures.keys() != set(order):
            raise BadSetting(f"bundle {self.bundle.name!r} has no temperatures yet: calibrate it in full first")
        logits = {tier: every_exit(self.bundle, tier, self.texts, self.console) for tier in order}
        probabilities = _probabilities(logits, card.temperatures)
        chosen = choose(self.bundle, classifier_of(self.bundle, order[0]), probabilities, self.texts, within=within)
        self._write(
            card.model_copy(
                update={
                    "policies": {**card.policies, **chosen.policies},
                    "report": {**card.report, **chosen.report},
                }
            ),
            chosen,
        )

    def _write(self, card: Card, others: Chosen) -> None:
        path = self.bundle.folder / "card.json"
        write_json(path, card.model_dump())
        if others.pools is not None:
            others.pools.save(self.bundle.folder)
        self.console.print_json(json.dumps({"policies": card.policies}))
        self.console.print(f"written: {path}")

    def _temperatures(self, logits: dict[str, Tensor]) -> tuple[Card, dict[str, list[dict[str, Any]]]]:
        """A temperature per exit and per model, and each exit's quality before and after."""
        per_exit: dict[str, list[float]] = {}
        per_model: dict[str, float] = {}
        report: dict[str, list[dict[str, Any]]] = {}
        for tier, exits in logits.items():
            per_exit[tier] = [round(fit_temperature(exits[:, e], self.labels), 4) for e in range(exits.shape[1])]
            per_model[tier] = per_exit[tier][-1]
            report[tier] = []
            for e, temperature in enumerate(per_exit[tier]):
                before = quality(calibrated(exits[:, e], 1.0), self.labels)
                after = quality(calibrated(exits[:, e], temperature), self.labels)
                row = exit_row(report[tier], exits[:, e], self.labels, after, self.bundle.metric)
                report[tier].append(row | {"before": nll_ece_brier(before), "after": nll_ece_brier(after)})
        return Card(temperatures=per_exit, model_temperatures=per_model), report

    def _choose_pruning(
        self, classifiers: dict[str, Classifier], exits: Exits, logits: dict[str, Tensor]
    ) -> tuple[float, dict[str, Any]]:
        """The strongest coefficient that costs the second tier at most `PRUNING_COST` on the first's unsure texts."""
        order = self.bundle.order
        if len(order) == 1:
            return 0.0, {}
        first, second = classifiers[order[0]], classifiers[order[1]]
        whole = [(text.text, text.pair) for text in self.texts]
        rule = exits.rule(order[0])
        confidence = [_at_exit(first, item).max() for item in recorded(first, whole, rule, logits[order[0]])]
        unsure = torch.stack(confidence).argsort()[:PRUNING_TEXTS].tolist()
        labels = self.labels[unsure]
        left = under_rule(first, [whole[row] for row in unsure], rule, f"{order[0]}, unsure texts", self.console)
        report: dict[str, Any] = {"n": len(unsure), "texts": f"those that {order[0]} is least sure of", "by": []}
        best = 0.0
        for coefficient in (0.0, *COEFFICIENTS):
            texts = [_prune(whole[row], item, coefficient) for row, item in zip(unsure, left, strict=True)]
            answers = under_rule(second, texts, None, f"{order[1]}, pruned at {coefficient}", self.console)
            accuracy = _accuracy(second, answers, labels)
            kept = sum(_words(t) for t in texts) / sum(_words(whole[row]) for row in unsure)
            report["by"].append({"coefficient": coefficient, "accuracy": accuracy, "words_kept": round(kept, 4)})
            if accuracy >= report["by"][0]["accuracy"] - PRUNING_COST:
                best = coefficient
        self.console.print(f"pruning: {report['by']} -> {best}")
        return best, {**report, "may_cost": PRUNING_COST, "chosen": best}

    def _stages(
        self, classifiers: dict[str, Classifier], exits: Exits, coefficient: float, logits: dict[str, Tensor]
    ) -> tuple[list[Stage], dict[str, Any]]:
        """Every tier on every text as it would arrive there; compute is timed at batch 1 on a sample."""
        texts = [(text.text, text.pair) for text in self.texts]
        stages, report = [], {}
        for index, (tier, classifier) in enumerate(classifiers.items()):
            rule = exits.rule(tier)
            torch.set_num_threads(self.threads)
            if coefficient:
                left = under_rule(classifier, texts, rule, f"{tier}, as in service", self.console)
            else:  # whole texts: every exit is on record already
                left = recorded(classifier, texts, rule, logits[tier])
            torch.set_num_threads(1 if index == 0 else self.threads)
            seconds = _modelled(classifier, texts, rule, left, importance=coefficient > 0)
            if index:
                link = profile(self.access if index == 1 else self.backbone)
                sizes = torch.tensor([_bytes(text) + ENVELOPE for text in texts])
                up = sizes * 8 / link.rate_up_bps if link.rate_up_bps else torch.zeros(len(sizes))
                seconds = seconds + link.rtt_s + up + (ANSWER * 8 / link.rate_down_bps if link.rate_down_bps else 0.0)
            probabilities = torch.stack([_at_exit(classifier, item) for item in left])
            stages.append(Stage(tier, probabilities, seconds))
            report[tier] = {
                "mean_exit_layer": round(sum(item.exit_layer for item in left) / len(left), 3),
                "accuracy_on_texts_as_they_arrive": round(_accuracy(classifier, left, self.labels), 4),
                "mean_modelled_ms": round(seconds.mean().item() * 1e3, 2),
                "ece_of_those_that_left_there": _ece_by_exit(probabilities, left, self.labels),
            }
            if coefficient:
                texts = [_prune(text, item, coefficient) for text, item in zip(texts, left, strict=True)]
        return stages, report

    def _operating_point(
        self, stages: list[Stage], accuracy: dict[str, float], target: float, offload_share: float | None
    ) -> dict[str, Any]:
        """Thresholds, then weights on those paths, then thresholds again under the weighting that fits best."""
        plain = Ensemble(accuracy=accuracy)
        point = fastest(list(sweep(stages, self.labels, plain, Weighting.LAST)), target)
        stop = paths(stages, point.thresholds, point.steepness)
        ensemble = Ensemble(accuracy=accuracy, fitted=fitted(stages, self.labels, stop))
        compared = {w: expectation(stages, self.labels, stop, ensemble, w) for w in WEIGHTINGS}
        weighting = min(compared, key=lambda w: compared[w][1])
        points = list(sweep(stages, self.labels, ensemble, weighting))
        point = fastest(points, target)
        if offload_share is not None:
            first = stages[0].tier
            point.thresholds[first] = threshold_for(
                stages[0].probabilities.amax(-1).tolist(), offload_share, point.steepness
            )
        stop = paths(stages, point.thresholds, point.steepness)
        ensemble = Ensemble(accuracy=accuracy, fitted=fitted(stages, self.labels, stop))
        got = expectation(stages, self.labels, stop, ensemble, weighting)
        sent = round(1 - stop[0].mean().item(), 4)
        met = offload_share is None or abs(sent - offload_share) <= SHARE_WITHIN
        if not met:
            self._note(f"--offload-share {offload_share:g} cannot be met: no threshold comes nearer than {sent:.1%}")
        if got[0] < target:
            self._note(f"expected accuracy {got[0]:.4f} is below the target {target:.4f}: no setting reaches it")
        return {
            "thresholds": point.thresholds,
            "steepness": point.steepness,
            "weighting": weighting.value,
            "fitted_weights": dict(ensemble.fitted),
            "why_this_weighting": {w.value: {"accuracy": a, "nll": n} for w, (a, n, _) in compared.items()},
            "expected": {"accuracy": got[0], "nll": got[1], "modelled_ms": got[2] * 1e3},
            "stops_at": {s.tier: round(row.mean().item(), 4) for s, row in zip(stages, stop, strict=True)},
            "reached_target": got[0] >= target and met,
            "offload_share": {"asked": offload_share, "got": sent, "reached": met},
            "settings_tried": len(points),
            "links": {"access": self.access, "backbone": self.backbone},
        }


def choose_exits(probabilities: dict[str, Tensor], labels: Tensor) -> Exits:
    """The patience, and per tier the theta, with the least share of layers run; 0 where no theta is cheap enough."""
    best: tuple[float, Exits] | None = None
    for patience in PATIENCES:
        theta, run = {}, 0.0
        for tier, exits in probabilities.items():  # [N, E, C]
            full = (exits[:, -1].argmax(-1) == labels).double().mean().item()
            theta[tier], share = 0.0, 1.0
            for candidate in THETAS:
                layer = exit_taken(exits.transpose(0, 1), Similarity(candidate, patience))
                at_exit = exits[torch.arange(len(exits)), layer - 1]
                accuracy = (at_exit.argmax(-1) == labels).double().mean().item()
                mean = layer.double().mean().item() / exits.shape[1]
                if accuracy >= full - EXIT_COST and mean < share:
                    theta[tier], share = candidate, mean
            run += share
        if best is None or run < best[0]:
            best = (run, Exits(theta, patience))
    assert best is not None
    return best[1]


def recorded(
    classifier: Classifier, texts: Sequence[tuple[str, str | None]], rule: ExitRule | None, logits: Tensor
) -> list[Left]:
    """What `under_rule` gives for whole texts, less the importance, from the logits of every exit [N, E, C]."""
    layers = exit_taken(classifier.encoder.calibrate(logits.transpose(0, 1)), rule).tolist()
    return [
        Left(classifier.encode(*text), layer, own[:layer], [])
        for text, layer, own in zip(texts, layers, logits, strict=True)
    ]


def _probabilities(logits: dict[str, Tensor], temperatures: dict[str, list[float]]) -> dict[str, Tensor]:
    """Calibrated probabilities of every exit, [N, E, C] by tier."""
    return {tier: calibrated(own.transpose(0, 1), temperatures[tier]).transpose(0, 1) for tier, own in logits.items()}


def _at_exit(classifier: Classifier, item: Left) -> Tensor:
    return classifier.encoder.calibrate(item.logits, last=item.exit_layer)[-1]


def _accuracy(classifier: Classifier, answers: list[Left], labels: Tensor) -> float:
    said = torch.stack([_at_exit(classifier, item) for item in answers]).argmax(-1)
    return round((said == labels).double().mean().item(), 4)


def _prune(text: tuple[str, str | None], item: Left, coefficient: float) -> tuple[str, str | None]:
    keep = Pruning(coefficient).mask(item.encoded, item.importance)
    return keep_words(text[0], text[1], item.encoded, keep)


def _words(text: tuple[str, str | None]) -> int:
    return len(text[0].split()) + len((text[1] or "").split())


def _bytes(text: tuple[str, str | None]) -> int:
    return len(text[0].encode()) + len((text[1] or "").encode())


def _modelled(
    classifier: Classifier,
    texts: list[tuple[str, str | None]],
    rule: ExitRule | None,
    left: list[Left],
    *,
    importance: bool,
) -> Tensor:
    """Seconds of each text alone: a least-squares fit of time over layers run and layers x tokens, from 60 texts."""
    sample = torch.linspace(0, len(texts) - 1, 60).long().tolist()
    rows, times = [], []
    for row in sample:
        best = float("inf")
        for _ in range(2):
            started = time.perf_counter()
            item = classifier.encode(*texts[row])
            classifier.run([item], rule, importance=importance)
            best = min(best, time.perf_counter() - started)
        rows.append(_work(left[row]))
        times.append(best)
    fit = torch.linalg.lstsq(torch.tensor(rows), torch.tensor(times)[:, None]).solution
    return (torch.tensor([_work(item) for item in left]) @ fit)[:, 0].clamp_min(1e-4)


def _work(item: Left) -> list[float]:
    return [1.0, float(item.exit_layer), item.exit_layer * len(item.encoded.ids) / 100]


def _ece_by_exit(probabilities: Tensor, left: list[Left], labels: Tensor) -> dict[int, Any]:
    """ECE over the texts that really left at an exit, where there are at least 100."""
    layers = torch.tensor([item.exit_layer for item in left])
    out: dict[int, dict[str, float]] = {}
    for layer in layers.unique().tolist():
        here = layers == layer
        n = int(here.sum())
        out[layer] = {"n": n}
        if n >= 100:
            out[layer]["ece"] = round(quality(probabilities[here], labels[here]).ece, 4)
    return out
