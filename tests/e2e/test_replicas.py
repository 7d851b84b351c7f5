"""Three replicas of the cloud behind one name, as `docker compose up --scale cloud=3` starts them; links are simulated.

Under load one is killed, and one is updated: a new one is started, an old one is stopped.
"""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import docker
import httpx
import pytest

from lab.live.demo import REVIEWS
from tests.e2e.conftest import PROJECT, sh

API = 18081
STACK = {
    "COMPOSE_PROJECT_NAME": f"{PROJECT}-replicas",
    "COMPOSE_FILE": "docker-compose.yml:deploy/compose.replicas.yml",
    "TIERWISE_BIND": f"127.0.0.1:{API}",
    "TIERWISE_QUEUE_WAIT_MS": "20000",
    "TIERWISE_HEALTH_INTERVAL": "2s",
}


def clouds(**options):
    """Its containers, oldest first."""
    labels = [f"com.docker.compose.project={STACK['COMPOSE_PROJECT_NAME']}", "com.docker.compose.service=cloud"]
    found = docker.from_env().containers.list(filters={"label": labels}, **options)
    return sorted(found, key=lambda one: one.attrs["Created"])


@pytest.fixture
def client():
    compose = ("docker", "compose")
    try:
        sh(*compose, "up", "-d", "--wait", "--no-build", "--scale", "cloud=3", "end", "cloud", **STACK)
        with httpx.Client(base_url=f"http://127.0.0.1:{API}", timeout=120) as client:
            yield client
    finally:
        sh(*compose, "down", "--volumes", "--remove-orphans", **STACK)


class Load:
    """Callers who ask the cloud one text after the other; every answer is kept."""

    def __init__(self, client, callers=3):
        self._client, self._stop, self.answers, self._callers = client, threading.Event(), [], callers

    def __enter__(self):
        self._pool = ThreadPoolExecutor(self._callers)
        self._done = [self._pool.submit(self._ask, n) for n in range(self._callers)]
        return self

    def _ask(self, n):
        while not self._stop.is_set():
            body = {"inputs": REVIEWS[n % len(REVIEWS)], "options": {"policy": "cloud-only"}}
            answer = self._client.post("/v1/classify", json=body)
            told = answer.json()["results"][0] if answer.status_code == 200 else {}
            self.answers.append((answer.status_code, told.get("tier"), told.get("degraded")))

    def more(self, count):
        have, until = len(self.answers), time.monotonic() + 120
        while len(self.answers) < have + count:
            assert time.monotonic() < until, f"{len(self.answers) - have} answers of {count}"
            time.sleep(0.1)

    def __exit__(self, *_):
        self._stop.set()
        self._pool.shutdown()
        for done in self._done:
            done.result()


def replicas(client):
    """{address: breaker} of the link to the cloud, as the end lists them."""
    link = next(link for link in client.get("/info").json()["links"] if link["to"] == "cloud")
    return {one["address"]: one["breaker"] for one in link.get("replicas", [])}


def wait_for(client, load, met):
    until = time.monotonic() + 120
    while not met(found := replicas(client)):
        assert time.monotonic() < until, found
        load.more(2)  # names are looked up when calls are made


def test_a_replica_that_is_killed_and_one_that_is_updated_lose_nothing(client):
    with Load(client) as load:
        load.more(3)
        wait_for(client, load, lambda found: len(found) == 3)
        load.more(12)
        killed = clouds()[0]
        killed.kill()
        load.more(12)
        wait_for(client, load, lambda found: len(found) == 2)  # the name no longer stands for it
        killed.remove()
        up = ("docker", "compose", "up", "-d", "--wait", "--no-build", "--no-deps", "--no-recreate")
        old = clouds()[0]
        sh(*up, "--scale", "cloud=3", "cloud", **STACK, TIERWISE_LOG_LEVEL="debug")
        wait_for(client, load, lambda found: len(found) == 3)
        old.stop(timeout=60)
        old.reload()
        assert old.attrs["State"]["ExitCode"] == 0
        wait_for(client, load, lambda found: list(found.values()) == ["closed"] * 2)
        load.more(12)
    assert set(load.answers) == {(200, "cloud", None)}
    assert len(clouds()) == 2
    for one in clouds():  # both that are left have worked
        metrics = one.exec_run(["python", "-c", METRICS]).output.decode()
        assert float(metrics) > 0


METRICS = """
import urllib.request
lines = urllib.request.urlopen("http://127.0.0.1:8082/metrics").read().decode().splitlines()
print(sum(float(line.split()[-1]) for line in lines if line.startswith("tierwise_exits_total")))
"""
