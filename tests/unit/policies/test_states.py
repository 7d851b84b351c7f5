"""What policies that learn have learned: kept, bounded, and written as a whole."""

import asyncio
import errno
import json
import os
import subprocess
import threading
import time
from types import SimpleNamespace

import pytest

from shared.policies import Clues, Outcome, Visit, Where, build, spec_of
from shared.policies import states as module
from shared.policies.states import States

TIERS = ("end", "cloud")
WHERE = Where("end", ("cloud",), {"end": 4, "cloud": 4})


def made(spec):
    return build(spec, TIERS, {})


def states(path=None):
    return States(path, made, lambda policy: policy.initial_state(WHERE, None))


def answered(arm):
    return Outcome(Clues(3), (Visit("end", arm, 0.9, (0.9,) * arm),))


def teach(store, policy, times=1):
    async def work():
        for _ in range(times):
            bound = policy.bound(store.of(policy))
            store.learn(policy, bound, [answered(bound.arm)])
        await store.close()

    asyncio.run(work())


def test_a_policy_with_other_parameters_has_a_state_of_its_own():
    store, one, other = states(), made("splitee"), made({"name": "splitee", "offload_cost": 0.2})
    teach(store, one, 3)
    teach(store, other)
    assert (store.of(one)["rounds"], store.of(other)["rounds"]) == (3, 1)
    assert [entry["state"]["rounds"] for entry in store.described()] == [3, 1]  # the one used last comes last


def test_a_batch_teaches_row_by_row():
    store, policy = states(), made("splitee")
    store.learn(policy, made({"name": "splitee", "arm": 1}), [answered(1)] * 3)
    assert store.of(policy)["counts"] == [3, 0, 0, 0]


def test_the_file_is_read_again(tmp_path):
    path, policy = tmp_path / "deeper" / "end.json", made("splitee")
    store = states(path)
    teach(store, policy, 5)
    assert states(path).of(policy) == store.of(policy)
    assert [file.name for file in path.parent.iterdir()] == ["end.json"]


def test_an_interrupted_writer_does_not_keep_the_last_state_from_the_file(tmp_path):
    path, policy = tmp_path / "end.json", made("splitee")
    store = states(path)

    async def learn_and_leave():  # the loop ends, and the writer with it
        store.learn(policy, made({"name": "splitee", "arm": 1}), [answered(1)])

    asyncio.run(learn_and_leave())
    asyncio.run(store.close())
    assert states(path).of(policy)["rounds"] == 1


def test_the_state_unused_for_longest_goes(monkeypatch):
    monkeypatch.setattr(module, "LIMIT", 2)
    store = states()
    policies = [made({"name": "splitee", "offload_cost": cost}) for cost in (0.1, 0.2, 0.3)]
    for policy in (policies[0], policies[1], policies[0], policies[2]):
        teach(store, policy)
    assert [store.of(policy)["rounds"] for policy in policies] == [2, 0, 1]


@pytest.fixture
def disk(monkeypatch):
    """A disk that is full while `full` is set, and the texts of the writes that it took."""
    real, said = module.os.fsync, SimpleNamespace(full=True, tried=0)

    def fsync(fd):
        said.tried += 1
        if said.full:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(fd)

    monkeypatch.setattr(module, "PAUSE_S", 0.01, raising=False)
    monkeypatch.setattr(module.os, "fsync", fsync)
    return said


def until(true):
    end = time.monotonic() + 20
    while not true() and time.monotonic() < end:
        time.sleep(0.002)
    assert true()


def test_a_write_that_fails_stops_no_answer_and_is_tried_again(tmp_path, disk):
    path, policy = tmp_path / "end.json", made("splitee")
    disk.full = False
    store = states(path)
    disk.full, disk.tried = True, 0
    for _ in range(20):
        store.learn(policy, made({"name": "splitee", "arm": 1}), [answered(1)])
    assert store.of(policy)["rounds"] == 20
    until(lambda: disk.tried >= 2)
    assert json.loads(path.read_text()) == {}
    disk.full = False
    until(lambda: json.loads(path.read_text()) != {})
    assert states(path).of(policy)["rounds"] == 20
    assert [file.name for file in tmp_path.iterdir()] == ["end.json"]


def test_what_could_not_be_written_is_tried_once_more_at_the_end(tmp_path, disk):
    path, policy = tmp_path / "end.json", made("splitee")
    disk.full = False
    store = states(path)
    disk.full = True
    store.learn(policy, made({"name": "splitee", "arm": 1}), [answered(1)])
    until(lambda: disk.tried >= 2)
    disk.full = False
    asyncio.run(store.close())
    assert states(path).of(policy)["rounds"] == 1


def test_a_disk_that_hangs_does_not_hold_the_end(tmp_path, monkeypatch):
    store, go = states(tmp_path / "end.json"), threading.Event()
    monkeypatch.setattr(module, "CLOSE_S", 0.05, raising=False)
    monkeypatch.setattr(module.os, "fsync", lambda _: go.wait(60))
    store.learn(made("splitee"), made({"name": "splitee", "arm": 1}), [answered(1)])
    began = time.monotonic()
    asyncio.run(store.close())
    assert time.monotonic() - began < 20
    go.set()


def test_many_changes_are_few_writes_and_a_state_that_did_not_change_is_not_encoded_again(tmp_path, monkeypatch):
    store, encoded = states(tmp_path / "end.json"), []
    policies = [made({"name": "splitee", "offload_cost": cost / 10}) for cost in range(10)]
    for policy in policies:
        store.learn(policy, made({"name": "splitee", "arm": 1}), [answered(1)])
    writes = []
    monkeypatch.setattr(module.os, "fsync", writes.append)
    real = json.dumps
    monkeypatch.setattr(module.json, "dumps", lambda value, **kw: (encoded.append(value), real(value, **kw))[1])
    for _ in range(100):
        store.learn(policies[0], made({"name": "splitee", "arm": 1}), [answered(1)])
    asyncio.run(store.close())
    assert 1 <= len(writes) <= 2  # a second did not pass
    assert len([value for value in encoded if isinstance(value, dict) and "rounds" in value]) <= 11


def test_drafts_of_killed_processes_are_removed_at_the_start_and_nothing_else(tmp_path):
    child = subprocess.Popen(["true"])
    child.wait()
    left = [tmp_path / f"{name}.json.{pid}.new" for name in ("end", "edge-0") for pid in (child.pid, os.getpid())]
    living = subprocess.Popen(["sleep", "60"])
    old = tmp_path / f"edge.json.{living.pid}.new"  # a process with that number runs: not the one that left it
    others = [tmp_path / "end.json.new", tmp_path / "notes.new", tmp_path / "end.json.x.new"]
    at_work = tmp_path / f"end.json.{living.pid}.new"
    for file in (*left, old, *others, at_work):
        file.write_text("{")
    os.utime(old, (0, 0))
    states(tmp_path / "end.json")
    living.kill()
    living.wait()
    assert {file.name for file in tmp_path.iterdir()} == {"end.json", at_work.name, *(file.name for file in others)}


KEY = json.dumps(json.dumps({**spec_of(made("splitee"))}, sort_keys=True))
GOOD = {"arms": [1, 2, 3, 4], "rounds": 4, "counts": [1, 1, 1, 1], "totals": [0.5, 0.5, 0.5, 0.5]}


def spoilt(**changes):
    return f"{{{KEY}: {json.dumps({**GOOD, **changes})}}}".encode()


def test_a_state_of_ours_is_taken(tmp_path):
    (tmp_path / "end.json").write_bytes(spoilt())
    assert states(tmp_path / "end.json").of(made("splitee")) == GOOD


@pytest.mark.parametrize(
    "broken",
    [
        *(b'{"x": 1}', b"nonsense", b'{"{}": {}}', b"", b"[]", b"null", b"3", b'"text"', b"\xff\xfe{}", b"\0" * 100),
        *(b"[" * 100_000, b'{"a":' * 100_000, f"{{{KEY}: {'[' * 100_000}".encode()),
        *(
            f'{{{KEY}: {{"arms": {"[" * 900}{"]" * 900}}}}}'.encode(),
            b'{"[1]": {}}',
            b'{"[]": {}}',
            b'{"{\\"name\\": []}": 1}',
        ),
        spoilt(rounds=0),
        spoilt(rounds=3, counts=[4, 0, 0, 0]),
        spoilt(rounds=-1),
        spoilt(rounds=4.5),
        spoilt(rounds=10**400),
        spoilt(rounds=10**30),
        spoilt(rounds=True),
        spoilt(rounds="4"),
        spoilt(rounds=None),
        spoilt(counts=[5, 1, -1, -1]),
        spoilt(counts=[1.5, 1, 1, 0.5]),
        spoilt(counts=[]),
        spoilt(counts={}),
        spoilt(totals=[float("nan")] * 4),
        spoilt(totals=[float("inf")] * 4),
        spoilt(totals=[10**400] * 4),
        spoilt(arms=[1, 2, 3, 99]),
        spoilt(arms=[1, 2, 3, "4"]),
        spoilt(more=1),
    ],
)
def test_a_damaged_file_is_one_line_at_the_start(tmp_path, broken):
    path = tmp_path / "end.json"
    path.write_bytes(broken)
    with pytest.raises(module.BadSetting, match="move it away") as caught:
        states(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["folder", "fifo"])
def test_something_else_in_its_place_is_one_line_at_the_start(tmp_path, kind):
    path = tmp_path / "end.json"
    path.mkdir() if kind == "folder" else os.mkfifo(path)
    with pytest.raises(module.BadSetting, match="move it away"):
        states(path)


@pytest.mark.parametrize("size", [-1, 3, 4.5])
def test_pools_do_not_shrink(size):
    policy = made({"name": "dimee", "adaptive": True})
    fresh = {"sizes": [4, 4], "means": [[0.0], [1.0]]}
    policy.check_state(fresh, fresh)
    with pytest.raises(ValueError, match="cannot have become"):
        policy.check_state({**fresh, "sizes": [4, size]}, fresh)
