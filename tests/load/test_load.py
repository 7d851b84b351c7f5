"""The short forms of `make load` (with wide limits: a test is no benchmark) and of `make soak`, by the same code.

Overload: models whose layers sleep, as on an accelerator, so that the line is what saturates and not a busy core.
Soak: three processes of tiny random models for half a minute.
"""

import time

import pytest
from rich.console import Console

from lab.live.stack import Layout, running
from shared.model.classifier import load_classifier
from tests.load import overload
from tests.load.soak import show, soak
from tests.load.tiers import Tiers

SLOW = {"end": ("bert-3", 3, 0.012), "edge": ("mpnet-4", 2, 0.02), "cloud": ("mpnet-4", 4, 0.02)}  # layers, s a layer


def sleeping(bundle, name, layers, seconds):
    classifier = load_classifier(bundle / name, layers=layers, max_tokens=64)

    class Sleeping(type(classifier.encoder)):
        def _layer(self, *args):
            time.sleep(seconds)
            return super()._layer(*args)

    classifier.encoder.__class__ = Sleeping
    return classifier


@pytest.fixture
def bodies(sentences):
    return [{"inputs": text, "options": {"seed": at}} for at, text in enumerate(sentences)]


@pytest.mark.timing
def test_at_five_times_saturation_goodput_and_latency_hold_and_refusals_are_quick(tiny_bundle, bodies):
    classifiers = {tier: sleeping(tiny_bundle, *model) for tier, model in SLOW.items()}
    tiers = Tiers(tiny_bundle, classifiers=classifiers, queue_wait_ms=100)
    try:
        phases, verdicts = overload.measure(tiers.url, bodies, seconds=5, first=4)
    finally:
        tiers.close()
    overload.show(phases, verdicts)
    rest, *_, saturated, _half, five = phases
    assert five.errors == 0
    assert five.refused > five.n / 2  # it was overload
    assert five.goodput > 0.6 * saturated.goodput  # wide: the figures themselves are `make load`'s to hold
    assert five.p99 < 6 * rest.p99


@pytest.mark.timing
def test_half_a_minute_at_half_load_leaves_memory_and_descriptors_flat(tiny_bundle, bodies):
    with running(Layout(bundle=str(tiny_bundle), port=18480, access="ideal", backbone="ideal"), Console()) as stack:
        report = soak(stack, rate=15.0, minutes=0.5, bodies=bodies)
    show(report)
    assert report["holds"], report
    assert report["requests"] > 350
