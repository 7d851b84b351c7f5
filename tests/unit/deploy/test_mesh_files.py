"""The Compose files of meshes fit their template; each pair of neighbours has one shaped network, and nothing else."""

import importlib.util
import json
import os
import shutil
import subprocess
from itertools import combinations
from pathlib import Path

import pytest
import yaml

from services.node.settings import NodeSettings
from shared.mesh.topology import LIVE, topology

ROOT = Path(__file__).resolve().parents[3]
FOLDER = ROOT / "deploy" / "mesh"


def generator():
    spec = importlib.util.spec_from_file_location("make_compose", FOLDER / "make_compose.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(params=LIVE)
def name(request):
    return request.param


@pytest.fixture
def services(name):
    return yaml.safe_load((FOLDER / f"{name}.yml").read_text())["services"]


def test_the_files_are_the_templates():
    assert generator().files() == {path.name: path.read_text() for path in FOLDER.glob("*.yml")}, "run make_compose.py"


def test_two_nodes_share_a_network_exactly_where_they_are_neighbours(name, services):
    mesh = topology(name)
    networks = {node: set(services[f"{node}-shaper"]["networks"]) - {"client"} for node in mesh.nodes}
    for a, b in combinations(mesh.nodes, 2):
        neighbours = b in mesh.edges[a] or a in mesh.edges[b]
        assert networks[a] & networks[b] == ({f"{a}-{b}"} if neighbours else set())
    published = [node for node in mesh.nodes if "ports" in services[f"{node}-shaper"]]
    assert published == ["n1"]


def test_every_link_of_a_node_is_shaped_at_both_ends(name, services):
    for node in topology(name).nodes:
        shaper = services[f"{node}-shaper"]
        shaped = {pair.partition("=")[0] for pair in shaper["environment"]["TIERWISE_SHAPED_LINKS"].split(",")}
        assert shaped - {"none"} == set(shaper["networks"]) - {"client"}


def test_every_service_is_bounded_and_hardened(services):
    for service in services.values():
        assert service["cap_drop"] == ["ALL"]
        assert service["read_only"]
        assert service["mem_limit"]
        assert service["pids_limit"] <= 256
        assert service["logging"]["options"].keys() == {"max-size", "max-file"}


def test_a_node_takes_its_settings(name, services):
    known = {f"TIERWISE_{field.upper()}" for field in NodeSettings.model_fields}
    for node, others in topology(name).edges.items():
        environment = services[node]["environment"]
        assert environment.keys() <= known
        pairs = [pair.split("=http://") for pair in environment["TIERWISE_UPSTREAMS"].split(",") if pair]
        assert pairs == [[other, f"{other}:8080"] for other in others]


@pytest.mark.skipif(not shutil.which("docker"), reason="no Docker Compose")
def test_compose_reads_them(name):
    command = ["docker", "compose", "--project-directory", str(ROOT), "-f", str(FOLDER / f"{name}.yml")]
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("TIERWISE_", "COMPOSE_"))}
    done = subprocess.run(
        [*command, "--env-file", os.devnull, "config", "--format", "json"], env=clean, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["services"]) == 2 * len(topology(name).nodes)
