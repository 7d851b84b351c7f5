"""`tierwise replay`: policies over bundles, replayed on the same texts, in one table."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.console import busy
from lab.data.examples import Example, check_labels, digest, files, load_without, training_rows, unseen
from lab.live.bench_report import cpu
from lab.policies import parse_policy
from lab.records import Record
from lab.replay.measured import live_ms
from lab.replay.recorder import runs_on
from lab.replay.report import figures, records_of
from lab.replay.trial import Conditions, Trial, deeper_threads, held_out
from shared.errors import BadSetting, UnknownPolicy
from shared.model.bundle import MODELS, Bundle, load_bundle
from shared.policies import build, names, spec_of


@dataclass(frozen=True)
class Texts:
    """Texts of one data set, and the bundles to replay on them."""

    source: str
    split: str
    examples: list[Example]
    bundles: list[Bundle]


def compare(
    sets: Sequence[Texts],
    policies: Sequence[str],
    conditions: Conditions,
    measured: Sequence[Path] = (),
    against: str | None = None,
) -> tuple[dict[str, Any], list[Record]]:
    """The report over every bundle and policy, and a record of every text under each.

    `policies`: as on the command line, or `all`. `measured`: files of live times to show beside the modelled ones.
    `against`: the policy that differences are against; none: the deepest tier alone.

    Raises:
        BadSetting: labels that a bundle does not have, links or files that do not exist, times measured elsewhere.
        UnknownPolicy: a policy or parameter that no bundle has.
    """
    _check(sets, policies, against)
    started, recorders, records = time.perf_counter(), conditions.recorders, list[Record]()
    report: dict[str, Any] = {
        "seed": conditions.seed,
        "links": conditions.links,
        "threads": {"first_tier": 1, "deeper_tiers": deeper_threads(conditions.threads)},
        "hardware": {"cpu": cpu(), "cores": os.cpu_count(), "device": "cpu", "engine": _engines(sets)},
        "against": against,
        "notes": [],
        "bundles": {},
    }
    try:
        for texts in sets:
            for bundle in texts.bundles:
                check_labels(texts.examples, bundle.labels, f"bundle {bundle.name}")
                trial = Trial(bundle, texts.examples, conditions, split=texts.split, data=texts.source)
                report["bundles"][bundle.name] = _bundle(trial, texts, policies, measured, records, against)
                report["notes"] += [note for note in trial.notes if note not in report["notes"]]
    finally:
        recorders.save()
    report |= {"texts_run": recorders.ran, "took_s": time.perf_counter() - started}
    return report, records


def _check(sets: Sequence[Texts], policies: Sequence[str], against: str | None) -> None:
    """Every policy must fit some bundle, and `against` all of them: known before hours of recording, not after."""
    bundles = [bundle for texts in sets for bundle in texts.bundles]
    for bundle in bundles if against else []:
        build(parse_policy(against or ""), bundle.order, bundle.card.policies)
    for name in [] if policies == ["all"] else policies:
        spec, refused = parse_policy(name), list[UnknownPolicy]()
        for bundle in bundles:
            try:
                build(spec, bundle.order, bundle.card.policies)
            except UnknownPolicy as error:
                refused.append(error)
        if len(refused) == len(bundles):
            raise refused[0]


def _engines(sets: Sequence[Texts]) -> str:
    """What computes, over all bundles: ENGINE PRECISION, or several of them."""
    every = {name for texts in sets for bundle in texts.bundles for name in runs_on(bundle).split(", ")}
    return ", ".join(sorted(every))


def _bundle(
    trial: Trial,
    texts: Texts,
    policies: Sequence[str],
    measured: Sequence[Path],
    records: list[Record],
    against: str | None,
) -> dict[str, Any]:
    """One bundle's figures; each text under each policy joins the records."""
    bundle, replay, times = trial.bundle, trial.replay, trial.times
    out: dict[str, Any] = {
        "n": len(texts.examples),
        "data": Path(texts.source).name,
        "split": texts.split,
        "data_sha256": digest(texts.examples),
        "card_sha256": bundle.digest,
        "engine": runs_on(bundle),
        "metric": bundle.metric.value,
        "http_ms": {"client": times.http.client * 1e3, "hop": times.http.hop * 1e3},
        "left_out": trial.left_out.report(),
        "policies": {},
        "refused": {},
    }
    reference = trial.of(parse_policy(against)).run if against else trial.reference
    for name in names(replay.order) if policies == ["all"] else policies:
        spec = parse_policy(name)
        try:
            with busy(trial.conditions.recorders.console, f"{bundle.name}, {name}"):
                run = trial.of(spec).run
        except UnknownPolicy as error:  # this bundle lacks what it needs
            out["refused"][name] = str(error)
            continue
        row = out["policies"][name] = figures(replay, run, reference, times)
        records += records_of(replay, run, times, name)
        asked = spec_of(replay.policy(spec))
        live = [one for path in measured for one in live_ms(path, replay, asked, trial.conditions.links)]
        if n := sum(count for _, count in live):
            mean = sum(ms * count for ms, count in live) / n
            off_by = row["modelled_ms"]["mean"] / mean - 1
            row["measured_ms"] = {"mean": mean, "n": n, "modelled_is_off_by": off_by}
    out["verdict"] = trial.verdict(list(out["policies"]), *([against] if against else []))
    return out


def choose(
    sources: list[str], names: list[str] | None, split: str | None, exclude_split: str | None, n: int
) -> list[Texts]:
    """The first `n` texts of every data set (`split`, or what its bundles have not seen), with its bundles.

    Without names, a data set's bundles are those that were calibrated on it; a file of a folder that fits none is
    passed over.

    Raises:
        BadSetting: no such data, split or bundle; nothing fits, or one bundle twice; nothing is left after exclusion.
    """
    chosen = list[Texts]()
    of = dict[str, str]()  # bundle -> its data set
    for source in files(sources):
        bundles = [load_bundle(name) for name in names] if names else _fitting(source, alone=source in sources)
        if not bundles:
            continue
        for bundle in bundles:
            if of.setdefault(bundle.name, source) != source:
                raise BadSetting(f"bundle {bundle.name} on two data sets: {of[bundle.name]} and {source}; name one")
        used, first = split or unseen(source), bundles[0].labels
        labels = first if all(bundle.labels == first for bundle in bundles) else ()
        rows = load_without(source, used, exclude_split, labels=labels)
        chosen.append(Texts(source, used, rows[:n], bundles))
    if not chosen:
        raise BadSetting(f"no bundle was calibrated on a file of {', '.join(sources)}: name one with --bundle")
    return chosen


def _training_rows(source: str, bundles: Sequence[Bundle]) -> list[Example]:
    """The rows to train on; labels that are words are those of the first bundle that knows them."""
    refused: BadSetting | None = None
    for labels in dict.fromkeys([(), *(bundle.labels for bundle in bundles)]):
        try:
            return training_rows(source, None, labels)[0]
        except BadSetting as error:
            refused = refused or error
    assert refused is not None
    raise refused


def _fitting(source: str, *, alone: bool) -> list[Bundle]:
    """The bundles in deploy/models that were calibrated on this data set: a card names the rows held out."""
    bundles = [load_bundle(path.parent.name) for path in sorted(MODELS.glob("*/bundle.json"))]
    try:
        train = _training_rows(source, bundles)
    except BadSetting:
        if alone:
            raise
        return []
    fitting = [bundle for bundle in bundles if held_out(bundle, train)]
    if alone and not fitting:
        known = ", ".join(bundle.name for bundle in bundles)
        raise BadSetting(f"no bundle was calibrated on {source}: name one with --bundle ({known})")
    return fitting
