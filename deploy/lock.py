"""Write requirements.lock from pyproject.toml, or with `--check` say whether its pins still fit (nothing is resolved).

Every package has the hashes of its files on PyPI, so pip takes these bytes and no others, and says who asked for it.
`--pick NAME...` prints the part that some packages need; `tierwise[EXTRA]` stands for what pyproject.toml lists.

torch is left out, with its own CUDA dependencies: its builds lie on several indexes and have other bytes on each. Its
version stands in pyproject.toml alone; `--torch` prints it.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
LOCK = ROOT / "requirements.lock"
HEADER = "# Every package at the version that is tested. Made by `make lock` from pyproject.toml.\n"
EXTRAS = ("lab", "otel", "dev")
LEFT_OUT = ("torch==", "pip==", "nvidia-", "triton", "cuda-")
_ENTRY = re.compile(r"^(?P<name>[a-z0-9-]+)==.*\n(?: +.*\n)*", re.MULTILINE)  # a pin, its hashes, who asked for it
_ASKED = re.compile(r"^ +# +(?:via +)?(?P<by>[a-z0-9-]+)$", re.MULTILINE)


def resolve() -> str:
    """The lock's text: pinned versions that are in the lock stay unless pyproject.toml rules them out."""
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "requirements.txt"
        if LOCK.exists():
            out.write_text(LOCK.read_text())
        command = [
            sys.executable,
            "-m",
            "piptools",
            "compile",
            "--quiet",
            f"--extra={','.join(EXTRAS)}",
            "--generate-hashes",
        ]
        options = ["--no-header", "--no-emit-index-url", "--no-emit-find-links", "--strip-extras", "--allow-unsafe"]
        subprocess.run([*command, *options, "--output-file", str(out), "pyproject.toml"], check=True, cwd=ROOT)
        entries = {entry["name"]: entry.group() for entry in _ENTRY.finditer(out.read_text())}
    return HEADER + "".join(entry for _, entry in sorted(entries.items()) if not entry.startswith(LEFT_OUT))


def pick(wanted: list[str]) -> str:
    """The entries of the lock that `wanted` need: packages, or `tierwise[EXTRA,...]`."""
    entries = {entry["name"]: entry.group() for entry in _ENTRY.finditer(LOCK.read_text())}
    needs: dict[str, list[str]] = {}
    for name, entry in entries.items():
        for by in _ASKED.findall(entry):
            needs.setdefault(by, []).append(name)
    todo, found = [root for name in wanted for root in _roots(name)], set[str]()
    while todo:
        if (name := todo.pop()) not in found:
            found.add(name)
            todo += needs.get(name, [])
    if unknown := found - entries.keys() - {"torch"}:
        raise SystemExit(f"not in requirements.lock: {', '.join(sorted(unknown))}")
    return "".join(entries[name] for name in sorted(found & entries.keys()))


def _roots(wanted: str) -> list[str]:
    name, _, extras = wanted.rstrip("]").partition("[")
    if name != "tierwise":
        return [name]
    return [re.split(r"[^A-Za-z0-9-]", line)[0].lower() for line in _listed(filter(None, extras.split(",")))]


def _listed(extras: Iterable[str]) -> list[str]:
    """The requirements of pyproject.toml, with those of some extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return project["dependencies"] + [line for extra in extras for line in project["optional-dependencies"][extra]]


def misfits() -> list[str]:
    """What does not fit: requirements without a pin that meets them, and pins that nothing in the lock asks for."""
    from packaging.requirements import Requirement  # `--pick` and `--torch` run where nothing is installed yet

    wanted = [Requirement(line) for line in _listed(EXTRAS)]
    entries = {entry["name"]: entry.group() for entry in _ENTRY.finditer(LOCK.read_text())}
    pins = {name: re.split(r"[\s;]", entry.partition("==")[2])[0] for name, entry in entries.items()}
    asked = {one.name.lower() for one in wanted}
    unmet = [str(one) for one in wanted if one.name != "torch" and not _met(one, pins)]
    known = {*entries, "torch"}
    idle = [name for name, entry in entries.items() if name not in asked and not known & {*_ASKED.findall(entry)}]
    return [*unmet, *(f"{name}=={pins[name]}" for name in idle)]


def _met(wanted: Requirement, pins: dict[str, str]) -> bool:
    pin = pins.get(wanted.name.lower())
    return pin is not None and wanted.specifier.contains(pin, prereleases=True)


def torch() -> str:
    """torch as pyproject.toml pins it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return next(line for line in project["dependencies"] if line.startswith("torch=="))


def main(asked: list[str]) -> int:
    """Write, compare, or print a part."""
    if asked[:1] == ["--torch"]:
        print(torch())
        return 0
    if asked[:1] == ["--pick"]:
        print(pick(asked[1:]), end="")
        return 0
    if asked != ["--check"]:
        LOCK.write_text(resolve())
        return 0
    if wrong := misfits():
        print(f"requirements.lock does not fit pyproject.toml: {', '.join(wrong)}; run `make lock`", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
