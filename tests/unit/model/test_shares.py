"""Shares: an exit's decision, divided among the words exactly."""

import numpy as np
import pytest

from shared.model.shares import shares_of
from shared.model.words import Encoded

# [CLS] good bad [SEP]; the third word was not read
TEXT = Encoded([1, 5, 6, 6, 2], [0] * 5, [-1, 0, 1, 1, -1], ["good", "bad", "unread"], 3, True)
PARTS = np.array([[0.0, 0.1], [0.2, 1.2], [0.3, 0.0], [0.1, 0.0], [0.0, 0.0]], dtype=np.float32)


def test_a_decision_is_divided_by_hand():
    """Towards class 1: [CLS] .1, good 1, bad -.3 - .1, bias .5; absolute values sum to 2."""
    logits = np.array([0.6, 1.8], dtype=np.float32)  # the parts' sums .6 and 1.3, and a bias of 0 and .5
    shares = shares_of(TEXT, PARTS, logits, top=1)
    assert shares.words == [pytest.approx(0.5), pytest.approx(-0.2), None]
    assert (shares.special, shares.bias) == (pytest.approx(0.05), pytest.approx(0.25))


def test_the_other_label_has_the_signs_turned():
    logits = np.array([1.8, 1.3], dtype=np.float32)  # a bias of 1.2 for class 0
    shares = shares_of(TEXT, PARTS, logits, top=0)
    assert shares.words == [pytest.approx(-1 / 2.7), pytest.approx(0.4 / 2.7), None]
    assert (shares.special, shares.bias) == (pytest.approx(-0.1 / 2.7), pytest.approx(1.2 / 2.7))


def test_of_three_labels_the_next_likely_one_is_compared_with():
    parts = np.column_stack([PARTS, np.full(5, 9.0)])
    shares = shares_of(TEXT, parts, np.array([0.6, 1.8, -7.0]), top=1)
    assert shares.words[0] == pytest.approx(0.5)


def test_a_decision_of_nothing_has_no_shares():
    shares = shares_of(TEXT, np.zeros((5, 2)), np.zeros(2), top=0)
    assert (shares.words, shares.special, shares.bias) == ([0.0, 0.0, None], 0.0, 0.0)


@pytest.mark.parametrize("family", ["bert", "roberta", "mpnet"])
def test_both_engines_give_each_token_its_part_of_the_logits(tiny_classifier, sentences, family):
    bias = {}
    traces = {}
    for engine in ("openvino", "torch"):
        classifier = tiny_classifier(family, classes=3, engine=engine)
        texts = [classifier.encode(text) for text in sentences[:6]]
        traces[engine] = classifier.run(texts, None, parts=True)
        bias[engine] = [trace.logits[-1] - trace.parts.sum(0) for trace in traces[engine]]
        for text, trace in zip(texts, traces[engine], strict=True):
            assert trace.parts.shape == (len(text.ids), 3)
    for ours, theirs in zip(traces["openvino"], traces["torch"], strict=True):
        assert ours.parts == pytest.approx(theirs.parts, abs=1e-4)
        assert np.abs(ours.parts).max() > 0.01
    assert np.allclose(bias["openvino"], 0, atol=1e-5)  # these heads have none
    assert np.allclose(bias["torch"], 0, atol=1e-5)


def test_nothing_is_computed_unless_asked_for(tiny_classifier, sentences):
    classifier = tiny_classifier("bert")
    (trace,) = classifier.run([classifier.encode(sentences[0])], None, importance=True, every_exit=True)
    assert trace.parts is None
