"""Pruning that is learned or moved: a keep-head, dropped states, texts to train on, and the check's verdict."""

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from lab.cli.main import app
from lab.data.examples import Example
from lab.fit import keep
from lab.fit.augment import augment, surest, unsure
from lab.fit.keep_head import FILE, KeepHead, check_first_tier, read_keep_head, word_means
from lab.fit.recipe import Recipe
from lab.fit.teacher import Teacher
from lab.papers.dropped import after, last_exit, tokens_of
from lab.papers.pruning import Answers, Drop, Reader, _against
from lab.papers.scores import Read, learned
from lab.replay.recorder import Kernel
from shared.errors import BadSetting, WrongWeights
from shared.model.bundle import load_bundle
from shared.model.torch_engine import batch
from shared.model.words import Encoded

QUIET = Console(file=io.StringIO())


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TIERWISE_CACHE_DIR", str(tmp_path / "cache"))


# -- a keep-head ------------------------------------------------------------------------------------------------------


def test_a_keep_head_scores_a_word_by_the_mean_of_its_tokens_and_travels_in_a_file(tmp_path):
    encoded = Encoded([0] * 4, [0] * 4, [-1, 0, 0, 2], ["a", "b", "c"], 3, False)
    head = KeepHead(np.array([1.0, 2.0], dtype=np.float32), 0.5)
    hidden = np.array([[9, 9], [1, 0], [0, 1], [2, 2]], dtype=np.float32)
    assert head.scores(encoded, hidden).tolist() == [(1 + 0.5 + 2 + 0.5) / 2, 0.0, 6.5]
    assert read_keep_head(tmp_path) is None
    head.save(tmp_path)
    again = read_keep_head(tmp_path)
    assert (again.v.tolist(), again.b) == ([1, 2], 0.5)
    (tmp_path / FILE).write_bytes(b"{}")
    with pytest.raises(WrongWeights, match="no keep-head"):
        read_keep_head(tmp_path)


def test_word_means_are_of_vectors_too():
    encoded = Encoded([0] * 3, [0] * 3, [0, 0, -1], ["a"], 1, False)
    assert word_means(encoded, np.array([[1, 3], [3, 5], [9, 9]])).tolist() == [[2, 4]]


def test_a_head_finds_the_direction_that_tells_the_halves_apart():
    chooser = np.random.default_rng(0)
    states = chooser.normal(size=(400, 5)) * [1, 1, 1, 10, 1] + 3
    head = keep.fit(states, states[:, 3] > 3)
    scores = states @ head.v + head.b
    assert ((scores > 0) == (states[:, 3] > 3)).mean() > 0.97
    pupil = keep.Pupil(states[:10], states[:10, 3], {})
    assert keep.hit(pupil, pupil.need) == 1
    assert keep.hit(pupil, -pupil.need) == 0


@pytest.mark.parametrize("family", ["bert", "mpnet"])
def test_need_is_gradient_times_input_of_the_answer(tiny_classifier, sentences, family):
    classifier = tiny_classifier(family, 3, engine="torch")
    encoder, encoded = classifier.engine.encoder, classifier.encode(sentences[0])
    found = keep.need(encoder, encoded)
    ids, segments, padding = batch([encoded], 0, encoder.device)

    def margin(scaled: int, by: float) -> float:
        with torch.inference_mode():
            hidden = encoder.embed(ids, segments).double()
            hidden[0, torch.tensor([word == scaled for word in encoded.word_of])] *= by
            hidden = hidden.float()
            bias = encoder.bias(hidden, padding)
            for layer in encoder.layers:
                hidden = encoder.layer(layer, hidden, bias, None)
            low, high = encoder.heads[-1](hidden, padding)[0].sort().values.tolist()
            return high - low

    for word in (0, 3):  # the slope of the margin where the word's embeddings grow
        slope = (margin(word, 1.01) - margin(word, 0.99)) / 0.02
        assert found[word] == pytest.approx(abs(slope), rel=0.05, abs=2e-3)


def test_train_keep_writes_a_head_and_goes_on(tiny_bundle, tmp_path, sentences, cache, monkeypatch):
    folder = tmp_path / "tiny"
    shutil.copytree(tiny_bundle, folder)
    bundle = load_bundle(str(folder))
    examples = [Example(f"{text} take {take}", None, 0) for take in range(3) for text in sentences]
    ask = {"most": 15, "unsure": 1.0, "threads": 1, "console": QUIET}
    found = keep.train_keep(bundle, examples, **ask)
    assert (found["learned"], found["judged"]) == (12, 3)
    assert set(found["upper_half_found"]) == {"keep-head", "received attention", "share of the margin", "random words"}
    assert all(0 <= share <= 1 for share in found["upper_half_found"].values())
    head = read_keep_head(folder)
    assert head.v.shape == (32,)
    monkeypatch.setattr(keep, "need", None)  # everything is on disk
    assert keep.train_keep(bundle, examples, **ask) == found
    with pytest.raises(BadSetting, match=r"0 texts are less sure than 0\.5"):
        keep.train_keep(bundle, examples, **ask | {"unsure": 0.5})


# -- texts to train on -------------------------------------------------------------------------------------------------


def record_of(folder, text):
    return Teacher(Path(folder), 256, QUIET, threads=1).records([(text, None)], Kernel.COUNTED)[0]


def test_a_trained_classifier_chooses_and_prunes_the_texts(classifier_on_disk, sentences, tmp_path, cache):
    folder = str(classifier_on_disk("bert", 3))
    long = [" ".join([text] * 4) for text in sentences[:4]]
    examples = [Example(text, None, 0) for text in long]
    recipe = Recipe(
        base="unused", layers=1, classes=2, prune_with=folder, pruned_share=0.5, prune_coefficients=(1.0,), unsure=1.0
    )
    assert unsure(replace(recipe, unsure=0.0), examples, QUIET, threads=1) == examples
    records = [record_of(folder, text) for text in long]
    bar = sorted(map(surest, records))[2]
    chosen = unsure(replace(recipe, unsure=bar), examples, QUIET, threads=1)
    assert [one.text for one in chosen] == [t for t, r in zip(long, records, strict=True) if surest(r) < bar]
    assert len(chosen) == 2
    with pytest.raises(BadSetting, match="is as sure of all 4 texts"):
        unsure(replace(recipe, unsure=0.5), examples, QUIET, threads=1)
    texts = augment(recipe, examples, tmp_path, QUIET)
    assert sum(text != whole for (text, _), whole in zip(texts, long, strict=True)) == 2
    for (text, _), whole in zip(texts, long, strict=True):
        words = iter(whole.split())
        assert all(word in words for word in text.split())


# -- states that are dropped ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["bert", "mpnet"])
def test_states_are_dropped_as_if_nobody_saw_them_any_more(tiny_classifier, sentences, family):
    text = f"{sentences[0]} {sentences[1]} {sentences[2]}"
    classifier, reference = tiny_classifier(family, 4), tiny_classifier(family, 4, engine="torch").engine.encoder
    encoded = classifier.encode(text)
    words = np.arange(0, len(encoded.words), 2)
    keep_tokens = tokens_of(encoded, words)
    assert 0 in keep_tokens
    assert len(encoded.ids) - 1 in keep_tokens
    found = last_exit(classifier.engine, after(classifier.engine, encoded, 2), 2, keep_tokens)
    ids, segments, _ = batch([encoded], 0, reference.device)
    gone = torch.ones(1, len(encoded.ids), dtype=torch.bool)
    gone[0, keep_tokens] = False
    with torch.inference_mode():  # masked instead of dropped
        hidden = reference.embed(ids, segments)
        for n, layer in enumerate(reference.layers):
            hidden = reference.layer(layer, hidden, reference.bias(hidden, gone if n >= 2 else None), None)
        expected = reference.heads[-1](hidden, gone)[0].numpy()
    assert found == pytest.approx(expected, abs=1e-4)


def test_dropping_no_state_changes_nothing(tiny_classifier, sentences):
    classifier = tiny_classifier("mpnet", 4)
    encoded = classifier.encode(sentences[0])
    whole = classifier.run([encoded], None)[0].logits[-1]
    everything = np.arange(len(encoded.ids))
    assert last_exit(classifier.engine, after(classifier.engine, encoded, 3), 3, everything) == pytest.approx(whole)


# -- the check --------------------------------------------------------------------------------------------------------


def answers(right, wrong, work):
    """So many texts of label 0 answered with .8 for it, and so many with .4."""
    sure = np.array([[0.8, 0.2]] * right + [[0.4, 0.6]] * wrong)
    return Answers(sure, np.full(len(sure), work))


def test_a_row_is_accepted_where_it_saves_work_and_loses_nothing():
    truth = np.zeros(1000, dtype=int)
    whole = answers(900, 100, 10.0)
    alike = _against(answers(900, 100, 7.0), whole, truth)
    assert (alike["work"], alike["points"][0], alike["nll_more"][0], alike["n"]) == (pytest.approx(0.7), 0, 0, 1000)
    assert alike["accepted"]
    assert not _against(answers(900, 100, 9.0), whole, truth)["accepted"]
    worse = _against(answers(880, 120, 7.0), whole, truth)
    assert worse["points"][0] == pytest.approx(-0.02)
    assert worse["nll_more"][0] == pytest.approx(0.02 * np.log(2))
    assert not worse["accepted"]
    few = _against(Answers(whole.probabilities[:50], np.full(50, 5.0)), whole, truth)  # the first texts alone
    assert (few["n"], few["work"], few["points"][0]) == (50, 0.5, 0)


def test_dropped_states_are_kept_by_the_score_that_chose_them():
    reader = SimpleNamespace(recorder=SimpleNamespace(corpus=SimpleNamespace(keys=["text"])))

    def key(*worth):
        read = Read(0, None, None, learned=np.array(worth))
        return Reader._key(reader, read, Drop(3, "keep-head"), {"keep-head": learned})

    assert key(1.0, 2.0) == key(1.0, 2.0)
    assert key(1.0, 2.0) != key(2.0, 1.0)  # as another first tier may say of the same text


def test_a_head_of_another_network_is_refused():
    with pytest.raises(WrongWeights, match=r"2 values a state, the first tier has 3.*train-keep"):
        KeepHead(np.ones(2, dtype=np.float32), 0.0).scores(Encoded([0], [0], [0], ["a"], 1, False), np.ones((1, 3)))


def test_a_first_tier_without_a_network_of_its_own_is_refused():
    with pytest.raises(BadSetting, match="split-sst2: its first tier needs a network of its own, not mpnet-12"):
        check_first_tier(load_bundle("split-sst2"))
    check_first_tier(load_bundle("collaborative"))


def test_check_pruning_asks_every_way_and_again_from_disk(tiny_bundle, tmp_path, sentences, cache):
    folder = tmp_path / "tiny"
    shutil.copytree(tiny_bundle, folder)
    card = json.loads((folder / "card.json").read_text())
    card["policies"]["collaborative"] |= {"offload_threshold": 1.0, "theta": 0.0}
    (folder / "card.json").write_text(json.dumps(card))
    KeepHead(np.ones(32, dtype=np.float32), 0.0).save(folder)
    texts = [" ".join([text] * 3) for text in sentences]
    table = {"text": texts, "label": [row % 2 for row in range(len(texts))], "split": ["test"] * len(texts)}
    pq.write_table(pa.table(table), tmp_path / "data.parquet")
    arguments = ["check-pruning", "--data", str(tmp_path / "data.parquet"), "--bundle", str(folder), "--states", "5"]
    arguments += ["--other", str(folder)]
    done = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "first")])
    assert done.exit_code == 0, done.output
    report = json.loads((tmp_path / "first.json").read_text())
    rows = report["rows"]
    assert report["made"]["sent"] == len(texts)
    assert [(row["sent"], row["score"], row["n"]) for row in rows[:7]] == [
        ("every word", "", len(texts)),
        ("words", "received attention", len(texts)),
        ("words", "share of the margin", len(texts)),
        ("words", "keep-head", len(texts)),
        ("words", "the reader's own share", len(texts)),
        ("words", "random words", len(texts)),
        ("words", "head and tail", len(texts)),
    ]
    assert (rows[0]["work"], rows[0]["points"][0], rows[0]["nll_more"][0]) == (1, 0, 0)
    assert {row["n"] for row in rows if row["sent"] == "states"} == {5}
    assert min(row["work"] for row in rows) < max(row["work"] for row in rows) == 1  # padding hides some
    assert len({row["nll"] for row in rows[:7]}) == 7  # each score keeps other words
    done = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "again")])
    assert done.exit_code == 0, done.output
    assert json.loads((tmp_path / "again.json").read_text()) == report
