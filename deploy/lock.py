"""Write requirements.lock from pyproject.toml, or with `--check` say whether it still fits.

torch's own CUDA dependencies are left out on purpose: a CUDA build brings them along by itself, a CPU build has none.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOCK = ROOT / "requirements.lock"
HEADER = "# Every package at the version that is tested. Made by `make lock` from pyproject.toml.\n"
CUDA = ("nvidia-", "triton", "cuda-")


def resolve() -> str:
    """The lock's text: pinned versions that are in the lock stay unless pyproject.toml rules them out."""
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "requirements.txt"
        if LOCK.exists():
            out.write_text(LOCK.read_text())
        command = [sys.executable, "-m", "piptools", "compile", "--quiet", "--extra=lab,otel,dev"]
        options = ["--no-header", "--no-annotate", "--no-emit-index-url", "--no-emit-find-links", "--strip-extras"]
        subprocess.run([*command, *options, "--output-file", str(out), "pyproject.toml"], check=True, cwd=ROOT)
        lines = [line for line in out.read_text().splitlines() if line and not line.startswith(("#", "-"))]
    pins = [line.partition("+")[0] for line in lines if not line.startswith(CUDA)]  # torch==2.13.0+cpu is a local build
    return HEADER + "".join(f"{pin}\n" for pin in sorted(pins))


def main() -> int:
    """Write, or compare."""
    resolved = resolve()
    if "--check" not in sys.argv:
        LOCK.write_text(resolved)
        return 0
    if LOCK.read_text() != resolved:
        print("requirements.lock does not fit pyproject.toml: run `make lock`", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
