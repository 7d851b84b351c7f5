"""`python -m tests.bench.hedge`: the same texts with and without hedging, in virtual time."""

import numpy as np
import pytest

from tests.bench.hedge import EDGE_S, SCENARIOS, compared, measured

STALLS, JITTER, *_ = SCENARIOS


def test_stalled_texts_are_answered_by_the_cloud_within_the_budget():
    row = compared(STALLS, 0.05, 400, seed=0)
    assert 0 < row["answered_by_cloud"] <= 0.05
    assert 0 < row["more_calls"] <= 0.05
    assert row["more_bytes_up"] == pytest.approx(row["more_calls"], rel=0.01)  # every text has the same words
    assert row["with_ms"]["mean"] < row["without_ms"]["mean"]
    assert row["mean_ms"][0] == pytest.approx(row["with_ms"]["mean"] - row["without_ms"]["mean"])


def test_without_a_budget_each_text_is_one_call_to_the_edge():
    run = measured(JITTER, 0.0, 50, seed=1)
    assert run["calls"] == 150  # with those that do not count
    assert set(run["tiers"]) == {"edge"}
    assert np.all(run["seconds"] > EDGE_S)
