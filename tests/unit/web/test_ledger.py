"""The ledger: one line per text, no text unless asked, and a disk that fails costs no answer."""

import fcntl
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from shared.contracts import ClassifyRequest, ClassifyResponse, Result, Why
from shared.errors import BadSetting
from shared.web import ledger as module
from shared.web.ledger import Ledger, entries, text_sha256

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
        "exits": [{"exit": 1, "probabilities": {"negative": 0.5, "positive": 0.5}, "confidence": 0.5}],
        **changes,
    }


def answer(count, request_id="r-1"):
    result = {
        "label": "positive",
        "probabilities": {"negative": 0.25, "positive": 0.75},
        "confidence": 0.75,
        "why": Why.SURE,
        "tier": "end",
        "exit_layer": 2,
        "words_in": 3,
        "truncated": False,
        "degraded": None,
        "ensemble": {"weights": {"end": 1.0}, "overruled": False},
        "hops": [hop()],
    }
    results = [Result.model_validate({"index": index, **result}) for index in range(count)]
    return ClassifyResponse(
        id=request_id, model="tiny@0", policy=POLICY, results=results, timings_ms={"ensemble": 0.1, "total": 4.0}
    )


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
    ledger.add(ClassifyRequest.model_validate(request), answer(2))
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
    ledger.add(ClassifyRequest(inputs="a secret film"), answer(1))
    ledger.close()
    (line,) = entries(ledger.path)
    assert (line["text"], line["text_pair"], line["seed"]) == ("a secret film", None, "r-1")


def test_it_goes_on_after_a_line_that_a_kill_cut_short(open_ledger, tmp_path):
    path = tmp_path / "deep" / "ledger.jsonl"
    path.parent.mkdir()
    path.write_text('{"id": "whole"}\n{"id": "cu')
    ledger = open_ledger(path)
    ledger.add(ClassifyRequest(inputs="a fine film"), answer(1))
    ledger.close()
    assert [line["id"] for line in entries(path)] == ["whole", "r-1"]


def test_two_tiers_may_share_a_file(open_ledger):
    one, two = open_ledger(), open_ledger()
    for number in range(50):
        for ledger in (one, two):
            ledger.add(ClassifyRequest(inputs="a fine film"), answer(1, f"r-{number}"))
    one.close()
    two.close()
    assert Counter(line["id"] for line in entries(one.path)) == {f"r-{n}": 2 for n in range(50)}


FILLING = """
import json, resource, sys
from collections import Counter
from pathlib import Path
from shared.contracts import ClassifyRequest, ClassifyResponse
from shared.web.ledger import Ledger
path, answer, counted = Path(sys.argv[1]), ClassifyResponse.model_validate_json(sys.argv[2]), Counter()
def write(requests, limit):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, -1))
    writers = [Ledger(path, tier="end", texts=False, count=lambda o, n: counted.update({o: n})) for _ in range(2)]
    for _ in range(requests):
        for writer in writers:
            writer.add(ClassifyRequest(inputs="a fine film"), answer)
    for writer in writers:
        writer.close()
for full in (3000, 7000, 7001, 12345):
    write(12, full)
    write(1, -1)
print(json.dumps(counted))
"""


def test_a_full_disk_leaves_no_torn_line_and_every_line_is_counted_for_what_it_became(tmp_path):
    path = tmp_path / "ledger.jsonl"
    command = [sys.executable, "-c", FILLING, path, answer(1).model_dump_json(by_alias=True)]
    child = subprocess.run(command, capture_output=True, text=True, timeout=60)
    counted = json.loads(child.stdout.splitlines()[-1])
    lines = path.read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == ["r-1"] * counted["kept"]
    assert counted["kept"] + counted["lost"] == 4 * 2 * 13
    assert counted["lost"] > 0


@pytest.mark.parametrize(
    ("tail", "kept"),
    [
        ('{"id": "cu', False),
        ('{"id": "cut", "hops": [{"a": 1}', False),
        ("{", False),
        ("\0" * 5000, False),
        ('{"id": "deep", "hops": ' + "[" * 100_000, False),
        ('{"id": "' + "long" * 50_000, False),
        ('{"id": "all but the end"}', True),
        ("what somebody else wrote", True),
    ],
)
@pytest.mark.parametrize("when", ["before it is opened", "while it is open"])
def test_a_torn_line_is_cut_off_and_a_whole_one_is_ended(open_ledger, tmp_path, tail, kept, when):
    path = tmp_path / "ledger.jsonl"
    path.write_text('{"id": "whole"}\n' + (tail if when.startswith("before") else ""))
    ledger = open_ledger()
    if when.startswith("while"):
        with path.open("a") as other:
            other.write(tail)
    ledger.add(ClassifyRequest(inputs="a fine film"), answer(1))
    ledger.close()
    first, *between, last = path.read_text().split("\n")[:-1]
    assert between == ([tail] if kept else [])
    assert (json.loads(first)["id"], json.loads(last)["id"]) == ("whole", "r-1")


def written(ledger, counted, request_id):
    lines = sum(counted.values())
    ledger.add(ClassifyRequest(inputs="a fine film"), answer(1, request_id))
    until = time.monotonic() + 20
    while sum(counted.values()) == lines and time.monotonic() < until:
        time.sleep(0.001)


def rotated(path):
    path.rename(path.with_suffix(".1"))


def deleted(path):
    path.unlink()


def folder_deleted(path):
    shutil.rmtree(path.parent)


def folder_renamed(path):
    path.parent.rename(path.parent.with_name("old"))


def replaced(path):
    path.with_suffix(".new").write_text('{"id": "other"}\n')
    path.with_suffix(".new").replace(path)


def truncated(path):
    os.truncate(path, 0)


@pytest.mark.parametrize("change", [rotated, deleted, folder_deleted, folder_renamed, replaced, truncated])
def test_after_the_file_was_moved_away_the_next_line_makes_a_new_one(open_ledger, counted, tmp_path, change):
    ledger = open_ledger(tmp_path / "logs" / "ledger.jsonl")
    written(ledger, counted, "r-1")
    change(ledger.path)
    written(ledger, counted, "r-2")
    written(ledger, counted, "r-3")
    ledger.close()
    assert [line["id"] for line in entries(ledger.path) if line["id"] != "other"] == ["r-2", "r-3"]
    assert counted == {"kept": 3}
    if change in (rotated, folder_renamed):
        (old,) = [*tmp_path.glob("logs/*.1"), *tmp_path.glob("old/*")]
        assert [line["id"] for line in entries(old)] == ["r-1"]


def test_while_something_else_has_its_path_lines_are_lost_and_counted(open_ledger, counted):
    ledger = open_ledger()
    ledger.path.unlink()
    os.mkfifo(ledger.path)
    written(ledger, counted, "r-1")
    ledger.path.unlink()
    written(ledger, counted, "r-2")
    ledger.close()
    assert [line["id"] for line in entries(ledger.path)] == ["r-2"]
    assert counted == {"lost": 1, "kept": 1}


@pytest.mark.parametrize("kind", ["fifo", "socket", "device", "link to a device", "folder", "below a file"])
def test_what_is_no_file_stops_the_start(open_ledger, tmp_path, kind):
    path = tmp_path / "ledger"
    with socket.socket(socket.AF_UNIX) as listener:
        if kind == "fifo":
            os.mkfifo(path)
        elif kind == "socket":
            listener.bind(str(path))
        elif kind == "device":
            path = Path("/dev/null")
        elif kind == "link to a device":
            path.symlink_to("/dev/full")
        elif kind == "folder":
            path.mkdir()
        else:
            path.write_text("")
            path = path / "ledger"
        with pytest.raises(BadSetting, match=f"TIERWISE_LEDGER={path}: cannot append to it: "):
            open_ledger(path)


def test_a_disk_that_hangs_holds_neither_who_adds_nor_the_end(open_ledger, counted, monkeypatch):
    ledger, go = open_ledger(), threading.Event()
    monkeypatch.setattr(module.os, "write", lambda *_: go.wait(60))
    for _ in range(3):
        ledger.add(ClassifyRequest(inputs="a fine film"), answer(1))
    ledger.close(0.05)
    assert counted == {"lost": 3}
    go.set()


def test_a_writer_that_stands_still_does_not_hold_another_ones_start_or_end(open_ledger, counted):
    stopped = open_ledger()
    with stopped.path.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        other = open_ledger()
        other.add(ClassifyRequest(inputs="a fine film"), answer(1))
        other.close(0.05)
    stopped.close()
    assert counted["lost"] == 1


def test_a_file_that_cannot_be_written_stops_the_start(open_ledger, tmp_path):
    with pytest.raises(BadSetting, match=f"TIERWISE_LEDGER={tmp_path}"):
        open_ledger(tmp_path)


def test_a_digest_of_a_text_is_its_plain_sha256_and_pairs_do_not_collide():
    assert text_sha256("a fine film").startswith("bac6d0ff1e0a93ed")
    assert len({text_sha256("ab"), text_sha256("a", "b"), text_sha256("a", ""), text_sha256("", "a")}) == 4


def test_lines_are_whole_json(open_ledger):
    ledger = open_ledger(texts=True)
    ledger.add(ClassifyRequest(inputs="naïve\u2028film"), answer(1))
    ledger.close()
    assert len([json.loads(line) for line in ledger.path.read_text().split("\n") if line]) == 1
