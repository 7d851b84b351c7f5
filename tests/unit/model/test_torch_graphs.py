"""Recorded layers give what plain ones give. The same code runs on CUDA; on a CPU a "recording" is the step itself."""

import doctest
from dataclasses import replace

import numpy as np
import pytest
import torch
from structlog.testing import capture_logs

from shared.model import torch_graphs
from shared.model.exits import Confidence
from shared.model.torch_engine import TorchEngine
from shared.model.torch_graphs import MOST_ROWS, Graphs, cuda_capture

NO_CUDA = "torch sees no CUDA device"
TOLERANCE = 1e-4  # padding changes the last bits of fp32 sums


class Recorder:
    """A capture for CPUs that counts what it recorded, and how often that was replayed."""

    def __init__(self):
        self.recorded = self.replayed = 0

    def __call__(self, step):
        self.recorded += 1
        step()  # as the real one warms up: the buffers hold nonsense now

        def replay():
            self.replayed += 1
            step()

        return replay


@pytest.fixture(params=["bert", "roberta", "mpnet"])
def plain(request, tiny_classifier):
    return tiny_classifier(request.param, 4, seed=3, engine="torch", max_tokens=200)


def recording(classifier, capture, **options):
    """The same classifier with recorded layers."""
    engine = classifier.engine
    twin = TorchEngine(engine.encoder, engine._pad_id, capture=capture)
    if options:
        twin._graphs = Graphs(twin._record, capture, classes=2, **options)
    return replace(classifier, engine=twin)


def same(ours, theirs, tolerance=TOLERANCE):
    for a, b in zip(ours, theirs, strict=True):
        assert (a.exit_layer, a.cut, a.logits.shape) == (b.exit_layer, b.cut, b.logits.shape)
        assert np.abs(a.logits - b.logits).max() < tolerance
        assert (a.importance is None) == (b.importance is None)
        if a.importance is not None:
            assert a.importance.shape == b.importance.shape
            assert np.abs(a.importance - b.importance).max() < tolerance * a.exit_layer


def mixed(classifier, sentences):
    """Batches of 1 to 12 texts, of 1 to 7 buckets of tokens, and texts whose tokens fill a bucket."""
    full = next(
        text
        for length in range(24, 40)
        if len((text := classifier.tokens.encode(" ".join(sentences), None, length)).ids) == 32
    )
    read = [classifier.encode(" ".join(sentences[: 1 + at])) for at in range(12)]
    short = [classifier.encode(text) for text in sentences]
    return [read[:1], read[:3], read[9:], read, short, [full], [full] * 3, [full, read[0]]]


def test_the_examples_hold():
    assert doctest.testmod(torch_graphs) == (0, 2)


@pytest.mark.parametrize("importance", [False, True])
@pytest.mark.parametrize("rule", [None, Confidence(0.8)], ids=str)
def test_recorded_layers_answer_as_plain_ones_in_every_bucket(plain, sentences, rule, importance):
    recorder = Recorder()
    graphs = recording(plain, recorder)
    options = {"importance": importance, "every_exit": rule is None}
    exits = set()
    for texts in mixed(plain, sentences) * 2:  # the second time from full buffers
        ours = graphs.run(texts, rule, **options)
        same(ours, plain.run(texts, rule, **options))
        exits |= {trace.exit_layer for trace in ours}
    assert recorder.replayed > recorder.recorded > 0
    assert rule is None or len(exits) > 1  # texts left between layers


def test_only_the_first_pass_of_a_shape_records_one_graph_per_layer(plain, sentences):
    recorder = Recorder()
    graphs, read = recording(plain, recorder), [plain.encode(text) for text in sentences]
    for count, recorded in ((1, 4), (1, 4), (3, 8), (4, 8)):  # 3 and 4 rows share a bucket
        graphs.run(read[:count], None)
        assert recorder.recorded == recorded
    assert recorder.replayed == 16


def test_two_passes_in_turns_do_not_disturb_each_other(plain, sentences):
    engine = recording(plain, Recorder()).engine
    read = [plain.encode(text) for text in sentences[:4]]
    a, b = engine.start(read[:2], importance=True), engine.start(read[2:], importance=True)
    for n in range(4):
        a, b = engine.layer(n, a), engine.layer(n, b)
    for state, texts in ((a, read[:2]), (b, read[2:])):
        for row, trace in enumerate(plain.run(texts, None, importance=True)):
            assert np.abs(engine.exits(3, state)[row] - trace.logits[-1]).max() < TOLERANCE
            assert np.abs(engine.received(state, row) - trace.importance).max() < TOLERANCE * 4


def test_shapes_beyond_the_bound_are_computed_plainly(plain, sentences):
    recorder = Recorder()
    graphs = recording(plain, recorder, most_shapes=2)
    for texts in mixed(plain, sentences):
        same(graphs.run(texts, None), plain.run(texts, None))
    assert recorder.recorded == 2 * 4


def test_a_batch_beyond_the_bound_is_computed_plainly(plain, sentences):
    recorder = Recorder()
    texts = [plain.encode(sentences[0])] * (MOST_ROWS + 1)
    same(recording(plain, recorder).run(texts, None), plain.run(texts, None))
    assert recorder.recorded == 0


def test_a_text_as_long_as_the_encoder_reads_is_not_padded_beyond_it(plain, sentences):
    longest = plain.engine.encoder.positions
    text = plain.tokens.encode(" ".join(sentences * 3), None, longest)
    assert len(text.ids) == longest
    assert longest % 32  # so that its bucket would be longer than what the encoder reads
    same(recording(plain, Recorder()).run([text], None), plain.run([text], None))


def test_if_recording_fails_one_line_says_so_and_every_text_is_answered(plain, sentences):
    tried = []

    def no_memory(step):
        tried.append(step)
        if len(tried) == 3:
            raise RuntimeError("CUDA error: out of memory\nmore")
        return step

    texts = [plain.encode(text) for text in sentences]
    with capture_logs() as logs:
        graphs = recording(plain, no_memory)
        for _ in range(2):
            same(graphs.run(texts, None), plain.run(texts, None))
    assert [(line["event"], line["layer"]) for line in logs] == [("cuda_graphs_off", 2)]
    assert "out of memory" in logs[0]["error"]
    assert len(tried) == 3


def test_a_cpu_records_nothing(plain):
    assert plain.engine._graphs is None


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason=NO_CUDA)
@pytest.mark.parametrize("importance", [False, True])
@pytest.mark.parametrize("rule", [None, Confidence(0.8)], ids=str)
def test_on_cuda_graphs_in_fp32_answer_as_the_cpu_does(plain, sentences, rule, importance):
    texts = mixed(plain, sentences)
    options = {"importance": importance, "every_exit": rule is None}
    expected = [plain.run(batch, rule, **options) for batch in texts]
    plain.engine.encoder.to("cuda")
    graphs = recording(plain, cuda_capture())
    with capture_logs() as logs:
        for _ in range(2):
            for batch, theirs in zip(texts, expected, strict=True):
                same(graphs.run(batch, rule, **options), theirs, tolerance=1e-3)
    assert not logs  # nothing fell back


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason=NO_CUDA)
def test_on_cuda_a_classifier_records_and_answers_as_it_does_without(tiny_classifier, sentences):
    for family in ("bert", "roberta", "mpnet"):
        gpu = tiny_classifier(family, 4, seed=3, engine="torch", precision="auto", device="cuda", max_tokens=200)
        plainly = recording(gpu, None)
        assert gpu.engine._graphs is not None
        for texts in mixed(gpu, sentences):
            for importance in (False, True):
                ours, theirs = (c.run(texts, None, importance=importance, every_exit=True) for c in (gpu, plainly))
                same(ours, theirs, tolerance=0.25)  # bf16; padding takes another kernel
