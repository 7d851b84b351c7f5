"""Every overlay of `deploy/kubernetes`: valid by the oldest and the newest Kubernetes, and whole.

No cluster was at hand: what a cluster does with these objects is not tested here. `tests/e2e/test_kubernetes.py` starts
the same containers with Docker.
"""

import copy
import re
from functools import cache
from pathlib import Path

import pytest
import yaml

from lab.live.stack import role_of
from lab.scale.step import READS
from shared.errors import BadSetting
from shared.web.settings import load_settings
from tests.kubernetes import (
    KUBERNETES,
    OVERLAYS,
    ROOT,
    SITES,
    bytes_of,
    check_crd,
    container,
    crd_kinds,
    crd_of,
    environment,
    fingerprint,
    flat,
    let_through,
    of_kind,
    pieces,
    pod_labels,
    rendered,
    selects,
    workloads,
)

VERSIONS = ("1.30", "1.37")  # the oldest with a preStop that sleeps, and the newest


@pytest.fixture(scope="module")
def validate():
    """Kubernetes' schemas, each read once: the package reads a megabyte of JSON for every object."""
    package = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    package.utils.schema_contents = cache(package.utils.schema_contents)
    return package.validate


def test_every_folder_of_overlays_is_tested():
    folders = {path.name for path in (KUBERNETES / "overlays").iterdir()}
    assert folders == {overlay.split("/")[1] for overlay in OVERLAYS}


@pytest.mark.parametrize("version", VERSIONS)
def test_every_object_is_valid_strictly(version, validate):
    seen = set()
    for one in (piece for overlay in OVERLAYS for whole in rendered(overlay) for piece in pieces(whole)):
        if fingerprint(one) not in seen:
            seen.add(fingerprint(one))
            assert validate(one, version, strict=True) == version
    assert len(seen) > 40


def test_a_misspelt_field_is_refused(validate):
    one = copy.deepcopy(of_kind(rendered("overlays/gpu"), "HorizontalPodAutoscaler")[0])
    one["spec"]["maxReplica"] = one["spec"].pop("maxReplicas")
    with pytest.raises(Exception, match="maxReplica"):
        validate(one, VERSIONS[0], strict=True)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_other_projects_objects_fit_their_schemas(overlay):
    for one in rendered(overlay):
        if crd_of(one):
            check_crd(one)


@pytest.mark.parametrize("kind", crd_kinds())
def test_a_misspelt_field_of_another_project_s_object_is_refused(kind):
    one = copy.deepcopy(next(one for overlay in OVERLAYS for one in of_kind(rendered(overlay), kind)))
    check_crd(one)
    first = next(iter(one["spec"]))
    one["spec"]["un" + first] = one["spec"].pop(first)
    with pytest.raises(Exception, match=f"un{first}|{first}"):
        check_crd(one)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_network_leads_from_end_to_edge_to_cloud_only(overlay):
    objects = rendered(overlay)
    pods = pod_labels(objects)
    policies = of_kind(objects, "NetworkPolicy")
    for labels in pods.values():  # each pod is under a policy of both ways
        (policy,) = [policy for policy in policies if selects(policy["spec"]["podSelector"], labels)]
        assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]
    stranger, client = {"app.kubernetes.io/name": "other"}, {"tierwise.io/client": "yes"}
    peers = {**{tier: {"app.kubernetes.io/component": tier} for tier in SITES}, "stranger": stranger, "client": client}
    forward = {("end", "edge"), ("end", "cloud"), ("edge", "cloud")}
    for tier, labels in pods.items():
        ingress = {peer for peer, others in peers.items() if let_through(objects, "ingress", labels, others)}
        egress = {peer for peer, others in peers.items() if let_through(objects, "egress", labels, others)}
        assert ingress == {asks for asks, asked in forward if asked == tier} | ({"client"} if tier == "end" else set())
        assert egress == {asked for asks, asked in forward if asks == tier}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_no_rule_of_the_network_is_open(overlay):
    for policy in of_kind(rendered(overlay), "NetworkPolicy"):
        for rule in [*policy["spec"].get("ingress", []), *policy["spec"].get("egress", [])]:
            sides = rule.get("from") or rule.get("to")
            assert rule["ports"], policy["metadata"]["name"]
            assert sides, policy["metadata"]["name"]
            for side in sides:
                assert all(side.values()), side  # an empty selector takes everything
                assert side.get("ipBlock", {"cidr": "192.0.2.0/24"})["cidr"] == "192.0.2.0/24"  # addresses of examples


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_tier_has_a_budget_for_disruptions_a_service_and_a_monitor_of_its_own(overlay):
    objects = rendered(overlay)
    services = of_kind(
        [*objects, *(piece for one in of_kind(objects, "EdgeApplication") for piece in pieces(one))], "Service"
    )
    for labels in pod_labels(objects).values():
        (budget,) = [one for one in of_kind(objects, "PodDisruptionBudget") if selects(one["spec"]["selector"], labels)]
        assert budget["spec"]["maxUnavailable"] == 1
        (service,) = [one for one in services if selects({"matchLabels": one["spec"]["selector"]}, labels)]
        monitors = [one for one in of_kind(objects, "ServiceMonitor") if selects(one["spec"]["selector"], labels)]
        assert len(monitors) == (overlay not in ("overlays/one-host", "overlays/chaos"))
        assert all(one["spec"]["endpoints"][0]["port"] == service["spec"]["ports"][0]["name"] for one in monitors)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_autoscalers_follow_half_of_the_wait_that_is_refused_at(overlay):
    objects = rendered(overlay)
    pods = dict(workloads(objects))
    scaled = set()
    for one in of_kind(objects, "HorizontalPodAutoscaler"):
        target = one["spec"]["scaleTargetRef"]["name"]
        (metric,) = [metric["pods"] for metric in one["spec"]["metrics"]]
        assert metric["metric"]["name"] == "tierwise_wait_seconds"
        limit_ms = float(environment(pods[target], objects)["TIERWISE_QUEUE_WAIT_MS"])
        assert int(metric["target"]["averageValue"].removesuffix("m")) == limit_ms / 2
        scaled.add(target)
    for one in of_kind(objects, "ScaledObject"):
        target = one["spec"]["scaleTargetRef"]["name"]
        wait, refused = [trigger["metadata"] for trigger in one["spec"]["triggers"]]
        assert f'tierwise_wait_seconds{{service="{target}"}}' in wait["query"]
        assert f'reason="queue_full",service="{target}"' in refused["query"]
        assert float(wait["threshold"]) == float(environment(pods[target], objects)["TIERWISE_QUEUE_WAIT_MS"]) / 2000
        scaled.add(target)
    never = {"one-host": pods.keys(), "chaos": pods.keys(), "end": {"tierwise-end"}}
    never["kubeedge"] = {"tierwise-end", "tierwise-edge"}
    assert scaled == pods.keys() - never.get(Path(overlay).name, set())


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_tier_would_start_with_its_settings_and_has_upstreams_that_exist(overlay, monkeypatch):
    objects = rendered(overlay)
    names = {one["metadata"]["name"] for one in of_kind(flat(objects), "Service")}
    for name, pod in workloads(objects):
        (command,) = [container(pod)["command"]]
        tier = command[-1].removeprefix("services.")
        assert command == ["python", "-m", f"services.{tier}"], name
        env = {"TIERWISE_HOST": "0.0.0.0", **environment(pod, objects)}
        secret = next(volume["secret"] for volume in pod["volumes"] if "secret" in volume)
        mount = next(mount for mount in container(pod)["volumeMounts"] if mount["name"] == "keys")
        assert (secret["secretName"], mount["mountPath"]) == ("tierwise-keys", "/run/keys")
        for key in ("TIERWISE_KEY_FILE", "TIERWISE_DOOR_KEY_FILE"):
            assert env[key].startswith("/run/keys/")
            env[key] = str(ROOT / "README.md")
        for key, value in env.items():
            monkeypatch.setenv(key, value)
        settings = load_settings(role_of(tier))
        settings.check(SITES)
        hosts = {re.fullmatch(r"http://([a-z.-]+):8080", url)[1] for url in settings.upstreams.values()}
        local = {host for host in hosts if not host.endswith(".tierwise.example")}
        assert local <= names, name
        assert len(hosts) == {"end": 2, "edge": 1, "cloud": 0}[tier]
        assert bool(hosts - local) == (overlay in ("overlays/three-sites/end", "overlays/three-sites/edge"))
        assert settings.links == "none"
        for key in env:
            monkeypatch.delenv(key)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_name_of_a_tier_that_tiers_ask_stands_for_every_replica(overlay):
    """Not where something else must stand between: a site's load balancer, EdgeMesh (kubeedge/edgemesh#277)."""
    objects = rendered(overlay)
    pods, proxied = dict(workloads(objects)), "three-sites" in overlay or overlay == "overlays/kubeedge"
    for service in of_kind(flat(objects), "Service"):
        tier, spec = service["spec"]["selector"]["app.kubernetes.io/component"], service["spec"]
        headless = tier in ("edge", "cloud") and not proxied
        assert spec.get("clusterIP") == ("None" if headless else None), tier
        assert spec.get("type", "ClusterIP") == ("LoadBalancer" if "three-sites" in overlay else "ClusterIP")
        (port,) = spec["ports"]
        pod = pods.get(f"tierwise-{tier}") or pods["tierwise-predictor"]
        (listens,) = container(pod)["ports"]  # nothing maps a port for who asks a pod itself
        assert (port["port"], port["targetPort"]) == (listens["containerPort"], listens["name"])


def test_the_variables_that_kubernetes_sets_for_services_would_stop_a_tier(monkeypatch):
    """Which is why the pods take none: `enableServiceLinks`."""
    monkeypatch.setenv("TIERWISE_EDGE_PORT_8080_TCP_ADDR", "10.96.0.7")
    with pytest.raises(BadSetting, match="unknown setting TIERWISE_EDGE_PORT_8080_TCP_ADDR"):
        load_settings(role_of("cloud"))


def test_no_key_is_in_the_manifests():
    for overlay in OVERLAYS:
        assert of_kind(rendered(overlay), "Secret") == []


def test_memory_is_what_was_measured():
    """The tables in docs/operate.md are those of `python -m tests.load.memory`."""
    page = (ROOT / "docs/operate.md").read_text()

    def row(start):
        (line,) = [line for line in page.splitlines() if line.startswith(f"| {start}")]
        return dict(zip(SITES, map(float, line.split("|")[2:5]), strict=True))

    long, largest = row("32 long texts, 8 at once"), row("bodies of 1.9 MB, 64 at once")
    for name, pod in workloads(rendered("overlays/one-host")):
        resources, tier = container(pod)["resources"], name.removeprefix("tierwise-")
        assert 1 < bytes_of(resources["requests"]["memory"]) / 1e6 / long[tier] < 1.5, tier
        assert 1.5 < bytes_of(resources["limits"]["memory"]) / 1e6 / largest[tier] < 3, tier


def test_images_are_those_that_compose_builds():
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    for name, pod in workloads(rendered("overlays/one-host")):
        built = re.sub(r"\$\{\w+:-(\w+)\}", r"\1", compose[name.removeprefix("tierwise-")]["image"])
        assert container(pod)["image"] == built


def test_a_cluster_of_two_processors_has_room_for_one_host():
    pods = dict(workloads(rendered("overlays/one-host")))
    assert sum(int(container(pod)["resources"]["requests"]["cpu"].removesuffix("m")) for pod in pods.values()) <= 1000


def test_the_signal_is_read_as_it_was_simulated():
    read = READS[1]
    monitors = of_kind(rendered("overlays/gpu"), "ServiceMonitor")
    assert {one["spec"]["endpoints"][0]["interval"] for one in monitors} == {f"{read.scrape_s:g}s"}
    (rule,) = yaml.safe_load((KUBERNETES / "adapter.yaml").read_text())["rules"]["custom"]
    queries = [rule["metricsQuery"]]
    queries += [
        one["spec"]["triggers"][0]["metadata"]["query"] for one in of_kind(rendered("overlays/keda"), "ScaledObject")
    ]
    assert len(queries) == 4
    assert all(f"[{read.scrape_s * read.scrapes:g}s]" in query and "avg_over_time" in query for query in queries)
