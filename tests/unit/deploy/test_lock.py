"""The lock file: every package by its bytes, and the part of it that an image needs."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
LOCK = (ROOT / "requirements.lock").read_text()
PINS = set(re.findall(r"^([a-z0-9-]+)==", LOCK, re.MULTILINE))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def lock(*arguments, status=0):
    done = subprocess.run([sys.executable, ROOT / "deploy" / "lock.py", *arguments], capture_output=True, text=True)
    assert done.returncode == status, done.stderr
    return done.stdout


def names(lines):
    return {re.split(r"[^A-Za-z0-9-]", line)[0].lower() for line in lines}


def test_every_package_is_pinned_with_the_hashes_of_its_files():
    pin, digest = r"^[a-z0-9-]+==[^\s;]+(?: ;.*)? \\\n", r"    --hash=sha256:[0-9a-f]{64}(?: \\)?\n"
    entries = re.findall(f"{pin}(?:{digest})+", LOCK, re.MULTILINE)
    assert len(entries) == len(PINS) > 80


def test_every_dependency_is_in_the_lock_but_torch_which_pyproject_pins():
    extras = PROJECT["optional-dependencies"]
    assert names([*PROJECT["dependencies"], *(line for lines in extras.values() for line in lines)]) - PINS == {"torch"}
    found = re.findall('torch==[^"]*', (ROOT / "pyproject.toml").read_text())  # as the Makefile and the image find it
    assert len(found) == 1
    assert re.fullmatch(r"torch==\d+\.\d+\.\d+", found[0])


def test_no_machine_s_own_index_or_path_is_in_it():
    for line in LOCK.splitlines():
        assert not re.search(r"://|--index|--find|file:|\+cpu| /", line), line


def test_no_telemetry_is_installed():
    assert "openvino" in PINS
    assert not [name for name in PINS if name.endswith("-telemetry")]


@pytest.mark.parametrize("extras", ["", "[otel]", "[lab]", "[lab,torch,otel]"])
def test_a_part_holds_what_was_asked_for_and_all_that_it_needs(extras):
    part = lock("--pick", f"tierwise{extras}")
    listed = [*PROJECT["dependencies"]]
    for extra in filter(None, extras.strip("[]").split(",")):
        listed += PROJECT["optional-dependencies"][extra]
    found = names(re.findall(r"^[a-z0-9-]+==", part, re.MULTILINE))
    assert names(listed) - {"torch"} <= found
    assert {"openvino", "anyio", "h11", "certifi"} <= found
    assert not {"pytest", "ruff", "mypy", "pip-tools", "onnxruntime"} & found
    for extra, its in {
        "torch": {"transformers", "peft", "sympy"},
        "lab": {"scipy"},
        "otel": {"opentelemetry-sdk"},
    }.items():
        assert its & found == (its if extra in extras else set())
    assert set(part.splitlines()) <= set(LOCK.splitlines())


def test_a_name_that_is_not_in_the_lock_is_refused():
    lock("--pick", "left-pad", status=1)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (("pytest==", "pytest==1."), "pytest>=9"),  # a pin out of range
        (("\nstructlog==", "\nstructlogs=="), "structlog>=25, structlogs=="),  # one that is missing, one that is idle
        (("# via httpx\n", "# via nobody\n"), "httpcore=="),
    ],
)
def test_a_lock_that_does_not_fit_is_told_with_the_requirement(tmp_path, change, complaint):
    for name in ("pyproject.toml", "deploy/lock.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text((ROOT / name).read_text())
    (tmp_path / "requirements.lock").write_text(LOCK.replace(*change))
    command = [sys.executable, tmp_path / "deploy/lock.py", "--check"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert complaint in done.stderr


def test_the_lock_fits():
    lock("--check")


def test_images_and_make_take_packages_by_their_hashes_alone():
    for path in ("Makefile", "deploy/docker/Dockerfile"):
        text = (ROOT / path).read_text().replace("\\\n", " ")
        for step in re.findall(r"(?:pip install|\$\(PIP\)) (.*)", text):
            assert (
                "--require-hashes" in step
                or "$(TORCH)" in step
                or "torch==" in step
                or "--no-build-isolation" in step
                or (
                    "--quiet" in step and "--disable" in step  # what $(PIP) stands for
                )
            ), f"{path}: {step}"


def test_the_tier_s_image_has_what_its_settings_may_ask_for_and_torch_only_for_gpus():
    """TIERWISE_OTLP_ENDPOINT reaches the containers, so the exporter must be in their image."""
    for engine in ("openvino", "torch"):
        stage = (ROOT / "deploy/docker/Dockerfile").read_text().partition(f" AS packages-{engine}\n")[2]
        (step,) = re.findall(r"--pick '(tierwise[^']*)' >picked", stage.partition("\nFROM ")[0])
        found = names(lock("--pick", step).splitlines())
        assert {"opentelemetry-sdk", "opentelemetry-exporter-otlp-proto-http"} <= found
        assert ("transformers" in found) == (engine == "torch")
