"""Link profiles as Chaos Mesh's NetworkChaos: the same numbers under the same names."""

import importlib.util
from functools import cache

import pytest

from shared.links.profile import profile, profile_names
from tests.kubernetes import (
    KUBERNETES,
    check_crd,
    of_kind,
    pod_labels,
    rendered,
    selects,
)


@cache
def links_module():
    spec = importlib.util.spec_from_file_location("make_links", KUBERNETES / "make_links.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", [*profile_names(), "5g-nsa+metro"])
def test_a_profile_keeps_its_numbers_and_its_name(name):
    shape = profile(name)
    both = {one["metadata"]["name"]: one for one in links_module().network_chaos("end-edge", name)}
    if name == "ideal":
        assert both == {}
        return
    for way, tier, rate_bps in (("up", "end", shape.rate_up_bps), ("down", "edge", shape.rate_down_bps)):
        one = both[f"end-edge-{way}"]
        check_crd(one)
        assert one["metadata"]["annotations"] == {"tierwise.io/profile": name}
        assert one["spec"]["selector"]["labelSelectors"]["app.kubernetes.io/component"] == tier
        delay = one["spec"].get("delay", {"latency": "0us", "jitter": "0us"})
        assert float(delay["latency"][:-2]) == pytest.approx(shape.rtt_s / 2 * 1e6, abs=1)
        assert float(delay["jitter"][:-2]) == pytest.approx(shape.jitter_s * 1e6, abs=1)
        assert float(one["spec"].get("loss", {"loss": "0"})["loss"]) == pytest.approx(100 * shape.loss_ratio)
        assert 8 * int(one["spec"].get("rate", {"rate": "0bps"})["rate"][:-3]) == pytest.approx(rate_bps, abs=4)


def test_chaos_finds_the_pods_that_it_shapes():
    objects = rendered("overlays/chaos")
    pods = pod_labels(objects)
    pairs = set()
    for one in of_kind(objects, "NetworkChaos"):
        sides = [one["spec"]["selector"], one["spec"]["target"]["selector"]]
        wanted = [{"matchLabels": side["labelSelectors"]} for side in sides]
        pairs.add(tuple(tier for one in wanted for tier, labels in pods.items() if selects(one, labels)))
        assert all(side["namespaces"] == ["tierwise"] for side in sides)
    assert len(pairs) == len(of_kind(objects, "NetworkChaos")) == 6


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["--check"], 0, ""),
        (["--print", "edge-cloud=regional"], 0, "latency: 15000us"),
        (["--print", "edge-cloud=lunar"], 2, "link profile 'lunar'"),
        (["--print", "cloud-end=lte"], 2, "LINK is of end-edge, end-cloud, edge-cloud"),
        (["--print"], 2, "expected --check"),
        (["--chek"], 2, "expected --check"),
    ],
)
def test_the_command(arguments, status, said, capsys):
    assert links_module().main(arguments) == status
    assert said in "".join(capsys.readouterr())


def test_a_file_that_does_not_fit_is_told(monkeypatch, tmp_path, capsys):
    module = links_module()
    monkeypatch.setattr(module, "FILE", tmp_path / "links.yaml")
    module.FILE.write_text("# by hand\n")
    assert module.main(["--check"]) == 1
    assert "does not fit the link profiles" in capsys.readouterr().err
    assert module.main([]) == 0
    assert module.main(["--check"]) == 0


def test_the_links_are_those_that_the_tiers_are_made_for():
    assert links_module().LINKS == {"end-edge": "5g-nsa", "end-cloud": "5g-nsa+metro", "edge-cloud": "metro"}
