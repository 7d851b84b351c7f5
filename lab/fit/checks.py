"""What `train`, `calibrate` and `evaluate` were asked for, against the data and the base: before the first step.

Raises `BadSetting` everywhere, with what was wrong and what would be right.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lab.data.examples import Example
from shared.errors import BadSetting
from shared.model.base import read_config
from shared.model.bundle import Bundle
from shared.model.classifier import read_trained

if TYPE_CHECKING:
    from lab.fit.recipe import Recipe

MOST_EPOCHS = 1000
FEWEST = 30  # distinct validation texts: fewer say nothing of a temperature


def check_recipe(recipe: Recipe) -> None:
    """A recipe against its base."""
    config = read_config(recipe.base)
    if recipe.prunes:
        read_config(base_of(recipe.prune_with))
    if recipe.unsure and not is_trained(recipe.prune_with):
        raise BadSetting(f"--unsure {recipe.unsure:g}: --prune-with {recipe.prune_with} is no trained classifier")
    _reads(recipe.base, recipe.max_tokens, config.positions)
    if recipe.layers > config.layers:
        raise BadSetting(f"--layers {recipe.layers}: {recipe.base} has {config.layers}")
    if beyond := [end for end in recipe.tier_ends if not 1 <= end <= recipe.layers]:
        raise BadSetting(f"--tier-end {beyond[0]}: the classifier has layers 1 to {recipe.layers}")
    if recipe.rank > config.hidden:
        raise BadSetting(f"--rank {recipe.rank}: {recipe.base} is only {config.hidden} wide")
    rates = (("--adapter-lr", recipe.adapter_lr), ("--head-lr", recipe.head_lr), ("--epochs", recipe.epochs))
    for option, value in rates:
        if not (math.isfinite(value) and value > 0):
            raise BadSetting(f"{option} {value}: must be a number above 0")
    for option, value in (("--distill", recipe.distill), ("--pruned-share", recipe.pruned_share)):
        if not (math.isfinite(value) and value >= 0):
            raise BadSetting(f"{option} {value}: must be a number from 0")
    if recipe.teacher and not recipe.distill:
        raise BadSetting("--teacher without --distill: say how much its answers weigh, e.g. --distill 3")
    pruner = recipe.prune_with if recipe.prunes and is_trained(recipe.prune_with) else ""
    for option, folder in (("--teacher", recipe.teacher), ("--start", recipe.start), ("--prune-with", pruner)):
        if folder and (found := read_trained(Path(folder)).classes) != recipe.classes:
            raise BadSetting(f"{option} {folder}: has {found} labels, not {recipe.classes}")
    if recipe.epochs > MOST_EPOCHS:
        raise BadSetting(f"--epochs {recipe.epochs}: at most {MOST_EPOCHS}")


def is_trained(name: str) -> bool:
    """Whether a name is the folder of a trained classifier, and not a base."""
    return (Path(name) / "network.json").is_file()


def base_of(name: str) -> str:
    """The base of a trained classifier's folder; a base's own name."""
    return read_trained(Path(name)).base if is_trained(name) else name


def check_texts(recipe: Recipe, examples: Sequence[Example], validation: Sequence[Example]) -> None:
    """The texts to train on, and those held out, against a recipe."""
    if not examples:
        raise BadSetting("nothing to train on: every text occurs among the last rows, which are held out")
    if not round(recipe.epochs * len(examples)):
        raise BadSetting(f"--epochs {recipe.epochs} of {len(examples)} texts is no step: nothing would be trained")
    for example in (*examples, *validation):
        if example.label >= recipe.classes:
            most = recipe.classes - 1
            raise BadSetting(f"--classes {recipe.classes} has labels 0 to {most}; label {example.label} in {example}")
    if len({example.label for example in examples}) == 1:
        raise BadSetting(f"all {len(examples)} training texts have label {examples[0].label}: nothing to tell apart")


def check_out(out: Path) -> None:
    """A folder that can be written, or made."""
    if out.exists() and not out.is_dir():
        raise BadSetting(f"--out {out}: is a file; name a folder")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        probe = (out if out.is_dir() else out.parent) / f".{out.name}.probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise BadSetting(f"--out {out}: cannot be written: {error.strerror}") from error


def check_bundle(bundle: Bundle) -> None:
    """Every tier's classifier is there, and its base reads as many tokens."""
    for model in bundle.tiers.values():
        base = read_trained(bundle.folder / model.network).base
        _reads(base, model.max_tokens, read_config(base).positions)


def folders_of(bundle: Bundle) -> list[Path]:
    """The folder of every classifier, each once."""
    return list(dict.fromkeys(bundle.folder / model.network for model in bundle.tiers.values()))


def check_validation(examples: Sequence[Example], labels: Sequence[str]) -> list[str]:
    """Texts to calibrate on: refuse those that cannot tell anything; what is left to say of the others."""
    texts = {(example.text, example.pair) for example in examples}
    if len(texts) < FEWEST:
        raise BadSetting(f"{len(texts)} distinct texts among {len(examples)} rows: calibration needs at least {FEWEST}")
    counts = Counter(example.label for example in examples)
    if len(counts) == 1:
        raise BadSetting(
            f"all {len(examples)} validation rows are {labels[examples[0].label]!r}: is the file sorted by label? "
            "They are the last rows: shuffle it, or choose another --hold-out"
        )
    rare = [f"{label!r} {counts[at]}" for at, label in enumerate(labels) if counts[at] < FEWEST / 3]
    notes = [f"few validation rows of a label, so little is known of it: {', '.join(rare)}"] if rare else []
    if len(texts) < len(examples) / 2:
        notes.append(f"only {len(texts)} of {len(examples)} validation texts are distinct")
    return notes


def _reads(base: str, wanted: int, most: int) -> None:
    if wanted > most:
        raise BadSetting(f"--max-tokens {wanted}: {base} reads at most {most} tokens")
