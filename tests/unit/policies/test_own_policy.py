"""The manual's "Write a policy", pasted as it says: into the folder of a copy of the code."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
USE = """
from pathlib import Path
from shared.policies import Clues, Where, build, names, spec_of
tiers = ("end", "edge", "cloud")
assert "short" in names(tiers)
policy = build({"name": "short", "words": 3}, tiers, {})
assert spec_of(policy) == {"name": "short", "words": 3}
where = Where("end", ("edge", "cloud"), {"end": 3, "edge": 6, "cloud": 12})
assert [policy.before(where, Clues(n), 0.5).to for n in (3, 4)] == [None, "cloud"]
"""
LIVE = """
import asyncio, httpx, sys
from shared.web.settings import Settings
from shared.web.app import create_app
app = create_app(Settings(tier="end", bundle=sys.argv[1], policy="short"))
async def ask():
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://end") as client:
        options = {"policy": {"name": "short", "words": 3}}
        return (await client.post("/v1/classify", json={"inputs": "a fine film", "options": options})).json()
assert asyncio.run(ask())["results"][0]["tier"] == "end"
app.state.tier.worker.close()
"""


def test_the_pasted_policy_works(tmp_path, tiny_bundle):
    page = (ROOT / "docs" / "write-a-policy.md").read_text()
    (example,) = re.findall(r"```python\n(from shared\.policies.*?)```", page, re.DOTALL)
    assert sum(bool(line.strip()) for line in example.splitlines()) <= 10
    shutil.copytree(ROOT / "shared", tmp_path / "shared", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "deploy" / "netem", tmp_path / "deploy" / "netem")
    (tmp_path / "shared" / "policies" / "short.py").write_text(example)
    for code in (USE, LIVE):
        done = subprocess.run(
            [sys.executable, "-c", code, str(tiny_bundle)], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr


POLICY = "from shared.policies.base import Policy\nclass {}(Policy):\n    name = {!r}\n"
GOOD = POLICY.format("Good", "good")
BROKEN = {
    "syntax error": "class Mine(Policy:\n    pass\n",
    "missing package": "import a_package_that_nobody_has\n",
    "raises": POLICY.format("Mine", "mine") + "raise RuntimeError('half way')\n",
    "exits": "import sys\nsys.exit(3)\n",
    "a name that is no text": POLICY.format("Mine", ["mine"]),
    "a name that is taken": POLICY.format("Mine", "tabi"),
    "a tier's policy": POLICY.format("Mine", "cloud-only"),
    "a bad field": POLICY.format("Mine", "mine") + "    x: 'nothing' = 1 / 0\n",
    "a byte that is no text": "\x00\n",
}
OTHERS = """
from shared.errors import UnknownPolicy
from shared.policies import build, names
tiers = ("end", "edge", "cloud")
assert build("tabi", tiers, {}).name == "tabi" and build("good", tiers, {}).name == "good"
assert build("cloud-only", tiers, {}).tier == "cloud"
assert "mine" not in names(tiers) and len(set(names(tiers))) == len(names(tiers))
for asked in ("mine", "tabbi"):
    try:
        build(asked, tiers, {})
    except UnknownPolicy as error:
        assert "mine" in str(error) and "\\n" not in str(error), error
        print(error)
    else:
        raise AssertionError(asked)
"""


def run_beside(broken, tmp_path, *words):
    """Python in a copy of the code, with a module of policies that cannot be used and one that can."""
    for folder in ("shared", "services", "lab"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "shared" / "policies" / "mine.py").write_text(broken)
    (tmp_path / "shared" / "policies" / "good.py").write_text(GOOD)  # comes after it, or before: no matter
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    return subprocess.run([sys.executable, *words], cwd=tmp_path, capture_output=True, text=True, env=env)


@pytest.mark.parametrize("how", BROKEN)
def test_a_module_that_cannot_be_used_breaks_nothing_but_itself_and_is_said_once(tmp_path, how):
    done = run_beside(BROKEN[how], tmp_path, "-c", OTHERS)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("mine") >= 1
    assert len(done.stderr.splitlines()) == 1
    assert "Traceback" not in done.stderr


def test_a_module_that_cannot_be_used_keeps_no_command_from_running(tmp_path):
    asked = ("-m", "lab.cli.main", "classify", "a film", "--url", "http://127.0.0.1:1")
    client = run_beside(BROKEN["raises"], tmp_path, *asked)
    assert "http://127.0.0.1:1" in client.stdout + client.stderr  # it went as far as asking
    assert "Traceback" not in client.stderr
