"""What `services/` says is what runs: a default changed there is seen in the tiers that a command starts."""

import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import httpx

from lab.live.stack import free_ports
from shared.links.clients import Client
from tests.commands import CLEAN

ROOT = Path(__file__).resolve().parents[2]
THREADS = {"end": 3, "edge": 4, "cloud": 5}  # none is a default


def test_defaults_that_are_changed_in_services_and_the_environment_are_in_force_in_serve(tiny_bundle, tmp_path):
    for folder in ("services", "shared", "lab", "deploy/netem"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for tier, count in THREADS.items():
        role = tmp_path / "services" / tier / "__init__.py"
        text = re.sub(r",\s*threads=\d+", "", role.read_text())
        role.write_text(text.replace(f'tier="{tier}",', f'tier="{tier}", threads={count},'))
    port = free_ports(3)
    command = [sys.executable, "-m", "lab.cli.main", "serve", "--bundle", str(tiny_bundle), "--port", str(port)]
    environment = {**CLEAN, "PYTHONPATH": str(tmp_path), "TIERWISE_MAX_INPUTS": "20"}
    child = subprocess.Popen(command, cwd=tmp_path, env=environment)
    try:
        for at, count in enumerate(THREADS.values()):
            with Client(f"http://127.0.0.1:{port + at}") as client:
                said = info(client, child)
            assert (said["threads"], said["limits"]["max_inputs"]) == (count, 20)
    finally:
        child.terminate()
        child.wait(60)


def info(client, child):
    """What the tier says once it is there."""
    deadline = time.monotonic() + 120
    while True:
        try:
            return client.get("/info").json()
        except httpx.TransportError:
            pass
        assert child.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.2)
