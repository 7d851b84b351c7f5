"""`tierwise fit` as its users run it, over tiny bases: from a file of words to a bundle, and what it refuses."""

import shutil
import signal
import sys

import pytest

from lab.data.examples import digest, load, training_rows
from lab.fit import train as training
from lab.live.stack import ROOT
from shared.errors import WrongWeights
from shared.model.bundle import load_bundle
from shared.model.prepare import copy, prepare

WORDS = {"billing": "boring", "delivery": "music", "praise": "wonderful"}


@pytest.fixture
def tickets(sentences, tmp_path):
    """A file of 150 distinct messages whose label hangs on a word, under a person's own names of columns."""
    words = [word for word in " ".join(sentences).split() if word.isalpha() and word not in WORDS.values()]
    rows = []
    for at in range(150):
        label = sorted(WORDS)[at % 3]
        rows.append((f"{' '.join(words[at % 60 : at % 60 + 3 + at % 4])} {WORDS[label]} number {at}", label))
    path = tmp_path / "tickets.csv"
    path.write_text("message,team\n" + "".join(f"{text},{label}\n" for text, label in rows))
    return path


@pytest.fixture
def fitted(command, base_on_disk, tickets):
    """A builder: `tierwise fit` of the tickets with a tiny base, and more options."""

    def run(*more, data=tickets):
        options = ("--label-column", "team", "--epochs", 6, "--threads", 1, "--within", 1)
        return command("fit", data, "--base", base_on_disk("bert", 3), *options, *more)

    return run


def test_a_file_of_words_becomes_a_bundle_that_is_calibrated_and_judged(fitted, tmp_path):
    done, said = fitted()
    assert done.exit_code == 0, said
    out = " ".join(done.stdout.split())
    assert "150 rows; labels, in the bundle's order: billing 50, delivery 50, praise 50" in out
    assert "98 rows train (6 times each), 30 calibrate, 22 are held out" in out
    assert "of 22 held-out rows are answered at the end; accuracy" in out
    assert "n is small" in out
    assert "Now: tierwise serve --bundle ./tickets-bundle" in out
    bundle = load_bundle(str(tmp_path / "tickets-bundle"))
    assert bundle.labels == ("billing", "delivery", "praise")
    assert {tier: model.layers for tier, model in bundle.tiers.items()} == {"end": 1, "edge": 2, "cloud": 3}
    assert bundle.card.temperatures.keys() == {"end", "edge", "cloud"}
    assert bundle.card.report["test"]["n"] == 22
    assert not list(bundle.folder.glob("**/.train-*"))


def test_the_rows_are_kept_as_they_were_divided_so_that_other_commands_leak_none(fitted, tmp_path):
    done, said = fitted()
    assert done.exit_code == 0, said
    rows, report = str(tmp_path / "tickets-bundle/fit/rows.parquet"), load_bundle("./tickets-bundle").card.report
    trained, tested = training_rows(rows, None)[0], load(rows, "test")
    assert not {row.text for row in trained} & {row.text for row in tested}
    assert report["validation"]["data_sha256"] == digest(trained[-30:])
    assert report["test"]["data_sha256"] == digest(tested)


def test_the_same_command_does_nothing_twice_and_another_is_refused(fitted, tickets, tmp_path, monkeypatch):
    first, said = fitted()
    assert first.exit_code == 0, said
    card = (tmp_path / "tickets-bundle/card.json").read_bytes()
    monkeypatch.setattr("lab.fit.from_file.train", None)
    again, said = fitted()
    assert again.exit_code == 0, said
    assert again.stdout.splitlines()[-2:] == first.stdout.splitlines()[-2:]
    assert (tmp_path / "tickets-bundle/card.json").read_bytes() == card
    for more, differs in ((["--seed", 1], "seed"), (["--tiers", "end=1,cloud=3"], "tiers")):
        refused, said = fitted(*more)
        assert refused.exit_code != 0
        assert f"was fitted to {tickets} with other {differs}" in said
    tickets.write_text(tickets.read_text() + "one more boring message,billing\n")
    refused, said = fitted()
    assert "with other rows" in said
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("important")
    refused, said = fitted("--out", "mine")
    assert "--out mine: holds other files" in said


def test_a_run_that_is_stopped_goes_on_with_the_same_command(fitted, monkeypatch):
    step, done = training._step, []

    def stopping(*args):
        done.append(None)
        if len(done) == 3:
            signal.raise_signal(signal.SIGINT)
        return step(*args)

    monkeypatch.setattr(training, "_step", stopping)
    stopped, said = fitted()
    assert stopped.exit_code != 0
    assert "stopped and saved after step 3 of 37; the same command goes on from there" in said
    going_on, said = fitted()
    assert going_on.exit_code == 0, said
    assert "resumed at step 3 of 37" in going_on.stdout
    assert len(done) == 37


@pytest.mark.parametrize(
    ("step", "number", "told"),
    [
        ("Calibration", signal.SIGINT, "stopped while calibrating; the same command goes on from the trained networks"),
        ("evaluate", signal.SIGTERM, "stopped while judging; the same command goes on from the card"),
    ],
)
def test_a_run_that_is_stopped_after_the_training_says_what_it_goes_on_from(fitted, monkeypatch, step, number, told):
    def stopping(*_, **__):
        signal.raise_signal(number)

    with monkeypatch.context() as patched:
        patched.setattr(f"lab.fit.from_file.{step}", stopping)
        before = signal.signal(signal.SIGTERM, lambda received, _: sys.exit(128 + received))  # as the command's own
        try:
            stopped, said = fitted()
        finally:
            signal.signal(signal.SIGTERM, before)
    assert stopped.exit_code != 0
    assert f"tickets-bundle: {told}" in said
    monkeypatch.setattr("lab.fit.from_file.train", None)
    going_on, said = fitted()
    assert going_on.exit_code == 0, said


def test_a_bundle_with_an_own_base_is_whole_wherever_it_is_carried(fitted, base_on_disk, tmp_path, monkeypatch):
    own = shutil.copytree(base_on_disk("bert", 3), tmp_path / "mine")
    done, said = fitted("--base", "./mine")
    assert done.exit_code == 0, said
    shutil.rmtree(own)
    carried = shutil.move(tmp_path / "tickets-bundle", tmp_path / "elsewhere")
    monkeypatch.setenv("TIERWISE_CACHE_DIR", str(tmp_path / "image"))
    bundle = load_bundle(str(carried))
    prepare(bundle, "end", "fp32")
    monkeypatch.setattr("shared.model.prepare.MODELS", tmp_path)
    copy(bundle, "end", tmp_path / "models")  # as an image is made
    shutil.rmtree(carried)
    image = tmp_path / "models/elsewhere"
    inside = {str(path.relative_to(image)) for path in image.rglob("*") if path.is_file()}
    assert inside >= {"bundle.json", "card.json", "mine/adapters.safetensors", "mine/network.json"}
    assert not [name for name in inside if name.startswith(("fit", "mine-base"))]
    prepare(load_bundle(str(image)), "end", "fp32")
    with pytest.raises(WrongWeights, match="no such folder"):
        prepare(load_bundle(str(image)), "cloud", "fp32")


def test_an_own_base_that_was_altered_after_training_is_refused(fitted, base_on_disk, tmp_path, monkeypatch):
    shutil.copytree(base_on_disk("bert", 3), tmp_path / "mine")
    done, said = fitted("--base", "./mine")
    assert done.exit_code == 0, said
    config = tmp_path / "tickets-bundle/mine-base/config.json"
    config.write_text(config.read_text() + " ")
    monkeypatch.setenv("TIERWISE_CACHE_DIR", str(tmp_path / "image"))
    with pytest.raises(WrongWeights, match=r"mine-base: its files are not those that .* was trained on"):
        prepare(load_bundle("./tickets-bundle"), "end", "fp32")


def test_the_texts_stay_out_of_images_and_commits():
    for file in (".dockerignore", ".gitignore"):
        lines = {line.rstrip("/") for line in (ROOT / file).read_text().splitlines()}
        assert "deploy/models/*/fit" in lines


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        (["--text-column", "body"], "no column 'body'; it has 'message', 'team'"),
        (["--label-column", "label"], "no column 'label'; it has 'message', 'team'"),
        (["--label-column", "message"], "column 'message' cannot be text and label"),
        (["--tiers", "end=4"], "--tiers end=4"),
        (["--tiers", "end=3,cloud=2"], "the first must be the shallowest"),
        (["--tiers", "end six"], "say TIER=LAYERS, as in end=6,edge=6,cloud=12"),
        (["--base", "fog=./x"], "no tier 'fog'; there are end, edge, cloud"),
        (["--base", "./nothing"], "./nothing: no such folder"),
        (["--max-tokens", 900], "reads at most 260 tokens"),
        (["--out", "tickets.csv"], "is a file; name a folder"),
    ],
)
def test_what_cannot_be_is_told_before_anything_is_written(fitted, tmp_path, more, complaint):
    done, said = fitted(*more)
    assert done.exit_code != 0
    assert complaint in said
    assert not list(tmp_path.glob("*-bundle"))
