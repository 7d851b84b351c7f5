"""Open-loop load from a process of its own: requests leave when they are due, however slow the answers are.

    python -m tests.load.open_loop '{"url": ..., "rate": 20, "seconds": 10, "seed": 0, "poisson": true, "bodies": []}'

Latency counts from the moment a request was due, so that a slow service cannot slow its own load (coordinated
omission), and what this process was late by is reported beside it: under a few ms, it is not the bottleneck.

Why our own: locust's users wait for their answers, which is a closed loop however it is paced; k6 and Gatling are no
Python. Why not httpx: it costs more of a core per request than the tier's refusal does.
"""

import asyncio
import json
import random
import subprocess
import sys
import time
from dataclasses import dataclass
from urllib.parse import urlsplit

from tests.faults.faulty import message


@dataclass
class Sample:
    """One request; seconds since the start. Status 0: no answer."""

    due: float
    late: float
    done: float = 0.0
    status: int = 0
    degraded: bool = False

    @property
    def latency(self):
        return self.done - self.due


def load(url, *, rate, seconds, seed=0, poisson=True, bodies):
    """Samples in the order in which they were due: `rate` requests a second over `bodies`, in turn."""
    job = {"url": url, "rate": rate, "seconds": seconds, "seed": seed, "poisson": poisson, "bodies": bodies}
    command = [sys.executable, "-m", "tests.load.open_loop", json.dumps(job)]
    child = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 90, check=False)
    assert child.returncode == 0, child.stderr
    return [Sample(*row) for row in json.loads(child.stdout)]


class _Client:
    """Keep-alive connections, the last one used first."""

    def __init__(self, url):
        parts = urlsplit(url)
        self.host, self.port, self.free = parts.hostname, parts.port, []

    async def post(self, body):
        """(status, body) of the answer; (0, nothing) if there is none within a minute."""
        try:
            async with asyncio.timeout(60):
                reader, writer = self._reused() or await asyncio.open_connection(self.host, self.port)
                head = f"POST /v1/classify HTTP/1.1\r\nhost: {self.host}\r\ncontent-type: application/json\r\n"
                writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
                answer = await message(reader)
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            answer = b""
        head, _, content = answer.partition(b"\r\n\r\n")
        if not head or b"connection: close" in head.lower():
            return int(head.split()[1]) if head else 0, content
        self.free.append((reader, writer))
        return int(head.split()[1]), content

    def _reused(self):
        while self.free:
            reader, writer = self.free.pop()
            if not reader.at_eof():
                return reader, writer
            writer.close()
        return None


async def _run(job):
    draw, client, samples = random.Random(job["seed"]), _Client(job["url"]), []
    bodies = [json.dumps(body).encode() for body in job["bodies"]]
    start, due = time.perf_counter(), 0.0

    async def ask(sample, body):
        sample.status, content = await client.post(body)
        sample.done = time.perf_counter() - start
        sample.degraded = sample.status == 200 and b'"degraded":null' not in content

    async with asyncio.TaskGroup() as group:
        while (due := due + (draw.expovariate(job["rate"]) if job["poisson"] else 1 / job["rate"])) < job["seconds"]:
            await asyncio.sleep(max(0.0, start + due - time.perf_counter()))
            sample = Sample(due, time.perf_counter() - start - due)
            samples.append(sample)
            group.create_task(ask(sample, bodies[len(samples) % len(bodies)]))
    return samples


if __name__ == "__main__":
    done = asyncio.run(_run(json.loads(sys.argv[1])))
    print(json.dumps([[s.due, s.late, s.done, s.status, s.degraded] for s in done]))
