"""The cache of a replay: whole files, nothing run twice or mixed up; a kill costs what was not yet written."""

import numpy as np
import pytest
from rich.console import Console

from lab.replay.cache import CHUNK, Shelf
from lab.replay.recorder import Corpus, Kernel, Recorder, Recorders, source_of
from shared.errors import BadSetting
from shared.model.bundle import load_bundle
from shared.model.pools import Signature


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("TIERWISE_CACHE_DIR", str(tmp_path))


def shelf(folder):
    def unpack(arrays):
        return arrays["values"].tolist()

    return Shelf[int](folder, lambda items: {"values": np.array(items)}, unpack)


def record(bundle, tier="cloud", **options):
    recorders = Recorders(Console(quiet=True), **options)
    return recorders, recorders.of(source_of(bundle, tier), 2)


def test_items_come_back_and_what_no_file_has_is_named_once(tmp_path):
    first = shelf(tmp_path)
    for key, value in (("a", 1), ("b", 2)):
        first.put(key, value)
    first.save()
    again = shelf(tmp_path)
    assert again.fetch(["b", "c", "a", "c"]) == ["c"]
    assert again.items == {"a": 1, "b": 2}


def test_a_kill_loses_only_what_was_not_yet_written(tmp_path):
    killed = shelf(tmp_path)
    for number in range(CHUNK + 3):
        killed.put(str(number), number)
    (tmp_path / "half.123.part").write_bytes(b"\x00")  # what a kill in the middle of a write leaves
    assert shelf(tmp_path).fetch([str(n) for n in range(CHUNK + 3)]) == [str(n) for n in range(CHUNK, CHUNK + 3)]


def test_a_damaged_file_is_named(tmp_path):
    kept = shelf(tmp_path)
    kept.put("a", 1)
    kept.save()
    (path,) = tmp_path.glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(BadSetting, match=f"{path.name}: damaged.*delete it"):
        shelf(tmp_path)


def test_a_second_recorder_runs_nothing(tiny_bundle, sentences):
    bundle, seen = load_bundle(str(tiny_bundle)), []
    for _ in range(2):
        recorders, recorder = record(bundle)
        numbers = [recorders.corpus.number(text, None) for text in sentences]
        seen.append(
            (
                recorder.records(numbers, Kernel.PLAIN),
                recorder.records(numbers, Kernel.COUNTED),
                recorder.signatures(numbers, Signature.MEAN_WORD),
                recorders.ran,
            )
        )
        recorders.save()
    (plain, counted, signs, ran), (plain2, counted2, signs2, ran2) = seen
    assert (ran, ran2) == (3 * len(sentences), 0)
    assert signs == signs2
    for one, two in zip([*plain, *counted], [*plain2, *counted2], strict=True):
        assert np.array_equal(one.logits, two.logits)
        assert np.array_equal(one.word_of, two.word_of)
        assert (one.first_words, one.truncated) == (two.first_words, two.truncated)
    for one, two in zip(counted, counted2, strict=True):
        assert np.array_equal(one.importance, two.importance)


def test_a_recording_is_what_the_classifier_says_at_every_exit(tiny_bundle, sentences):
    recorders, recorder = record(load_bundle(str(tiny_bundle)))
    text = " ".join(sentences[:5])
    number = recorders.corpus.number(text, None)
    (plain,), (counted,) = (recorder.records([number], kernel) for kernel in Kernel)
    classifier = recorder.classifier()
    encoded = classifier.encode(text)
    assert np.array_equal(plain.logits, classifier.run([encoded], None, every_exit=True)[0].logits)
    trace = classifier.run([encoded], None, every_exit=True, importance=True)[0]
    assert np.array_equal(counted.logits, trace.logits)
    assert np.array_equal(counted.importance[-1], trace.importance)
    assert bool((counted.importance[1:] > counted.importance[:-1]).all())  # accumulated
    assert counted.encoded(text, None).word_of == encoded.word_of
    assert counted.encoded(text, None).words == encoded.words


@pytest.mark.parametrize("kernel", list(Kernel))
def test_threads_change_no_bit(tiny_bundle, sentences, kernel):
    logits = []
    for threads in (1, 2):
        recorders, recorder = record(load_bundle(str(tiny_bundle)), threads=threads)
        numbers = [recorders.corpus.number(" ".join(sentences[at : at + 4]), None) for at in range(8)]
        logits.append(np.stack([r.logits for r in recorder.records(numbers, kernel)]))
    assert np.array_equal(*logits)


def test_tiers_of_one_classifier_share_a_recording_and_other_weights_have_their_own(tiny_bundle, whole_bundle):
    tiny, whole = load_bundle(str(tiny_bundle)), load_bundle(str(whole_bundle))
    recorders = Recorders(Console(quiet=True))
    shared = {id(recorders.of(source_of(tiny, tier), 2)) for tier in ("edge", "cloud")}
    assert shared == {id(recorders.of(source_of(whole, tier), 2)) for tier in whole.order}
    assert source_of(tiny, "end").digest != source_of(tiny, "cloud").digest
    assert source_of(tiny, "edge") == source_of(tiny, "cloud")


def test_a_text_that_cannot_be_read_is_kept_as_such(tiny_bundle):
    for _ in range(2):
        recorders, recorder = record(load_bundle(str(tiny_bundle)))
        numbers = [recorders.corpus.number(text, None) for text in ("\u200b", "a fine film")]
        for kernel in Kernel:
            assert [r.tokens > 0 for r in recorder.records(numbers, kernel)] == [False, True]
        assert [s is None for s in recorder.signatures(numbers, Signature.TOKEN_NORMS)] == [True, False]
        recorders.save()
    assert recorders.ran == 0


def test_a_corpus_counts_words_and_bytes_as_they_travel():
    corpus = Corpus()
    assert corpus.number("naïve  film", None) == corpus.number("naïve  film", None) == 0
    assert corpus.number("one", 'two "three"') == 1
    assert corpus.words.tolist() == [2, 3]
    assert corpus.json_bytes.tolist() == [len('"naïve  film"'.encode()) + 4, 5 + len('"two \\"three\\""')]


def test_nothing_is_recorded_before_it_is_asked_for(tiny_bundle, monkeypatch):
    monkeypatch.setattr(Recorder, "classifier", lambda self: pytest.fail("a classifier was loaded"))
    record(load_bundle(str(tiny_bundle)))
