"""What `make accuracy` makes of two engines' answers, worked by hand and on tiny models."""

import numpy as np
import pytest
from rich.console import Console

from lab.data.examples import Example
from lab.engine import Computes
from lab.replay.recorder import Recorders
from shared.model.bundle import load_bundle
from shared.model.encoder import Precision
from tests.bench import accuracy
from tests.bench.accuracy import compared, exits_of, goals, rows_of


def test_a_tier_may_answer_from_the_first_exit_that_its_rule_can_accept():
    bundle = load_bundle("collaborative")  # patience 1
    assert {tier: exits_of(bundle, tier) for tier in bundle.order} == {
        "end": range(2, 7),
        "edge": range(2, 7),
        "cloud": range(2, 13),
    }


def test_differences_are_of_the_same_texts_and_of_ours_less_the_reference():
    labels = np.array([0, 0, 1, 1])
    reference = np.array([[0.75, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.25]])  # 3 of 4 right, as sure as that
    ours = np.array([[0.75, 0.25], [0.25, 0.75], [0.25, 0.75], [0.75, 0.25]])  # the second one is wrong too
    row = compared(ours, reference, labels)
    assert (row["ours"]["accuracy"], row["reference"]["accuracy"]) == (0.5, 0.75)
    assert (row["ours"]["ece"], row["reference"]["ece"]) == pytest.approx((0.25, 0))
    assert row["accuracy_difference"][0] == -0.25
    assert row["ece_difference"][0] == pytest.approx(0.25)
    assert row["accuracy_difference"][1] <= -0.25 <= row["accuracy_difference"][2]
    assert row["same_label"] == 0.75


@pytest.mark.parametrize(
    ("accuracy_difference", "verdict"),
    [([0.0, -0.002, 0.002], "met"), ([-0.001, -0.004, 0.002], "open"), ([-0.01, -0.02, -0.003], "missed")],
)
def test_a_loss_is_missed_only_where_its_whole_interval_is_beyond_the_goal(accuracy_difference, verdict):
    row = {"tier": "end", "exit": 6, "last": True, "accuracy_difference": accuracy_difference}
    found = list(goals([row | {"ece_difference": [0.0, -0.004, 0.004]}, row | {"last": False}]))
    assert [goal.verdict for goal in found] == [verdict, "met"]
    assert found[0].measured == [-value for value in np.array(accuracy_difference)[[0, 2, 1]]]


def test_a_second_comparison_runs_no_text_again(tiny_bundle, sentences, monkeypatch, tmp_path):
    monkeypatch.setenv("TIERWISE_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(accuracy, "OURS", Computes("openvino", Precision.FP32))
    bundle, texts = load_bundle(str(tiny_bundle)), [Example(text, None, at % 2) for at, text in enumerate(sentences)]
    ran = []
    for _ in range(2):
        recorders = Recorders(Console(quiet=True))
        rows = [row for tier in ("edge", "cloud") for row in rows_of(bundle, tier, texts[:6], texts[6:], recorders)]
        ran.append(recorders.ran)
    assert ran == [2 * len(texts), 0]  # both engines; the edge's layers are the cloud's first
    assert [(row["tier"], row["exit"], row["last"]) for row in rows] == [
        ("edge", 2, True),
        ("cloud", 2, False),
        ("cloud", 3, False),
        ("cloud", 4, True),
    ]
    assert {row["same_label"] for row in rows} == {1.0}  # both compute in fp32
