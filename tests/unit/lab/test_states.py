"""`check-states`: agreement is counted against whole runs, and ways are modelled by hand-worked numbers."""

import json

import numpy as np
import pytest

from lab.docs import measured
from lab.docs.tables import made
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
    same, low, high = row["same_label"]
    assert (row["n"], same, row["same_at_every_exit"]) == (3, 2 / 3, 1 / 3)
    assert row["largest_logit_difference"] == 2
    assert low < same < high


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


def test_the_manual_has_a_row_for_each_link_of_a_hop(tmp_path, monkeypatch):
    row = {"hop": "end to edge", "link": "lte", "text_ms": 9.61, "state_ms": 8.2, "choice": "state"}
    rows = [{**row, "tokens": tokens} for tokens in (32, 128)] + [{**row, "hop": "edge to cloud", "tokens": 32}]
    (tmp_path / "check-states.json").write_text(json.dumps({"form": "fp16", "ways_modelled": rows}))
    monkeypatch.setattr(measured, "RESULTS", tmp_path)
    assert made("ways end").splitlines() == [
        "| link | 32 tokens: text, ms | 32 tokens: state, ms | 128 tokens: text, ms | 128 tokens: state, ms |",
        "|---|---|---|---|---|",
        "| `lte` | 9.6 | **8.2** | 9.6 | **8.2** |",
    ]
