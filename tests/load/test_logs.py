"""A tier whose log goes nowhere answers as one whose log goes into a file, as fast, and stops as cleanly.

Five tiers as processes: standard error is a file, closed, full, a pipe whose reader left, a pipe whose reader stopped.
One client asks each in turn, so that what else the machine does is the same for all.

TEST_LOGGED   requests to each (300; the full count is 10,000)
"""

import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from shared.links.clients import Client

REQUESTS = int(os.environ.get("TEST_LOGGED", "300"))
CLEAN = {key: value for key, value in os.environ.items() if not key.startswith("TIERWISE_")}
LOGS = ("file", "closed", "full", "reader left", "reader stopped")
DRAIN_S = 20
pytestmark = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")


def start(bundle, port, log, folder):
    """The tier's process, with such a standard error."""
    settings = {"TIERWISE_BUNDLE": str(bundle), "TIERWISE_PORT": str(port), "TIERWISE_UPSTREAMS": ""}
    command = [sys.executable, "-m", "services.end"]
    if log == "closed":
        command = ["sh", "-c", 'exec "$@" 2>&-', "sh", *command]
    if log.startswith("reader"):
        reader, stderr = os.pipe()  # a pipe holds 64 KiB
    else:
        stderr = os.open("/dev/full" if log == "full" else folder / "log", os.O_WRONLY | os.O_CREAT)
    child = subprocess.Popen(command, env={**CLEAN, **settings}, stderr=stderr)
    os.close(stderr)
    if log == "reader left":
        os.close(reader)
    return child


def wait_ready(children, urls):
    until = time.monotonic() + 240
    for child, url in zip(children, urls, strict=True):
        while time.monotonic() < until:
            try:
                with Client(url) as client:
                    client.get("/readyz").raise_for_status()
                    break
            except httpx.HTTPError:
                assert child.poll() is None
                time.sleep(0.2)


def log_lines(url):
    with Client(url) as client:
        families = text_string_to_metric_families(client.get("/metrics").text)
    samples = [s for f in families for s in f.samples if s.name == "tierwise_log_lines_total"]
    return {sample.labels["outcome"]: int(sample.value) for sample in samples}


@pytest.fixture
def tiers(tiny_bundle, tmp_path):
    with ExitStack() as free:
        sockets = [free.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in LOGS]
        ports = [one.getsockname()[1] for one in sockets]
    urls = [f"http://127.0.0.1:{port}" for port in ports]
    children = [start(tiny_bundle, port, log, tmp_path) for port, log in zip(ports, LOGS, strict=True)]
    try:
        wait_ready(children, urls)
        yield dict(zip(LOGS, zip(children, urls, strict=True), strict=True))
    finally:
        for child in children:
            child.kill()
            child.wait()


def test_a_log_that_cannot_be_written_fails_and_holds_neither_requests_nor_the_stop(tiers, tmp_path):
    times, statuses = {log: [] for log in LOGS}, {log: set() for log in LOGS}
    with ExitStack() as stack:
        clients = {log: stack.enter_context(Client(url, timeout=20)) for log, (_, url) in tiers.items()}
        for _ in range(REQUESTS):
            for log, client in clients.items():
                started = time.perf_counter()
                statuses[log].add(client.post("/v1/classify", json={"inputs": "a fine film"}).status_code)
                times[log].append(1e3 * (time.perf_counter() - started))
    counted = {log: log_lines(url) for log, (_, url) in tiers.items()}
    stops = {}
    for log, (child, _) in tiers.items():
        began = time.monotonic()
        child.send_signal(signal.SIGTERM)
        stops[log] = (child.wait(timeout=DRAIN_S), time.monotonic() - began)
    for log, spent in times.items():
        p50, p99 = statistics.median(spent), statistics.quantiles(spent, n=100)[98]
        print(f"{log:15} p50 {p50:6.2f} ms  p99 {p99:6.2f} ms  {counted[log]}  stop {stops[log][1]:.2f} s")
    assert statuses == {log: {200} for log in LOGS}
    assert {log: status for log, (status, _) in stops.items()} == dict.fromkeys(LOGS, 0)
    written = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert sum(line["event"] == "request" for line in written) == REQUESTS  # before the scrape: a file loses none
    for log in ("closed", "full", "reader left"):
        assert counted[log]["kept"] == 0
        assert counted[log]["lost"] >= REQUESTS
