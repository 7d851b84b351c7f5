"""What `services/` says is what runs: a default changed there is seen in the tiers that a command starts."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from lab.live.stack import free_ports
from shared.links.clients import Client

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(("tier", "index"), [("end", 0), ("cloud", 2)])
def test_a_default_that_is_changed_in_a_service_is_in_force_in_serve(tiny_bundle, tmp_path, tier, index):
    for folder in ("services", "shared", "deploy/netem"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    role = tmp_path / "services" / tier / "__init__.py"
    text = role.read_text().replace(", threads=2", "").replace(f'tier="{tier}",', f'tier="{tier}", threads=3,')
    role.write_text(text)
    port = free_ports(3)
    command = [sys.executable, "-m", "lab.cli.main", "serve", "--bundle", str(tiny_bundle), "--port", str(port)]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("TIERWISE_")}
    child = subprocess.Popen(command, cwd=tmp_path, env={**environment, "PYTHONPATH": str(tmp_path)})
    try:
        with Client(f"http://127.0.0.1:{port + index}") as client:
            assert threads(client, child) == 3
    finally:
        child.terminate()
        child.wait(60)


def threads(client, child):
    """What the tier says once it is there."""
    deadline = time.monotonic() + 120
    while True:
        try:
            return client.get("/info").json()["threads"]
        except httpx.TransportError:
            pass
        assert child.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.2)
