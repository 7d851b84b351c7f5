"""What a load was measured on: stands in the JSON of `make load` and `make soak`."""

import os
from datetime import UTC, datetime

from lab.live.bench_report import cpu
from shared.links.clients import Client


def machine(stack):
    """The date, the processor, and what every tier of a running stack computes with."""
    tiers = {}
    for process in stack.processes:
        with Client(process.url, timeout=10) as client:
            info = client.get("/info").json()
        tiers[info["tier"]] = {key: info[key] for key in ("engine", "precision", "threads", "card_sha256", "versions")}
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "hardware": cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "runs_on": tiers,
    }
