"""The default policy is loaded again while requests run: they keep theirs, and what is wrong changes nothing."""

import asyncio
import json

import pytest
from structlog.testing import capture_logs

from shared.policies import POLICIES
from shared.policies.base import Policy
from shared.telemetry import NO_POLICY


@pytest.fixture
def file(tmp_path):
    """A policy file that changes: called with a spec, or with the text that it shall hold."""
    path = tmp_path / "policy.json"

    def write(content):
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return str(path)

    return write


def reload(caller):
    """What `SIGHUP` makes the server do; whether it took, and its one log line."""
    with capture_logs() as lines:
        took = caller.app.state.reload()
    assert len(lines) == 1
    return took, lines[0]


def in_force(caller):
    return caller.get("/info").json()["policy"]


def test_the_next_request_is_decided_by_what_the_file_says_now(serve, edge, file):
    caller = serve(edge=edge, policy=file({"name": "end-only"}))
    assert [hop["tier"] for hop in caller.results("a fine film")[0]["hops"]] == ["end"]
    file({"name": "edge-only"})
    took, line = reload(caller)
    assert took
    assert (line["event"], line["log_level"], line["tier"]) == ("policy_loaded", "info", "end")
    assert (line["in_force"], line["changed"]) == ({"name": "edge-only"}, True)
    assert in_force(caller) == {"name": "edge-only"}
    assert [hop["tier"] for hop in caller.results("a fine film")[0]["hops"]] == ["edge"]


def test_the_same_file_again_is_said_to_be_no_change(serve, file):
    caller = serve(policy=file({"name": "collaborative", "offload_threshold": 0.7}))
    took, line = reload(caller)
    assert (took, line["changed"]) == (True, False)


def test_a_request_under_way_keeps_its_policy_and_is_counted_by_it(serve, edge, file, always, held_classifier):
    """It begins under a policy that sends every text on; before its model has run, the file says `end-only`."""
    caller = serve(edge=edge, classifier=held_classifier, policy=file(always))

    async def story():
        asking = asyncio.create_task(caller.ask("a fine film"))
        await asyncio.to_thread(held_classifier.running.wait, 10)
        file({"name": "end-only"})
        assert caller.app.state.reload()
        held_classifier.go.set()
        return await asking

    answer = asyncio.run(story())
    assert [hop["tier"] for hop in answer.json()["results"][0]["hops"]] == ["end", "edge"]
    counted = caller.samples()
    assert counted["tierwise_request_duration_seconds_count", "ok", "collaborative"] == 1
    assert counted["tierwise_request_duration_seconds_count", "ok", "end-only"] == 0
    assert counted["tierwise_request_duration_seconds_count", "error", NO_POLICY] == 0


@pytest.mark.parametrize(
    ("content", "said"),
    [
        pytest.param('{"name": "end-only",\n "words" 3}', "line 2 column 10", id="not JSON: its line"),
        pytest.param({"name": "nobody"}, "unknown policy 'nobody'", id="no such policy"),
        pytest.param({"name": "tabi", "zeal": 1}, "zeal", id="no such parameter"),
        pytest.param({"name": "collaborative", "offload_threshold": 7}, "offload_threshold", id="out of range"),
    ],
)
def test_a_file_that_is_wrong_changes_nothing_and_the_log_says_where(serve, file, content, said):
    caller = serve(policy=(path := file({"name": "end-only"})))
    file(content)
    took, line = reload(caller)
    assert not took
    assert (line["event"], line["log_level"], line["setting"]) == ("policy_not_loaded", "error", path)
    assert said in line["detail"]
    assert line["in_force"] == in_force(caller) == {"name": "end-only"}


def test_a_file_that_is_gone_changes_nothing(serve, tmp_path, file):
    caller = serve(policy=file({"name": "end-only"}))
    (tmp_path / "policy.json").unlink()
    took, line = reload(caller)
    assert not took
    assert line["detail"] == f"policy file {tmp_path / 'policy.json'}: No such file or directory"
    assert caller.classify("a fine film").status_code == 200


def test_a_policy_that_raises_as_it_is_loaded_changes_nothing_and_the_log_has_file_and_line(serve, file, monkeypatch):
    class Mine(Policy):
        name = "mine"

        def check(self, where):
            raise RuntimeError("I will not")

    monkeypatch.setitem(POLICIES, "mine", Mine)
    caller = serve(policy=file({"name": "end-only"}))
    file({"name": "mine"})
    took, line = reload(caller)
    assert not took
    assert line["error"] == "RuntimeError: I will not"
    assert line["at"].rpartition(":")[0] == __file__
    assert in_force(caller) == {"name": "end-only"}
