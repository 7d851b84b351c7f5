"""What the CPU engine runs: built once, the same bytes everywhere, and built anew where it is not what was built."""

import errno
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from shared.errors import WrongWeights
from shared.model import built as module
from shared.model.base import Checkpoint, Embeddings, read_config
from shared.model.built import Recipe, built, read_sealed, write_sealed
from shared.model.classifier import load_classifier, read_trained
from shared.model.weights import cache_dir


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache."""
    monkeypatch.setenv("TIERWISE_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path, classifier_on_disk):
    return shutil.copytree(classifier_on_disk("mpnet"), tmp_path / "net")


def recipe_of(folder, layers=3, *, quantized=False):
    return Recipe(read_trained(folder), layers, quantized=quantized)


def contents(place):
    return {path.name: path.read_bytes() for path in place.iterdir()}


def builds(monkeypatch):
    """Note every build from now on."""
    calls = []
    build = module._build
    monkeypatch.setattr(module, "_build", lambda *given: (calls.append(given), build(*given)))
    return calls


def test_it_is_built_once_and_then_found(folder, monkeypatch):
    calls, told = builds(monkeypatch), []
    found = built(recipe_of(folder), lambda done, of: told.append((done, of)))
    assert told == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert built(recipe_of(folder)).folder == found.folder
    assert len(calls) == 1
    assert list(cache_dir().iterdir()) == [cache_dir() / "engine"]
    assert list((cache_dir() / "engine").iterdir()) == [found.folder]  # nothing is left of building


@pytest.mark.parametrize(("bytes_", "mapped"), [(0, True), (4_000_000, False)])
def test_its_tables_are_those_of_the_base_and_large_ones_are_mapped(folder, monkeypatch, bytes_, mapped):
    monkeypatch.setattr(module, "_MAPPED_BYTES", bytes_)
    found, base = built(recipe_of(folder)), read_trained(folder).base
    config = read_config(base)
    assert found.embeddings.config == config
    expected = Embeddings.of_base(Checkpoint(module.base_folder(base)), config).tables
    assert found.embeddings.tables.keys() == expected.keys()
    for name, table in found.embeddings.tables.items():
        assert isinstance(table, np.memmap) is mapped
        assert np.array_equal(table, expected[name])


def test_another_user_of_the_machine_may_read_it(folder):
    place = built(recipe_of(folder)).folder
    assert place.stat().st_mode & 0o777 == 0o755
    assert {path.stat().st_mode & 0o777 for path in place.iterdir()} == {0o644}


def in_process(folder, cache):
    code = (
        "import sys; from pathlib import Path; from shared.model.built import Recipe, built\n"
        "from shared.model.classifier import read_trained\n"
        "print(built(Recipe(read_trained(Path(sys.argv[1])), 3, quantized=False)).folder)"
    )
    environment = {**os.environ, "TIERWISE_CACHE_DIR": str(cache), "PYTHONHASHSEED": "random"}
    return subprocess.Popen(
        [sys.executable, "-c", code, str(folder)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def test_another_process_builds_the_same_bytes(folder, tmp_path):
    with in_process(folder, tmp_path / "other") as other:
        out, _ = other.communicate()
    place = built(recipe_of(folder)).folder
    theirs = tmp_path / "other" / "engine" / place.name
    assert out.decode().splitlines()[-1] == str(theirs)
    first = contents(place)
    assert contents(theirs) == first
    shutil.rmtree(place)
    assert contents(built(recipe_of(folder)).folder) == first  # so does this one, again


@pytest.mark.parametrize("damaged", [False, True])
def test_processes_that_build_at_once_all_succeed(folder, cache, damaged):
    if damaged:
        (built(recipe_of(folder)).folder / "word.npy").write_bytes(b"")
    running = [in_process(folder, cache) for _ in range(4)]
    said = [process.communicate() for process in running]
    assert [process.returncode for process in running] == [0] * 4, said
    assert len({out.decode().splitlines()[-1] for out, _ in said}) == 1
    assert [path.name for path in (cache / "engine").iterdir()] == [recipe_of(folder).digest[:32]]


def flipped(path):
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


def truncated(path):
    path.write_bytes(path.read_bytes()[:-1])


def emptied(path):
    path.write_bytes(b"")


FILES = ["layer-01.xml", "layer-01.bin", "word.npy", "heads.safetensors", "tokenizer.json", "config.json"]


@pytest.mark.parametrize("spoil", [flipped, truncated, emptied, os.remove])
@pytest.mark.parametrize("name", [*FILES, "manifest.json"])
def test_a_damaged_truncated_or_missing_file_is_rebuilt(folder, name, spoil):
    place = built(recipe_of(folder)).folder
    whole = contents(place)
    spoil(place / name)
    assert built(recipe_of(folder)).folder == place
    assert contents(place) == whole


@pytest.mark.parametrize("spoil", [flipped, os.remove])
def test_a_layer_that_was_altered_since_the_start_is_not_compiled_for_importance(folder, spoil):
    classifier = load_classifier(folder, layers=3, max_tokens=64, engine="openvino", precision="fp32", device="cpu")
    text = [classifier.encode("a fine film")]
    before = classifier.run(text, None)[0].logits
    spoil(built(recipe_of(folder)).folder / "layer-01.bin")
    with pytest.raises(WrongWeights, match=r"layer-01\.bin.*start this tier again"):
        classifier.run(text, None, importance=True)
    assert (classifier.run(text, None)[0].logits == before).all()


@pytest.mark.parametrize(
    "manifest", ["", "{", "[]", "null", "{}", '{"files": {}}', '{"files": []}', '{"files": {"../x": "0"}}', "\x00"]
)
def test_a_manifest_that_says_nothing_is_rebuilt(folder, manifest):
    place = built(recipe_of(folder)).folder
    whole = contents(place)
    (place / "manifest.json").write_text(manifest)
    built(recipe_of(folder))
    assert contents(place) == whole


def test_a_file_that_was_not_built_is_not_read(folder):
    place = built(recipe_of(folder)).folder
    whole = contents(place)
    np.save(place / "type.npy", np.ones((2, 32), dtype=np.float32))  # MPNet has no types
    assert "type" not in built(recipe_of(folder)).embeddings.tables
    assert contents(place) == whole


def test_the_folder_of_other_inputs_is_not_taken_for_its_own(folder):
    other, place = built(recipe_of(folder, 2)).folder, built(recipe_of(folder)).folder
    whole = contents(place)
    shutil.rmtree(place)
    shutil.copytree(other, place)
    assert len(built(recipe_of(folder)).heads) == 3
    assert contents(place) == whole


def test_a_half_written_folder_is_rebuilt(folder):
    place = built(recipe_of(folder)).folder
    whole = contents(place)
    for name in ("manifest.json", "heads.safetensors", "layer-02.bin"):  # as if it had been copied there, and cut off
        (place / name).unlink()
    built(recipe_of(folder))
    assert contents(place) == whole


def test_what_a_killed_build_left_is_cleared_away(folder, cache):
    left = cache / "engine" / "fetching-killed" / "built"
    left.mkdir(parents=True)
    (left / "layer-00.xml").write_text("half")
    place = built(recipe_of(folder)).folder
    assert list((cache / "engine").iterdir()) == [place]


def test_a_process_that_reads_keeps_what_it_mapped_while_another_rebuilds(folder):
    found = built(recipe_of(folder))
    words = found.embeddings.words([1, 2, 3]).copy()
    (found.folder / "tokenizer.json").unlink()
    built(recipe_of(folder))
    assert np.array_equal(found.embeddings.words([1, 2, 3]), words)


def test_every_input_has_a_part_in_the_folder_s_name(tmp_path, folder, classifier_on_disk, base_on_disk):
    def told(**changes):
        out = shutil.copytree(folder, tmp_path / f"net-{len(list(tmp_path.iterdir()))}")
        (out / "network.json").write_text(json.dumps(json.loads((out / "network.json").read_text()) | changes))
        return out

    def base_with(name, content):
        out = shutil.copytree(base_on_disk("mpnet"), tmp_path / f"base-{name}")
        (out / name).write_text(content)
        return str(out)

    adapters = shutil.copytree(folder, tmp_path / "adapters")
    shutil.copy(classifier_on_disk("mpnet", seed=1) / "adapters.safetensors", adapters)
    table = shutil.copytree(folder, tmp_path / "table")
    digests = [recipe_of(each).digest for each in (folder, adapters, told(scale=3.0))]
    digests += [recipe_of(told(base=base_with("config.json", "{}"))).digest]
    digests += [recipe_of(told(base=base_with("tokenizer.json", "{}"))).digest]
    digests += [recipe_of(folder, 2).digest]
    for content in (b"one", b"two"):
        (table / "quantization.safetensors").write_bytes(content)
        digests.append(recipe_of(table, quantized=True).digest)
    assert len(set(digests)) == len(digests) == 8
    assert (
        recipe_of(table).digest == recipe_of(told()).digest == digests[0]
    )  # neither where it lies, nor what is unused


def refused(folder, says):
    with pytest.raises(WrongWeights, match=says) as caught:
        load_classifier(folder, layers=3, max_tokens=64, engine="openvino", precision="fp32", device="cpu")
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("code", [errno.EROFS, errno.ENOSPC, errno.EACCES])
@pytest.mark.parametrize("call", ["scratch", "np.save", "_put"])
def test_a_cache_that_cannot_be_written_is_one_clear_line(folder, monkeypatch, code, call):
    def fails(*_given, **_options):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(f"shared.model.built.{call}", fails)
    refused(folder, f"^TIERWISE_CACHE_DIR: cannot write to .*/cache/engine: {os.strerror(code)}$")


def test_a_cache_that_is_a_file_is_one_clear_line(folder, cache):
    cache.write_text("not a folder")
    refused(folder, "^TIERWISE_CACHE_DIR: cannot write to .*/cache/engine: ")


FULL = """
import resource, signal, sys
from pathlib import Path
from shared.errors import WrongWeights
from shared.model.classifier import load_classifier
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
try:
    load_classifier(Path(sys.argv[1]), layers=3, max_tokens=64, engine="openvino", precision="fp32", device="cpu")
except WrongWeights as error:
    print(error)
"""


@pytest.mark.parametrize("most", [100, 6_000, 30_000])  # of a file: the graph's, a heads' file, a layer's weights
def test_a_file_that_cannot_be_written_whole_is_one_clear_line(folder, cache, most):
    done = subprocess.run([sys.executable, "-c", FULL, str(folder), str(most)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    assert line.startswith(f"TIERWISE_CACHE_DIR: cannot write to {cache}/engine: ")
    assert list((cache / "engine").iterdir()) == []


def test_a_tier_without_the_base_weights_starts_from_what_was_built(folder, monkeypatch):
    place = built(recipe_of(folder)).folder
    monkeypatch.setattr(module, "_build", lambda *_: pytest.fail("built again"))
    monkeypatch.setattr(module, "Checkpoint", lambda *_: pytest.fail("read the base"))
    assert built(recipe_of(folder)).folder == place


def test_what_can_be_made_again_is_read_by_every_user_and_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    path = tmp_path / "compiled" / "layer-00.blob"
    write_sealed(path, b"a layer")
    assert (read_sealed(path), path.stat().st_mode & 0o777) == (b"a layer", 0o644)
    monkeypatch.setattr(module.Path, "replace", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    with pytest.raises(OSError, match="full"):
        write_sealed(path, b"another")
    assert [*path.parent.iterdir()] == [path]
    assert read_sealed(path) == b"a layer"
    shutil.copy(path, path.with_name("layer-01.blob"))
    assert read_sealed(path.with_name("layer-01.blob")) is None  # another layer's
