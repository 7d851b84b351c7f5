"""What the environment says about proxies never sends a text elsewhere, and never keeps anything from starting."""

import contextlib
import socket
import subprocess
import sys
import threading
import time

import httpx
import pytest

from lab.live.stack import free_ports
from shared.web.tracing import exporting
from tests.commands import CLEAN, tierwise

VARIANTS = {
    "HTTP_PROXY": {"HTTP_PROXY": "http://{proxy}"},
    "http_proxy": {"http_proxy": "http://{proxy}"},
    "HTTPS_PROXY": {"HTTPS_PROXY": "http://{proxy}", "https_proxy": "http://{proxy}"},
    "ALL_PROXY": {"ALL_PROXY": "http://{proxy}"},
    "socks5": {"ALL_PROXY": "socks5://{proxy}", "NO_PROXY": "localhost,127.0.0.1"},
    "socks5h, lower case": {"all_proxy": "socks5h://{proxy}"},
    "no such scheme": {"all_proxy": "ftp://{proxy}"},
    "no URL": {"HTTP_PROXY": "http://[::1", "NO_PROXY": "*"},
    "NO_PROXY of others": {"HTTP_PROXY": "http://{proxy}", "NO_PROXY": "example.org"},
}


class Proxy:
    """Listens as a proxy would, and keeps the connections that it got."""

    def __init__(self):
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self.socket.getsockname()[1]}"
        self.got = []
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self):
        with contextlib.suppress(OSError):
            while True:
                caller, _ = self.socket.accept()
                self.got.append(caller.recv(65536))
                caller.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
                caller.close()


@pytest.fixture
def proxy():
    proxy = Proxy()
    yield proxy
    proxy.socket.shutdown(socket.SHUT_RDWR)
    proxy.socket.close()


@pytest.fixture(params=VARIANTS.values(), ids=VARIANTS)
def environment(request, proxy):
    """Variables that name the proxy, each way that clients know."""
    return {name: value.format(proxy=proxy.address) for name, value in request.param.items()}


@pytest.fixture(scope="module")
def edge(staying):
    return staying(tier="edge")[0]


def test_a_text_goes_to_the_next_tier_and_to_nobody_else(listening, edge, monkeypatch, proxy, environment, always):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    end, *_ = listening(upstreams={"edge": edge}, link_profiles={"edge": "ideal"})
    for name in environment:
        monkeypatch.delenv(name)
    body = {"inputs": "a fine film", "options": {"policy": always}}
    result = httpx.post(f"{end}/v1/classify", json=body).json()["results"][0]
    assert (result["degraded"], [hop["tier"] for hop in result["hops"]]) == (None, ["end", "edge"])
    assert proxy.got == []


def test_the_command_line_asks_the_tier_itself(three, proxy, environment):
    done = tierwise("classify", "a fine film", "--url", three, **environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert proxy.got == []


def test_serve_sees_its_own_tiers_get_ready(tiny_bundle, proxy, tmp_path):
    environment = {name: value.format(proxy=proxy.address) for name, value in VARIANTS["HTTP_PROXY"].items()}
    command = [
        sys.executable,
        "-m",
        "lab.cli.main",
        "serve",
        "--bundle",
        str(tiny_bundle),
        "--port",
        str(free_ports(3)),
        "--link",
        "ideal",
    ]
    with (tmp_path / "log").open("w") as log:
        child = subprocess.Popen(command, env={**CLEAN, **environment}, stdout=log, stderr=log)
        try:
            until = time.monotonic() + 90
            while "ready: http" not in (said := (tmp_path / "log").read_text()):
                assert child.poll() is None, said
                assert time.monotonic() < until, said
                time.sleep(0.1)
        finally:
            child.terminate()
            child.wait(30)
    assert proxy.got == []


def test_spans_go_to_the_collector_itself(proxy, monkeypatch):
    collector = Proxy()
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    monkeypatch.setenv("HTTP_PROXY", f"http://{proxy.address}")
    monkeypatch.setenv("ALL_PROXY", f"http://{proxy.address}")
    with exporting(f"http://{collector.address}/v1/traces", "end").span("/v1/classify", {}):
        pass
    until = time.monotonic() + 20
    while not (collector.got or proxy.got):
        assert time.monotonic() < until
        time.sleep(0.05)
    assert proxy.got == []
    assert collector.got[0].startswith(b"POST /v1/traces")
