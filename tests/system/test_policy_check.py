"""`tierwise policy check`: what a file of policies decides, before any tier has it."""

import os
import subprocess
import sys

import pytest

from lab.docs.tables import ROOT

SENDS = """
from shared.policies import STAY, Decision, Policy

class Sends(Policy):
    name = "sends"
    words: int = 4

    def after(self, where, confidence, draw):
        assert set(where.links) == set(where.reachable)
        return Decision("cloud", 1.0, "policy") if where.reachable and where.clues.words > self.words else STAY

    def may_offload_after(self, where):
        return bool(where.reachable)
"""


@pytest.fixture
def check(tmp_path, tiny_bundle):
    texts = tmp_path / "texts.txt"
    texts.write_text("a fine film\n\na waste of time and of a good idea\n")

    def run(code, **environment):
        (tmp_path / "sends.py").write_text(code)
        words = ["policy", "check", str(tmp_path / "sends.py"), "--bundle", str(tiny_bundle), "--texts", str(texts)]
        env = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "160", **environment}
        command = [sys.executable, "-m", "lab.cli.main", *words]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=env)

    return run


@pytest.mark.parametrize("loaded", [False, True])
def test_a_files_decisions_are_shown_text_by_text(check, tmp_path, loaded):
    done = check(SENDS, **({"TIERWISE_POLICY_DIR": str(tmp_path)} if loaded else {}))
    assert done.returncode == 0, done.stderr
    *_, stays, goes = [line for line in done.stdout.splitlines() if line.strip()]
    assert "sends (sha256 " in done.stdout
    assert "words 4)" in done.stdout
    assert "a fine film" in stays
    assert "->" not in stays
    assert stays.rstrip().endswith("by end")
    assert "after 3 -> cloud" in goes
    assert goes.rstrip().endswith("by cloud")


def test_a_long_text_ends_where_it_is_cut_with_an_ellipsis(check, tmp_path):
    (tmp_path / "texts.txt").write_text(f"{'a' * 48}\n{'b' * 49}\n{'c' * 46} and more\n")
    done = check(SENDS)
    assert done.returncode == 0, done.stderr
    shown = [line.split()[0] for line in done.stdout.splitlines() if line.startswith(("aaa", "bbb", "ccc"))]
    assert shown == ["a" * 48, "b" * 47 + "…", "c" * 46 + "…"]


@pytest.mark.parametrize(
    ("code", "complaint"),
    [
        ("class Sends(\n", "SyntaxError"),
        ("x = 1\n", "no class in it derives from Policy"),
        (SENDS.replace('"sends"', '"tabi"'), "'tabi' is taken"),
        (SENDS.replace("return Decision", "1 / 0; return Decision"), "ZeroDivisionError"),
        (SENDS.replace('"cloud", 1.0', '"moon", 1.0'), "tier 'moon' is not in `where.reachable`: edge, cloud"),
        (SENDS.replace('Decision("cloud", 1.0, "policy")', '"edge"'), "`after` returned 'edge'; return a Decision"),
    ],
)
def test_a_mistake_is_one_line_with_its_place_and_status_2(check, code, complaint):
    done = check(code)
    assert done.returncode == 2
    assert complaint in done.stderr
    assert done.stderr.count("sends.py") == 1 + (complaint == "SyntaxError")  # its path and its line
    assert "Traceback" not in done.stderr


def test_a_mistake_is_told_once_and_those_of_other_files_are_not(check, tmp_path):
    (tmp_path / "other.py").write_text("1 / 0\n")
    done = check("x = 1\n", TIERWISE_POLICY_DIR=str(tmp_path))
    (line,) = done.stderr.splitlines()
    assert "no class in it derives from Policy" in line


def test_what_a_policy_probably_did_not_mean_is_a_warning(check):
    done = check(SENDS.replace("def after", "def aftre").replace("def may_off", "def may_of"))
    assert done.returncode == 0, done.stderr
    first, second = done.stderr.splitlines()
    assert "Tierwise never calls `aftre` (did you mean after?)" in first
    assert "Tierwise never calls `may_ofload_after` (did you mean may_offload_after?)" in second
    done = check(SENDS.partition("    def may_offload_after")[0])
    assert done.returncode == 0, done.stderr
    (line,) = done.stderr.splitlines()
    assert "policy sends: `after` sends texts on from end, and `may_offload_after` says that it never does" in line
    assert check(SENDS).stderr == ""
