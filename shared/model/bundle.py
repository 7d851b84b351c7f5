"""A bundle: which classifier each tier runs, and the model card that calibration wrote about it.

    deploy/models/BUNDLE/bundle.json    tiers in order -> classifier folder, layers used, maximum length; labels;
                                        the segments of a mesh
    deploy/models/BUNDLE/card.json      temperatures, ensemble weights, the chosen operating point, and how good it is
    deploy/models/BUNDLE/pools.safetensors   what the texts of each of DIMEE's pools look like

Nothing counts to three: any number of tiers in order, each with a model of its own or a share of a deeper one's.
"""

from __future__ import annotations

import hashlib
import json
import math
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from shared.errors import BadSetting, plain
from shared.model.ensemble import Ensemble
from shared.model.pools import FILE, NO_POOLS, Pools, read_pools
from shared.model.weights import as_path

MODELS = Path(__file__).resolve().parents[2] / "deploy" / "models"

FEWEST = 8  # tokens that a tier reads at least: special ones, and a few of the text
UNCALIBRATED = "its confidences mean little, so it neither exits early nor prunes: run `tierwise calibrate`"
_SAFE = {"theta": 0.0, "pruning_coefficient": 0.0}  # every layer runs, and no word is left behind
_UNCALIBRATED = {"collaborative": _SAFE, "tabi": {"pruning_coefficient": 0.0}}
_Model = TypeVar("_Model", bound=BaseModel)


def _label(label: str) -> str:
    """A label as people can tell it from the others."""
    if label.strip() != label or not label:
        raise ValueError(f"{label!r} is blank, or has spaces around it")
    if any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in label):
        raise ValueError(f"{label!r} has control characters")
    return label


def _seen(label: str) -> str:
    """A label as a reader sees it: without characters that take no room."""
    return "".join(c for c in unicodedata.normalize("NFKC", label) if unicodedata.category(c) != "Cf").strip()


def _distinct(labels: list[str]) -> list[str]:
    known = [_seen(label) for label in labels]
    if twice := next((label for label in known if known.count(label) > 1), None):
        raise ValueError(f"{twice!r} is there twice")
    return labels


def _increasing(cuts: tuple[int, ...]) -> tuple[int, ...]:
    if any(cut <= before for before, cut in zip((0, *cuts), cuts, strict=False)):
        raise ValueError("expected layers from 1 on, each deeper than the one before")
    return cuts


def _weights(weights: list[float]) -> list[float]:
    if not math.isclose(sum(weights), 1, abs_tol=0.01):
        raise ValueError(f"weights sum to {sum(weights):g}, not to 1")
    return weights


Label = Annotated[str, Field(max_length=100), AfterValidator(_label)]
TierName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]  # no "+", which joins the tiers of a path
Temperature = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class Metric(StrEnum):
    """What a data set is usually judged by; label 1 is the positive one."""

    ACCURACY = "accuracy"
    MCC = "mcc"  # Matthews' correlation
    F1 = "f1"


class TierModel(BaseModel):
    """What a tier runs: the first `layers` layers of a trained classifier, reading `max_tokens` tokens."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    network: str
    layers: int = Field(ge=1)
    max_tokens: int = Field(ge=FEWEST)


class BundleFile(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    labels: Annotated[list[Label], Field(min_length=2), AfterValidator(_distinct)]
    tiers: dict[TierName, TierModel] = Field(min_length=1)
    metric: Metric = Metric.ACCURACY  # that the card reports beside accuracy
    segments: Annotated[tuple[int, ...], AfterValidator(_increasing)] = ()  # layers after which the deepest one is cut


class Card(BaseModel):
    """What `calibrate` found on validation data. `report` is for people: accuracy, ECE and the reasons for defaults."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    engine: str = "torch fp32"  # what it was fitted on: ENGINE PRECISION
    temperatures: dict[str, list[Temperature]] = {}  # per tier, one per exit
    model_temperatures: dict[str, Temperature] = {}  # per tier, the paper's one per model
    accuracy: dict[str, Share] = {}  # per tier, its last exit, on unpruned validation texts
    fitted_weights: dict[str, Annotated[list[Share], AfterValidator(_weights)]] = {}  # by visited tiers joined with "+"
    reads_alike: dict[str, list[str]] = {}  # per tier, those behind it whose tokenizers split words as its own does
    policies: dict[str, dict[str, Any]] = {}  # parameters in force unless a request gives its own
    report: dict[str, Any] = {}

    @property
    def calibrated(self) -> bool:
        """Whether confidences were fitted to anything."""
        return bool(self.temperatures)

    def ensemble(self) -> Ensemble:
        return Ensemble(accuracy=self.accuracy, fitted=self.fitted_weights)


@dataclass(frozen=True)
class Bundle:
    """A bundle as read from its folder."""

    name: str
    folder: Path
    labels: tuple[str, ...]
    tiers: dict[str, TierModel]
    metric: Metric
    card: Card
    pools: Pools | None  # null: nobody looked for them, or their file is missing
    digest: str  # of bundle.json, card.json and the pools: names what answered
    cuts: tuple[int, ...] = ()  # as in the file

    @property
    def card_name(self) -> str:
        """BUNDLE@DIGEST: names the card that answered."""
        return f"{self.name}@{self.digest[:12]}"

    @property
    def argument(self) -> str:
        """What names it on a command line in the working folder: a shipped bundle's name, else its folder."""
        if self.folder.parent == MODELS:
            return self.name
        here = Path.cwd()
        return f"./{self.folder.relative_to(here)}" if self.folder.is_relative_to(here) else str(self.folder)

    @property
    def order(self) -> tuple[str, ...]:
        """Tier names, shallowest first."""
        return tuple(self.tiers)

    @property
    def segments(self) -> tuple[int, ...]:
        """The layers after which the deepest tier's network is cut, each with an exit; the last one is its last.

        Without a word in the file it is cut where the other tiers end that share it.
        """
        deepest = self.order[-1]
        layers = {model.layers for tier, model in self.tiers.items() if self.shares(tier, deepest)}
        return self.cuts or tuple(sorted(layers))

    def shares(self, tier: str, other: str) -> bool:
        """Whether two tiers hold layers of one network, so that one can go on from the other's states."""
        folders = [(self.folder / self.tiers[name].network).resolve() for name in (tier, other)]
        return folders[0] == folders[1]

    def reads(self, tier: str, limit: int | None) -> int:
        """How many tokens a tier reads of a text at most, where a policy has this limit or none; at least `FEWEST`."""
        own = self.tiers[tier].max_tokens
        return own if limit is None else min(own, max(limit, FEWEST))

    def read_behind(self, tier: str, limit: Callable[[str], int | None]) -> tuple[int, int] | None:
        """The fewest and the most tokens that tiers behind this one read, under a policy's limits (by tier); null
        where one may split words otherwise.
        """
        behind = self.order[self.order.index(tier) + 1 :]
        if not behind or not set(behind) <= {*self.card.reads_alike.get(tier, ())}:
            return None
        reads = [self.reads(name, limit(name)) for name in behind]
        return min(reads), max(reads)


def _place(name: str) -> Path:
    shipped, own = MODELS / name, as_path(name)
    if own is None and name and not (shipped / "bundle.json").is_file() and Path(name).is_dir():
        own = Path(name)
    return shipped if own is None else own.absolute()


def load_bundle(name: str) -> Bundle:
    """Read a bundle by name or by folder. Without a card it is uncalibrated: its policies neither exit early nor prune.

    A shipped bundle's name (`deploy/models/NAME`) comes before a folder here: that one is `./NAME`.

    Raises:
        BadSetting: no such bundle, or a file that does not say what it must.
    """
    folder = _place(name)
    if not (folder / "bundle.json").is_file():
        known = sorted(path.parent.name for path in MODELS.glob("*/bundle.json"))
        here = [f"./{path.parent.name}" for path in sorted(Path.cwd().glob("*/bundle.json"))]
        meant = get_close_matches(name, [*known, *here], n=1) or get_close_matches(f"./{name}", here, n=1)
        raise BadSetting(
            f"bundle {name!r}: no bundle.json in {folder}; there are {', '.join([*known, *here]) or 'none'}"
            + (f"; did you mean {meant[0]}?" if meant else "")
        )
    raw = (folder / "bundle.json").read_bytes()
    calibrated = (folder / "card.json").is_file()
    card_raw = (folder / "card.json").read_bytes() if calibrated else b"{}"
    file, card = _read(BundleFile, raw, folder / "bundle.json"), _read(Card, card_raw, folder / "card.json")
    card = card if calibrated else Card(policies=_UNCALIBRATED)
    _check_segments(file, folder / "bundle.json")
    _check_classifiers(file, folder)
    _check_card(card, file.tiers, folder / "card.json")
    pools_raw = (folder / FILE).read_bytes() if (folder / FILE).is_file() else b""
    pools = read_pools(pools_raw, str(folder / FILE)) if pools_raw else NO_POOLS if _found_no_pools(card) else None
    digest = hashlib.sha256(raw + card_raw + pools_raw).hexdigest()
    return Bundle(folder.name, folder, tuple(file.labels), file.tiers, file.metric, card, pools, digest, file.segments)


def _read(model: type[_Model], raw: bytes, path: Path) -> _Model:
    try:
        return model.model_validate_json(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise BadSetting(f"{path}: {where}{': ' if where else ''}{plain(first['msg'])}") from error


def _found_no_pools(card: Card) -> bool:
    """Whether calibration looked for pools and its texts had none."""
    report = card.report.get("pools")
    return isinstance(report, dict) and report.get("chosen", report) is None


def _check_segments(file: BundleFile, path: Path) -> None:
    """A network that is cut is cut to its end."""
    deepest = list(file.tiers.values())[-1]
    if file.segments and file.segments[-1] != deepest.layers:
        raise BadSetting(
            f"{path}: segments: end after layer {file.segments[-1]}; the deepest tier has {deepest.layers}"
        )


def _check_classifiers(file: BundleFile, folder: Path) -> None:
    """Every classifier that is there has the layers and labels that the bundle speaks of."""
    for tier, model in file.tiers.items():
        path = folder / model.network / "network.json"
        try:
            meta = json.loads(path.read_text())
            layers, classes = int(meta["layers"]), int(meta["classes"])
        except (OSError, ValueError, KeyError, TypeError):
            continue  # told when the classifier is loaded: a bundle may be read before it is trained
        if model.layers > layers:
            raise BadSetting(f"{folder / 'bundle.json'}: tiers.{tier}: {model.layers} layers; {path} has {layers}")
        if classes != len(file.labels):
            raise BadSetting(f"{folder / 'bundle.json'}: {len(file.labels)} labels; {path} has {classes} classes")


def _check_card(card: Card, tiers: dict[str, TierModel], path: Path) -> None:
    """A card speaks of the bundle's tiers, with a temperature per exit and a weight per tier."""
    named = [*card.temperatures, *card.model_temperatures, *card.accuracy]
    paths = {key: key.split("+") for key in card.fitted_weights}
    named += [tier for visited in paths.values() for tier in visited]
    named += [*card.reads_alike, *(tier for behind in card.reads_alike.values() for tier in behind)]
    if unknown := next((tier for tier in named if tier not in tiers), None):
        raise BadSetting(f"{path}: speaks of tier {unknown!r}; the bundle has {', '.join(tiers)}")
    for tier, own in card.temperatures.items():
        _count(path, f"temperatures.{tier}", own, tiers[tier].layers, "one per layer")
    for key, visited in paths.items():
        _count(path, f"fitted_weights.{key}", card.fitted_weights[key], len(visited), "one per tier")


def _count(path: Path, where: str, values: Sequence[float], wanted: int, rule: str) -> None:
    if len(values) != wanted:
        raise BadSetting(f"{path}: {where}: {len(values)} values; it needs {wanted}, {rule}")
