"""`make gpu`: the CUDA tests, then speed and throughput on a GPU, in one script of a few minutes.

    python -m tests.bench.gpu                           on a GPU; writes docs/results/gpu.json
    python -m tests.bench.gpu --device cpu --quick      the same paths on a CPU: a rehearsal that claims nothing

It ends with exit status 1 if a CUDA test fails, or if recorded layers answer otherwise than plain ones; with 2 where
there is no CUDA device.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from lab.console import screen
from shared.errors import TierwiseError
from shared.model.bundle import load_bundle
from tests.bench import gpu_load, gpu_speed
from tests.bench.speed import show

BUNDLE, RESULTS = "collaborative", Path("docs/results/gpu.json")
REHEARSAL = "CPU rehearsal, no GPU claim"
MOST_DP = 0.05  # between recorded and plain layers: padding takes another attention kernel, in bf16
NO_CUDA = (
    "gpu: torch sees no CUDA device: run it where `nvidia-smi` lists one, with torch's CUDA build (`make setup` "
    'without TORCH_INDEX); `make gpu GPU="--device cpu --quick"` rehearses it on this CPU'
)


class Device(StrEnum):
    CUDA = "cuda"
    CPU = "cpu"


def hardware(device: Device) -> dict[str, Any]:
    """What computes."""
    if device is Device.CPU:
        return {"processor": platform.processor() or platform.machine()}
    properties = torch.cuda.get_device_properties(0)
    return {
        "gpu": properties.name,
        "memory_gb": round(properties.total_memory / 1e9),
        "capability": f"{properties.major}.{properties.minor}",
        "cuda": torch.version.cuda,
    }


def cuda_tests() -> str:
    """Run them; their last line, with the number that was skipped for want of a device."""
    asked = ["tests/unit/model", "-m", "cuda", "-rs", "-o", "addopts=--strict-markers --import-mode=importlib"]
    done = subprocess.run([sys.executable, "-m", "pytest", *asked, "--color=no"], capture_output=True, text=True)
    lines = done.stdout.strip().splitlines() or [done.stderr.strip()]
    if done.returncode:
        sys.exit("\n".join([*lines, "gpu: the CUDA tests fail, so nothing is measured"]))
    return lines[-1].strip("= ")


def place(device: Device, out: Path | None) -> Path:
    """Where the figures go: a rehearsal never where a GPU's are kept."""
    if device is Device.CUDA:
        return out or RESULTS
    if out and out.resolve() == RESULTS.resolve():
        sys.exit(f"gpu: {RESULTS} is for figures of a GPU; choose another --out")
    return out or Path(tempfile.gettempdir()) / "tierwise-gpu-rehearsal.json"


def measured(device: Device, quick: bool, port: int, console: Console) -> dict[str, Any]:
    """Every figure."""
    bundle, plan = load_bundle(BUNDLE), gpu_speed.QUICK if quick else gpu_speed.FULL
    figures: dict[str, Any] = {"rounds": plan.rounds, "whole": [], "layers": [], "precision": {}, "missing": {}}
    for tier in gpu_speed.TIERS:
        contest = gpu_speed.contest(bundle, tier, device.value)
        figures["precision"][contest.name] = contest.ours[gpu_speed.PLAIN].runs_on
        figures["missing"][contest.name] = dict(contest.missing)
        for part, rows in gpu_speed.speeds(contest, plan, console).items():
            figures[part] += rows
    effort = gpu_load.QUICK if quick else gpu_load.FULL
    return figures | {"load": gpu_load.throughput(BUNDLE, device.value, port, effort, console)}


def report(console: Console, figures: dict[str, Any]) -> None:
    """The tables; a rehearsal says so first and last."""
    console.rule(figures["claim"])
    show(console, "whole passes, medians", figures["whole"])
    show(console, "single layers, medians", figures["layers"])
    for name, missing in figures["missing"].items():
        for rival, why in missing.items():
            console.print(f"{name}: no {rival}: {why}", markup=False, highlight=False)
    found = figures["load"]
    show(console, f"one {found['tier']} tier, open loop", [found["rest"], *found["tried"]])
    best = found["highest"]
    console.print(
        f"highest rate with p95 within {found['limit']:g} times that at rest: "
        + (f"{best['rate']:.1f} requests/s (p95 {best['p95_ms']:.1f} ms)" if best else "none that was tried")
    )
    console.rule(figures["claim"])


def main(
    device: Annotated[Device, typer.Option(help="Where to run; cpu is a rehearsal.")] = Device.CUDA,
    quick: Annotated[bool, typer.Option("--quick", help="Few shapes and rounds.")] = False,
    port: Annotated[int, typer.Option(help="First port of the tiers.")] = 8090,
    out: Annotated[Path | None, typer.Option(help="Where the figures go.")] = None,
) -> None:
    """Test, measure, print the tables, write the figures."""
    if device is Device.CUDA and not torch.cuda.is_available():
        print(NO_CUDA, file=sys.stderr)
        raise typer.Exit(2)
    console, to = screen(), place(device, out)
    tests = cuda_tests()
    try:
        found = measured(device, quick, port, console)
    except TierwiseError as error:
        sys.exit(f"gpu: {error}")
    figures = {
        "claim": "measured on a GPU" if device is Device.CUDA else REHEARSAL,
        "date": datetime.now(UTC).date().isoformat(),
        "hardware": hardware(device),
        "versions": {name: version(name) for name in ("torch", "transformers")},
        "tests": tests,
        "quick": quick,
        **found,
    }
    to.write_text(json.dumps(figures, indent=1) + "\n")
    report(console, figures)
    console.print(f"tests: {tests}; written: {to}", markup=False, highlight=False)
    worst = max(row["dp"][gpu_speed.GRAPHS] for row in figures["whole"])
    if worst > MOST_DP:
        sys.exit(f"gpu: recorded layers move a probability by {worst:.3f}, more than {MOST_DP}")


if __name__ == "__main__":
    typer.run(main)
