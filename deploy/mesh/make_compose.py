"""Compose files of meshes, one for each topology that can be live: `deploy/mesh/NAME.yml`, from this one template.

    python deploy/mesh/make_compose.py            write them
    python deploy/mesh/make_compose.py --check    exit with status 1 where a file differs

As in `docker-compose.yml`, a shaper owns each node's network namespace, and any two neighbours share one network of
their own, which is their link. A network has one link, `n1-n2`, that both ends shape: also where, as in a circle, texts
go one way, since their answers come back by it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml

from shared.mesh.topology import LIVE, Topology, topology

FOLDER = Path(__file__).resolve().parent
PORT = 8080
HEAD = """# Made by make_compose.py: change that. A mesh ({name}): each node behind its shaper, each network a link.
#   docker compose -f deploy/mesh/{name}.yml --project-directory . up -d --wait --build
# Ask the source, n1, at http://127.0.0.1:8080/v1/classify
"""
LINK = "${TIERWISE_MESH_LINK:-wifi}"
HARDENED: dict[str, Any] = {
    "read_only": True,
    "cap_drop": ["ALL"],
    "security_opt": ["no-new-privileges:true"],
    "restart": "unless-stopped",
    "pids_limit": 256,
    "logging": {"driver": "json-file", "options": {"max-size": "50m", "max-file": "3"}},
}
BUILD = {"context": ".", "dockerfile": "deploy/docker/Dockerfile"}
SETTINGS = {
    "TIERWISE_BUNDLE": "${TIERWISE_BUNDLE:-split-imdb}",
    "TIERWISE_HOST": "0.0.0.0",  # noqa: S104 - in a container
    "TIERWISE_PORT": PORT,
    "TIERWISE_LINKS": "${TIERWISE_LINKS:-netem}",
    "TIERWISE_SEGMENTS": "${TIERWISE_MESH_SEGMENTS:-}",
    "TIERWISE_EXIT_THRESHOLD": "${TIERWISE_MESH_EXIT_THRESHOLD:-0.9}",
    "TIERWISE_STATE_FORM": "${TIERWISE_STATE_FORM:-int8}",
    "TIERWISE_THREADS": 1,
}


def document(mesh: Topology) -> dict[str, Any]:
    """One topology's services, networks and volumes."""
    services: dict[str, Any] = {}
    for node in mesh.nodes:
        services[f"{node}-shaper"], services[node] = _shaper(mesh, node), _node(mesh, node)
    links = sorted({_link(a, b) for a, others in mesh.edges.items() for b in others})
    networks = {"client": {}, **{link: {"internal": True} for link in links}}
    volumes = {f"{node}-links": {} for node in mesh.nodes}
    return {"name": f"tierwise-{mesh.name}", "services": services, "networks": networks, "volumes": volumes}


def _link(a: str, b: str) -> str:
    return "-".join(sorted((a, b)))


def _links(mesh: Topology, node: str) -> list[str]:
    """The links of a node, out and in."""
    return sorted({_link(a, b) for a, others in mesh.edges.items() for b in others if node in (a, b)})


def _shaper(mesh: Topology, node: str) -> dict[str, Any]:
    links, first = _links(mesh, node), node == mesh.nodes[0]
    return {
        **HARDENED,
        "image": "tierwise-shaper",
        "build": {**BUILD, "target": "shaper"},
        "cap_add": ["NET_ADMIN"],
        "mem_limit": "256m",
        "tmpfs": ["/run/shaper:size=4m"],
        "environment": {
            "TIERWISE_TIER": node,
            "TIERWISE_LINKS": "${TIERWISE_LINKS:-netem}" if links else "none",
            "TIERWISE_SHAPED_LINKS": ",".join(f"{link}={LINK}" for link in links) or "none=ideal",
        },
        "volumes": [f"{node}-links:/run/tierwise"],
        **({"ports": [f"${{TIERWISE_BIND:-127.0.0.1:8080}}:{PORT}"]} if first else {}),
        "networks": {**({"client": {}} if first else {}), **{link: {"aliases": [node]} for link in links}},
        "healthcheck": {
            "test": ["CMD", "test", "-e", "/run/tierwise/ready"],
            "interval": "10s",
            "timeout": "8s",
            "retries": 12,
        },
    }


def _node(mesh: Topology, node: str) -> dict[str, Any]:
    others, first = mesh.edges[node], node == mesh.nodes[0]
    return {
        **HARDENED,
        "image": "tierwise-node:${TIERWISE_BUNDLE:-split-imdb}",
        "build": {
            **BUILD,
            "target": "tier",
            "args": {"BUNDLE": "${TIERWISE_BUNDLE:-split-imdb}", "TIER": "${TIERWISE_MESH_TIER:-cloud}"},
        },
        "command": ["python", "-m", "services.node"],
        "user": "10001:10001",
        "mem_limit": "1536m",
        "tmpfs": ["/tmp:size=64m"],  # noqa: S108 - in a container
        "stop_grace_period": "30s",
        "environment": {
            "TIERWISE_TIER": node,
            **SETTINGS,
            "TIERWISE_PUBLISHED": "${TIERWISE_BIND:-127.0.0.1:8080}" if first else "",
            "TIERWISE_HELD_SEGMENTS": f"${{TIERWISE_MESH_HOLD_{node.upper()}:-}}",
            "TIERWISE_ADAPT": "${TIERWISE_MESH_ADAPT:-threshold}" if first else "fixed",
            "TIERWISE_UPSTREAMS": ",".join(f"{other}=http://{other}:{PORT}" for other in others),
            "TIERWISE_LINK_PROFILES": ",".join(f"{other}={LINK}" for other in others),
        },
        "network_mode": f"service:{node}-shaper",
        "volumes": [f"{node}-links:/run/tierwise:ro"],
        "depends_on": {f"{node}-shaper": {"condition": "service_healthy"}},
        "healthcheck": {
            "test": ["CMD", "python", "-S", "/app/deploy/docker/ready.py"],
            "interval": "10s",
            "timeout": "8s",
            "retries": 3,
            "start_period": "300s",
        },
    }


class _Plain(yaml.SafeDumper):
    """Without anchors: files that are read one service at a time."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def files() -> dict[str, str]:
    """Name -> text of every file."""
    return {
        f"{name}.yml": HEAD.format(name=name)
        + yaml.dump(document(topology(name)), Dumper=_Plain, sort_keys=False, width=120)
        for name in LIVE
    }


def main() -> int:
    """Write, or compare."""
    if "--check" not in sys.argv:
        for name, text in files().items():
            (FOLDER / name).write_text(text)
    elif files() != {path.name: path.read_text() for path in FOLDER.glob("*.yml")}:
        sys.stderr.write("deploy/mesh does not fit make_compose.py: run it\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
