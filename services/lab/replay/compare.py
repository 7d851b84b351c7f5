"""`tierwise replay`: policies over bundles, replayed on the same texts, in one table."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from services.lab.bench_report import cpu
from services.lab.data import Example, digest, files, load, unseen, without
from services.lab.policies import parse_policy
from services.lab.replay.recorder import Recorders
from services.lab.replay.report import figures
from services.lab.replay.times import Times
from services.lab.replay.walk import Replay
from shared.bundle import MODELS, Bundle, load_bundle
from shared.errors import BadSetting, UnknownPolicy
from shared.ledger import entries
from shared.link import Profile, profile
from shared.policies import names, spec_of


@dataclass(frozen=True)
class Texts:
    """Texts of one data set, and the bundles to replay on them."""

    source: str
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


def compare(plan: Plan, console: Console) -> dict[str, Any]:
    """The report over every bundle and policy.

    Raises:
        BadSetting: labels that a bundle does not have, links or files that do not exist.
        UnknownPolicy: a policy or parameter that does not exist.
    """
    recorders = Recorders(console)
    report: dict[str, Any] = {
        "seed": plan.seed,
        "links": plan.links,
        "hardware": {"cpu": cpu(), "cores": os.cpu_count(), "device": "cpu"},
        "notes": [],
        "bundles": {},
    }
    try:
        for texts in plan.sets:
            for bundle in texts.bundles:
                own, notes = _bundle(plan, texts, bundle, recorders, console)
                report["bundles"][bundle.name] = own
                report["notes"] += [note for note in notes if note not in report["notes"]]
    finally:
        recorders.save()
    report["texts_run"] = recorders.ran
    return report


def _bundle(
    plan: Plan, texts: Texts, bundle: Bundle, recorders: Recorders, console: Console
) -> tuple[dict[str, Any], list[str]]:
    """One bundle's figures, and what must be said about its times."""
    if max(example.label for example in texts.examples) >= len(bundle.labels):
        raise BadSetting(f"bundle {bundle.name} has {len(bundle.labels)} labels; {texts.source} has more")
    replay = Replay(bundle, texts.examples, recorders, seed=plan.seed)
    times = Times(
        replay, threads_of(bundle, plan.threads), links_of(bundle, plan.links), console, anew=plan.profile_anew
    )
    own = {
        "n": len(texts.examples),
        "data_sha256": digest(texts.examples),
        "card_sha256": bundle.digest,
        "metric": bundle.metric.value,
        "http_ms": {"client": times.http.client * 1e3, "hop": times.http.hop * 1e3},
        **_policies(plan, replay, times, console),
    }
    return own, times.notes


def _policies(plan: Plan, replay: Replay, times: Times, console: Console) -> dict[str, Any]:
    done: dict[str, Any] = {}
    refused: dict[str, str] = {}
    reference = replay.run(replay.policy(f"{replay.order[-1]}-only"))
    wanted = names(replay.order) if plan.policies == ["all"] else plan.policies
    for name in wanted:
        policy = replay.policy(parse_policy(name))
        try:
            with console.status(f"{replay.bundle.name}, {name}"):
                run = replay.run(policy)
        except UnknownPolicy as error:  # this bundle lacks what it needs
            refused[name] = str(error)
            continue
        done[name] = figures(replay, run, reference, times)
        measured = [own for path in plan.measured for own in _measured(path, replay, name, spec_of(policy))]
        if n := sum(texts for _, texts in measured):
            mean = sum(ms * texts for ms, texts in measured) / n
            modelled = done[name]["modelled_ms"]["mean"]
            done[name]["measured_ms"] = {"mean": mean, "n": n, "modelled_is_off_by": modelled / mean - 1}
    return {"policies": done, "refused": refused}


def _measured(path: Path, replay: Replay, name: str, spec: dict[str, Any]) -> list[tuple[float, int]]:
    """Live mean ms of a policy and how many texts it is of: what clients of a bench waited, or totals in a ledger."""
    if path.suffix != ".jsonl":
        said = json.loads(path.read_text())
        own = said["policies"].get(name) if said["first_tier"]["bundle"] == replay.bundle.name else None
        return [(own["latency_ms"]["mean"], said["n"])] if own else []
    model, texts = f"{replay.bundle.name}@{replay.bundle.digest[:12]}", set(replay.corpus.keys)
    return [
        (line["timings_ms"]["total"], 1)
        for line in entries(path)
        if line.get("model") == model and line["text_sha256"] in texts and _is(line["policy"], spec)
    ]


def _is(recorded: dict[str, Any], spec: dict[str, Any]) -> bool:
    """Whether a line is of this policy; one that learns has an arm in every line."""
    return all(recorded.get(key) == value for key, value in spec.items() if key != "arm" or value is not None)


def threads_of(bundle: Bundle, deeper: int | None = None) -> dict[str, int]:
    """As `tierwise serve` sets them: one on the first tier, two on each other."""
    count = deeper or min(2, os.cpu_count() or 1)
    return {tier: 1 if at == 0 else count for at, tier in enumerate(bundle.order)}


def links_of(bundle: Bundle, named: str) -> dict[tuple[str, str], Profile]:
    """The profile between any two tiers, from ACCESS/BACKBONE (or ACCESS,BACKBONE).

    Raises:
        BadSetting: not two names, or no such profile.
    """
    access, slash, backbone = named.replace(",", "/").partition("/")
    if not slash or "/" in backbone:
        raise BadSetting(f"links {named!r}: expected ACCESS/BACKBONE, such as lte/regional")
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
        examples = load(source, used)
        if exclude_split:
            examples = without(examples, load(source, exclude_split))
            if not examples:
                raise BadSetting(f"{source}: every text of {used} occurs in {exclude_split}: nothing remains")
        chosen.append(Texts(source, examples[:n], bundles))
    if not chosen:
        raise BadSetting(f"no bundle was calibrated on a file of {', '.join(sources)}: name one with --bundle")
    return chosen


def _fitting(source: str, *, alone: bool, hold_out: int = 2500) -> list[Bundle]:
    """The bundles in deploy/models that were calibrated on this data set: a card names the rows held out."""
    bundles = [load_bundle(path.parent.name) for path in sorted(MODELS.glob("*/bundle.json"))]
    try:
        train = load(source, "train")
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
