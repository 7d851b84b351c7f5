"""Settings of a node: those of a tier, of which `upstreams` are its neighbours, and a few of its own."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field, field_validator

from shared.errors import BadSetting
from shared.links.profile import profile
from shared.mesh.source import Adapt
from shared.model.state import Form
from shared.web.settings import PREFIX, Role, Settings

ROLE = Role(os.environ.get(f"{PREFIX}TIER", "n1"))


class NodeSettings(Settings):
    """One node's settings; TIERWISE_TIER is its name. A node runs the network of the bundle's deepest tier, or some
    segments of it."""

    segments: int | None = Field(
        None, ge=1, le=1000, description="segments of the network, each with an exit; none: as the bundle says"
    )
    held_segments: str | None = Field(None, description="segments held here, as 1-4; none: all")
    exit_threshold: float = Field(
        0.9, gt=0, le=100, description="confidence from which an exit answers; over 1: no early exit"
    )
    adapt: Adapt = Field(Adapt.FIXED, description="what the source adapts to its queues: fixed, rate, threshold")
    gap_ms: float = Field(
        50.0, gt=0, le=600_000, description="with adapt=rate: time between two texts at the start (ms)"
    )
    report_ms: float = Field(
        100.0,
        ge=1,
        le=60_000,
        description="a neighbour that says nothing for so long (ms) is asked for its report; after ten times that, it "
        "leaves the set",
    )
    state_form: Form = Field(Form.INT8, description="what hidden values travel as: fp32, fp16 or int8")
    service_ms: float | None = Field(
        None, gt=0, le=600_000, description="a segment sleeps so long (ms) on recorded exits; none: it is computed"
    )
    recorded: Path | None = Field(None, description="with service_ms: file of recorded exits (`tierwise mesh`)")
    queue_limit: int = Field(1000, ge=1, description="texts that may wait, here and for admission")

    @field_validator("service_ms", "recorded", "segments", "held_segments", mode="before")
    @classmethod
    def _empty(cls, value: object) -> object:
        return None if value == "" else value

    def check(self, order: Sequence[str]) -> None:
        """Whether neighbours and links fit; `order` are the bundle's tiers, of which the last one's network runs.

        Raises:
            BadSetting: a neighbour without a profile, or a port that is open to others without a key.
        """
        self._check_open()
        if self.tier in self.upstreams:
            raise BadSetting(f"{PREFIX}UPSTREAMS: a node is no neighbour of its own")
        if self.upstreams.keys() != self.link_profiles.keys():
            raise BadSetting(f"{PREFIX}LINK_PROFILES must name a profile for each of {PREFIX}UPSTREAMS")
        if (self.service_ms is None) != (self.recorded is None):
            raise BadSetting(f"{PREFIX}SERVICE_MS and {PREFIX}RECORDED go together: slept times on recorded exits")
        for name in self.link_profiles.values():
            profile(name)
