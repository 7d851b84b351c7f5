"""Which engine the lab's commands run on, and what a recording says of it."""

import json
import os
import shutil

import numpy as np
import pytest
from rich.console import Console

from lab.data.examples import Example
from lab.engine import asked, computes, let_threads_sleep
from lab.fit.quantize import quantize_all
from lab.replay.recorder import Kernel, Recorders, other_engine, runs_on, source_of
from shared.errors import BadSetting
from shared.model.bundle import load_bundle
from shared.model.openvino_engine import capabilities


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("TIERWISE_CACHE_DIR", str(tmp_path / "cache"))
    for variable in ("TIERWISE_ENGINE", "TIERWISE_PRECISION"):
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture
def quantized(tiny_bundle, tmp_path, sentences):
    """A copy of the tiny bundle whose first classifier has a quantization table."""
    folder = tmp_path / "quantized"
    shutil.copytree(tiny_bundle, folder)
    bundle, texts = load_bundle(str(folder)), [Example(text, None, 0) for text in sentences]
    quantize_all(bundle, [folder / "bert-3"], texts, Console(quiet=True), threads=1)
    return bundle


def logits(bundle, sentences, tier="end", kernel=Kernel.PLAIN, *, together=True):
    recorders = Recorders(Console(quiet=True))
    recorder = recorders.of(source_of(bundle, tier), 2)
    numbers = [recorders.corpus.number(text, None) for text in sentences]
    groups = [numbers] if together else [[number] for number in numbers]
    return np.stack([record.logits for group in groups for record in recorder.records(group, kernel)])


@pytest.mark.parametrize(("variable", "value"), [("TIERWISE_ENGINE", "onnx"), ("TIERWISE_PRECISION", "int4")])
def test_an_engine_or_a_precision_that_does_not_exist_is_refused(monkeypatch, variable, value):
    monkeypatch.setenv(variable, value)
    with pytest.raises(BadSetting, match=f"{variable}={value}: expected auto, "):
        asked()


def test_int8_runs_where_a_table_is_and_is_refused_where_none_is(quantized, monkeypatch):
    if "INT8" not in capabilities():
        pytest.skip("this processor has no int8")
    assert str(computes(quantized.folder / "bert-3")) == "openvino int8"
    assert runs_on(quantized).split(", ")[-1] == "openvino int8"
    monkeypatch.setenv("TIERWISE_PRECISION", "int8")
    with pytest.raises(BadSetting, match="no quantization table"):
        source_of(quantized, "cloud")


def test_engines_and_precisions_have_recordings_and_tables_of_times_of_their_own(quantized, monkeypatch):
    digests, shapes = set(), set()
    for engine, precision in (("openvino", "int8"), ("openvino", "fp32"), ("torch", "fp32")):
        monkeypatch.setenv("TIERWISE_ENGINE", engine)
        monkeypatch.setenv("TIERWISE_PRECISION", precision)
        source = source_of(quantized, "end")
        assert str(source.computes) == source.load(1).runs_on == f"{engine} {precision}"
        digests.add(source.digest)
        shapes.add(source.shape)
    assert len(digests) == len(shapes) == 3


def test_another_table_is_another_recording(quantized):
    before = source_of(quantized, "end").digest
    again = [Example("a waste of time", None, 0)]
    quantize_all(quantized, [quantized.folder / "bert-3"], again, Console(quiet=True), threads=1)
    assert source_of(quantized, "end").digest != before


def test_engines_agree(tiny_bundle, sentences, monkeypatch):
    bundle, found = load_bundle(str(tiny_bundle)), []
    monkeypatch.setenv("TIERWISE_PRECISION", "fp32")
    for engine in ("openvino", "torch"):
        monkeypatch.setenv("TIERWISE_ENGINE", engine)
        found.append(logits(bundle, sentences, "cloud"))
    assert np.allclose(*found, atol=1e-3)


def test_a_card_of_another_engine_is_told(quantized):
    (note,) = other_engine(quantized)
    assert "was fitted on openvino fp32; here runs openvino" in note
    path = quantized.folder / "card.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "engine": runs_on(quantized)}))
    assert other_engine(load_bundle(str(quantized.folder))) == []


def test_the_openvino_engine_computes_padding_too(tiny_bundle, monkeypatch):
    tokens = np.array([8, 32, 33, 64])
    assert source_of(load_bundle(str(tiny_bundle)), "end").computed(tokens).tolist() == [32, 32, 64, 64]
    monkeypatch.setenv("TIERWISE_ENGINE", "torch")
    assert source_of(load_bundle(str(tiny_bundle)), "end").computed(tokens).tolist() == tokens.tolist()


@pytest.mark.parametrize(("given", "then"), [(None, "passive"), ("active", "active")])
def test_threads_sleep_while_they_wait_unless_a_user_says_otherwise(monkeypatch, given, then):
    monkeypatch.setenv("OMP_WAIT_POLICY", given or "")
    if given is None:
        monkeypatch.delenv("OMP_WAIT_POLICY")
    let_threads_sleep()
    assert os.environ["OMP_WAIT_POLICY"] == then
