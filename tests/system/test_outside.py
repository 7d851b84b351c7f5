"""What is slow or broken outside of a tier's process: it holds neither answers nor the stop, and the log stays JSON."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import httpx
import pytest

from shared.web.app import create_app
from shared.web.settings import Settings

CLEAN = {key: value for key, value in os.environ.items() if not key.startswith("TIERWISE_")}
DRAIN_S = 20
PROMPT_S = 8  # what a stop may take of it here: half a second of notice, bounded closings, a busy machine


@pytest.fixture
def process(tiny_bundle):
    """A builder: (url, the tier's process), ready; killed at the end."""
    children = []

    def start(before=lambda: None, **settings):
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        ours = {"TIERWISE_BUNDLE": str(tiny_bundle), "TIERWISE_PORT": str(port), "TIERWISE_UPSTREAMS": ""}
        child = subprocess.Popen(
            [sys.executable, "-m", "services.end"],
            env={**CLEAN, **ours, **settings},
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=before,
        )
        children.append(child)
        url = f"http://127.0.0.1:{port}"
        until = time.monotonic() + 120
        while time.monotonic() < until:
            try:
                if httpx.get(f"{url}/readyz").status_code == 200:
                    return url, child
            except httpx.HTTPError:
                if child.poll() is not None:
                    break
                time.sleep(0.1)
        raise AssertionError(child.communicate()[1])

    yield start
    for child in children:
        child.kill()
        child.communicate()


def stopped(child):
    """(exit status, the lines of its log); within the drain."""
    child.send_signal(signal.SIGTERM)
    _, said = child.communicate(timeout=DRAIN_S)
    return child.returncode, [json.loads(line) for line in said.splitlines()]


def test_a_collector_of_spans_that_does_not_answer_holds_neither_requests_nor_the_stop(process):
    with socket.create_server(("127.0.0.1", 0)) as collector:  # connections are made, and nothing comes back
        endpoint = f"http://127.0.0.1:{collector.getsockname()[1]}/v1/traces"
        url, child = process(TIERWISE_OTLP_ENDPOINT=endpoint)
        for _ in range(5):
            assert httpx.post(f"{url}/v1/classify", json={"inputs": "a fine film"}).status_code == 200
        began = time.monotonic()
        status, lines = stopped(child)
        took = time.monotonic() - began
    assert status == 0
    assert took < PROMPT_S  # the exporter's own patience is 10 s, its shutdown's 30 s
    assert [line["event"] for line in lines].count("request") == 5


def test_a_name_lookup_that_hangs_does_not_hold_the_stop(tiny_bundle):
    app, go = create_app(Settings(tier="end", bundle=str(tiny_bundle))), threading.Event()

    async def life():
        async with app.router.lifespan_context(app):
            asyncio.get_running_loop().run_in_executor(None, go.wait, 30)
            await asyncio.sleep(0.1)

    began = time.monotonic()
    asyncio.run(life())
    took = time.monotonic() - began
    go.set()
    assert took < PROMPT_S


def test_a_working_directory_that_was_deleted_is_one_line(tmp_path):
    for module in ("services.end", "lab.cli.main"):
        gone = tmp_path / "gone"
        gone.mkdir()
        command = ["sh", "-c", 'rmdir "$PWD"; exec "$@"', "sh", sys.executable, "-m", module, "print-config"]
        root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
        env = {**CLEAN, "PYTHONPATH": root}
        child = subprocess.run(command, cwd=gone, env=env, capture_output=True, text=True, timeout=60)
        assert (child.returncode, child.stderr.count("\n")) == (2, 1)
        assert "the working directory was deleted" in child.stderr
