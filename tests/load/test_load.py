"""Overload, as far as it is no measurement: far more is asked than can be answered. `make load` has the figures.

The models' layers sleep, as on an accelerator, so that the line is what saturates and not a busy core.
"""

from types import SimpleNamespace

import pytest

from shared.model.classifier import load_classifier
from tests.engines import slowed
from tests.load.machine import machine
from tests.load.open_loop import load
from tests.load.tiers import Tiers

SLOW = {"end": ("bert-3", 3, 0.012), "edge": ("mpnet-4", 2, 0.02), "cloud": ("mpnet-4", 4, 0.02)}  # layers, s a layer


def sleeping(bundle, name, layers, seconds):
    return slowed(load_classifier(bundle / name, layers=layers, max_tokens=64), seconds)


@pytest.fixture
def bodies(sentences):
    return [{"inputs": text, "options": {"seed": at}} for at, text in enumerate(sentences)]


@pytest.fixture
def tiers(tiny_bundle):
    classifiers = {tier: sleeping(tiny_bundle, *model) for tier, model in SLOW.items()}
    out = Tiers(tiny_bundle, classifiers=classifiers, queue_wait_ms=100)
    yield out
    out.close()


def test_under_far_too_much_load_most_are_refused_some_answered_and_nothing_fails(tiers, bodies):
    samples = load(tiers.url, rate=150, seconds=4, bodies=bodies)  # the end alone answers 28 a second at most
    statuses = [sample.status for sample in samples]
    assert set(statuses) == {200, 429}
    assert statuses.count(429) > len(samples) / 2
    assert statuses.count(200) >= 8  # all of four seconds would be a hundred


def test_the_figures_name_what_they_were_measured_on(tiers):
    said = machine(SimpleNamespace(processes=[SimpleNamespace(url=tiers.url)]))
    assert {"date", "hardware", "cores"} <= said.keys()
    assert (said["runs_on"]["end"]["engine"], said["runs_on"]["end"]["threads"]) == ("openvino", 1)
