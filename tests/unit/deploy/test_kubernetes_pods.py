"""What we demand of every pod of every overlay: a table of demands, each with a change that breaks it."""

import copy
import re
from pathlib import Path

import pytest

from shared.web.server import NOTICE_S
from tests.kubernetes import (
    OVERLAYS,
    ROOT,
    SITES,
    bytes_of,
    container,
    environment,
    rendered,
    workloads,
)


def _user(pod, env):
    (said,) = re.findall(
        r"(?m)^FROM python AS tier$[^#]*?^USER (\d+):(\d+)$", (ROOT / "deploy/docker/Dockerfile").read_text()
    )
    context = pod["securityContext"]
    return context["runAsNonRoot"] and (context["runAsUser"], context["runAsGroup"]) == tuple(map(int, said))


def _powerless(pod, env):
    context = container(pod)["securityContext"]
    return context["capabilities"] == {"drop": ["ALL"]} and context["allowPrivilegeEscalation"] is False


def _sealed(pod, env):
    """It writes into folders of its own alone, and they are bounded."""
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    mounts = container(pod)["volumeMounts"]
    writable = {mount["mountPath"]: volumes[mount["name"]] for mount in mounts if not mount.get("readOnly")}
    bounded = all(
        bytes_of(volume.get("emptyDir", {}).get("sizeLimit", "9Gi")) <= 1 << 30 for volume in writable.values()
    )
    return container(pod)["securityContext"]["readOnlyRootFilesystem"] and list(writable) == ["/tmp"] and bounded


def _probed(pod, env):
    """The probes ask what a tier serves, at the port that it listens on."""
    only = container(pod)
    (port,) = only["ports"]
    asked = {kind: only[kind]["httpGet"] for kind in ("startupProbe", "readinessProbe", "livenessProbe")}
    paths = {kind: get["path"] for kind, get in asked.items()}
    return (
        paths == {"startupProbe": "/readyz", "readinessProbe": "/readyz", "livenessProbe": "/livez"}
        and {get["port"] for get in asked.values()} == {port["name"]}
        and str(port["containerPort"]) == env["TIERWISE_PORT"]
    )


def _patient(pod, env):
    """It is killed only after its drain."""
    sleeps = container(pod)["lifecycle"]["preStop"]["sleep"]["seconds"]
    return pod["terminationGracePeriodSeconds"] > sleeps + float(env["TIERWISE_DRAIN_S"]) + 2 * NOTICE_S


def _bounded(pod, env):
    limits, requests = container(pod)["resources"]["limits"], container(pod)["resources"]["requests"]
    return float(limits["cpu"]) > 0 and bytes_of(requests["memory"]) <= bytes_of(limits["memory"])


def _tagged(pod, env):
    name, _, tag = container(pod)["image"].partition(":")
    return name.startswith("tierwise-") and tag not in ("", "latest")


DEMANDS = {
    "runs as the image's user": (_user, lambda pod: pod["securityContext"].update(runAsUser=0)),
    "has no capability": (
        _powerless,
        lambda pod: container(pod)["securityContext"]["capabilities"].update(add=["NET_ADMIN"]),
    ),
    "writes to /tmp alone": (_sealed, lambda pod: container(pod)["volumeMounts"][1].pop("readOnly")),
    "is confined by seccomp": (
        lambda pod, env: pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"},
        lambda pod: pod["securityContext"].update(seccompProfile={"type": "Unconfined"}),
    ),
    "is asked whether it lives and is ready": (
        _probed,
        lambda pod: container(pod)["readinessProbe"]["httpGet"].update(path="/livez"),
    ),
    "is given time to drain": (_patient, lambda pod: pod.update(terminationGracePeriodSeconds=25)),
    "has limits": (_bounded, lambda pod: container(pod)["resources"]["requests"].update(memory="100Gi")),
    "has an image with a tag": (_tagged, lambda pod: container(pod).update(image="tierwise-end")),
    "gets no variables of services": (
        lambda pod, env: pod["enableServiceLinks"] is False,
        lambda pod: pod.update(enableServiceLinks=True),
    ),
    "gets no key to the cluster": (
        lambda pod, env: pod["automountServiceAccountToken"] is False,
        lambda pod: pod.update(automountServiceAccountToken=True),
    ),
}


@pytest.mark.parametrize("demand", DEMANDS)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_pod(overlay, demand):
    objects = rendered(overlay)
    holds, _ = DEMANDS[demand]
    pods = dict(workloads(objects))
    assert pods.keys() == ({f"tierwise-{Path(overlay).name}"} if "sites" in overlay else tiers_of(overlay))
    for name, pod in pods.items():
        assert holds(pod, environment(pod, objects)), name


def tiers_of(overlay):
    return {
        f"tierwise-{tier}" if (overlay, tier) != ("overlays/kserve", "end") else "tierwise-predictor" for tier in SITES
    }


@pytest.mark.parametrize("demand", DEMANDS)
def test_a_pod_that_breaks_a_demand_is_found(demand):
    objects = rendered("overlays/one-host")
    holds, breaks = DEMANDS[demand]
    for _, pod in workloads(objects):
        broken = copy.deepcopy(pod)
        breaks(broken)
        assert not holds(broken, environment(pod, objects))
