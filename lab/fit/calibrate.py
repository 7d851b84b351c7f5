"""Calibrate a bundle on validation data and write its model card.

    0. a quantization table for each classifier that has none, if it is to run in int8 (`lab/fit/quantize.py`)
    1. a temperature per exit and per model, from every text at full depth
    2. theta, patience and the least confidence: the fewest layers that keep each tier's accuracy within `EXIT_COST`
       (`lab/fit/exits.py`)
    3. alpha, pools, length bins and exit thresholds of the other policies (`lab/fit/pools.py`)
    4. the pruning coefficient: the strongest one that keeps the next tier's accuracy on texts the first is unsure of
    5. every tier on the texts as they would reach it: pruned, leaving early (`lab/fit/cascade.py`)
    6. thresholds, their steepness, how unsure a text must be to skip the tiers between, and ensemble weights: the
       fastest expected setting of the planner's values within `within` of cloud-only (the deepest tier, whole texts,
       all layers); the weighting is the one with the least expected NLL (`lab/fit/point.py`)
    7. gains by confidence, and what an answer is worth, for `network-aware` (`lab/fit/gains.py`)
    8. the gates of `jei-dnn` and `path-gates`: each price is judged on texts that they were not fitted on, and the
       fastest that surely loses at most `within` is kept (`lab/fit/prices.py`)

After step 0 no classifier is called here: texts are recorded once, and times are those that `tierwise replay` models,
compute measured on this machine. All of it goes into the card with its reasons.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from lab.choice import operating_point
from lab.console import aside
from lab.data.examples import Example, check_labels, digest
from lab.data.readable import readable, readers_of
from lab.engine import asked
from lab.fit.alike import reads_alike
from lab.fit.cascade import Cascade, cascade_of
from lab.fit.checks import check_bundle, check_validation, folders_of
from lab.fit.evaluate import exit_row, nll_ece_brier
from lab.fit.exits import every_exit, similarity_rule
from lab.fit.gains import network_aware
from lab.fit.point import operating, shortfall
from lab.fit.pools import Chosen, choose
from lab.fit.prices import OTHER_LINKS, choose_jei_dnn, choose_path, recorded
from lab.outputs import write_json
from lab.replay.recorder import Kernel, Recorders, other_engine, runs_on
from lab.replay.times import Times
from lab.replay.trial import links_of, threads_of
from lab.replay.walk import Replay
from lab.stats import wilson
from shared.errors import BadSetting, WrongWeights
from shared.links.profile import Profile
from shared.model.base import Array
from shared.model.bundle import Bundle, Card, load_bundle
from shared.model.calibration import T_MAX, T_MIN, calibrated, fit_temperature, quality
from shared.model.pools import FILE as POOLS
from shared.model.pruning import Pruning
from shared.model.quantization import load_table
from shared.policies import Where

EXIT_COST = 0.001  # accuracy that early exit may cost a tier
COEFFICIENTS = (0.75, 0.9, 1.0, 1.1, 1.25)
PRUNING_COST = 0.005  # accuracy that pruning may cost the next tier
PRUNING_TEXTS = 300
ENOUGH_FOR_ECE = 100  # texts


class Calibration:
    """One calibration of one bundle."""

    def __init__(
        self,
        bundle: str,
        texts: list[Example],
        *,
        access: str,
        backbone: str,
        threads: int,
        console: Console,
        data: str = "FILE",
    ) -> None:
        """Check everything that would end a calibration late. `data`: the file of the texts, for advice.

        Raises:
            BadSetting: a bundle, labels or links that do not fit, or texts that cannot tell anything.
        """
        self.bundle: Bundle = load_bundle(bundle)
        self.asked, self.console = texts, console
        self.access, self.backbone, self.data = access, backbone, data
        self.links = links_of(self.bundle, f"{access}/{backbone}")
        self.threads = threads_of(self.bundle, threads)
        check_bundle(self.bundle)
        check_labels(texts, self.bundle.labels, f"bundle {self.bundle.name}")
        self.texts, self.left_out = readable(texts, readers_of(self.bundle))
        self.left_out.tell(aside())
        self.notes: list[str] = []
        for note in check_validation(self.texts, self.bundle.labels):
            self._note(note)
        self.labels = np.array([text.label for text in self.texts])
        self.recorders = Recorders(console, threads=threads)

    def run(self, *, within: float, offload_share: float | None, pruning: bool = True) -> bool:
        """Fit everything, write `card.json`, print what was chosen and why; whether the share asked for is met."""
        self._quantize()
        engine = runs_on(self.bundle)
        self.console.print(f"engine: {engine}")
        logits = every_exit(self.bundle, self.texts, self.recorders)
        card, exits_report = self._temperatures(logits)
        self._doubt(card.temperatures, logits[self.bundle.order[-1]])
        accuracy = {tier: exits[-1]["accuracy"] for tier, exits in exits_report.items()}
        replay = self._replay(card)
        exits = similarity_rule(_probabilities(replay), self.labels, EXIT_COST)
        self.console.print(f"exit rule: {exits}")
        others = choose(replay, _probabilities(replay), within=within)
        coefficient, pruning_report = self._choose_pruning(replay, exits, wanted=pruning)
        path = {"patience": exits.pop("patience"), "pruning_coefficient": coefficient}
        times = Times(replay, self.threads, self.links, self.console, data=self.data)
        for note in times.notes:
            self._note(note)
        target = accuracy[self.bundle.order[-1]] - within
        cascade = cascade_of(replay, times, {**path, **exits})
        point, weights = operating(cascade, accuracy, target, offload_share)
        for note in shortfall(point, target):
            self._note(note)
        parameters = {
            "offload_threshold": point["thresholds"],
            **({"skip_below": {self.bundle.order[0]: point["skip_below"]}} if point["skip_below"] else {}),
            "steepness": point["steepness"],
            **path,
            "weighting": point["weighting"],
        }
        policies = {"collaborative": {**parameters, **exits}, "tabi": parameters, **others.policies}
        links = {"access": self.access, "backbone": self.backbone}
        report = {
            "validation": {"n": len(self.asked), "data_sha256": digest(self.asked), "left_out": self.left_out.report()},
            "notes": self.notes,
            "metric": self.bundle.metric.value,
            "exits": exits_report,
            **others.report,
            "exit_rule": {**exits, "patience": path["patience"], "may_cost": EXIT_COST},
            "pruning": pruning_report,
            "stages": _by_tier(cascade),
            "operating_point": {**point, "links": links, "target_accuracy": target, "within": within},
        }
        found = {
            "engine": engine,
            "reads_alike": reads_alike(self.bundle),
            "accuracy": accuracy,
            "fitted_weights": weights,
            "policies": policies,
            "report": report,
        }
        card = card.model_copy(update=found)
        self._add_gains(card, target)
        self._add_gates(card, within)
        self._write(card, others)
        self.console.print_json(json.dumps({"operating_point": point}))
        return bool(point["offload_share"]["reached"])

    def others(self, *, within: float) -> None:
        """Steps 3, 7 and 8 alone, on the card's own temperatures; what the card says otherwise stays as it is.

        Raises:
            BadSetting: the bundle has no card yet.
        """
        card = self.bundle.card
        if card.temperatures.keys() != set(self.bundle.order):
            raise BadSetting(f"bundle {self.bundle.name!r} has no temperatures yet: calibrate it in full first")
        for note in other_engine(self.bundle):
            self._note(note)
        every_exit(self.bundle, self.texts, self.recorders)
        replay = self._replay(card)
        chosen = choose(replay, _probabilities(replay), within=within)
        policies, report = {**card.policies, **chosen.policies}, {**card.report, **chosen.report}
        card = card.model_copy(update={"policies": policies, "report": report})
        self._add_gains(card, card.accuracy[self.bundle.order[-1]] - within)
        self._add_gates(card, within)
        self._write(card, chosen)

    def _add_gains(self, card: Card, target: float) -> None:
        """Put what `network-aware` needs on these links into a card that has all else."""
        if len(self.bundle.order) < 2:
            return
        replay = self._replay(card, profiles=self.links)
        times = Times(replay, self.threads, self.links, self.console, data=self.data)
        found, report = network_aware(replay, times, target)
        card.policies["network-aware"] = found
        card.report["gains"] = {"links": {"access": self.access, "backbone": self.backbone}, **report}

    def _add_gates(self, card: Card, within: float) -> None:
        """Put the gates of these links, and of `OTHER_LINKS`, into a card that has all else."""
        replay, named = self._replay(card), dict.fromkeys((f"{self.access}/{self.backbone}", *OTHER_LINKS))
        times = {
            links: Times(replay, self.threads, links_of(self.bundle, links), self.console, data=self.data)
            for links in named
        }
        path, path_report = choose_path(replay, times, within)
        exits, exits_report = choose_jei_dnn(replay, recorded(replay, next(iter(times.values()))), within)
        card.policies.update({"jei-dnn": exits, "path-gates": path})
        card.report["gates"] = {"jei-dnn": exits_report, "path-gates": path_report}

    def _quantize(self) -> None:
        """Give every classifier that is to run in int8 a quantization table, if it has none."""
        if not asked().needs_table:
            return
        without = [folder for folder in folders_of(self.bundle) if not _has_table(folder)]
        if without and find_spec("torch") is None:
            names = ", ".join(folder.name for folder in without)
            self._note(f"no quantization table of {names}: finding one needs torch; install tierwise[torch]")
        elif without:
            from lab.fit.quantize import quantize_all

            quantize_all(self.bundle, without, self.texts, self.console, threads=self.threads[self.bundle.order[-1]])

    def _replay(self, card: Card, profiles: Mapping[tuple[str, str], Profile] | None = None) -> Replay:
        return Replay(replace(self.bundle, card=card), self.texts, self.recorders, profiles=profiles)

    def _note(self, text: str) -> None:
        """Something that whoever uses the card must know."""
        self.notes.append(text)
        aside().print(f"calibrate: {text}", style="yellow")

    def _doubt(self, temperatures: dict[str, list[float]], deepest: Array) -> None:
        """Say what makes a fit doubtful: temperatures at their bounds, and tiers that are no better than no model."""
        at_bound = [
            f"{tier} exit {layer} ({temperature:g})"
            for tier, of_tier in temperatures.items()
            for layer, temperature in enumerate(of_tier, start=1)
            if not 1.01 * T_MIN < temperature < T_MAX / 1.01
        ]
        if at_bound:
            self._note(
                f"temperatures at their bound, so confidences mean little: {', '.join(at_bound)}; the texts may be "
                "too easy, too few, or labelled at random"
            )
        n, most = len(self.labels), int(np.bincount(self.labels).max())
        right = int((deepest[:, -1].argmax(-1) == self.labels).sum())
        if wilson(right, n)[0] <= most / n:
            self._note(
                f"the deepest tier is right on {right / n:.1%} of the texts, no better than always saying their most "
                f"frequent label ({most / n:.1%}): are the labels right, and in the order of the bundle's?"
            )

    def _write(self, card: Card, others: Chosen) -> None:
        path = self.bundle.folder / "card.json"
        self.recorders.save()
        write_json(path, card.model_dump())
        if others.pools is not None:
            others.pools.save(self.bundle.folder)
        else:  # those of an earlier calibration are not this card's
            (self.bundle.folder / POOLS).unlink(missing_ok=True)
        self.console.print_json(json.dumps({"policies": card.policies}))
        self.console.print(f"written: {path}")

    def _temperatures(self, logits: dict[str, Array]) -> tuple[Card, dict[str, list[dict[str, Any]]]]:
        """A temperature per exit and per model, and each exit's quality before and after."""
        per_exit: dict[str, list[float]] = {}
        report: dict[str, list[dict[str, Any]]] = {}
        for tier, exits in logits.items():
            per_exit[tier] = [round(fit_temperature(exits[:, e], self.labels), 4) for e in range(exits.shape[1])]
            report[tier] = []
            for e, temperature in enumerate(per_exit[tier]):
                before = quality(calibrated(exits[:, e], 1.0), self.labels)
                after = quality(calibrated(exits[:, e], temperature), self.labels)
                row = exit_row(report[tier], exits[:, e], self.labels, after, self.bundle.metric)
                report[tier].append(row | {"before": nll_ece_brier(before), "after": nll_ece_brier(after)})
        per_model = {tier: temperatures[-1] for tier, temperatures in per_exit.items()}
        return Card(temperatures=per_exit, model_temperatures=per_model), report

    def _choose_pruning(self, replay: Replay, exits: dict[str, Any], *, wanted: bool) -> tuple[float, dict[str, Any]]:
        """The strongest coefficient that costs the second tier at most `PRUNING_COST` on the first's unsure texts."""
        long = int((replay.corpus.words[replay.numbers] > Pruning().whole_below_words).sum())
        if not wanted or long < PRUNING_TEXTS:
            return 0.0, {"chosen": 0.0, "by": [], "not_tried": f"{long} texts are long enough"}
        if len(replay.stations) == 1:
            return 0.0, {}
        first, second = replay.stations[:2]
        rule = replay.policy({"name": "collaborative", **exits}).exit_rule(Where(first.name, (), {}))
        layers = first.left(replay.numbers, rule, Kernel.PLAIN)
        confidence = first.table(replay.numbers, Kernel.PLAIN).exits[replay.numbers, layers - 1].max(-1)
        unsure = confidence.argsort()[:PRUNING_TEXTS]
        numbers, labels = replay.numbers[unsure], self.labels[unsure]
        layers, rows = first.left(numbers, rule, Kernel.COUNTED), list[dict[str, Any]]()
        for coefficient in (0.0, *COEFFICIENTS):
            pruned = first.pruned(numbers, layers, Pruning(coefficient)) if coefficient else numbers
            right = second.table(pruned, Kernel.PLAIN).exits[pruned, -1].argmax(-1) == labels
            kept = float(replay.corpus.words[pruned].sum() / replay.corpus.words[numbers].sum())
            accuracy = round(float(right.mean()), 4)
            rows.append({"coefficient": coefficient, "accuracy": accuracy, "words_kept": round(kept, 4)})
        costs, gains = [row["words_kept"] for row in rows], [row["accuracy"] for row in rows]
        best = rows[operating_point(costs, gains, gains[0] - PRUNING_COST)]["coefficient"]
        self.console.print(f"pruning: {rows} -> {best}")
        about = {"n": len(numbers), "texts": f"those that {first.name} is least sure of", "by": rows}
        return best, {**about, "may_cost": PRUNING_COST, "chosen": best}


def _has_table(folder: Path) -> bool:
    """Whether a classifier has a quantization table; one found for other adapters is none."""
    try:
        return load_table(folder, 0) is not None
    except WrongWeights:
        return False


def _probabilities(replay: Replay) -> dict[str, Array]:
    """Calibrated probabilities of every exit on whole texts, [N, E, C] by tier."""
    numbers = replay.numbers
    return {station.name: station.table(numbers, Kernel.PLAIN).exits[numbers] for station in replay.stations}


def _by_tier(cascade: Cascade) -> dict[str, Any]:
    """What each tier does with the texts that get there, and the time that it adds."""
    out: dict[str, Any] = {}
    added = np.diff(cascade.seconds, axis=0, prepend=0.0)
    for at, tier in enumerate(cascade.tiers):
        there = cascade.exit_layer[at] > 0
        probabilities, labels = cascade.probabilities[at, there], cascade.labels[there]
        layers = cascade.exit_layer[at, there]
        right = probabilities.argmax(-1) == labels
        out[tier] = {
            "mean_exit_layer": _mean(layers, 3),
            "accuracy_on_texts_as_they_arrive": _mean(right, 4),
            "mean_modelled_ms": _mean(added[at, there] * 1e3, 2),
            "ece_of_those_that_left_there": _ece_by_exit(probabilities, layers, labels),
        }
    return out


def _mean(values: Array, digits: int) -> float | None:
    """Their mean; null where there are none."""
    return round(float(values.mean()), digits) if len(values) else None


def _ece_by_exit(probabilities: Array, layers: Array, labels: Array) -> dict[int, Any]:
    """ECE over the texts that really left at an exit, where there are enough of them."""
    out: dict[int, dict[str, float]] = {}
    for layer in np.unique(layers).tolist():
        here = layers == layer
        out[layer] = {"n": int(here.sum())}
        if out[layer]["n"] >= ENOUGH_FOR_ECE:
            out[layer]["ece"] = round(quality(probabilities[here], labels[here]).ece, 4)
    return out
