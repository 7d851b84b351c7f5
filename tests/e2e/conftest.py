"""Real containers: the stack as `make up` starts it, on other ports. Needs Docker.

Tests marked `netem` need a kernel with `sch_netem` too. Without one they are skipped, and links are simulated.
"""

import os
import shutil
import subprocess
import time
from functools import cache, wraps
from pathlib import Path
from types import SimpleNamespace

import docker
import httpx
import pytest

ROOT = Path(__file__).resolve().parents[2]
PROJECT = "tierwise-e2e"
TIERS = ("end", "edge", "cloud")
API, PROMETHEUS = 18080, 19090
ENVIRONMENT = {
    "COMPOSE_PROJECT_NAME": PROJECT,
    "TIERWISE_BIND": f"127.0.0.1:{API}",
    "TIERWISE_PROMETHEUS_PORT": str(PROMETHEUS),
    "TIERWISE_QUEUE_WAIT_MS": "1000",  # what refuses for want of time is not what breaks here
    "TIERWISE_LINK_CONTROL": "true",
    "TIERWISE_DASHBOARDS": "0",  # their queries are run against Prometheus instead
}


def sh(*command, check=True, **environment):
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, **ENVIRONMENT, **environment}
    )
    assert not check or done.returncode == 0, f"{command}: {done.stdout[-3000:]}{done.stderr[-3000:]}"
    return done


@cache
def docker_answers():
    return shutil.which("docker") is not None and sh("docker", "info", check=False).returncode == 0


@cache
def backend():
    """What the stack's links are here: `netem`, or `simulated` where the kernel cannot shape."""
    ask = "modinfo" if os.geteuid() else "modprobe -q"  # who may not load it, asks whether it is there
    path = {"PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"}
    shapes = subprocess.run(f"{ask} sch_netem", shell=True, env=path, capture_output=True).returncode == 0
    return "netem" if shapes else "simulated"


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent not in item.path.parents:
            continue
        if not docker_answers():
            item.add_marker(pytest.mark.skip(reason="no Docker Engine answers"))
        elif item.get_closest_marker("netem") and backend() != "netem":
            item.add_marker(pytest.mark.skip(reason="this kernel has no sch_netem"))


def measured(test):
    """For a test that measures on a kernel whose processor others use too: one of three measurements must hold.

    A wrong shape fails all three. What a slow host delays or sends again fails one.
    """

    @wraps(test)
    def again(*args, **kwargs):
        for attempt in (1, 2, 3):
            try:
                return test(*args, **kwargs)
            except AssertionError as error:
                if attempt == 3:
                    raise
                print(f"measurement {attempt} of 3 did not hold: {str(error)[:300]}")

    return again


def down():
    """Removes the stack, if anything remains of it: asking costs a slow processor less than removing nothing."""
    if remains():
        sh("docker", "compose", "down", "--volumes", "--remove-orphans")


def remains():
    """The names of the stack's containers, networks and volumes that exist."""
    engine, ours = docker.from_env(), {"label": f"com.docker.compose.project={PROJECT}"}
    found = engine.containers.list(all=True, filters=ours) + engine.networks.list(filters=ours)
    return [one.name for one in found + engine.volumes.list(filters=ours)]


def container(service):
    """A service's container, as it is now."""
    return docker.from_env().containers.get(f"{PROJECT}-{service}-1")


def wait_until_ready(tiers, since):
    """Wait until each tier has logged since then that it is ready: reading a log costs less than a request."""
    until = time.monotonic() + 600
    for tier in tiers:
        while b'"event": "ready"' not in container(tier).logs(since=since):
            assert time.monotonic() < until, f"the {tier} does not get ready"
            time.sleep(1)


@pytest.fixture(scope="session")
def stack():
    """Everything up and healthy, from nothing; removed at the end."""
    down()
    os.environ["COMPOSE_PROJECT_NAME"] = PROJECT  # `tierwise link` finds the stack by it
    try:
        try:
            since = time.time()
            printed = sh("deploy/up.sh", TIERWISE_LINKS=backend()).stdout
            wait_until_ready(TIERS, since)
        except AssertionError as error:
            pytest.exit(f"the stack does not come up: {error}", returncode=1)  # every test would try it again
        with httpx.Client(base_url=f"http://127.0.0.1:{API}", timeout=60) as client:
            yield SimpleNamespace(client=client, printed=printed)
    finally:
        down()


@pytest.fixture
def ask(stack):
    """Classify one text or a list; the answer as parsed JSON, with the client's wall time in ms."""

    def ask(inputs, **options):
        started = time.perf_counter()
        answer = stack.client.post("/v1/classify", json={"inputs": inputs, "options": options})
        wall = (time.perf_counter() - started) * 1e3
        assert answer.status_code == 200, answer.text
        return {**answer.json(), "wall_ms": wall}

    return ask
