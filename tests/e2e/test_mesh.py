"""A mesh of containers over a real netem: its links are as their profile says, and a node that dies loses no text.

The nodes sleep on a recording that is made up here, so no weights are needed and every text runs all segments.
"""

import numpy as np
import pytest
from safetensors.numpy import save_file

from lab.data.examples import Example
from lab.mesh.live import run
from lab.mesh.nodes import Mesh
from lab.mesh.outcome import Cell
from shared.mesh.runs import key_of
from shared.mesh.source import Adapt
from shared.mesh.topology import held_of, topology
from shared.model.bundle import load_bundle

TEXTS = [Example(f"film number {number}", None, number % 2) for number in range(8)]
SEGMENTS, LAYERS, HIDDEN, NEVER = 4, 12, 64, 2.0
pytestmark = pytest.mark.netem


@pytest.fixture
def recorded(tmp_path):
    """Every exit says the second label, with a confidence of 0.6."""
    exits = np.tile(np.array([0.4, 0.6], np.float32), (len(TEXTS), LAYERS, 1))
    keys = " ".join(key_of(text.text) for text in TEXTS)
    told = {"keys": keys, "runs_on": "made up", "hidden": str(HIDDEN)}
    save_file({"exits": exits, "tokens": np.full(len(TEXTS), 128, np.int32)}, tmp_path / "exits", told)
    return tmp_path / "exits"


def test_a_node_is_killed_on_shaped_links_and_every_text_is_answered(recorded):
    mesh = Mesh(load_bundle("split-imdb"), SEGMENTS, recorded, compose=True)
    cell = Cell(
        topology("mesh3"),
        Adapt.FIXED,
        threshold=NEVER,
        rate=2.0,
        seconds=16.0,
        link="wifi",
        service_s=0.1,
        kill=("n2", 8.0),
        held={"n1": held_of("1-2", SEGMENTS)},  # so every text leaves the source
        report_s=0.3,
    )
    outcome = run(cell, mesh, TEXTS)  # it refuses a first link that is not what its profile says
    assert outcome.facts["verified"]["link"] == "n1-n2"
    assert (outcome.lost, outcome.refused, outcome.unfinished) == (0, 0, 0)
    assert len(outcome.answered) == outcome.offered > 10
    ways = [set(answer.nodes) for answer in outcome.answered]
    assert all(answer.segments == SEGMENTS and answer.label == 1 for answer in outcome.answered)
    assert any("n2" in way for way in ways)
    assert any("n2" not in way for way in ways)  # the third took its place
    assert outcome.facts["delay_ms"]["n1 to n3"] > 2.5  # half of wifi's round trip
