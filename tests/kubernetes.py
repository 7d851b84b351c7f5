"""The Kubernetes manifests as a cluster would get them: rendered by `kubectl kustomize`, or by `kustomize` itself."""

import json
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
KUBERNETES = ROOT / "deploy" / "kubernetes"
SITES = ("end", "edge", "cloud")
OVERLAYS = (
    *(f"overlays/{name}" for name in ("one-host", "kubeedge", "keda", "chaos", "gpu", "kserve")),
    *(f"overlays/three-sites/{site}" for site in SITES),
)


LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@cache
def _all():
    """Every overlay as text: two at a time, since each is a process that mostly waits."""
    if shutil.which("kubectl"):
        command = ["kubectl", "kustomize"]
    elif shutil.which("kustomize"):
        command = ["kustomize", "build"]
    else:
        pytest.skip("neither kubectl nor kustomize is installed: tests/README.md says how pip gets one")

    def render(overlay):
        done = subprocess.run([*command, str(KUBERNETES / overlay)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    with ThreadPoolExecutor(4) as pool:
        return dict(zip(OVERLAYS, pool.map(render, OVERLAYS), strict=True))


def rendered(overlay):
    """The objects of a folder below `deploy/kubernetes`."""
    return [one for one in yaml.load_all(_all()[overlay], Loader=LOADER) if one]


def workloads(objects):
    """Name and pod specification of whatever runs a tier, also inside KubeEdge's and KServe's objects."""
    for one in objects:
        spec = one.get("spec", {})
        if one["kind"] == "Deployment":
            yield one["metadata"]["name"], spec["template"]["spec"]
        elif one["kind"] == "EdgeApplication":
            yield from workloads(spec["workloadTemplate"]["manifests"])
        elif one["kind"] == "InferenceService":
            yield f"{one['metadata']['name']}-predictor", spec["predictor"]


def container(pod):
    """A pod's only container."""
    (only,) = pod["containers"]
    return only


def environment(pod, objects):
    """The environment that the kubelet gives the container, without links to services."""
    maps = {one["metadata"]["name"]: one["data"] for one in objects if one["kind"] == "ConfigMap"}
    out = {}
    for source in container(pod).get("envFrom", []):
        out |= maps[source["configMapRef"]["name"]]
    return out | {one["name"]: one["value"] for one in container(pod).get("env", [])}


def of_kind(objects, kind):
    """The objects of a kind."""
    return [one for one in objects if one["kind"] == kind]


def bytes_of(quantity):
    """A quantity of memory in bytes: 64Mi."""
    units = {"Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30}
    return int(quantity[:-2]) * units[quantity[-2:]]


def fingerprint(one):
    """The same for equal objects."""
    return json.dumps(one, sort_keys=True)


def pieces(one):
    """What a cluster validates of an object by Kubernetes' own schemas: itself, or what it carries inside."""
    if one["kind"] == "EdgeApplication":
        return one["spec"]["workloadTemplate"]["manifests"]
    if one["kind"] == "InferenceService":
        pod = {
            key: value for key, value in one["spec"]["predictor"].items() if key != "labels"
        }  # no pod has those there
        return [{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "predictor"}, "spec": pod}]
    return [] if crd_of(one) else [one]


def flat(objects):
    """All objects, and those that KubeEdge's carry."""
    return [*objects, *(piece for one in of_kind(objects, "EdgeApplication") for piece in pieces(one))]


@cache
def _crds():
    return yaml.safe_load((ROOT / "tests/unit/deploy/crds.yaml").read_text())


def crd_kinds():
    """The kinds of other projects' objects that have a schema."""
    return sorted(key.rpartition("/")[2] for key in _crds() if key != "$defs")


def crd_of(one):
    """The hand-written schema of another project's object; none for Kubernetes' own."""
    return _crds().get(f"{one['apiVersion']}/{one['kind']}")


def check_crd(one):
    """Raise where a field of another project's object is unknown or wrong."""
    schemas = pytest.importorskip("jsonschema", reason="kubernetes-validate, which brings it, is not installed")
    metadata = {**_crds()["$defs"]["metadata"], "$defs": _crds()["$defs"]}
    schemas.validate(one["metadata"], metadata)
    schemas.validate(one["spec"], {**crd_of(one), "$defs": _crds()["$defs"]})


def pod_labels(objects):
    """Labels of each tier's pods, by the tier."""
    out = {}
    for one in flat(objects):
        if one["kind"] == "Deployment":
            labels = one["spec"]["template"]["metadata"]["labels"]
        elif one["kind"] == "InferenceService":
            labels = one["spec"]["predictor"]["labels"]
        else:
            continue
        out[labels["app.kubernetes.io/component"]] = labels
    return out


def selects(selector, labels):
    """Whether a selector takes a pod with these labels."""
    operators = {"In": lambda value, values: value in values, "Exists": lambda value, values: value is not None}
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items()) and all(
        operators[one["operator"]](labels.get(one["key"]), one.get("values"))
        for one in selector.get("matchExpressions", [])
    )


def paths(objects):
    """Pairs of tiers that the network policies let talk: the way out of one and the way into the other."""
    pods = pod_labels(objects)
    return [
        (asks, asked)
        for asks in pods
        for asked in pods
        if let_through(objects, "egress", pods[asks], pods[asked])
        and let_through(objects, "ingress", pods[asked], pods[asks])
    ]


def let_through(objects, way, pod, peer):
    """Whether the policies of a pod let it be asked (`ingress`) by a peer, or ask one (`egress`). Both are labels."""
    for policy in of_kind(objects, "NetworkPolicy"):
        if selects(policy["spec"]["podSelector"], pod):
            for rule in policy["spec"].get(way, []):
                sides = rule["from" if way == "ingress" else "to"]
                if any("podSelector" in side and selects(side["podSelector"], peer) for side in sides):
                    return True
    return False
