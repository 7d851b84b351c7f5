"""Meshes in simulated time, worked by hand where that can be done, and what a report makes of them."""

import json
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from lab.mesh.outcome import Cell, Exits
from lab.mesh.report import figures, write
from lab.mesh.run import NO_EXIT, Plan, compared
from lab.mesh.simulate import simulate
from shared.errors import BadSetting
from shared.mesh.algorithms import adapted_gap
from shared.mesh.source import Adapt
from shared.mesh.topology import topology

SERVICE_S, SEGMENTS = 0.02, 4


@pytest.fixture(scope="module")
def exits():
    """400 texts; each exit is surer than the one before, and right more often."""
    draw = np.random.default_rng(0)
    labels = draw.integers(0, 2, 400)
    confidence = np.clip(0.55 + 0.12 * np.arange(SEGMENTS) + draw.normal(0, 0.08, (400, SEGMENTS)), 0.5, 0.999)
    said = np.where(draw.random((400, SEGMENTS)) < confidence, labels[:, None], 1 - labels[:, None])
    first = np.where(said == 0, confidence, 1 - confidence)
    return Exits(np.stack([first, 1 - first], -1), labels, np.full(400, 100_000), (3, 6, 9, 12))


@pytest.fixture
def cell():
    """One node, every segment of every text."""
    return Cell(topology("local"), Adapt.FIXED, NO_EXIT, 5.0, 20.0, "ideal", SERVICE_S)


def shown(cell, exits):
    return figures(cell, simulate(cell, exits), exits, "simulated")


def test_a_text_on_an_idle_node_takes_its_segments(cell, exits):
    outcome = simulate(replace(cell, rate=0.2), exits)
    alone = [answer for answer in outcome.answered if answer.at - answer.asked_at < 0.081]
    assert len(alone) >= len(outcome.answered) - 1  # 4 x 20 ms; texts come 5 s apart
    assert all(answer.nodes == ("n1",) * 4 for answer in outcome.answered)


def test_a_node_answers_no_more_than_it_can_compute(cell, exits):
    found = shown(replace(cell, adapt=Adapt.RATE, seconds=30.0), exits)
    assert found["throughput_per_s"] <= 1 / (SEGMENTS * SERVICE_S) * 1.02  # 12.5 a second
    assert found["throughput_per_s"] >= 0.7 / (SEGMENTS * SERVICE_S)


def test_the_rate_is_algorithm_threes(cell, exits):
    outcome = simulate(replace(cell, adapt=Adapt.RATE, seconds=1.2), exits)
    first, second, third = (sample.gap_s for sample in outcome.samples[:3])
    assert first == 0.2
    assert third == pytest.approx(adapted_gap(second, 0))  # a period later, with empty queues


def test_the_same_seed_gives_the_same_run(cell, exits):
    mesh = replace(cell, topology=topology("mesh3"), rate=20.0, link="wifi")
    first, again = simulate(mesh, exits), simulate(mesh, exits)
    assert first.answered == again.answered
    assert simulate(replace(mesh, seed=1), exits).answered != first.answered


@pytest.mark.parametrize("threshold", [0.9, NO_EXIT])
def test_more_nodes_answer_more_texts(cell, exits, threshold):
    """The first claim of the paper, in shape."""
    many = [
        shown(
            replace(
                cell,
                topology=topology(name),
                adapt=Adapt.RATE,
                threshold=threshold,
                seconds=30.0,
                rate=20.0,
                link="wifi",
            ),
            exits,
        )
        for name in ("local", "pair", "mesh3")
    ]
    one, two, three = (found["throughput_per_s"] for found in many)
    assert one * 1.5 < two < three
    assert all(found["lost"] == 0 for found in many)


def test_at_a_fixed_rate_more_nodes_answer_more_rightly(cell, exits):
    """The second: a threshold that adapts falls less where there are more nodes, and texts run deeper."""
    few, many = (
        shown(
            replace(
                cell,
                topology=topology(name),
                adapt=Adapt.THRESHOLD,
                threshold=0.9,
                seconds=30.0,
                rate=25.0,
                link="wifi",
            ),
            exits,
        )
        for name in ("local", "mesh3")
    )
    assert few["threshold_mean"] < many["threshold_mean"]
    assert few["segments_mean"] < many["segments_mean"]
    assert few["accuracy"] < many["accuracy"]


def test_a_killed_node_loses_nothing_and_queues_recover(cell, exits):
    """The third."""
    mesh = replace(cell, topology=topology("mesh3"), rate=22.0, link="wifi", seconds=40.0, kill=("n2", 10.0))
    outcome = simulate(mesh, exits)
    assert (outcome.lost, outcome.unfinished) == (0, 0)
    assert outcome.again > 0
    assert len(outcome.answered) == outcome.admitted
    last = outcome.samples[-1].queues
    assert last["n1"][0] + last["n1"][1] < 60  # two of three nodes are enough


def test_a_large_mesh_has_many_sources(cell, exits):
    big = replace(cell, topology=topology("torus100"), rate=10.0, seconds=5.0, link="wifi")
    outcome = simulate(big, exits)
    assert outcome.offered == pytest.approx(20 * 10 * 5, rel=0.15)
    assert outcome.lost == 0
    assert outcome.facts["events"] > 4 * outcome.offered
    assert len({node for answer in outcome.answered for node in answer.nodes}) > 40  # not the 20 sources alone


@pytest.mark.parametrize("name", ["mesh4", "torus", "torus4", "torus999999", ""])
def test_an_unknown_topology_is_refused(name):
    with pytest.raises(BadSetting, match="topology"):
        topology(name)


def plan(**changes):
    usual = {
        "topologies": ["mesh3"],
        "rates": [5.0, 10.0],
        "adapt": Adapt.FIXED,
        "threshold": 0.9,
        "no_exit": False,
        "segments": SEGMENTS,
        "service_s": SERVICE_S,
        "seconds": 6.0,
        "link": "wifi",
        "kill": None,
        "simulated": True,
        "check": False,
        "seed": 0,
    }
    return Plan(**(usual | changes))


def test_every_topology_is_run_at_every_rate_and_without_exits_if_asked():
    cells = plan(topologies=["local", "pair"], no_exit=True).cells()
    found = [(cell.topology.name, cell.threshold, cell.rate) for cell in cells]
    assert found == [(name, t, rate) for name in ("local", "pair") for t in (0.9, NO_EXIT) for rate in (5.0, 10.0)]
    assert len(plan(adapt=Adapt.RATE).cells()) == 1  # it finds its rate itself


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"kill": ("n1", 2.0)}, "choose from n2, n3"),  # the source
        ({"kill": ("n9", 2.0)}, "choose from n2, n3"),
        ({"topologies": ["torus9"], "simulated": False}, "add --simulated"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(changes, why):
    with pytest.raises(BadSetting, match=why):
        plan(**changes).cells()


def test_a_report_says_what_it_is_and_is_written_with_a_picture(tmp_path, exits):
    cells = [
        figures(cell, simulate(cell, exits), exits, "simulated")
        for adapt in (Adapt.RATE, Adapt.THRESHOLD)
        for cell in plan(topologies=["local", "pair"], adapt=adapt).cells()
    ]
    console = Console(width=200, record=True)
    write(cells, {"title": "A claim"}, tmp_path / "mesh", console)
    text = console.export_text()
    assert text.count("simulated") == len(cells)
    assert "reconstructed" in text
    report = json.loads((tmp_path / "mesh.json").read_text())
    assert "reconstructed" in report["note"]
    assert [cell["topology"] for cell in report["cells"]] == ["local", "pair", "local", "local", "pair", "pair"]
    assert (tmp_path / "mesh.png").stat().st_size > 10_000


def test_the_simulator_is_held_to_ten_percent_of_live():
    def pair(live, simulated):
        return [{"name": "mesh3", "throughput_per_s": live}, {"name": "mesh3", "throughput_per_s": simulated}]

    rows = compared(pair(10.0, 10.9) + pair(10.0, 11.1) + pair(0.0, 1.0), Console(quiet=True))
    assert [row["within"] for row in rows] == [True, False, False]


def test_nodes_that_hold_a_part_share_the_segments(cell, exits):
    parts = {"n1": range(1), "n2": range(1, 3), "n3": range(3, 4)}
    mesh = replace(cell, topology=topology("ring3"), link="wifi", held=parts)
    outcome = simulate(mesh, exits)
    assert {answer.nodes for answer in outcome.answered} == {("n1", "n2", "n2", "n3")}
    assert (outcome.lost, outcome.unfinished, len(outcome.answered)) == (0, 0, outcome.admitted)
    assert figures(mesh, outcome, exits, "simulated")["held"] == {"n1": "1-1", "n2": "2-3", "n3": "4-4"}


def test_what_a_killed_node_held_goes_to_the_other_that_holds_it_or_waits(cell, exits):
    parts = {"n1": range(2), "n2": range(2, 4), "n3": range(2, 4)}
    mesh = replace(cell, topology=topology("mesh3"), rate=20.0, link="wifi", held=parts, kill=("n2", 10.0))
    outcome = simulate(mesh, exits)
    assert (outcome.lost, outcome.unfinished) == (0, 0)
    assert outcome.again > 0
    assert {answer.nodes[-1] for answer in outcome.answered if answer.asked_at > 10.5} == {"n3"}
    alone = simulate(replace(mesh, topology=topology("pair"), held={"n1": range(2)}), exits)
    assert (alone.lost, len(alone.answered) + alone.unfinished) == (0, alone.admitted)
    assert alone.unfinished > 100  # nobody else holds segment 3


def test_a_plan_that_holds_at_no_node_is_refused():
    with pytest.raises(BadSetting, match="--hold n9: no such node in mesh3"):
        plan(held={"n9": range(2)}).cells()
