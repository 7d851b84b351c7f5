"""The stream of the fault suites finds every kind of miss."""

import pytest

from tests.faults import stream
from tests.faults.stream import Case, Entry

FULL = ["end", "edge"]


def case(*, over_ms=10.0, back_s=1.0, **entry):
    fine = {"status": 200, "answers": 1, "degraded": None, "tiers": FULL}
    return Case([Entry("0-0", FULL, **{**fine, **entry})], over_ms, late_ms=5.0, back_s=back_s)


@pytest.fixture(autouse=True)
def no_table(monkeypatch):
    monkeypatch.setattr(stream, "TABLE", [])


@pytest.mark.parametrize(
    ("seen", "must"),
    [
        ({}, False),
        ({"degraded": "upstream_timeout", "tiers": ["end"]}, True),
        ({"degraded": "deadline"}, None),  # cut between two layers of the last tier
        ({"over_ms": 254.0}, None),
    ],
)
def test_what_the_promise_allows_passes(seen, must):
    case(**seen).check("fault", "edge", ["upstream_timeout"], must=must)
    assert len(stream.TABLE) == 1


@pytest.mark.parametrize(
    ("seen", "must"),
    [
        ({"status": 500, "answers": 0}, None),
        ({"answers": 2}, None),
        ({"tiers": ["end"]}, None),  # not flagged
        ({"degraded": "upstream_timeout"}, None),  # flagged without cause
        ({"degraded": "upstream_invalid", "tiers": ["end"]}, None),  # not this fault's reason
        ({}, True),
        ({"degraded": "upstream_timeout", "tiers": ["end"]}, False),
        ({"over_ms": 256.0}, None),
        ({"back_s": 10.1}, None),
        ({"status": 504, "answers": 0, "tiers": []}, None),
    ],
)
def test_a_miss_fails(seen, must):
    with pytest.raises(AssertionError):
        case(**seen).check("fault", "edge", ["upstream_timeout"], must=must)
