"""The manual's "Write a policy", pasted as it says: into the folder of a copy of the code."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
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
from shared.settings import Settings
from shared.web import create_app
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
