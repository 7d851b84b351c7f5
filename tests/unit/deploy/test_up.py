"""`make up` with a `.env` as people write them: what it does and says is what Compose reads. The Engine is faked."""

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
DOCKER = """#!/bin/sh
# Compose reads and checks its files for real; everything that needs an Engine is only noted.
case "$*" in
  "compose version") ;;
  *" config "*) exec "$REAL_DOCKER" "$@" ;;
  "info "*) echo "{$RUNTIMES}" ;;
  *) echo "COMPOSE_FILE=${COMPOSE_FILE-} docker $*" >> "$NOTES" ;;
esac
"""


def composes():
    return (
        shutil.which("docker") and not subprocess.run(["docker", "compose", "version"], capture_output=True).returncode
    )


SAYS = (
    "Page        http://127.0.0.1:9000/",
    "API         http://127.0.0.1:9000/docs",
    "Prometheus  http://127.0.0.1:9191",
)
PLAIN = "TIERWISE_BIND=127.0.0.1:9000\nTIERWISE_PROMETHEUS_PORT=9191\nTIERWISE_LINKS=none\nTIERWISE_DASHBOARDS=0\n"
WRITTEN = {
    "plain": PLAIN,
    "line ends of Windows": PLAIN.replace("\n", "\r\n"),
    "double quotes": "".join(f'{name}="{value}"\n' for name, value in (x.split("=") for x in PLAIN.split())),
    "single quotes": "".join(f"{name}='{value}'\n" for name, value in (x.split("=") for x in PLAIN.split())),
    "comments": PLAIN.replace("\n", " # as we like it\n") + "# TIERWISE_BIND=0.0.0.0:1\n",
    "export": "".join(f"export {line}\n" for line in PLAIN.split()),
    "indented": "".join(f"   {line}\n" for line in PLAIN.split()),
    "spaces around =": PLAIN.replace("=", " = "),
    "a name twice": "TIERWISE_BIND=0.0.0.0:1\nTIERWISE_LINKS=netem\nTIERWISE_DASHBOARDS=1\n" + PLAIN,
    "no last line end": PLAIN.rstrip("\n"),
    "a byte order mark": "\ufeff" + PLAIN,
    "names within values": "PORT=9000\n" + PLAIN.replace("9000", "${PORT}"),
    "with colons": PLAIN.replace("=", ": "),
    "all at once": "export TIERWISE_BIND=\"127.0.0.1:9000\"  # mine\r\n\r\n  TIERWISE_LINKS='none'\r\n"
    "TIERWISE_PROMETHEUS_PORT=1\r\nTIERWISE_PROMETHEUS_PORT=9191 # now\r\nTIERWISE_DASHBOARDS = 0\r\n",
}


@pytest.fixture
def up(tmp_path):
    """`make up` in another folder: called with a `.env`, it gives the printed lines and what Docker was told."""
    if not composes():
        pytest.skip("no Docker Compose")
    (tmp_path / "deploy").mkdir()
    shutil.copy(ROOT / "docker-compose.yml", tmp_path)
    for path in (ROOT / "deploy").glob("*.*"):
        shutil.copy(path, tmp_path / "deploy")
    (tmp_path / "bin").mkdir()
    docker = tmp_path / "bin" / "docker"
    docker.write_text(DOCKER)
    docker.chmod(docker.stat().st_mode | stat.S_IXUSR)
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("TIERWISE_", "COMPOSE_"))}
    clean |= {"REAL_DOCKER": shutil.which("docker"), "NOTES": str(tmp_path / "notes"), "RUNTIMES": ""}
    clean["PATH"] = f"{docker.parent}{os.pathsep}{os.environ['PATH']}"

    def call(content, **environment):
        if content is not None:
            (tmp_path / ".env").write_bytes(content.encode())
        done = subprocess.run(
            [tmp_path / "deploy" / "up.sh"], env={**clean, **environment}, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines(), (tmp_path / "notes").read_text().splitlines()

    return call


@pytest.mark.parametrize("content", WRITTEN.values(), ids=WRITTEN)
def test_env_is_read_as_compose_reads_it(up, content):
    printed, told = up(content)
    assert set(SAYS) < set(printed)
    assert not any("Dashboards" in line for line in printed)
    assert told[-1] == "COMPOSE_FILE= docker compose up -d --wait --no-build end edge cloud prometheus"
    assert not any("services.shaper --check" in line for line in told)  # nothing is shaped


def test_without_env_it_is_as_documented(up):
    printed, told = up(None)
    assert "API         http://127.0.0.1:8080/docs" in printed
    assert "Dashboards  http://127.0.0.1:3000/dashboards" in printed
    assert [line.partition("docker ")[2].split()[:2] for line in told] == [
        ["compose", "build"],
        ["run", "--rm"],
        ["compose", "up"],
    ]
    assert told[0].endswith(" docker compose build end edge cloud end-shaper")  # an image for each tier


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, ["Bundle      collaborative", "Processor   CPU (", "Links       netem (", "Grafana     yes ("]),
        ({"TIERWISE_LINKS": "simulated"}, ["Links       simulated ("]),
        ({"TIERWISE_LINKS": "none"}, ["Links       none (as they are"]),
        ({"TIERWISE_DASHBOARDS": "0"}, ["Grafana     no ("]),
        ({"TIERWISE_BUNDLE": "split-sst2"}, ["Bundle      split-sst2"]),
        ({"RUNTIMES": '"nvidia": {}'}, ["Processor   GPU ("]),
    ],
)
def test_it_says_what_it_chose_before_it_builds(up, given, said):
    printed, _ = up(None, **given)
    chosen = printed[: printed.index("")]  # the addresses come after an empty line
    for line in said:
        assert any(one.startswith(line) for one in chosen), chosen


def test_the_environment_wins_over_env(up):
    printed, _ = up(PLAIN, TIERWISE_BIND="8181")
    assert "API         http://127.0.0.1:8181/docs" in printed


@pytest.mark.parametrize("quote", ["", '"'])
def test_files_that_env_names_are_kept_and_the_gpu_s_is_added(up, quote):
    named = f"COMPOSE_FILE={quote}docker-compose.yml:deploy/compose.quiet.yml{quote}\n"
    printed, told = up(named, RUNTIMES='"nvidia": {}')
    assert "Processor   GPU (Docker has an NVIDIA runtime: deploy/compose.gpu.yml is added)" in printed
    files = "docker-compose.yml:deploy/compose.quiet.yml:deploy/compose.gpu.yml"
    assert told[-1].startswith(f"COMPOSE_FILE={files} docker compose up -d --no-build ")


def test_the_gpu_s_file_does_not_push_out_an_override(up, tmp_path):
    (tmp_path / "docker-compose.override.yml").write_text("services: {}\n")
    _, told = up(None, RUNTIMES='"nvidia": {}')
    assert "COMPOSE_FILE=docker-compose.yml:docker-compose.override.yml:deploy/compose.gpu.yml docker" in told[-1]


@pytest.mark.parametrize(
    ("docker", "missing"),
    [
        (None, "Docker is not installed"),
        ("#!/bin/sh\necho 'unknown command: docker compose' >&2; exit 1\n", "Docker has no Compose here"),
    ],
)
def test_what_is_missing_is_said_in_one_line_with_what_does_without(tmp_path, docker, missing):
    for tool in ("bash", "dirname"):
        (tmp_path / tool).symlink_to(shutil.which(tool))
    if docker:
        (tmp_path / "docker").write_text(docker)
        (tmp_path / "docker").chmod(0o700)
    done = subprocess.run(
        ["bash", ROOT / "deploy" / "up.sh"], env={"PATH": str(tmp_path)}, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"make up: {missing}")
    assert line.endswith("; `make serve` runs the tiers without it")
