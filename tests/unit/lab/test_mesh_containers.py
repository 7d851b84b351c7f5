"""What a run of a mesh adds to the Compose file of its topology."""

from dataclasses import replace
from pathlib import Path

from lab.mesh.containers import RECORDING, overridden
from lab.mesh.nodes import Mesh
from lab.mesh.outcome import Cell
from services.node.settings import NodeSettings
from shared.mesh.source import Adapt
from shared.mesh.topology import topology
from shared.model.bundle import load_bundle

PORTS = {"n1": 18001, "n2": 18002, "n3": 18003}
CELL = Cell(topology("ring3"), Adapt.RATE, threshold=0.9, rate=8.0, seconds=9.0, link="wifi", service_s=0.04)


def mesh(tmp_path):
    return Mesh(load_bundle("split-imdb"), 12, tmp_path / "exits", compose=True)


def test_every_node_but_the_source_is_published_on_a_network_of_its_own(tmp_path):
    added = overridden(CELL, mesh(tmp_path), PORTS)
    shapers = {name: service for name, service in added["services"].items() if name.endswith("-shaper")}
    assert {name: service["ports"] for name, service in shapers.items() if "ports" in service} == {
        "n2-shaper": ["127.0.0.1:18002:8080"],
        "n3-shaper": ["127.0.0.1:18003:8080"],
    }
    networks = [set(service.get("networks", ())) for service in shapers.values()]
    assert networks[1].isdisjoint(networks[2])  # else it would be an unshaped way
    assert set().union(*networks) == set(added["networks"])


def test_nodes_get_the_cells_settings_and_the_recording(tmp_path):
    cell = replace(CELL, held={"n2": range(4, 8)}, report_s=0.3)
    services = overridden(cell, mesh(tmp_path), PORTS)["services"]
    known = {f"TIERWISE_{field.upper()}" for field in NodeSettings.model_fields}
    for name in PORTS:
        settings = services[name]["environment"]
        assert settings.keys() <= known
        assert (settings["TIERWISE_SERVICE_MS"], settings["TIERWISE_REPORT_MS"]) == ("40.0", "300.0")
        assert settings["TIERWISE_RECORDED"] == RECORDING
        assert services[name]["volumes"] == [f"{Path(tmp_path / 'exits').absolute()}:{RECORDING}:ro"]
    adapt = [services[name]["environment"]["TIERWISE_ADAPT"] for name in PORTS]
    assert adapt == ["rate", "fixed", "fixed"]
    held = [services[name]["environment"]["TIERWISE_HELD_SEGMENTS"] for name in PORTS]
    assert held == ["", "5-8", ""]


def test_nodes_that_compute_get_no_recording(tmp_path):
    computing = Mesh(load_bundle("split-imdb"), 12, None, compose=True)
    node = overridden(replace(CELL, service_s=None), computing, PORTS)["services"]["n1"]
    assert (node["environment"]["TIERWISE_RECORDED"], node["environment"]["TIERWISE_SERVICE_MS"]) == ("", "")
    assert node["volumes"] == []
