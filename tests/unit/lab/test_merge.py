"""`tierwise merge`: state files and ledgers of replicas, and what is refused."""

import json

import pytest
from typer.testing import CliRunner

from lab.cli.main import app
from lab.merge import merge_ledgers, merge_states
from shared.errors import BadSetting
from shared.model.bundle import load_bundle
from shared.policies import build, spec_of
from shared.web.ledger import entries

BUNDLE = load_bundle("collaborative")
NAME = f"end-{BUNDLE.digest[:12]}.json"
SPLITEE = build("splitee", BUNDLE.order, BUNDLE.card.policies)
KEY = json.dumps(spec_of(SPLITEE), sort_keys=True)


def state(folder, *counts):
    """A file with a bandit that has tried its first arms so often, each time for a reward of 1."""
    layers = BUNDLE.tiers["end"].layers
    counts = [*counts, *[0] * (layers - len(counts))]
    told = {
        "arms": list(range(1, layers + 1)),
        "rounds": sum(counts),
        "counts": counts,
        "totals": [*map(float, counts)],
    }
    folder.mkdir()
    (folder / NAME).write_text(json.dumps({KEY: told}))
    return folder / NAME


def test_states_add_up_and_a_tier_can_start_from_them(tmp_path):
    one, two = state(tmp_path / "a", 3, 1), state(tmp_path / "b", 2)
    assert merge_states([one, two], tmp_path / "out", "collaborative") == {tmp_path / "out" / NAME: ["splitee"]}
    merged = json.loads((tmp_path / "out" / NAME).read_text())[KEY]
    assert (merged["rounds"], merged["counts"][:3], merged["totals"][:2]) == (6, [5, 1, 0], [5.0, 1.0])
    since = merge_states([one, two], tmp_path / "again", "collaborative", since=state(tmp_path / "c", 2))
    (path,) = since
    assert json.loads(path.read_text())[KEY]["counts"][:2] == [3, 1]


def test_states_that_do_not_belong_together_are_refused(tmp_path):
    one, two = state(tmp_path / "a", 3), state(tmp_path / "b", 2)
    other = two.rename(two.with_name("edge-0123456789ab.json"))
    with pytest.raises(BadSetting, match=r"one name, TIER-DIGEST\.json; these are edge-0123456789ab\.json, end-"):
        merge_states([one, other], tmp_path / "out", "collaborative")
    with pytest.raises(BadSetting, match="state files of the bundle collaborative are called TIER-"):
        merge_states([other], tmp_path / "out", "collaborative")
    with pytest.raises(BadSetting, match="given twice"):
        merge_states([one, one], tmp_path / "out", "collaborative")
    with pytest.raises(BadSetting, match="cannot have begun with"):
        merge_states([one], tmp_path / "out", "collaborative", since=state(tmp_path / "c", 4))
    one.write_text('{"x": 1}')
    with pytest.raises(BadSetting, match="no state that this tier can go on from"):
        merge_states([one], tmp_path / "out", "collaborative")
    assert not (tmp_path / "out" / NAME).exists()


def test_a_merged_state_is_not_written_over_another(tmp_path):
    one = state(tmp_path / "a", 3)
    before = one.read_text()
    with pytest.raises(BadSetting, match="is there already"):
        merge_states([one], one.parent, "collaborative")
    assert one.read_text() == before


def line(second, number, **changes):
    time = f"2026-11-29T10:00:{second:06.3f}+00:00"
    return json.dumps({"time": time, "id": f"r{number}", "index": 0, "tier": "end", "hops": [], **changes})


def ledger(path, *lines):
    path.write_text("".join(f"{one}\n" for one in lines))
    return path


def test_ledgers_are_ordered_by_time_and_equal_lines_count_once(tmp_path):
    one = ledger(tmp_path / "a.jsonl", line(1, 1), line(5, 5), line(3, 3))
    two = ledger(tmp_path / "b.jsonl", line(2, 2), line(5, 5), line(4, 4, text="für 電影"), line(6, 5))
    out = tmp_path / "all.jsonl"
    merged = merge_ledgers([one, two], out)
    assert (merged.lines, merged.repeated, merged.torn) == (6, 1, 0)
    assert [entry["id"] for entry in entries(out)] == ["r1", "r2", "r3", "r4", "r5", "r5"]
    assert out.read_text().splitlines()[3] == line(4, 4, text="für 電影")  # as it was written
    assert out.stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "all.jsonl", "b.jsonl"]


def test_times_of_other_zones_are_compared_as_times(tmp_path):
    late = line(0, 2, time="2026-11-29T12:00:09.000+02:00")  # 10:00:09 in UTC
    out = tmp_path / "all.jsonl"
    merge_ledgers([ledger(tmp_path / "a.jsonl", late), ledger(tmp_path / "b.jsonl", line(10, 3), line(8, 1))], out)
    assert [entry["id"] for entry in entries(out)] == ["r1", "r2", "r3"]


def test_torn_lines_stay_out_and_a_last_line_without_its_end_stays_in(tmp_path):
    path = ledger(tmp_path / "a.jsonl", line(1, 1), line(2, 2)[:40], "", "\0\0\0")
    with path.open("a") as file:
        file.write(line(3, 3))
    merged = merge_ledgers([path], tmp_path / "all.jsonl")
    assert (merged.lines, merged.torn) == (2, 1)
    assert [entry["id"] for entry in entries(tmp_path / "all.jsonl")] == ["r1", "r3"]


@pytest.mark.parametrize(
    "written", ['{"a": 1}', '{"time": 3}', "no JSON at all", line(1, 1, time="2026-11-29T10:00:00"), '{"time": "x"}']
)
def test_a_file_that_is_no_ledger_is_refused_by_its_name(tmp_path, written):
    path = ledger(tmp_path / "other.jsonl", written)
    with pytest.raises(BadSetting, match=r"other\.jsonl.*no line of a ledger"):
        merge_ledgers([path], tmp_path / "all.jsonl")
    assert not (tmp_path / "all.jsonl").exists()


def test_a_ledger_is_not_written_over_another(tmp_path):
    one, two = ledger(tmp_path / "a.jsonl", line(1, 1)), ledger(tmp_path / "b.jsonl", line(2, 2))
    with pytest.raises(BadSetting, match="is there already"):
        merge_ledgers([one, two], one)
    assert one.read_text() == f"{line(1, 1)}\n"


def test_the_commands_say_what_they_wrote(tmp_path):
    run = CliRunner().invoke
    one, two = ledger(tmp_path / "a.jsonl", line(1, 1)), ledger(tmp_path / "b.jsonl", line(1, 1), line(0, 2))
    done = run(app, ["merge", "ledgers", str(one), str(two), "--out", str(tmp_path / "all.jsonl")])
    assert (done.exit_code, "2 lines; 1 repeated, 0 torn" in done.output) == (0, True), done.output
    files = [str(state(tmp_path / name, 1)) for name in "cd"]
    done = run(app, ["merge", "states", *files, "--out", str(tmp_path / "out")])
    assert (done.exit_code, "splitee" in done.output) == (0, True), done.output
    assert run(app, ["merge", "ledgers", str(tmp_path / "none"), "--out", "x"]).exit_code == 2
