"""A bundle: which network each tier runs, and the model card that calibration wrote about it.

    deploy/models/BUNDLE/bundle.json    tiers in order -> network folder, layers used, maximum length; labels
    deploy/models/BUNDLE/card.json      temperatures, ensemble weights, the chosen operating point, and how good it is
    deploy/models/BUNDLE/pools.safetensors   what the texts of each of DIMEE's pools look like

Nothing counts to three: any number of tiers in order, each with a model of its own or a share of a deeper one's.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shared.ensemble import Ensemble
from shared.errors import BadSetting
from shared.pools import FILE, Pools, read_pools
from shared.weights import as_path

MODELS = Path(__file__).resolve().parents[1] / "deploy" / "models"


class Metric(StrEnum):
    """What a data set is usually judged by; label 1 is the positive one."""

    ACCURACY = "accuracy"
    MCC = "mcc"  # Matthews' correlation
    F1 = "f1"


class TierModel(BaseModel):
    """What a tier runs: the first `layers` layers of a trained network, reading `max_tokens` tokens."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    network: str
    layers: int = Field(ge=1)
    max_tokens: int = Field(ge=8)


class BundleFile(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    labels: list[str] = Field(min_length=2)
    tiers: dict[str, TierModel] = Field(min_length=1)
    metric: Metric = Metric.ACCURACY  # that the card reports beside accuracy


class Card(BaseModel):
    """What `calibrate` found on validation data. `report` is for people: accuracy, ECE and the reasons for defaults."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    temperatures: dict[str, list[float]] = {}  # per tier, one per exit
    model_temperatures: dict[str, float] = {}  # per tier, the paper's one per model
    accuracy: dict[str, float] = {}  # per tier, its last exit, on unpruned validation texts
    fitted_weights: dict[str, list[float]] = {}  # by visited tiers joined with "+"
    policies: dict[str, dict[str, Any]] = {}  # parameters in force unless a request gives its own
    report: dict[str, Any] = {}

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
    pools: Pools | None
    digest: str  # of bundle.json, card.json and the pools: names what answered

    @property
    def card_name(self) -> str:
        """BUNDLE@DIGEST: names the card that answered."""
        return f"{self.name}@{self.digest[:12]}"

    @property
    def order(self) -> tuple[str, ...]:
        """Tier names, shallowest first."""
        return tuple(self.tiers)


def _place(name: str) -> Path:
    shipped, own = MODELS / name, as_path(name)
    if own is None and name and not (shipped / "bundle.json").is_file() and Path(name).is_dir():
        own = Path(name)
    return shipped if own is None else own.absolute()


def load_bundle(name: str) -> Bundle:
    """Read a bundle by name or by folder; one without a card is uncalibrated.

    A shipped bundle's name (`deploy/models/NAME`) comes before a folder here: that one is `./NAME`.

    Raises:
        BadSetting: no such bundle, or a file that does not say what it must.
    """
    folder = _place(name)
    if not (folder / "bundle.json").is_file():
        known = sorted(path.parent.name for path in MODELS.glob("*/bundle.json"))
        raise BadSetting(f"bundle {name!r}: no bundle.json in {folder}; there are {', '.join(known) or 'none'}")
    raw = (folder / "bundle.json").read_bytes()
    card_raw = (folder / "card.json").read_bytes() if (folder / "card.json").is_file() else b"{}"
    try:
        file, card = BundleFile.model_validate_json(raw), Card.model_validate_json(card_raw)
    except ValidationError as error:
        raise BadSetting(f"bundle {folder}: {error}") from error
    pools_raw = (folder / FILE).read_bytes() if (folder / FILE).is_file() else b""
    pools = read_pools(pools_raw, str(folder / FILE)) if pools_raw else None
    digest = hashlib.sha256(raw + card_raw + pools_raw).hexdigest()
    return Bundle(folder.name, folder, tuple(file.labels), file.tiers, file.metric, card, pools, digest)
