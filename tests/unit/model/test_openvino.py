"""The CPU engine: a text gives the same bits whatever shares its batch, in every precision that is to be had here."""

import io
import shutil
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from rich.console import Console

from lab.data.examples import Example
from lab.fit.quantize import quantize
from shared.model.base import read_config
from shared.model.classifier import load_classifier, read_trained
from shared.model.encoder import ExitTrace
from shared.model.exits import Confidence
from shared.model.openvino_engine import PAD, capabilities, padded

FAMILIES = ["bert", "roberta", "mpnet"]
PRECISIONS = [
    "fp32",
    pytest.param("bf16", marks=pytest.mark.skipif("BF16" not in capabilities(), reason="no bfloat16 here")),
    pytest.param("int8", marks=pytest.mark.skipif("INT8" not in capabilities(), reason="no int8 here")),
]


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request, tmp_path_factory, classifier_on_disk, sentences):
    """A tiny classifier with a quantization table."""
    folder = tmp_path_factory.mktemp("quantized") / "net"
    shutil.copytree(classifier_on_disk(request.param, 4, seed=3), folder)
    texts = [Example(text, None, 0) for text in sentences]
    quantize(folder, 4, 64, texts, Console(file=io.StringIO()), threads=1)
    return folder


@pytest.fixture(scope="module", params=PRECISIONS)
def classifier(request, folder):
    return load_classifier(folder, layers=4, max_tokens=64, engine="openvino", precision=request.param, device="cpu")


@pytest.fixture(scope="module")
def texts(classifier, sentences):
    """Many of one padded length, some of them of one length, and others; pairs too."""
    alike = [(" ".join(text.split()[:4]), None) for text in sentences] * 2
    own = [(text, None) for text in sentences]
    pairs = [(a[:25], b[:40]) for a, b in pairwise(sentences[:4])]
    return [classifier.encode(*text) for text in [*alike, *own, *pairs, ("a", None), *alike[:1] * 9]]


def test_the_texts_cover_lengths_that_are_padded(texts):
    lengths = [padded(len(text.ids)) for text in texts]
    assert len(set(lengths)) >= 2
    assert any(len(text.ids) < length for text, length in zip(texts, lengths, strict=True))


def bits(trace):
    importance = None if trace.importance is None else trace.importance.tobytes()
    return trace.exit_layer, trace.logits.tobytes(), importance


@pytest.fixture(scope="module")
def alone(classifier, texts):
    """Every text on its own: with importance, and without."""
    return {
        importance: [classifier.run([text], None, importance=importance, every_exit=True)[0] for text in texts]
        for importance in (False, True)
    }


@pytest.mark.parametrize("importance", [False, True])
def test_a_text_gives_in_a_batch_bit_for_bit_what_it_gives_alone(classifier, texts, alone, importance):
    expected = [bits(trace) for trace in alone[importance]]
    for order in (1, -1):
        together = classifier.run(texts[::order], None, importance=importance, every_exit=True)
        assert [bits(trace) for trace in together[::order]] == expected
    eight = classifier.run(texts[:8], None, importance=importance, every_exit=True)
    assert [bits(trace) for trace in eight] == expected[:8]


@pytest.mark.parametrize("importance", [False, True])
def test_neither_does_it_depend_on_those_who_left(classifier, texts, alone, importance):
    first = classifier.calibrate(np.stack([trace.logits[0] for trace in alone[False]])[None])  # [1, B, C]
    rule = Confidence(float(np.median(first.max(-1))))
    traces = classifier.run(texts, rule, importance=importance)
    exits = {trace.exit_layer for trace in traces}
    assert len(exits) > 1  # some left
    for text, trace, whole in zip(texts, traces, alone[importance], strict=True):
        assert trace.logits.tobytes() == whole.logits[: trace.exit_layer].tobytes()
        single = classifier.run([text], rule, importance=importance)[0]
        assert bits(trace) == bits(single)


def test_a_cut_at_any_depth_changes_nobody_else(classifier, texts, alone):
    cut = classifier.run(texts, None, every_exit=True, over=lambda rows: [row % 3 == 1 for row in rows])
    for at, (trace, whole) in enumerate(zip(cut, alone[False], strict=True)):
        assert trace.exit_layer == (1 if at % 3 == 1 else 4)
        assert trace.logits.tobytes() == whole.logits[: trace.exit_layer].tobytes()


def test_a_second_engine_gives_the_same_bits(folder, classifier, texts, alone):
    again = load_classifier(
        folder, layers=4, max_tokens=64, engine="openvino", precision=str(classifier.engine.precision), device="cpu"
    )
    traces = again.run(texts, None, importance=True, every_exit=True)
    assert [bits(trace) for trace in traces] == [bits(trace) for trace in alone[True]]


def test_once_it_is_warm_a_pass_compiles_nothing(folder, texts, monkeypatch):
    classifier = load_classifier(folder, layers=4, max_tokens=64, engine="openvino", precision="fp32", device="cpu")
    compiled = []
    monkeypatch.setattr(classifier.engine, "_compiled", lambda n, importance: compiled.append(n))
    classifier.run(texts[:1], None)
    assert compiled == []
    with pytest.raises(AttributeError):  # of the layer that is not there
        classifier.run(texts[:1], None, importance=True)
    assert compiled == [0]
    monkeypatch.undo()
    classifier.warm_up(importance=True)
    monkeypatch.setattr(classifier.engine, "_compiled", lambda n, importance: compiled.append(n))
    classifier.run(texts[:1], None, importance=True)
    assert compiled == [0]


@pytest.mark.parametrize("importance", [False, True])
def test_what_stands_in_the_padding_changes_no_bit(classifier, texts, alone, importance):
    engine, noise = classifier.engine, np.random.default_rng(0)
    at, text = next((at, text) for at, text in enumerate(texts) if len(text.ids) % PAD)
    (row,) = engine.start([text], importance=importance)
    hidden = row.hidden.copy()
    hidden[0, row.tokens :] = noise.normal(size=hidden[0, row.tokens :].shape)
    state, logits = [replace(row, hidden=hidden)], []
    for n in range(engine.layers):
        state = engine.layer(n, state)
        logits.append(engine.exits(n, state)[0])
    received = engine.received(state, 0)
    assert bits(ExitTrace(engine.layers, np.stack(logits), received)) == bits(alone[importance][at])


@pytest.mark.parametrize("importance", [False, True])
def test_threads_are_those_asked_for_and_stay_exact(folder, classifier, texts, importance):
    two = load_classifier(
        folder,
        layers=4,
        max_tokens=64,
        engine="openvino",
        precision=str(classifier.engine.precision),
        device="cpu",
        threads=2,
    )
    options = {"importance": importance, "every_exit": True}
    together = two.run(texts, None, **options)
    assert [bits(trace) for trace in together] == [bits(two.run([text], None, **options)[0]) for text in texts]


def test_a_coarser_precision_stays_close_to_the_reference(folder, classifier, texts, alone):
    exact = load_classifier(folder, layers=4, max_tokens=64, engine="torch", precision="fp32", device="cpu")
    within = {"fp32": 1e-4, "bf16": 0.05, "int8": 0.15}[classifier.engine.precision]
    expected = exact.run(texts, None, importance=True, every_exit=True)
    gaps = [
        np.abs(exact.calibrate(a.logits) - exact.calibrate(b.logits)).mean()
        for a, b in zip(alone[True], expected, strict=True)
    ]
    assert np.mean(gaps) < within
    assert classifier.engine.precision == "fp32" or max(gaps) > 1e-6  # it does compute coarsely
    for a, b in zip(alone[True], expected, strict=True):
        assert a.importance.sum() == pytest.approx(b.importance.sum(), rel=0.02)


def test_lengths_are_padded_to_a_multiple():
    assert [padded(tokens) for tokens in (1, 31, 32, 33, 64, 258)] == [32, 32, 32, 64, 64, 288]
    assert PAD == 32


@pytest.mark.parametrize("family", FAMILIES)
def test_it_reads_as_many_tokens_as_the_base_has_positions(tiny_classifier, classifier_on_disk, family):
    most = read_config(read_trained(classifier_on_disk(family)).base).positions
    classifier, exact = (tiny_classifier(family, max_tokens=most, engine=name) for name in ("openvino", "torch"))
    text = classifier.encode("some scenes are great, others are terrible " * 90)
    assert len(text.ids) == most
    ours, theirs = (engine.run([text], None, importance=True)[0] for engine in (classifier, exact))
    assert ours.logits == pytest.approx(theirs.logits, abs=1e-4)
    assert ours.importance == pytest.approx(theirs.importance, abs=1e-3)
