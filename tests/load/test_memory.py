"""`python -m tests.load.memory`: every tier's peak is read, and it never falls."""

from rich.console import Console

from lab.live.stack import Layout, free_ports, running
from tests.load import memory


def test_every_tier_s_peak_is_measured_after_each_kind_of_request(tiny_bundle, monkeypatch):
    kinds = {"one": (["a fine film"], 1, 2), "many at once": (["a fine film " * 200] * 32, 4, 4)}
    monkeypatch.setattr(memory, "KINDS", kinds)
    layout = Layout(bundle=str(tiny_bundle), port=free_ports(3), access="ideal", backbone="ideal")
    with running(layout, Console(quiet=True)) as stack:
        rows = memory.measure(stack.processes)
    assert [row["sent"] for row in rows] == ["nothing yet", *kinds]
    for tier in ("end", "edge", "cloud"):
        peaks = [row[tier] for row in rows]
        assert 50 < peaks[0] <= peaks[1] <= peaks[2] < 2000
