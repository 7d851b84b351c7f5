"""What policies that learn have learned: kept, bounded, and written as a whole."""

import asyncio
import json

import pytest

from shared import states as module
from shared.policies import Clues, Outcome, Visit, Where, build
from shared.states import States

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


def test_a_disk_that_fails_stops_no_answer(tmp_path, monkeypatch):
    path, policy = tmp_path / "end.json", made("splitee")
    store = states(path)
    monkeypatch.setattr(module.json, "dump", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    teach(store, policy)
    assert store.of(policy)["rounds"] == 1
    assert json.loads(path.read_text()) == {}


@pytest.mark.parametrize("broken", ['{"x": 1}', "nonsense", '{"{}": {}}'])
def test_a_file_that_is_not_ours_is_an_error(tmp_path, broken):
    path = tmp_path / "end.json"
    path.write_text(broken)
    with pytest.raises(module.BadSetting, match="move it away"):
        states(path)
