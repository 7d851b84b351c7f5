"""The containers' files, as Compose reads them: limits on every service, and who may ask each tier without a key."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from lab.live.stack import role_of
from shared.errors import BadSetting
from shared.web.settings import load_settings

ROOT = Path(__file__).resolve().parents[3]
TIERS = ("end", "edge", "cloud")
KEYS = {"TIERWISE_TIER_KEY": "./README.md", "TIERWISE_DOOR_KEY": "./README.md"}
HOST = ("docker-compose.yml", "deploy/compose.host.yml")


def composes():
    asked = ["docker", "compose", "version"]
    return shutil.which("docker") and subprocess.run(asked, capture_output=True).returncode == 0


pytestmark = pytest.mark.skipif(not composes(), reason="no Docker Compose")


@pytest.fixture
def services(tmp_path):
    """What Compose makes of some files: service -> its settings."""

    def read(*files, **environment):
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("TIERWISE_", "COMPOSE_"))}
        named = [word for file in files or ["docker-compose.yml"] for word in ("-f", str(ROOT / file))]
        command = ["docker", "compose", "--project-directory", str(ROOT), "--env-file", os.devnull, *named]
        done = subprocess.run(
            [*command, "--profile", "lab", "config", "--format", "json"],
            env={**clean, **environment},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)["services"]

    return read


@pytest.mark.parametrize("overlay", [None, "gpu", "host", "keys", "pinned", "quiet"])
def test_every_service_has_limits(services, overlay):
    files = ["docker-compose.yml", *([f"deploy/compose.{overlay}.yml"] if overlay else [])]
    found = services(*files, **KEYS)
    assert len(found) == 9
    for name, service in found.items():
        assert 0 < int(service["mem_limit"]) <= 8 << 30, name
        assert 0 < service["pids_limit"] <= 1024, name
        assert service["logging"]["options"].keys() == {"max-size", "max-file"}, name
        assert all("size=" in mount for mount in service.get("tmpfs", [])), name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service.get("read_only") or name == "lab", name


def test_a_limit_can_be_set_for_each_tier(services, monkeypatch):
    chosen = {f"TIERWISE_{tier.upper()}_MEMORY": f"{gigabytes}g" for gigabytes, tier in enumerate(TIERS, 3)}
    found = services(**chosen)
    assert [int(found[tier]["mem_limit"]) >> 30 for tier in TIERS] == [3, 4, 5]
    for name, value in chosen.items():  # and it stops no tier that runs beside the containers
        monkeypatch.setenv(name, value)
    load_settings(role_of("end"))


def test_a_tier_may_take_about_twice_what_it_took_under_the_largest_requests(services):
    """The table in docs/operate.md is that of `python -m tests.load.memory`."""
    rows = [
        row.split("|")[2:5] for row in (ROOT / "docs/operate.md").read_text().splitlines() if "MB, 64 at once" in row
    ]
    (most,) = [dict(zip(TIERS, map(float, row), strict=True)) for row in rows]
    for tier, service in services().items():
        if tier in TIERS:
            assert 1.5 < int(service["mem_limit"]) / 1e6 / most[tier] < 3, tier


@pytest.mark.parametrize(("chosen", "said"), [({}, "false"), ({"TIERWISE_LINK_CONTROL": "true"}, "true")])
def test_links_are_changed_by_a_tier_and_its_shaper_together_or_not_at_all(services, chosen, said):
    """The shaper's socket is in the volume that the tier can read alone."""
    found = services(**chosen)
    for tier in TIERS:
        for name in (tier, f"{tier}-shaper"):
            assert found[name]["environment"]["TIERWISE_LINK_CONTROL"] == said
            (mount,) = [volume for volume in found[name]["volumes"] if volume["target"] == "/run/tierwise"]
            assert (mount["source"], bool(mount.get("read_only"))) == (f"{tier}-links", name == tier)


def test_what_prometheus_keeps_is_bounded_in_time_and_in_bytes(services):
    command = services()["prometheus"]["command"]
    assert "--storage.tsdb.retention.time=15d" in command
    assert "--storage.tsdb.retention.size=2GB" in command
    assert "--config.file=/etc/prometheus/prometheus.yml" in command  # a command replaces the image's own
    chosen = services(TIERWISE_PROMETHEUS_KEEP="90d", TIERWISE_PROMETHEUS_DISK="20GB")["prometheus"]["command"]
    assert {"--storage.tsdb.retention.time=90d", "--storage.tsdb.retention.size=20GB"} < set(chosen)


def test_prometheus_finds_its_alerts_beside_its_configuration(services):
    mounts = {mount["target"]: mount for mount in services()["prometheus"]["volumes"]}
    folder = Path(mounts["/etc/prometheus"]["source"])
    assert (folder / "prometheus.yml").is_file()
    assert (folder / "alerts.yml").is_file()
    assert mounts["/etc/prometheus"]["read_only"]


def test_all_logs_of_a_stack_are_bounded_to_a_gigabyte_or_so(services):
    most_mb = 0
    for service in services().values():
        options = service["logging"]["options"]
        most_mb += int(options["max-size"].removesuffix("m")) * int(options["max-file"])
    assert most_mb <= 1500


def test_nobody_is_an_administrator_of_the_dashboards_by_a_known_password(services):
    environment = services()["grafana"]["environment"]
    assert environment["GF_AUTH_BASIC_ENABLED"] == "false"
    assert environment["GF_AUTH_DISABLE_LOGIN_FORM"] == "true"
    assert environment["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"


def test_pulled_images_can_be_had_by_their_bytes(services):
    found = services("docker-compose.yml", "deploy/compose.pinned.yml")
    digest = r"@sha256:[0-9a-f]{64}"
    for name, service in found.items():
        pulled = service["build"]["args"]["PYTHON"] if "build" in service else service["image"]
        assert re.search(digest, pulled), name


def test_every_tier_has_an_image_that_is_built_for_it(services):
    found = services(TIERWISE_BUNDLE="split-sst2")
    for tier in TIERS:
        assert found[tier]["image"] == f"tierwise-{tier}:split-sst2-auto"
        assert found[tier]["build"]["args"] == {"TIER": tier, "BUNDLE": "split-sst2", "PRECISION": "auto"}
        assert found[tier]["environment"]["TIERWISE_BUNDLE"] == "split-sst2"


def test_two_stacks_share_no_image_no_network_and_no_port(services):
    """As docs/containers.md says: another project, bundle and ports."""
    other = {
        "TIERWISE_BUNDLE": "split-sst2",
        "TIERWISE_BIND": "127.0.0.1:8180",
        "TIERWISE_PROMETHEUS_PORT": "9190",
        "TIERWISE_GRAFANA_PORT": "3100",
    }
    one, two = services(), services(**other)
    assert not {one[tier]["image"] for tier in TIERS} & {two[tier]["image"] for tier in TIERS}
    ports = [
        port["published"] for stack in (one, two) for service in stack.values() for port in service.get("ports", [])
    ]
    assert len(ports) == len(set(ports)) == 6
    assert not any("container_name" in service for service in two.values())  # a project's name comes first in each


def test_with_a_gpu_tiers_run_torch_from_an_image_that_has_it(services):
    found = services("docker-compose.yml", "deploy/compose.gpu.yml", TORCH_INDEX="https://cpu")  # the lab's
    for tier in TIERS:
        assert found[tier]["image"] == "tierwise-tier-cuda"
        assert found[tier]["build"]["args"]["ENGINE"] == found[tier]["environment"]["TIERWISE_ENGINE"] == "torch"
        assert found[tier]["build"]["args"]["TORCH_INDEX"] == ""
        assert found[tier]["environment"]["TIERWISE_DEVICE"] == "cuda"
        assert found[tier]["environment"]["TIERWISE_BATCH_TEXTS"] == "32"
        (reserved,) = found[tier]["deploy"]["resources"]["reservations"]["devices"]
        assert reserved == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}


def test_a_gpu_s_build_of_torch_and_batch_can_be_chosen(services):
    chosen = {"TORCH_GPU_INDEX": "https://index.example/cu", "TIERWISE_BATCH_TEXTS": "8"}
    found = services("docker-compose.yml", "deploy/compose.gpu.yml", **chosen)
    for tier in TIERS:
        assert found[tier]["build"]["args"]["TORCH_INDEX"] == "https://index.example/cu"
        assert found[tier]["environment"]["TIERWISE_BATCH_TEXTS"] == "8"


def starts(monkeypatch, environment, tier):
    """Whether a tier with a container's environment would start, as far as its address and keys are concerned."""
    for key in [key for key in os.environ if key.startswith("TIERWISE_")]:
        monkeypatch.delenv(key)
    for key, value in environment.items():
        if value is not None and not key.endswith("KEY_FILE"):
            monkeypatch.setenv(key, value)
        elif value is not None:
            monkeypatch.setenv(key, str(ROOT / "README.md"))
    try:
        load_settings(role_of(tier)).check(TIERS)
    except BadSetting as error:
        if "other machines reach this tier" not in str(error):
            raise
        return False
    return True


@pytest.mark.parametrize(
    ("files", "environment", "open_tiers"),
    [
        (("docker-compose.yml",), {}, TIERS),
        (("docker-compose.yml",), {"TIERWISE_BIND": "127.0.0.1:9000"}, TIERS),
        (("docker-compose.yml",), {"TIERWISE_BIND": "0.0.0.0:8080"}, ("edge", "cloud")),
        (("docker-compose.yml",), {"TIERWISE_BIND": "8080"}, ("edge", "cloud")),
        (("docker-compose.yml",), {"TIERWISE_BIND": "8080", "TIERWISE_ALLOW_OPEN": "true"}, TIERS),
        (("docker-compose.yml", "deploy/compose.keys.yml"), {"TIERWISE_BIND": "8080", **KEYS}, TIERS),
        (HOST, {}, ("end",)),
        (HOST, {"TIERWISE_EDGE_BIND": "127.0.0.1:8081"}, ("end", "edge")),
        (HOST, {"TIERWISE_ALLOW_OPEN": "true"}, TIERS),
        ((*HOST, "deploy/compose.keys.yml"), KEYS, TIERS),
    ],
)
def test_a_port_that_is_opened_to_other_machines_needs_a_key(services, monkeypatch, files, environment, open_tiers):
    found = services(*files, **environment)
    assert [tier for tier in TIERS if starts(monkeypatch, found[tier]["environment"], tier)] == list(open_tiers)


def test_the_lab_s_own_tiers_are_held_to_the_same(services, monkeypatch):
    for environment, starting in (({}, True), ({"TIERWISE_BIND": "8080"}, False)):
        settings = {"TIERWISE_HOST": "0.0.0.0", **services(**environment)["lab"]["environment"]}
        assert starts(monkeypatch, settings, "end") is starting
