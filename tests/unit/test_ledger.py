"""The ledger: one line per text, no text unless asked, and a disk that fails costs no answer."""

import json
import os
from collections import Counter

import pytest

from shared.contracts import ClassifyRequest, ClassifyResponse, Result
from shared.errors import BadSetting
from shared.ledger import Ledger, entries, text_sha256

POLICY = {"name": "collaborative", "theta": 0.1}


def hop(**changes):
    return {
        "tier": "end",
        "card": "tiny@0",
        "exit_layer": 2,
        "layers": 3,
        "label": "positive",
        "probabilities": {"negative": 0.25, "positive": 0.75},
        "confidence": 0.75,
        "offload_probability": 0.4,
        "draw": 0.125,
        "offloaded_to": None,
        "words_in": 3,
        "words_kept": None,
        "weight": 1.0,
        "truncated": False,
        "link": None,
        "timings_ms": {"tokenize": 1.0, "queue": 0.0, "infer": 2.0, "prune": 0.0, "total": 3.0},
        "exits": [{"negative": 0.5, "positive": 0.5}],
        **changes,
    }


def answer(count, request_id="r-1"):
    result = {
        "label": "positive",
        "probabilities": {"negative": 0.25, "positive": 0.75},
        "confidence": 0.75,
        "tier": "end",
        "exit_layer": 2,
        "words_in": 3,
        "truncated": False,
        "degraded": None,
        "hops": [hop()],
    }
    results = [Result.model_validate({"index": index, **result}) for index in range(count)]
    return ClassifyResponse(id=request_id, model="tiny@0", results=results, timings_ms={"ensemble": 0.1, "total": 4.0})


@pytest.fixture
def counted():
    return Counter()


@pytest.fixture
def open_ledger(tmp_path, counted):
    def build(path=tmp_path / "ledger.jsonl", *, texts=False):
        return Ledger(path, tier="end", texts=texts, count=lambda outcome, lines: counted.update({outcome: lines}))

    return build


def test_a_line_per_text_with_everything_but_the_text(open_ledger, counted):
    ledger = open_ledger()
    request = {"inputs": ["a secret film", {"text": "one", "text_pair": "two"}], "options": {"seed": 7}}
    ledger.add(ClassifyRequest.model_validate(request), answer(2), POLICY)
    ledger.close()
    first, second = entries(ledger.path)
    assert "secret" not in ledger.path.read_text()
    assert (first["text_sha256"], second["text_sha256"]) == (text_sha256("a secret film"), text_sha256("one", "two"))
    assert (first["id"], first["seed"], [first["index"], second["index"]]) == ("r-1", "7", [0, 1])
    assert (first["policy"], first["model"], first["tier"], first["answered_by"]) == (POLICY, "tiny@0", "end", "end")
    assert first["hops"][0]["draw"] == 0.125
    assert "exits" not in first["hops"][0]
    assert counted == {"kept": 2}


def test_the_text_itself_only_where_asked_and_the_request_id_is_the_seed(open_ledger):
    ledger = open_ledger(texts=True)
    ledger.add(ClassifyRequest(inputs="a secret film"), answer(1), POLICY)
    ledger.close()
    (line,) = entries(ledger.path)
    assert (line["text"], line["text_pair"], line["seed"]) == ("a secret film", None, "r-1")


def test_it_goes_on_after_a_line_that_a_kill_cut_short(open_ledger, tmp_path):
    path = tmp_path / "deep" / "ledger.jsonl"
    path.parent.mkdir()
    path.write_text('{"id": "whole"}\n{"id": "cu')
    ledger = open_ledger(path)
    ledger.add(ClassifyRequest(inputs="a fine film"), answer(1), POLICY)
    ledger.close()
    assert [line["id"] for line in entries(path)] == ["whole", "r-1"]


def test_two_tiers_may_share_a_file(open_ledger):
    one, two = open_ledger(), open_ledger()
    for number in range(50):
        for ledger in (one, two):
            ledger.add(ClassifyRequest(inputs="a fine film"), answer(1, f"r-{number}"), POLICY)
    one.close()
    two.close()
    assert Counter(line["id"] for line in entries(one.path)) == {f"r-{n}": 2 for n in range(50)}


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_full_disk_is_counted_and_raises_nothing(open_ledger, counted, tmp_path):
    path = tmp_path / "full"
    path.symlink_to("/dev/full")
    ledger = open_ledger(path)
    ledger.add(ClassifyRequest(inputs=["a", "b"]), answer(2), POLICY)
    ledger.close()
    assert counted == {"lost": 2}


def test_a_file_that_cannot_be_written_stops_the_start(open_ledger, tmp_path):
    with pytest.raises(BadSetting, match=f"TIERWISE_LEDGER={tmp_path}"):
        open_ledger(tmp_path)


def test_a_digest_of_a_text_is_its_plain_sha256_and_pairs_do_not_collide():
    assert text_sha256("a fine film").startswith("bac6d0ff1e0a93ed")
    assert len({text_sha256("ab"), text_sha256("a", "b"), text_sha256("a", ""), text_sha256("", "a")}) == 4


def test_lines_are_whole_json(open_ledger):
    ledger = open_ledger(texts=True)
    ledger.add(ClassifyRequest(inputs="naïve\u2028film"), answer(1), POLICY)
    ledger.close()
    assert len([json.loads(line) for line in ledger.path.read_text().split("\n") if line]) == 1
