"""Three replicas of the cloud as processes behind one end: one is killed, one drains, one comes back, under load."""

import asyncio
import os
import signal
import subprocess
import sys
import time

import httpx
import pytest

from lab.live.stack import free_ports

CLEAN = {key: value for key, value in os.environ.items() if not key.startswith("TIERWISE_")}
CLEAN |= {"TIERWISE_PRECISION": "fp32", "TIERWISE_UPSTREAMS": "", "TIERWISE_QUEUE_WAIT_MS": "60000"}
LIMIT_S = 90.0


class Cloud:
    """A replica as a process."""

    def __init__(self, bundle, port):
        self.port, self.bundle = port, bundle
        self.url = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self):
        settings = {"TIERWISE_BUNDLE": str(self.bundle), "TIERWISE_PORT": str(self.port)}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "services.cloud"], env=CLEAN | settings, stderr=subprocess.DEVNULL
        )

    def wait_until_ready(self):
        until = time.monotonic() + LIMIT_S
        while True:
            try:
                if httpx.get(f"{self.url}/readyz").status_code == 200:
                    return
            except httpx.HTTPError:
                assert self.process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.05)


@pytest.fixture
def clouds(tiny_bundle):
    first = free_ports(3)
    started = [Cloud(tiny_bundle, first + n) for n in range(3)]
    try:
        for cloud in started:
            cloud.wait_until_ready()
        yield started
    finally:
        for cloud in started:
            cloud.process.kill()
            cloud.process.wait()


def test_replicas_that_are_killed_and_drained_under_load_lose_nothing(listening, clouds):
    upstreams = {"cloud": "|".join(cloud.url for cloud in clouds)}
    url, *_ = listening(upstreams=upstreams, link_profiles={"cloud": "ideal"}, links="none", probe_ms=100)
    body = {"inputs": "a fine film", "options": {"policy": "cloud-only"}}
    answers = []

    async def user(client, stop):
        while not stop.is_set():
            answer = await client.post("/v1/classify", json=body)
            answers.append((answer.status_code, answer.json()["results"][0]["degraded"]))

    async def states(client):
        link = (await client.get("/info")).json()["links"][0]
        return [one["breaker"] for one in link["replicas"]]

    async def until(met):
        async with asyncio.timeout(LIMIT_S):
            while not await met():
                await asyncio.sleep(0.02)

    async def more(count):
        have = len(answers)

        async def met():
            return len(answers) >= have + count

        await until(met)

    async def story():
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            stop = asyncio.Event()
            users = [asyncio.create_task(user(client, stop)) for _ in range(6)]
            await more(60)
            clouds[0].process.kill()
            clouds[0].process.wait()
            await more(60)
            assert (await states(client))[0] == "open"
            clouds[1].process.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(clouds[1].process.wait, LIMIT_S) == 0
            await more(60)
            clouds[0].start()

            async def back():
                return (await states(client))[0] == "closed"

            await until(back)
            await more(60)
            stop.set()
            await asyncio.gather(*users)

    asyncio.run(story())
    assert set(answers) == {(200, None)}
