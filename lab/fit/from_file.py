"""From a file of labelled texts to a bundle that can be served: `tierwise fit`.

    OUT/bundle.json, card.json, NETWORK/    the bundle; NETWORK-base/: a base that is not pinned, copied
    OUT/fit/rows.parquet                    the rows as they were divided: train (its last are for validation), test
    OUT/fit/asked.json                      the data and the options: other ones are refused in this folder
    OUT/fit/calibration.log                 all that `calibrate` and `evaluate` say

Each step is another command's: train, quantize and calibrate, evaluate, replay. A step that is done is not done again,
so the same command resumes a run that was stopped. Left out: choosing among recipes.
"""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError
from rich.console import Console

from lab.console import WIDTH, PlainConsole, aside, busy
from lab.data.examples import Columns, Example, digest, every_row
from lab.data.readable import SHOWN, Reader, readable, readers_of
from lab.fit.calibrate import Calibration
from lab.fit.checks import check_out, check_recipe
from lab.fit.division import Division, divide
from lab.fit.evaluate import evaluate
from lab.fit.networks import Network
from lab.fit.recipe import Recipe
from lab.fit.train import train
from lab.live.stack import ACCESS, BACKBONE
from lab.outputs import sole_writer, write_json
from lab.replay.recorder import Recorders
from lab.replay.walk import Replay
from lab.stats import wilson
from shared.errors import BadSetting, plain
from shared.model.base import Array, load_tokenizer, read_config
from shared.model.built import files_of
from shared.model.bundle import BundleFile, TierModel, load_bundle
from shared.model.openvino_engine import capabilities
from shared.model.tokens import SpecialTokens
from shared.model.weights import PINNED, base_folder, scratch

TEXTS_READ = 2000  # by training, however few rows there are; eight epochs at most
MOST_TOKENS, TOKEN_STEP, SHARE_READ_WHOLE = 256, 16, 0.98
ENOUGH = 400  # held-out rows: fewer give a wide interval


@dataclass(frozen=True)
class Options:
    """What decides the outcome besides the data. What is null hangs on the data."""

    tiers: Sequence[str]
    networks: Sequence[Network]
    epochs: float | None = None
    max_tokens: int | None = None
    within: float = 0.005
    seed: int = 0


@dataclass(frozen=True)
class Verdict:
    """What the rows that were held out say of a bundle, under its default policy. Shares come with their interval."""

    n: int
    answered_by: Mapping[str, float]  # tier -> share
    accuracy: tuple[float, float, float]
    deepest: tuple[float, float, float]  # the deepest tier alone
    most_frequent: float  # what always saying one label would give

    def __str__(self) -> str:
        first, share = next(iter(self.answered_by.items()))
        told = (
            f"{share:.0%} of {self.n} held-out rows are answered at the {first}; accuracy {_interval(self.accuracy)}, "
            f"the deepest tier alone {_interval(self.deepest)}, one label for all {self.most_frequent:.2f}."
        )
        if self.n < ENOUGH:
            told += " n is small: two options whose intervals overlap cannot be told apart; more rows narrow them."
        if self.accuracy[1] <= self.most_frequent:
            told += " That is no better than one label for all: are the labels right, and the rows enough?"
        return told


def _interval(share: tuple[float, float, float]) -> str:
    return "{:.2f} [{:.2f}, {:.2f}]".format(*share)


def fit(source: str, columns: Columns, options: Options, out: Path, *, threads: int, console: Console) -> Verdict:
    """Read, divide, train, calibrate and judge.

    Raises:
        BadSetting: rows or options that do not do, or a folder that holds something else.
    """
    division = divide(source, every_row(source, columns))
    max_tokens = options.max_tokens or _tokens_for(division.train, [one.base for one in options.networks])
    epochs = options.epochs or round(min(8.0, max(1.0, TEXTS_READ / len(division.train))), 1)
    bundle = _bundle_file(division.labels, options, max_tokens)
    recipes = _recipes(options, classes=len(division.labels), epochs=epochs, max_tokens=max_tokens)
    _say(source, division, max_tokens, epochs, console)
    check_out(out)
    with sole_writer(out):
        _claim(out, source, division, options, {"epochs": epochs, "max_tokens": max_tokens})
        _write_rows(out / "fit" / "rows.parquet", division)
        write_json(out / "bundle.json", bundle.model_dump(mode="json"))
        _train(division, options.networks, recipes, out, threads, console)
        try:
            return _judge(out, division, options.within, threads, console)
        except (KeyboardInterrupt, SystemExit):  # Ctrl-C, TERM and HUP
            begun, kept = ("judging", "card") if (out / "card.json").is_file() else ("calibrating", "trained networks")
            aside().print(f"{out}: stopped while {begun}; the same command goes on from the {kept}")
            raise


def _say(source: str, division: Division, max_tokens: int, epochs: float, console: Console) -> None:
    """What was found, and what is done with it."""
    counts = Counter(division.labels[example.label] for example in division.kept)
    words = np.array([len(f"{example.text} {example.pair or ''}".split()) for example in division.kept])
    labels = ", ".join(f"{label} {counts[label]}" for label in division.labels)
    console.print(f"{source}: {len(division.kept)} rows; labels, in the bundle's order: {labels}", highlight=False)
    console.print(
        f"words in a text: {words.min()} to {words.max()}, half have at most {int(np.median(words))}; "
        f"{max_tokens} tokens of each are read"
    )
    for row, why in division.left_out[:SHOWN]:
        console.print(f"left out: {row}: {why}", style="yellow", soft_wrap=True)
    if len(division.left_out) > SHOWN:
        reasons = Counter(why for _, why in division.left_out).most_common(SHOWN)
        told = "; ".join(f"{why}: {count}" for why, count in reasons)
        console.print(f"left out in all: {len(division.left_out)} ({told})", style="yellow", soft_wrap=True)
    console.print(
        f"{len(division.train)} rows train ({epochs:g} times each), {len(division.validation)} calibrate, "
        f"{len(division.test)} are held out and judge the result; every part has its share of each label",
        soft_wrap=True,
    )


def _tokens_for(examples: Sequence[Example], bases: Sequence[str]) -> int:
    """Enough tokens to read nearly every text whole, within what the bases can read."""
    found = []
    for base in bases:
        tokens, most = SpecialTokens(load_tokenizer(base)), min(MOST_TOKENS, read_config(base).positions)
        kept, _ = readable(examples[:2000], [Reader(tokens, most)])
        lengths = [len(tokens.encode(one.text, one.pair, most).ids) for one in kept]
        found.append(min(most, TOKEN_STEP * math.ceil(float(np.quantile(lengths, SHARE_READ_WHOLE)) / TOKEN_STEP)))
    return max(2 * TOKEN_STEP, *found)


def _bundle_file(labels: Sequence[str], options: Options, max_tokens: int) -> BundleFile:
    tiers = {
        tier: TierModel(network=network.name, layers=network.layers[tier], max_tokens=max_tokens)
        for tier in options.tiers
        for network in options.networks
        if tier in network.layers
    }
    try:
        return BundleFile(labels=list(labels), tiers=tiers)
    except ValidationError as error:
        raise BadSetting(f"labels: {plain(error.errors()[0]['msg'])}") from error


# -- the folder -------------------------------------------------------------------------------------------------------


def _claim(out: Path, source: str, division: Division, options: Options, chosen: Mapping[str, Any]) -> None:
    """Take the folder for these data and options, or go on in it; one that holds anything else is refused."""
    asked = {
        "rows": {"n": len(division.kept), "sha256": digest(division.kept)},
        "labels": list(division.labels),
        "tiers": {tier: one.layers[tier] for tier in options.tiers for one in options.networks if tier in one.layers},
        "bases": {tier: one.base for tier in options.tiers for one in options.networks if tier in one.layers},
        **chosen,
        "within": options.within,
        "seed": options.seed,
    }
    path = out / "fit" / "asked.json"
    if path.is_file():
        before = json.loads(path.read_text())
        if differing := [key for key in asked if before.get(key) != asked[key]]:
            raise BadSetting(
                f"--out {out}: was fitted to {before.get('source')} with other {', '.join(differing)}: name another "
                "folder, or delete this one"
            )
    elif out.is_dir() and any(out.iterdir()):
        raise BadSetting(f"--out {out}: holds other files: name another folder")
    write_json(path, {"source": source, **asked})


def _write_rows(path: Path, division: Division) -> None:
    """The rows as they were divided: the other commands read them too."""
    rows = [*division.train, *division.validation, *division.test]
    trained = len(division.train) + len(division.validation)
    columns = {
        "text": pa.array([row.text for row in rows], pa.string()),
        "text_b": pa.array([row.pair for row in rows], pa.string()),
        "label": pa.array([row.label for row in rows], pa.int32()),
        "split": pa.array(["train" if at < trained else "test" for at in range(len(rows))], pa.string()),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, compression="zstd")


# -- the steps --------------------------------------------------------------------------------------------------------


def _recipes(options: Options, *, classes: int, epochs: float, max_tokens: int) -> list[Recipe]:
    """How each network is trained."""
    recipes = [
        Recipe(
            base=network.base,
            layers=network.depth,
            classes=classes,
            max_tokens=max_tokens,
            epochs=epochs,
            tier_ends=network.ends,
            bf16="BF16" in capabilities(),
            seed=options.seed,
        )
        for network in options.networks
    ]
    for recipe in recipes:
        check_recipe(recipe)
    return recipes


def _train(
    division: Division,
    networks: Sequence[Network],
    recipes: Sequence[Recipe],
    out: Path,
    threads: int,
    console: Console,
) -> None:
    for at, (network, recipe) in enumerate(zip(networks, recipes, strict=True), start=1):
        what = f"training {network.name} ({at} of {len(networks)}): "
        if (out / network.name / "network.json").is_file():
            console.print(f"{what}done before")
            continue
        tiers = ", ".join(f"{tier} {layers}" for tier, layers in network.layers.items())
        console.print(f"{what}{network.depth} layers of {network.base}, of which {tiers}", soft_wrap=True)
        if network.base not in PINNED:
            recipe = replace(recipe, base=str(_with_base(out, network)))
        train(recipe, division.train, division.validation, out / network.name, threads=threads, console=console)


def _with_base(out: Path, network: Network) -> Path:
    """A copy in the bundle of a base of one's own: a bundle is whole, wherever it is carried."""
    folder = (out / f"{network.name}-base").absolute()
    if not folder.is_dir():
        with scratch(out) as made:
            found = made / "base"
            found.mkdir()
            for name in files_of(network.base):
                shutil.copy(base_folder(network.base) / name, found / name)
            found.rename(folder)
    return folder


def _judge(out: Path, division: Division, within: float, threads: int, console: Console) -> Verdict:
    """Calibrate unless that is done, then judge on the rows that were held out."""
    name = str(out.absolute())
    with (out / "fit" / "calibration.log").open("a") as file, busy(console, "quantizing and calibrating"):
        log = PlainConsole(file=file, width=WIDTH)
        if not (out / "card.json").is_file():
            links = {"access": ACCESS, "backbone": BACKBONE}
            data = str(out / "fit" / "rows.parquet")
            calibration = Calibration(name, division.validation, **links, threads=threads, console=log, data=data)
            calibration.run(within=within, offload_share=None)
        evaluate(name, division.test, max_tokens=None, threads=threads, console=log, save=True, split="test")
        return _verdict(name, division.test, Recorders(log, threads=threads))


def _verdict(name: str, test: Sequence[Example], recorders: Recorders) -> Verdict:
    """What live tiers would answer to the rows that were held out."""
    bundle = load_bundle(name)
    kept, _ = readable(test, readers_of(bundle))
    replay = Replay(bundle, kept, recorders)
    run, deepest = (replay.run(replay.policy(policy)) for policy in ("collaborative", f"{bundle.order[-1]}-only"))
    return Verdict(
        n=len(kept),
        answered_by={tier: float((run.answered_by == at).mean()) for at, tier in enumerate(bundle.order)},
        accuracy=_share(run.label == replay.labels),
        deepest=_share(deepest.label == replay.labels),
        most_frequent=float(np.bincount(replay.labels).max() / len(kept)),
    )


def _share(right: Array) -> tuple[float, float, float]:
    return (float(right.mean()), *wilson(int(right.sum()), len(right)))
