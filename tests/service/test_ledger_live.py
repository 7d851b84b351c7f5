"""A tier that keeps a ledger: what it answers is on record, and a disk that fails is counted, not felt."""

import errno
import os

from shared.web.ledger import entries, text_sha256


def test_what_was_answered_is_on_record(serve, edge, tmp_path, always):
    path = tmp_path / "ledger.jsonl"
    tier = serve(edge=edge, ledger=path)
    answer = tier.classify(["a fine film", "a waste of time"], policy=always, seed="s").json()
    tier.app.state.ledger.close()
    for line, result in zip(entries(path), answer["results"], strict=True):
        assert (line["id"], line["model"], line["seed"], line["tier"]) == (answer["id"], answer["model"], "s", "end")
        assert line["text_sha256"] == text_sha256(["a fine film", "a waste of time"][line["index"]])
        assert line["policy"]["offload_threshold"] == 1.0
        assert line["policy"]["theta"] == 0.05  # the card's: every parameter is spelled out
        assert (line["label"], line["probabilities"]) == (result["label"], result["probabilities"])
        for kept, hop in zip(line["hops"], result["hops"], strict=True):
            assert kept == {key: value for key, value in hop.items() if key not in ("exits", "words")}
        assert line["hops"][1]["link"]["request_bytes"] > 0
    assert "fine" not in path.read_text()
    assert tier.samples()["tierwise_ledger_lines_total", "kept"] == 2


def test_what_was_refused_is_not(serve, tmp_path):
    path = tmp_path / "ledger.jsonl"
    tier = serve(ledger=path)
    assert tier.classify("a fine film", policy="nonsense").status_code == 422
    tier.app.state.ledger.close()
    assert list(entries(path)) == []


def test_a_full_disk_fails_no_request(serve, tmp_path, monkeypatch):
    tier = serve(ledger=tmp_path / "ledger.jsonl")
    monkeypatch.setattr(os, "write", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device")))
    assert tier.classify("a fine film").status_code == 200
    tier.app.state.ledger.close()
    assert tier.samples()["tierwise_ledger_lines_total", "lost"] == 1


def test_without_the_setting_nothing_is_kept(alone):
    assert alone.app.state.ledger is None
