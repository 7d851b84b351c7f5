"""The short forms of `make load` and `make soak`, with the same measuring code and the same limits.

Overload: models whose layers sleep, as on an accelerator, so that the line is what saturates and not a busy core.
Soak: three processes of tiny random models for a minute.
"""

import time

import pytest
from rich.console import Console

from services.lab.stack import Layout, running
from shared.network import load_network
from tests.load import overload
from tests.load.soak import show, soak
from tests.load.tiers import Tiers

SLOW = {"end": ("bert-3", 3, 0.012), "edge": ("mpnet-4", 2, 0.02), "cloud": ("mpnet-4", 4, 0.02)}  # layers, s a layer


def sleeping(bundle, name, layers, seconds):
    network = load_network(bundle / name, layers=layers, max_tokens=64)

    class Sleeping(type(network.encoder)):
        def _layer(self, *args):
            time.sleep(seconds)
            return super()._layer(*args)

    network.encoder.__class__ = Sleeping
    return network


@pytest.fixture
def bodies(sentences):
    return [{"inputs": text, "options": {"seed": at}} for at, text in enumerate(sentences)]


@pytest.mark.flaky(reruns=1)  # it measures time
def test_at_five_times_saturation_goodput_and_latency_hold_and_refusals_are_quick(tiny_bundle, bodies):
    networks = {tier: sleeping(tiny_bundle, *model) for tier, model in SLOW.items()}
    tiers = Tiers(tiny_bundle, networks=networks, queue_wait_ms=100)
    try:
        phases, verdicts = overload.measure(tiers.url, bodies, seconds=5, first=4)
    finally:
        tiers.close()
    overload.show(phases, verdicts)
    assert [what for what, _, _, holds in verdicts if not holds] == []
    assert phases[-1].refused > phases[-1].n / 2  # it was overload
    assert phases[-1].late_p99 < 20  # and the load was not what fell short


def test_a_minute_at_half_load_leaves_memory_and_descriptors_flat(tiny_bundle, bodies):
    with running(Layout(bundle=str(tiny_bundle), port=18480, access="ideal", backbone="ideal"), Console()) as stack:
        report = soak(stack, rate=15.0, minutes=1, bodies=bodies)
    show(report)
    assert report["holds"], report
    assert report["requests"] > 700
