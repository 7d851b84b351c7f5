"""Every query of every dashboard has data: three tiers as processes, shapers played by an exporter, a real Prometheus.

Needs `prometheus` and `promtool` (Debian's `prometheus`, or a release's two binaries on the PATH); takes half a minute.
"""

import asyncio
import shutil
import subprocess
import time
from pathlib import Path

import httpx
import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, start_http_server
from rich.console import Console

from lab.live.client import classify
from lab.live.stack import Layout, free_ports, running
from tests.dashboards import ALERTS, alerts, check

pytestmark = pytest.mark.skipif(
    not (shutil.which("prometheus") and shutil.which("promtool")), reason="prometheus and promtool are not on the PATH"
)
CONFIG = ALERTS.with_name("prometheus.yml")
LINKS = {"end": {"end-edge": "up", "end-cloud": "up"}, "edge": {"end-edge": "down", "edge-cloud": "up"}}
LINKS["cloud"] = {"end-cloud": "down", "edge-cloud": "down"}


def play_shaper(port, links):
    """What a shaper exports for the links that its tier sends on; nothing was dropped, nothing has changed."""
    registry = CollectorRegistry()
    settings = {"rate_bytes_per_second": 1.25e8, "delay_seconds": 0.001, "jitter_seconds": 0.0001, "loss_ratio": 0.0}
    for name, value in settings.items():
        gauge = Gauge(f"tierwise_link_config_{name}", "As configured.", ["link", "direction"], registry=registry)
        for link, direction in links.items():
            gauge.labels(link, direction).set(value)
    rtt = Gauge("tierwise_link_rtt_seconds", "Measured.", ["link"], registry=registry)
    sent = Counter("tierwise_link_sent_bytes", "Sent.", ["link"], registry=registry)
    drops = Counter("tierwise_link_drops", "Dropped.", ["link"], registry=registry)
    changes = Counter("tierwise_link_changes", "Changes.", ["link", "kind"], registry=registry)
    for link in links:
        rtt.labels(link).set(0.0021)
        sent.labels(link).inc(1000)
        drops.labels(link)
        changes.labels(link, "profile")
    return start_http_server(port, "127.0.0.1", registry)[0]


@pytest.fixture(scope="module")
def ports():
    """Tiers from `ports`, shapers from `ports + 3`, Prometheus at `ports + 6`."""
    return free_ports(7)


@pytest.fixture(scope="module")
def tiers(tiny_bundle, ports):
    with running(Layout(bundle=str(tiny_bundle), port=ports, backbone="ideal"), Console(quiet=True)) as stack:
        yield stack


@pytest.fixture(scope="module")
def shapers(ports):
    servers = [play_shaper(ports + 3 + index, links) for index, links in enumerate(LINKS.values())]
    yield
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory, ports):
    """A Prometheus with the repository's configuration, its targets moved to this host; its URL."""
    folder, text = tmp_path_factory.mktemp("prometheus"), CONFIG.read_text()
    for index, (tier, port) in enumerate({"end": 8080, "edge": 8081, "cloud": 8082}.items()):
        text = text.replace(f"{tier}-metrics:{port}", f"127.0.0.1:{ports + index}")
        text = text.replace(f"{tier}-metrics:9100", f"127.0.0.1:{ports + 3 + index}")
    assert "metrics:" not in text
    (folder / "prometheus.yml").write_text(text)
    shutil.copy(ALERTS, folder)
    address = f"127.0.0.1:{ports + 6}"
    options = {"config.file": folder / "prometheus.yml", "storage.tsdb.path": folder, "web.listen-address": address}
    with (folder / "log").open("wb") as log:
        command = ["prometheus", *(f"--{name}={value}" for name, value in options.items())]
        child = subprocess.Popen(command, stdout=log, stderr=log)
    yield f"http://{address}"
    child.terminate()
    child.wait(timeout=30)


async def load(url, texts):
    """Every text under every policy, and something refused."""
    async with httpx.AsyncClient(base_url=url, timeout=30) as client:
        always = {"name": "collaborative", "offload_threshold": 1.0}
        for policy in ("collaborative", "tabi", "random", "end-only", "edge-only", "cloud-only", always):
            for text in texts:
                await classify(client, text, {"policy": policy})
        assert (await client.post("/v1/classify", json={"inputs": ""})).status_code == 422


def test_every_query_of_every_dashboard_has_data(tiers, shapers, prometheus, sentences):
    deadline = time.monotonic() + 60
    failures = ["nothing was asked yet"]
    while failures and time.monotonic() < deadline:
        asyncio.run(load(tiers.url, sentences[:4]))
        time.sleep(2.5)  # longer than the time between two scrapes
        failures = check(prometheus, minutes=1)
    assert failures == []


def test_every_alert_is_loaded_and_can_be_asked(tiers, prometheus):
    deadline = time.monotonic() + 60
    health = {"nothing yet": "unknown"}
    while "unknown" in health.values() and time.monotonic() < deadline:  # they are evaluated every 15 s
        time.sleep(1)
        groups = httpx.get(f"{prometheus}/api/v1/rules").json()["data"]["groups"]
        health = {rule["name"]: rule["health"] for group in groups for rule in group["rules"]}
    assert health == {alert.panel: "ok" for alert in alerts()}


def test_promtool_finds_nothing_wrong_with_any_tiers_metrics(tiers):
    for process in tiers.processes:
        metrics = httpx.get(f"{process.url}/metrics").content
        done = subprocess.run(["promtool", "check", "metrics"], input=metrics, capture_output=True)
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_promtool_accepts_the_configuration():
    subprocess.run(["promtool", "check", "config", Path(CONFIG)], check=True, capture_output=True)
