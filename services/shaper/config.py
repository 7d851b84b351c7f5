"""Settings of a shaper: read once from `TIERWISE_*` variables; an unknown or bad one stops the start."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from services.shaper.ctl import CONTROL
from shared.errors import BadSetting
from shared.links.profile import Backend

_DEFAULTS = {
    "TIERWISE_TIER": "",
    "TIERWISE_LINKS": "netem",
    "TIERWISE_SHAPED_LINKS": "",
    "TIERWISE_PEERS": "",
    "TIERWISE_LINK_CONTROL": "false",
    "TIERWISE_LINK_STATE_DIR": "/run/tierwise",
    "TIERWISE_SHAPER_CONTROL": CONTROL,
    "TIERWISE_SHAPER_METRICS_PORT": "9100",
    "TIERWISE_SHAPER_PROBE_PORT": "9101",
}


@dataclass(frozen=True)
class Config:
    """Links are SOURCE-TARGET -> profile; peers are tier -> host, where the host is not the tier's own name.

    With TIERWISE_LINKS other than netem there is no link to shape: the shaper only owns the tier's namespace.
    """

    tier: str
    links: dict[str, str]
    peers: dict[str, str]
    state_dir: Path
    tier_may_change: bool  # whether the tier may, over a socket in `state_dir`
    control: Path
    metrics_port: int
    probe_port: int


def load_config(environment: Mapping[str, str]) -> Config:
    """The shaper's settings. Raises BadSetting, naming the variable and what was expected."""
    unknown = sorted(key for key in environment if key.startswith("TIERWISE_") and key not in _DEFAULTS)
    if unknown:
        raise BadSetting(f"unknown setting {', '.join(unknown)}: a shaper knows {', '.join(_DEFAULTS)}")
    value = {key: environment.get(key, default) for key, default in _DEFAULTS.items()}
    for key in ("TIERWISE_TIER", "TIERWISE_SHAPED_LINKS"):
        if not value[key]:
            raise BadSetting(f"{key} is not set: expected e.g. TIERWISE_TIER=end TIERWISE_SHAPED_LINKS=end-edge=5g-nsa")
    for key in ("TIERWISE_SHAPER_METRICS_PORT", "TIERWISE_SHAPER_PROBE_PORT"):
        if not value[key].isdecimal() or not 0 < int(value[key]) < 65536:
            raise BadSetting(f"{key}={value[key]!r}: expected a port from 1 to 65535")
    if value["TIERWISE_LINKS"] not in set(Backend):
        raise BadSetting(f"TIERWISE_LINKS={value['TIERWISE_LINKS']!r}: expected {', '.join(Backend)}")
    if value["TIERWISE_LINK_CONTROL"] not in ("true", "false"):
        raise BadSetting(f"TIERWISE_LINK_CONTROL={value['TIERWISE_LINK_CONTROL']!r}: expected true or false")
    return Config(
        tier=value["TIERWISE_TIER"],
        links=_pairs("TIERWISE_SHAPED_LINKS", value) if value["TIERWISE_LINKS"] == Backend.NETEM else {},
        peers=_pairs("TIERWISE_PEERS", value),
        state_dir=Path(value["TIERWISE_LINK_STATE_DIR"]),
        tier_may_change=value["TIERWISE_LINK_CONTROL"] == "true",
        control=Path(value["TIERWISE_SHAPER_CONTROL"]),
        metrics_port=int(value["TIERWISE_SHAPER_METRICS_PORT"]),
        probe_port=int(value["TIERWISE_SHAPER_PROBE_PORT"]),
    )


def _pairs(key: str, values: Mapping[str, str]) -> dict[str, str]:
    pairs = [pair.strip().partition("=") for pair in values[key].split(",") if pair.strip()]
    if not all(name and sep and rest for name, sep, rest in pairs):
        raise BadSetting(f"{key}={values[key]!r}: expected NAME=VALUE,NAME=VALUE")
    return {name: rest for name, _, rest in pairs}
