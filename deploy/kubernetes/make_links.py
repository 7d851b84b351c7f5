"""Write `overlays/chaos/links.yaml`: the link profiles of `deploy/netem/profiles.yaml` as NetworkChaos objects.

    python deploy/kubernetes/make_links.py                                the links that the tiers are made for
    python deploy/kubernetes/make_links.py --print end-edge=lte           others, to pipe into `kubectl apply -f -`
    python deploy/kubernetes/make_links.py --check                        whether the file is as it would be written

As with the shapers, each end delays what it sends by half the round trip. A rate is written in whole bytes per second:
what Chaos Mesh calls `bps`. It knows no queue's length, and its jitter is uniform, where the shapers' is normal.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml

from services.edge import ROLE as EDGE
from services.end import ROLE as END
from shared.errors import TierwiseError
from shared.links.profile import profile

FILE = Path(__file__).with_name("overlays") / "chaos" / "links.yaml"
LINKS = {f"{role.tier}-{target}": name for role in (END, EDGE) for target, name in role.links.items()}
HEAD = "# Written by deploy/kubernetes/make_links.py; `make check` compares.\n"


def _pods(tier: str) -> dict[str, Any]:
    labels = {"app.kubernetes.io/name": "tierwise", "app.kubernetes.io/component": tier}
    return {"mode": "all", "selector": {"namespaces": ["tierwise"], "labelSelectors": labels}}


def network_chaos(link: str, name: str) -> list[dict[str, Any]]:
    """The two directions of a link `SOURCE-TARGET` with the profile `name`; none for what impairs nothing."""
    source, target = link.split("-")
    shape = profile(name)
    both = []
    for way, sender, receiver, rate_bps in (
        ("up", source, target, shape.rate_up_bps),
        ("down", target, source, shape.rate_down_bps),
    ):
        impairments: dict[str, Any] = {}
        if shape.rtt_s or shape.jitter_s:
            delay, jitter = (f"{value * 1e6:.0f}us" for value in (shape.rtt_s / 2, shape.jitter_s))
            impairments["delay"] = {"latency": delay, "jitter": jitter, "correlation": "0"}
        if shape.loss_ratio:
            impairments["loss"] = {"loss": f"{100 * shape.loss_ratio:g}", "correlation": "0"}
        if rate_bps:
            impairments["rate"] = {"rate": f"{rate_bps / 8:.0f}bps"}
        if impairments:
            both.append(
                {
                    "apiVersion": "chaos-mesh.org/v1alpha1",
                    "kind": "NetworkChaos",
                    "metadata": {
                        "name": f"{link}-{way}",
                        "namespace": "tierwise",
                        "annotations": {"tierwise.io/profile": name},
                    },
                    "spec": {
                        "action": "netem",
                        "direction": "to",
                        **_pods(sender),
                        "target": _pods(receiver),
                        **impairments,
                    },
                }
            )
    return both


def text(links: dict[str, str]) -> str:
    """The objects of all links as YAML."""
    objects = [one for link, name in links.items() for one in network_chaos(link, name)]
    return HEAD + yaml.safe_dump_all(objects, sort_keys=False)


def main(arguments: list[str]) -> int:
    """Write, compare, or print."""
    if arguments == ["--check"]:
        if FILE.read_text() == text(LINKS):
            return 0
        print(f"{FILE} does not fit the link profiles: run deploy/kubernetes/make_links.py", file=sys.stderr)
        return 1
    if not arguments:
        FILE.write_text(text(LINKS))
        return 0
    chosen = dict(pair.partition("=")[::2] for pair in arguments[1:])
    if arguments[0] != "--print" or not chosen or not chosen.keys() <= LINKS.keys():
        print(f"expected --check, or --print LINK=PROFILE ..., where LINK is of {', '.join(LINKS)}", file=sys.stderr)
        return 2
    try:
        print(text(chosen), end="")
    except TierwiseError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
