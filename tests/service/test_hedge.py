"""A tier whose edge is late: another way is taken too, one answer comes, and both calls are on record."""

import asyncio

import pytest

LATE_S = 0.05  # that calls to the edge are said to take at most


@pytest.fixture
def late(edge):
    """An edge that does not answer in this test's time, and notes that it was cancelled."""

    async def wait(request):
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            wait.cancelled += 1
            raise
        return edge(request)

    wait.cancelled = 0
    return wait


def used_to(caller):
    """Have 20 calls of one text to the edge on record, all in time."""
    for _ in range(20):
        caller.app.state.tier.sender._hedger._usual.add(("edge", False, 1), LATE_S)
    return caller


def test_a_late_edge_is_passed_by_and_the_text_answered_once(serve, late, cloud, always, tmp_path):
    ledger = tmp_path / "ledger.jsonl"
    caller = used_to(serve(edge=late, cloud=cloud, hedge_budget=0.05, links="none", ledger=ledger))
    (result,) = caller.results("a fine film", policy=always)
    assert ([hop["tier"] for hop in result["hops"]], result["degraded"]) == (["end", "cloud"], None)
    hedge = result["hops"][1]["hedge"]
    assert (hedge["first"], hedge["second"], hedge["won"]) == ("edge", "cloud", True)
    assert hedge["after_ms"] >= 1e3 * LATE_S
    assert hedge["request_bytes"] > 100
    assert late.cancelled == 1
    samples = caller.samples()
    assert samples["tierwise_hedges_total", "end", "won", "cloud", "edge"] == 1
    assert samples["tierwise_hedge_wasted_bytes_total", "up", "end-edge"] == hedge["request_bytes"]
    assert samples["tierwise_link_bytes_total", "up", "end-edge"] == hedge["request_bytes"]
    assert samples["tierwise_answered_total", "cloud", "collaborative"] == 1
    caller.app.state.ledger.close()
    assert '"hedge": {"first": "edge", "second": "cloud"' in ledger.read_text()


def test_without_a_budget_a_late_edge_is_waited_for(serve, late, cloud, always):
    caller = used_to(serve(edge=late, cloud=cloud, links="none", upstream_timeout_ms=200))
    (result,) = caller.results("a fine film", policy=always)
    assert ([hop["tier"] for hop in result["hops"]], result["degraded"]) == (["end"], "upstream_timeout")
    assert cloud.requests == []
