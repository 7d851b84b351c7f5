"""Build what a tier's engine runs before it starts, so that an image holds that alone and no base weights.

    python -m shared.model.prepare collaborative end --copy /models

It prints one line and leaves the built folder in the cache (`built.py`). `--copy` copies what the tier reads of its
bundle. A tier of the same bundle, layers and precision finds both.
"""

from __future__ import annotations

import shutil
import sys
import time
from argparse import ArgumentParser
from pathlib import Path
from typing import get_args

from shared.errors import BadSetting, TierwiseError
from shared.model.built import Built, built
from shared.model.bundle import MODELS, Bundle, load_bundle
from shared.model.classifier import precision_of, read_trained, recipe_of
from shared.model.encoder import PrecisionName
from shared.model.openvino_engine import capabilities


def prepare(bundle: Bundle, tier: str, precision: PrecisionName = "auto") -> Built:
    """The folder that the tier's engine runs, built if need be. `bf16` and `fp32` share one.

    Raises:
        BadSetting: no such tier, or int8 of a classifier without a quantization table.
        WrongWeights: the base cannot be had, or the cache cannot be written.
    """
    if tier not in bundle.tiers:
        raise BadSetting(f"bundle {bundle.name} has no tier {tier!r}: it has {', '.join(bundle.order)}")
    model = bundle.tiers[tier]
    trained = read_trained(bundle.folder / model.network)
    able = [*capabilities(), "BF16"]  # the tier's processor may have it where this one does not
    chosen = precision_of(precision, able, quantized=trained.quantized)
    return built(recipe_of(trained, model.layers, chosen))


def copy(bundle: Bundle, tier: str, models: Path) -> None:
    """Copy the bundle's files and the tier's classifier to where they lie below `deploy/models`."""
    classifier = bundle.folder / bundle.tiers[tier].network
    for path in [*bundle.folder.iterdir(), *classifier.iterdir()]:
        if path.is_file():
            target = models / path.resolve().relative_to(MODELS)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)


def main() -> None:
    """Build, copy, and say how long it took."""
    parser = ArgumentParser(prog="python -m shared.model.prepare", description="Build what a tier's engine runs.")
    parser.add_argument("bundle", help="a name in deploy/models")
    parser.add_argument("tier")
    parser.add_argument("--precision", choices=get_args(PrecisionName), default="auto")
    parser.add_argument("--copy", type=Path, metavar="FOLDER", help="copy what the tier reads of the bundle to it")
    asked = parser.parse_args()
    start = time.monotonic()
    try:
        bundle = load_bundle(asked.bundle)
        folder = prepare(bundle, asked.tier, asked.precision).folder
        if asked.copy:
            copy(bundle, asked.tier, asked.copy)
    except TierwiseError as error:
        sys.exit(f"prepare: {error}")
    megabytes = sum(path.stat().st_size for path in folder.iterdir()) / 1e6
    print(f"{asked.bundle} {asked.tier}: {folder}, {megabytes:.0f} MB, in {time.monotonic() - start:.1f} s")


if __name__ == "__main__":
    main()
