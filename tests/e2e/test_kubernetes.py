"""The rendered Deployments as containers: what a kubelet would start, probed and stopped as it would.

No cluster was at hand. Docker takes from the manifests of `overlays/one-host` the image, command, settings, keys,
ports, user, capabilities, mounts and limits. A network for each pair of pods that the network policies let through
stands for the cluster's network, and a Service is a name in it. What enforces policies and balances is not tested.
"""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import docker
import httpx
import pytest

from lab.live.demo import REVIEWS
from tests.e2e.conftest import PROJECT
from tests.kubernetes import bytes_of, container, environment, flat, of_kind, paths, rendered, workloads

OVERLAY = "overlays/one-host"
KEYS = {"tier-key": "k8s-tier-0123456789", "door-key": "k8s-door-0123456789"}
LABEL = f"{PROJECT}-kubernetes"


class Pod:
    """A pod's only container under Docker."""

    def __init__(self, name, spec, objects, keys):
        self.spec, only = spec, container(spec)
        self.probes = {kind: only[f"{kind}Probe"] for kind in ("startup", "readiness", "liveness")}
        self._ports = {port["name"]: port["containerPort"] for port in only["ports"]}
        user, sealed, volumes = (
            spec["securityContext"],
            only["securityContext"],
            {v["name"]: v for v in spec["volumes"]},
        )
        env = environment(spec, objects)
        if spec.get("enableServiceLinks", True):
            env |= {f"{name.upper()}_SERVICE_HOST".replace("-", "_"): "10.96.0.7" for name in services(objects)}
        mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in only["volumeMounts"]}
        engine = docker.from_env()
        self.network = engine.networks.create(f"{LABEL}-{name}", labels={LABEL: ""})  # for probes and clients
        self.container = engine.containers.run(
            only["image"],
            only["command"],
            name=f"{LABEL}-{name}",
            labels={LABEL: ""},
            detach=True,
            environment=env,
            user=f"{user['runAsUser']}:{user['runAsGroup']}",
            read_only=sealed["readOnlyRootFilesystem"],
            cap_drop=sealed["capabilities"]["drop"],
            security_opt=[] if sealed["allowPrivilegeEscalation"] else ["no-new-privileges:true"],
            mem_limit=bytes_of(only["resources"]["limits"]["memory"]),
            nano_cpus=int(float(only["resources"]["limits"]["cpu"]) * 1e9),
            tmpfs={
                path: f"size={bytes_of(volume['emptyDir']['sizeLimit'])}"
                for path, volume in mounts.items()
                if "emptyDir" in volume
            },
            volumes={str(keys): {"bind": path, "mode": "ro"} for path, volume in mounts.items() if "secret" in volume},
            ports={f"{port}/tcp": ("127.0.0.1", None) for port in self._ports.values()},
            network=self.network.name,
        )

    def url(self, port="http"):
        self.container.reload()
        (binding,) = self.container.ports[f"{self._ports[port]}/tcp"]
        return f"http://127.0.0.1:{binding['HostPort']}"

    def passes(self, kind):
        """Whether a probe succeeds now: a status of 200 to 399 within its time."""
        probe = self.probes[kind]
        try:
            get = probe["httpGet"]
            return (
                200 <= httpx.get(self.url(get["port"]) + get["path"], timeout=probe["timeoutSeconds"]).status_code < 400
            )
        except httpx.TransportError:
            return False

    def wait_until_started(self):
        """Probe as often as the startup probe says; a kubelet would then start the container again."""
        probe = self.probes["startup"]
        for _ in range(probe["failureThreshold"]):
            if self.passes("startup"):
                return
            time.sleep(probe["periodSeconds"])
        raise AssertionError(self.container.logs()[-2000:])

    def stop(self):
        """PreStop, SIGTERM, and the end of the grace; the exit status and the seconds from SIGTERM on."""
        sleeps = container(self.spec)["lifecycle"]["preStop"]["sleep"]["seconds"]
        time.sleep(sleeps)
        since = time.monotonic()
        self.container.stop(timeout=self.spec["terminationGracePeriodSeconds"] - sleeps)
        return self.container.wait()["StatusCode"], time.monotonic() - since


def services(objects):
    return [one["metadata"]["name"] for one in of_kind(flat(objects), "Service")]


def remove():
    engine, ours = docker.from_env(), {"label": LABEL}
    for one in engine.containers.list(all=True, filters=ours):
        one.remove(force=True)
    for one in engine.networks.list(filters=ours):
        one.remove()


@pytest.fixture(scope="module")
def pods(tmp_path_factory):
    """Each tier's pod by its Service's name, started."""
    objects, keys = rendered(OVERLAY), tmp_path_factory.mktemp("keys")
    keys.chmod(0o755)
    for name, key in KEYS.items():
        (keys / name).write_text(key)
    remove()
    try:
        started = {name: Pod(name, spec, objects, keys) for name, spec in workloads(objects)}
        for asks, asked in paths(objects):
            network = docker.from_env().networks.create(f"{LABEL}-{asks}-{asked}", internal=True, labels={LABEL: ""})
            network.connect(started[f"tierwise-{asks}"].container)
            network.connect(started[f"tierwise-{asked}"].container, aliases=[f"tierwise-{asked}"])
        with ThreadPoolExecutor() as pool:
            list(pool.map(Pod.wait_until_started, started.values()))
        yield started
    finally:
        remove()


@pytest.fixture
def ask(pods):
    """Classify a text at the end, with the door's key."""
    url, head = pods["tierwise-end"].url(), {"authorization": f"Bearer {KEYS['door-key']}"}

    def ask(text, **options):
        policy = {"name": "collaborative", "offload_threshold": 1.0}  # always on to the last tier
        body = {"inputs": text, "options": {"policy": policy, **options}}
        return httpx.post(f"{url}/v1/classify", json=body, headers=head, timeout=30)

    return ask


def test_every_probe_succeeds(pods):
    assert {name: [kind for kind in pod.probes if not pod.passes(kind)] for name, pod in pods.items()} == {
        name: [] for name in pods
    }


def test_a_text_travels_along_the_names_of_the_services(ask):
    (result,) = ask(REVIEWS[7]).json()["results"]
    assert [hop["tier"] for hop in result["hops"]] == ["end", "edge", "cloud"]
    assert result["degraded"] is None


def test_nobody_asks_without_a_key(pods):
    for pod in pods.values():
        assert httpx.post(f"{pod.url()}/v1/classify", json={"inputs": "A joy."}).status_code == 401


def test_a_container_is_as_powerless_as_the_manifest_says(pods):
    for pod in pods.values():
        effective = pod.container.exec_run(["grep", "-E", "^(Uid|CapEff|NoNewPrivs|Seccomp:)", "/proc/1/status"]).output
        assert (
            effective.split()
            == b"Uid: 10001 10001 10001 10001 CapEff: 0000000000000000 NoNewPrivs: 1 Seccomp: 2".split()
        )
        assert pod.container.exec_run(["touch", "/app/x"]).exit_code
        assert pod.container.exec_run(["touch", "/tmp/x"]).exit_code == 0
        assert pod.container.attrs["HostConfig"]["Memory"] == bytes_of(
            container(pod.spec)["resources"]["limits"]["memory"]
        )


def test_the_cloud_is_stopped_as_the_kubelet_stops_it_and_no_request_is_lost(pods, ask):
    answers, done = [], threading.Event()

    def load():
        while not done.is_set():
            answers.append(ask(REVIEWS[7]))

    users = [threading.Thread(target=load) for _ in range(2)]
    for user in users:
        user.start()
    try:
        status, seconds = pods["tierwise-cloud"].stop()
    finally:
        time.sleep(2)
        done.set()
        for user in users:
            user.join()
    drain_s = float(environment(pods["tierwise-cloud"].spec, rendered(OVERLAY))["TIERWISE_DRAIN_S"])
    assert (status, seconds < drain_s) == (0, True)
    assert {answer.status_code for answer in answers} == {200}
    degraded = [answer.json()["results"][0]["degraded"] for answer in answers]
    assert degraded[0] is None
    assert degraded[-1] in ("upstream_unavailable", "breaker_open")
