"""What a serving CPU tier's process holds: neither torch nor transformers, and it connects to nothing."""

import io
import json
import os
import shutil
import subprocess
import sys

import pytest
from rich.console import Console

from lab.data.examples import Example
from lab.fit.quantize import quantize

FORBIDDEN = (
    "openvino_telemetry",
    "torch",
    "transformers",
    "huggingface_hub",
    "peft",
    "sklearn",
    "scipy",
    "pandas",
    "matplotlib",
)
TIER = """
import json, sys
from pathlib import Path

asked = []
sys.addaudithook(lambda event, given: asked.append(repr((event, given))) if event in NETWORK else None)
NETWORK = ("socket.connect", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo", "socket.gethostbyname",
           "urllib.Request", "subprocess.Popen", "os.fork", "os.posix_spawn", "os.system")

from shared.model.runtime import ov
by_runtime = set(sys.modules)

import shared.model.classifier
from shared.model.exits import Confidence
folder, precision = Path(sys.argv[1]), sys.argv[2]
classifier = shared.model.classifier.load_classifier(
    folder, layers=3, max_tokens=64, engine="openvino", precision=precision, device="cpu"
)
texts = [classifier.encode("a fine film"), classifier.encode("a fine film with a strong cast", "it is old")]
traces = classifier.run(texts, Confidence(0.9), importance=True)
print(json.dumps({
    "exits": [trace.exit_layer for trace in traces],
    "runs_on": classifier.runs_on,
    "asked": asked,
    "modules": sorted(name for name, module in sys.modules.items() if module is not None),
    "by_us": sorted(set(sys.modules) - by_runtime),
}))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory, classifier_on_disk, sentences):
    folder = shutil.copytree(classifier_on_disk("mpnet"), tmp_path_factory.mktemp("tier") / "net")
    texts = [Example(text, None, 0) for text in sentences]
    quantize(folder, 3, 64, texts, Console(file=io.StringIO()), threads=1)
    return folder


@pytest.fixture(scope="module", params=["auto", "fp32"])
def tier(request, folder, tmp_path_factory):
    """What a process that builds, loads and runs a classifier says, first without, then with what was built."""
    environment = {**os.environ, "TIERWISE_CACHE_DIR": str(tmp_path_factory.mktemp("cache"))}
    said = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", TIER, str(folder), request.param], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        said.append(json.loads(done.stdout.splitlines()[-1]))
    return said


def test_it_answers(tier):
    for said in tier:
        assert len(said["exits"]) == 2
        assert said["runs_on"].startswith("openvino ")


def test_it_imports_neither_torch_nor_what_the_lab_needs(tier):
    for said in tier:
        packages = {name.partition(".")[0] for name in said["modules"]}
        assert packages & set(FORBIDDEN) == set()


def test_it_imports_no_converter_but_what_the_runtime_itself_imports(tier):
    for said in tier:
        assert [name for name in said["by_us"] if name.startswith("openvino.tools")] == []


def test_it_connects_to_nothing_asks_for_no_name_and_starts_no_process(tier):
    assert [said["asked"] for said in tier] == [[], []]


def test_the_audit_would_see_a_connection():
    code = TIER.partition("import shared")[0] + (
        "import socket\n"
        "try: socket.create_connection(('127.0.0.1', 9), timeout=0.1)\n"
        "except OSError: pass\n"
        "print(len(asked))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert int(done.stdout) >= 1, done.stderr
