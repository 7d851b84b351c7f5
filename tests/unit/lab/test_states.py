"""`check-states`: agreement is counted against whole runs, and ways are modelled by hand-worked numbers."""

import numpy as np
import pytest

from lab.replay.profile import Table
from lab.replay.recorder import Kernel
from lab.replay.states import Agreement, agreement, neighbours, ways
from shared.links.profile import on_the_wire
from shared.model.bundle import load_bundle
from shared.model.encoder import ExitTrace
from shared.model.state import Form, packed_bytes


def trace(*logits):
    return ExitTrace(len(logits), np.array(logits, dtype=np.float32), None)


def test_labels_are_counted_behind_the_layer_that_was_sent():
    found = Agreement(Form.INT8, after=1)
    found.add(trace([2, 1], [0, 1], [0, 1]), trace([2, 1], [0, 1], [0, 3]))
    found.add(trace([2, 1], [0, 1], [0, 1]), trace([2, 1], [1, 0], [0, 1]))
    found.add(trace([2, 1], [0, 1], [0, 1]), trace([2, 1], [0, 1], [1, 0]))
    row = found.row()
    assert (row["n"], row["same_label"], row["same_at_every_exit"]) == (3, 2 / 3, 1 / 3)
    assert row["largest_logit_difference"] == 2
    assert row["same_label_low"] < 2 / 3 < row["same_label_high"]


def test_states_in_fp32_agree_exactly_and_int8_moves_them(tiny_classifier, sentences):
    classifier = tiny_classifier("mpnet", 4)
    texts = [classifier.encode(text) for text in sentences[:3]]
    exact, rough = agreement(classifier, iter(texts), [2], [Form.FP32, Form.INT8])
    assert exact.row()["largest_logit_difference"] == 0
    assert 0 < rough.row()["largest_logit_difference"] < 0.5


@pytest.fixture
def table():
    """Every layer takes 1 ms at 8 tokens and 8 ms at 64."""
    infer = [[n * 0.001, n * 0.008] for n in range(1, 5)]
    return Table(
        lengths=[8, 64],
        infer=dict.fromkeys(Kernel, infer),
        whole=dict.fromkeys(Kernel, infer[-1]),
        words=[8],
        tokenize=[0],
        prune=[0],
        spread=1.0,
    )


def test_ways_are_modelled_from_layers_and_rates(tiny_bundle, tiny_classifier, table):
    bundle, segment = load_bundle(str(tiny_bundle)), tiny_classifier("mpnet", 4).segment
    assert neighbours(bundle) == [("edge", "cloud")]
    found = {(row["link"], row["tokens"]): row for row in ways(bundle, segment, table, 5.0, Form.FP16)}
    assert {tokens for _, tokens in found} == {32, 64}
    assert "offline" not in {link for link, _ in found}
    row, size = found["nbiot", 64], packed_bytes(segment, 64, 2, Form.FP16)
    assert (row["text_bytes"], row["state_bytes"]) == (320, size)
    assert row["text_ms"] == pytest.approx(on_the_wire(320) * 8 / 25 + 4 * 8, abs=1e-3)
    assert row["state_ms"] == pytest.approx(on_the_wire(320 + size) * 8 / 25 + 2 * 8, abs=1e-3)
    assert row["choice"] == "text"
    ideal = found["ideal", 64]
    assert (ideal["text_ms"], ideal["state_ms"], ideal["choice"], ideal["saved_ms"]) == (32, 16, "state", 16)
