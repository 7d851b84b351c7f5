"""SIGHUP to a running tier: its policy is loaded again, and no request is lost; on real sockets."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time

import httpx

from lab.live.stack import free_ports
from tests.system.test_drain import CLEAN, load

SIGNALS = 20


def test_reloads_under_load_lose_no_request_and_the_last_one_is_in_force(listening, tmp_path):
    file = tmp_path / "policy.json"
    file.write_text('{"name": "end-only"}')
    url, server, _ = listening(policy=str(file))
    outcomes = []

    async def story():
        stop = asyncio.Event()
        users = asyncio.create_task(load(url, outcomes, stop))
        async with asyncio.timeout(60):
            for number in range(1, SIGNALS + 1):
                before = len(outcomes)
                file.write_text(json.dumps({"name": "collaborative", "offload_threshold": number / SIGNALS}))
                server.reload()
                while len(outcomes) < before + 8 or server._reload:  # each user has asked again
                    await asyncio.sleep(0.01)
            stop.set()
            await users

    asyncio.run(story())
    assert set(outcomes) == {200}
    assert httpx.get(f"{url}/info").json()["policy"]["offload_threshold"] == 1.0


def test_sighup_loads_the_policy_again_and_a_wrong_file_stops_nothing(tiny_bundle, tmp_path):
    file, port = tmp_path / "policy.json", free_ports(1)
    file.write_text('{"name": "end-only"}')
    settings = {"TIERWISE_BUNDLE": str(tiny_bundle), "TIERWISE_PORT": str(port), "TIERWISE_UPSTREAMS": ""}
    child = subprocess.Popen(
        [sys.executable, "-m", "services.end"],
        env={**CLEAN, **settings, "TIERWISE_POLICY": str(file)},
        stderr=subprocess.PIPE,
        text=True,
    )

    def line(event):
        for text in child.stderr:
            if json.loads(text)["event"] == event:
                return json.loads(text)
        raise AssertionError(f"it ended without {event}: status {child.wait()}")

    try:
        line("ready")
        for content, event in (
            ('{"name": "tabi"}', "policy_loaded"),
            ("{", "policy_not_loaded"),
            ('{"name": "end-only"}', "policy_loaded"),
        ):
            file.write_text(content)
            began = time.monotonic()
            child.send_signal(signal.SIGHUP)
            said = line(event)
            assert time.monotonic() - began < 5
            answer = httpx.get(f"http://127.0.0.1:{port}/info", timeout=20).json()
            assert said["in_force"] == answer["policy"]
        assert answer["policy"] == {"name": "end-only"}
    finally:
        child.terminate()
        _, rest = child.communicate(timeout=30)
    assert child.returncode == 0, rest


def test_sighup_while_a_tier_starts_does_not_end_it(tiny_bundle, tmp_path):
    os.mkfifo(fifo := tmp_path / "key")  # a secret file that does not come: the start waits for it
    settings = {"TIERWISE_BUNDLE": str(tiny_bundle), "TIERWISE_UPSTREAMS": "", "TIERWISE_KEY_FILE": str(fifo)}
    child = subprocess.Popen([sys.executable, "-m", "services.end"], env={**CLEAN, **settings}, stderr=subprocess.PIPE)
    with fifo.open("w"):  # opens once the other side reads
        child.send_signal(signal.SIGHUP)
        child.send_signal(signal.SIGTERM)
        _, said = child.communicate(timeout=60)
    assert (child.returncode, said) == (0, b"")
