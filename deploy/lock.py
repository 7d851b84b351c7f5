"""Write requirements.lock from pyproject.toml, or with `--check` say whether its pins still fit (nothing is resolved).

Every package stands with the hashes of its files on PyPI, so that pip takes no other bytes, and with who asked for it.
`--pick NAME...` prints the part that some packages need; `tierwise[EXTRA]` stands for what pyproject.toml lists.

torch is left out, with its CUDA dependencies: its builds lie on several indexes and have other bytes on each. Its
version stands in pyproject.toml alone. openvino-telemetry is left out too: it reports use to its makers, and openvino
runs without it.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOCK = ROOT / "requirements.lock"
HEADER = "# Every package at the version that is tested. Made by `make lock` from pyproject.toml.\n"
LEFT_OUT = ("torch==", "pip==", "nvidia-", "triton==", "cuda-", "openvino-telemetry==")
_ENTRY = re.compile(r"^(?P<name>[a-z0-9-]+)==.*\n(?: +.*\n)*", re.MULTILINE)  # a pin, its hashes, who asked for it
_ASKED = re.compile(r"^ +# +(?:via +)?(?P<by>[a-z0-9-]+)$", re.MULTILINE)


def write() -> None:
    """Resolve pyproject.toml, as its [tool.pip-tools] says; pins in the lock stay unless requirements rule them out."""
    command = [sys.executable, "-m", "piptools", "compile", "--quiet", f"--output-file={LOCK}", "pyproject.toml"]
    subprocess.run(command, check=True, cwd=ROOT)
    kept = [entry for _, entry in sorted(_entries().items()) if not entry.startswith(LEFT_OUT)]
    LOCK.write_text(HEADER + "".join(kept))


def pick(wanted: list[str]) -> str:
    """The entries of the lock that `wanted` need: packages, or `tierwise[EXTRA,...]`."""
    entries = _entries()
    needs: dict[str, list[str]] = {}
    for name, entry in entries.items():
        for by in _ASKED.findall(entry):
            needs.setdefault(by, []).append(name)
    todo, found = list[str](), set[str]()
    for name in wanted:
        package, _, extras = name.rstrip("]").partition("[")
        requirements = _requirements(filter(None, extras.split(","))) if package == "tierwise" else [package]
        todo += [re.split(r"[^A-Za-z0-9-]", requirement)[0].lower() for requirement in requirements]
    while todo:
        if (name := todo.pop()) not in found:
            found.add(name)
            todo += needs.get(name, [])
    if unknown := found - entries.keys() - {"torch"}:
        raise SystemExit(f"not in requirements.lock: {', '.join(sorted(unknown))}")
    return "".join(entries[name] for name in sorted(found & entries.keys()))


def misfits() -> list[str]:
    """What does not fit: requirements without a pin that meets them, and pins that nothing in the lock asks for."""
    from packaging.requirements import Requirement  # `--pick` runs where nothing is installed yet

    wanted = {one.name.lower(): one for one in map(Requirement, _requirements()) if one.name != "torch"}
    entries = _entries()
    pins = {name: re.split(r"[\s;]", entry.partition("==")[2])[0] for name, entry in entries.items()}
    unmet = [
        str(one)
        for name, one in wanted.items()
        if name not in pins or not one.specifier.contains(pins[name], prereleases=True)
    ]
    known = {*entries, "torch"}
    idle = [name for name, entry in entries.items() if name not in wanted and known.isdisjoint(_ASKED.findall(entry))]
    return [*unmet, *(f"{name}=={pins[name]}" for name in idle)]


def _entries() -> dict[str, str]:
    """The lock's text by package: its pin, its hashes, and who asked for it."""
    return {entry["name"]: entry.group() for entry in _ENTRY.finditer(LOCK.read_text())}


def _requirements(extras: Iterable[str] | None = None) -> list[str]:
    """The requirements of pyproject.toml, with those of some extras, or of all."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    optional = project["optional-dependencies"]
    chosen = optional if extras is None else extras
    return project["dependencies"] + [line for extra in chosen for line in optional[extra]]


def main(asked: list[str]) -> int:
    """Write, compare, or print a part."""
    if asked[:1] == ["--pick"]:
        print(pick(asked[1:]), end="")
    elif asked != ["--check"]:
        write()
    elif wrong := misfits():
        print(f"requirements.lock does not fit pyproject.toml: {', '.join(wrong)}; run `make lock`", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
