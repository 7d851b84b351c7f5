"""Replicas of the cloud as processes, slept, behind one end: they share its texts; one that is drained loses none."""

import asyncio
import json

from lab.scale.slept import OK, Plan, busy, replicas
from shared.links.clients import Client

TEXT_MS = 20.0


def demand(path):
    """What `tierwise bench` writes, as far as it is read: what end and cloud take for a text."""
    told = {
        f"{tier}-only": {
            "exits": {tier: {layers: 9}},
            "ran_by_tier": {tier: 1.0},
            "stages_ms": {"infer": TEXT_MS, "tokenize": 0.0},
            "bytes_per_request": {"up": 1, "down": 1},
        }
        for tier, layers in (("end", 3), ("cloud", 4))
    }
    first = {"tier": "end", "tiers": [{"name": name} for name in ("end", "edge", "cloud")]}
    path.write_text(json.dumps({"policies": told, "first_tier": first}))
    return path


def answered(url):
    """Texts that the model of a replica has read."""
    with Client(url) as client:
        page = client.get("/metrics").text
    (count,) = [line for line in page.splitlines() if line.startswith("tierwise_exits_total") and 'layer="4"' in line]
    return float(count.split()[-1])


async def drained(running, url):
    """Eight callers for three seconds; one of the replicas is told to stop after one."""
    loop = asyncio.create_task(busy(running.ends[2], 8, 3.0))
    await asyncio.sleep(1.0)
    shares = [answered(one) for one in running.urls]
    await running.stop(url)
    return shares, await loop


def test_replicas_share_the_texts_and_one_that_is_drained_loses_none(tiny_bundle, tmp_path):
    plan = Plan(demand(tmp_path / "bench.json"), "cloud-only", "cloud", 2, 60_000, bundle=str(tiny_bundle))
    with replicas(plan, [2], 2) as running:
        shares, (done, became) = asyncio.run(drained(running, running.urls[1]))
        assert running.statuses == [0]
        running.check()
    assert min(shares) > 0.3 * sum(shares) > 0
    assert became == {OK: len(done)}
    assert len([at for at in done if at > 2.0]) > 10  # the other one went on
