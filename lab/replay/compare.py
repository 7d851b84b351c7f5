"""`tierwise replay`: policies over bundles, replayed on the same texts, in one table."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from lab.console import aside, busy
from lab.data.examples import Example, check_labels, digest, files, load_without, training_rows, unseen
from lab.data.readable import left_out_of
from lab.live.bench_report import cpu
from lab.policies import parse_policy
from lab.records import Record
from lab.replay.measured import live_ms
from lab.replay.recorder import Recorders
from lab.replay.report import figures, records_of
from lab.replay.run import NONE
from lab.replay.times import Times
from lab.replay.walk import Replay
from shared.errors import BadSetting, UnknownPolicy
from shared.links.profile import Profile, profile
from shared.model.bundle import MODELS, Bundle, load_bundle
from shared.policies import build, names, spec_of
from shared.web.machine import cpus


@dataclass(frozen=True)
class Texts:
    """Texts of one data set, and the bundles to replay on them."""

    source: str
    split: str
    examples: list[Example]
    bundles: list[Bundle]


@dataclass(frozen=True)
class Plan:
    """What to replay. `policies`: as on the command line, or `all`. `links`: ACCESS/BACKBONE."""

    sets: list[Texts]
    policies: list[str]
    links: str = "5g-nsa/metro"
    seed: int = 0
    threads: int | None = None  # of the deeper tiers; the first has 1
    measured: tuple[Path, ...] = ()
    profile_anew: bool = False


def compare(plan: Plan, console: Console) -> tuple[dict[str, Any], list[Record]]:
    """The report over every bundle and policy, and a record of every text under each.

    Raises:
        BadSetting: labels that a bundle does not have, links or files that do not exist, times measured elsewhere.
        UnknownPolicy: a policy or parameter that no bundle has.
    """
    _check(plan)
    started, recorders, records = time.perf_counter(), Recorders(console), list[Record]()
    report: dict[str, Any] = {
        "seed": plan.seed,
        "links": plan.links,
        "threads": {"first_tier": 1, "deeper_tiers": deeper_threads(plan.threads)},
        "hardware": {"cpu": cpu(), "cores": os.cpu_count(), "device": "cpu"},
        "notes": [],
        "bundles": {},
    }
    try:
        for texts in plan.sets:
            for bundle in texts.bundles:
                own, notes = _bundle(plan, texts, bundle, recorders, console, records)
                report["bundles"][bundle.name] = own
                report["notes"] += [note for note in notes if note not in report["notes"]]
    finally:
        recorders.save()
    report |= {"texts_run": recorders.ran, "took_s": time.perf_counter() - started}
    return report, records


def _check(plan: Plan) -> None:
    """Every policy must fit some bundle: known before hours of recording, not after."""
    bundles = [bundle for texts in plan.sets for bundle in texts.bundles]
    for name in [] if plan.policies == ["all"] else plan.policies:
        spec, refused = parse_policy(name), list[UnknownPolicy]()
        for bundle in bundles:
            try:
                build(spec, bundle.order, bundle.card.policies)
            except UnknownPolicy as error:
                refused.append(error)
        if len(refused) == len(bundles):
            raise refused[0]


def _bundle(
    plan: Plan, texts: Texts, bundle: Bundle, recorders: Recorders, console: Console, records: list[Record]
) -> tuple[dict[str, Any], list[str]]:
    """One bundle's figures, and what must be said about its times."""
    check_labels(texts.examples, bundle.labels, f"bundle {bundle.name}")
    replay = Replay(bundle, texts.examples, recorders, seed=plan.seed)
    times = Times(
        replay, threads_of(bundle, plan.threads), links_of(bundle, plan.links), console, anew=plan.profile_anew
    )
    own = {
        "n": len(texts.examples),
        "data": Path(texts.source).name,
        "split": texts.split,
        "data_sha256": digest(texts.examples),
        "card_sha256": bundle.digest,
        "metric": bundle.metric.value,
        "http_ms": {"client": times.http.client * 1e3, "hop": times.http.hop * 1e3},
        **_policies(plan, replay, times, console, records),
    }
    return own, times.notes


def _policies(plan: Plan, replay: Replay, times: Times, console: Console, records: list[Record]) -> dict[str, Any]:
    done: dict[str, Any] = {}
    refused: dict[str, str] = {}
    reference = replay.run(replay.policy(f"{replay.order[-1]}-only"))
    if (reference.label == NONE).all():
        raise BadSetting(f"bundle {replay.bundle.name} can read none of the texts")
    left_out = left_out_of(replay.examples, reference.label != NONE)
    left_out.tell(aside())
    wanted = names(replay.order) if plan.policies == ["all"] else plan.policies
    for name in wanted:
        try:
            policy = replay.policy(parse_policy(name))
            with busy(console, f"{replay.bundle.name}, {name}"):
                run = replay.run(policy)
        except UnknownPolicy as error:  # this bundle lacks what it needs
            refused[name] = str(error)
            continue
        done[name] = figures(replay, run, reference, times)
        records += records_of(replay, run, times, name)
        measured = [own for path in plan.measured for own in live_ms(path, replay, spec_of(policy), plan.links)]
        if n := sum(texts for _, texts in measured):
            mean = sum(ms * texts for ms, texts in measured) / n
            modelled = done[name]["modelled_ms"]["mean"]
            done[name]["measured_ms"] = {"mean": mean, "n": n, "modelled_is_off_by": modelled / mean - 1}
    return {"left_out": left_out.report(), "policies": done, "refused": refused}


def threads_of(bundle: Bundle, deeper: int | None = None) -> dict[str, int]:
    """As `tierwise serve` sets them: one on the first tier, two on each other."""
    return {tier: 1 if at == 0 else deeper_threads(deeper) for at, tier in enumerate(bundle.order)}


def deeper_threads(named: int | None) -> int:
    """Of every tier but the first: what was named, else two where there are as many processors."""
    return named or max(1, min(2, int(cpus())))


def access_and_backbone(named: str) -> tuple[str, str]:
    """The two profiles of ACCESS/BACKBONE (or ACCESS,BACKBONE).

    Raises:
        BadSetting: not two names.
    """
    access, slash, backbone = named.replace(",", "/").partition("/")
    if not slash or "/" in backbone:
        raise BadSetting(f"links {named!r}: expected ACCESS/BACKBONE, such as lte/regional")
    return access, backbone


def links_of(bundle: Bundle, named: str) -> dict[tuple[str, str], Profile]:
    """The profile between any two tiers, from ACCESS/BACKBONE (or ACCESS,BACKBONE).

    Raises:
        BadSetting: not two names, or no such profile.
    """
    access, backbone = access_and_backbone(named)
    order = bundle.order
    return {
        (order[a], order[b]): profile("+".join([access if at == 0 else backbone for at in range(a, b)]))
        for a in range(len(order))
        for b in range(a + 1, len(order))
    }


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
        used = split or unseen(source)
        chosen.append(Texts(source, used, load_without(source, used, exclude_split)[:n], bundles))
    if not chosen:
        raise BadSetting(f"no bundle was calibrated on a file of {', '.join(sources)}: name one with --bundle")
    return chosen


def _fitting(source: str, *, alone: bool, hold_out: int = 2500) -> list[Bundle]:
    """The bundles in deploy/models that were calibrated on this data set: a card names the rows held out."""
    bundles = [load_bundle(path.parent.name) for path in sorted(MODELS.glob("*/bundle.json"))]
    try:
        train, _ = training_rows(source, None)
    except BadSetting:
        if alone:
            raise
        return []
    own = [bundle for bundle in bundles if held_out(bundle, train, hold_out)]
    if alone and not own:
        known = ", ".join(bundle.name for bundle in bundles)
        raise BadSetting(f"no bundle was calibrated on {source}: name one with --bundle ({known})")
    return own


def held_out(bundle: Bundle, train: Sequence[Example], hold_out: int = 2500) -> list[Example]:
    """The rows of train that the bundle's card names as its validation data; none if it was calibrated on others."""
    card = bundle.card.report.get("validation", {})
    n = card.get("n", 0)
    candidates = [list(train[-n:]), list(train[-hold_out:][:n])] if 0 < n <= len(train) else []
    return next((rows for rows in candidates if digest(rows) == card.get("data_sha256")), [])
