"""`tierwise check-times` as its users run it, on the tiny random bundle: live tiers, profiles and a report."""

import json
import math
import os

import pytest
from typer.testing import CliRunner

from lab.cli.main import app
from lab.data.readable import LeftOut
from lab.live.check_times import off, report, table


@pytest.fixture
def command(tmp_path, sentences, tiny_bundle, monkeypatch):
    """The command in this process, with tiers of its own."""
    for name in [name for name in os.environ if name.startswith("TIERWISE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("TIERWISE_CACHE_DIR", str(tmp_path / "cache"))
    for pause in ("REST", "SECONDS"):  # how near the model is, is not tested here
        monkeypatch.setattr(f"lab.replay.profile.{pause}", 0.0)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data.csv").write_text(
        "\n".join(["text,label,split", '" ",0,test', *(f'"{t}",1,test' for t in sentences)])
    )
    (tmp_path / "labels.csv").write_text("text,label,split\ngood,5,test\n")
    (tmp_path / "blank.csv").write_text("text,label,split\n ,1,test\n")
    return lambda *arguments: CliRunner().invoke(
        app, ["check-times", "--data", "data.csv", "--bundle", str(tiny_bundle), *arguments]
    )


def test_profiles_and_benches_in_turns(command, tmp_path):
    asked = ("--links", "lte-weak,ideal", "--policy", "end-only", "--policy", "edge-only")
    done = command(*asked, "--n", "4", "--rounds", "1", "--out", "own/check")
    assert done.exit_code == 0, done.exception
    said = json.loads((tmp_path / "own" / "check.json").read_text())
    assert (said["n"], said["rounds"], said["backend"], said["threads"]["end"]) == (4, 1, "simulated", 1)
    assert said["engine"].startswith("openvino ")
    assert said["left_out"] == {"n": 1, "first": ["data.csv, line 2 (' '): the text is empty or blank"]}
    for own in said["policies"].values():
        assert len(own["by_round"]) == 1
        for side in ("live_ms", "modelled_ms"):
            parts = own[side]
            assert parts["total"] == pytest.approx(parts["compute"] + parts["link"] + parts["rest"])
            assert min(parts["compute"], parts["rest"]) > 0
    end, edge = said["policies"].values()
    assert end["live_ms"]["link"] == end["modelled_ms"]["link"] == 0
    # RTT of tens of ms: hardly anything else, unless a busy machine wakes late
    assert 0.2 < edge["modelled_ms"]["link"] / edge["live_ms"]["link"] < 2


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--policy", "splitee"), "splitee: with bundle"),
        (("--policy", "nonsense"), "nonsense"),
        (("--links", "lte"), "ACCESS/BACKBONE"),
        (("--data", "blank.csv"), "none of the 1 texts can be read"),
        (("--rounds", "0"), "rounds"),
        (("--out", "."), "name of a file"),
        (("--out", "data.csv/own"), "--out"),
        (("--url", "nowhere"), "no address"),
        (("--url", "http://127.0.0.1:1"), "no tier answers"),
        (("--data", "labels.csv"), "2 labels"),
    ],
)
def test_a_wrong_argument_is_told_before_anything_is_measured(command, tmp_path, arguments, complaint):
    done = command(*arguments)
    assert done.exit_code != 0
    assert complaint in f"{done.exception} {done.stderr}"
    assert not (tmp_path / "check-times.json").exists()


def test_settings_that_would_make_the_tiers_others_than_the_model_s_are_refused(command, monkeypatch):
    monkeypatch.setenv("TIERWISE_DEADLINE_MS", "5")
    done = command("--n", "3", "--policy", "end-only")
    assert "TIERWISE_DEADLINE_MS" in str(done.exception)


def test_what_is_off_is_the_mean_of_the_rounds_ratios():
    def parts(total):
        return {"total": total, "compute": total / 2, "link": total / 4, "rest": total / 4}

    class Asked:
        examples = rounds = ()
        links, url, seed, threads, policies = "5g-nsa/metro", "http://end", 0, 1, ["end-only"]
        left_out, asked = LeftOut(), []
        bundle = type("Bundle", (), {"order": ("end",), "name": "own", "digest": "0"})

    rounds = [{"end-only": {"live": parts(100.0), "modelled": parts(m)}} for m in (80.0, 125.0)]
    said = report(Asked, rounds)
    own = said["policies"]["end-only"]
    assert said["backend"] == "netem"
    assert own["off_by"][0] == pytest.approx(0)  # 0.8 and 1.25
    assert own["off_by"][2] == pytest.approx(math.exp(12.706 * math.log(1.25)) - 1, rel=1e-3)  # t of one degree
    assert own["modelled_ms"]["compute"] == pytest.approx(51.25)
    assert off(report(Asked, rounds[:1])["policies"]["end-only"]) == "-20.0%"
    assert table(said).row_count == 1
