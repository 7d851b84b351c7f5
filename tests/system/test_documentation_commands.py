"""The manual's commands that are quick (after `<!-- run -->`) work as they stand, on three tiny tiers."""

import re
import shutil
import subprocess
import sys

import pytest

from lab.docs.tables import ROOT, pages

RUN = re.compile(r"<!-- run -->\n```bash\n(.*?)^```$", re.DOTALL | re.MULTILINE)
BLOCKS = [(str(page.relative_to(ROOT)), block) for page in pages() for block in RUN.findall(page.read_text())]
# `tierwise` and `python` of this tree, at the tiny tiers; an HTTP error fails the block
PROLOGUE = """
set -euo pipefail
tierwise() { if [ "$1" = classify ]; then set -- "$@" --url URL; fi; "PYTHON" -m lab.cli.main "$@"; }
python() { "PYTHON" "$@"; }
curl() { command curl --fail-with-body "$@"; }
"""


def test_there_are_such_commands():
    assert len(BLOCKS) >= 7


@pytest.mark.skipif(not shutil.which("curl"), reason="no curl")
def test_quick_commands_work_as_they_stand(three):
    prologue = PROLOGUE.replace("URL", three).replace("PYTHON", sys.executable)
    for page, block in BLOCKS:
        script = prologue + block.replace("http://127.0.0.1:8080", three)
        done = subprocess.run(["bash", "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, f"{page}:\n{block}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
