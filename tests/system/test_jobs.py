"""`train`, `calibrate` and `evaluate` as their users run them: what does not fit is told before the first step."""

import json
import shutil

import pytest
from safetensors.torch import load_file
from transformers import DistilBertConfig, DistilBertModel

from lab.data.examples import load
from lab.replay.trial import held_out
from shared.model.bundle import load_bundle
from shared.model.quantization import load_table

UNREADABLE = ("\U0001f642\U0001f642", " ", "\x07\x08")  # emoji alone, blank, control characters alone


@pytest.fixture
def bundle(tiny_bundle, tmp_path):
    """A copy of the tiny bundle."""
    return shutil.copytree(tiny_bundle, tmp_path / "bundle")


@pytest.fixture
def rows(sentences):
    """A builder: so many distinct texts whose label hangs on a word, not in the order of the labels."""
    words = " ".join(sentences).split()

    def build(n):
        texts = [" ".join(words[at % 90 : at % 90 + 4 + at % 9]).replace('"', "") for at in range(n)]
        return [(f"{text} {'fine' if at % 2 else 'bad'}", at % 2) for at, text in enumerate(texts)]

    return build


def written(path, rows, split="test"):
    lines = [f'"{text}",{label}' + (f",{split}" if split else "") for text, label in rows]
    path.write_text("\n".join(["text,label" + (",split" if split else ""), *lines]) + "\n")
    return path


# -- rows that no tier reads ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unreadable", UNREADABLE)
def test_evaluate_names_leaves_out_and_counts_what_no_tier_reads(command, bundle, rows, tmp_path, unreadable):
    data = written(tmp_path / "data.csv", [*rows(20), (unreadable, 1), *rows(10)])
    done, said = command("evaluate", "--data", data, "--bundle", bundle, "--save")
    assert done.exit_code == 0, said
    assert "left out, as no tier reads them: 1 texts" in said
    assert "data.csv, line 22 (" in said
    report = json.loads((bundle / "card.json").read_text())["report"]["test"]
    assert (report["n"], report["split"], report["left_out"]["n"]) == (31, "test", 1)


def calibration(data, bundle):
    return ("calibrate", "--data", data, "--bundle", bundle, "--within", 1, "--threads", 1)


def test_calibrate_leaves_them_out_and_still_names_the_rows_that_were_held_out(command, bundle, rows, tmp_path):
    data = written(tmp_path / "data.csv", [*rows(60), (UNREADABLE[0], 1), *rows(80)], "train")
    done, said = command(*calibration(data, bundle), "--hold-out", 100)
    assert done.exit_code == 0, said
    assert "data.csv, line 62 (" in said
    validation = json.loads((bundle / "card.json").read_text())["report"]["validation"]
    assert (validation["n"], validation["left_out"]["n"]) == (100, 1)
    held = load(str(data), "train")[-100:]
    assert held_out(load_bundle(str(bundle)), load(str(data), "train"), 100) == held


def test_quantize_writes_a_table_of_every_classifier(command, bundle, rows, tmp_path):
    data = written(tmp_path / "data.csv", [*rows(30), (UNREADABLE[0], 1)], "train")
    done, said = command("quantize", "--data", data, "--bundle", bundle, "--hold-out", 12, "--threads", 1)
    assert done.exit_code == 0, said
    assert "data.csv, line 32 (" in said
    assert [len(load_table(bundle / name, layers)) for name, layers in (("bert-3", 3), ("mpnet-4", 4))] == [3, 4]


def test_train_leaves_them_out(command, base_on_disk, rows, tmp_path):
    data = written(tmp_path / "data.csv", [*rows(20), *((text, 0) for text in UNREADABLE), *rows(12)], "train")
    done, said = command(*training(data, base_on_disk("bert", 3)), "--hold-out", 14)
    assert done.exit_code == 0, said
    assert "left out, as no tier reads them: 3 texts" in said
    assert all(f"data.csv, line {line} (" in said for line in (22, 23, 24))
    told = json.loads((tmp_path / "net" / "network.json").read_text())["training"]
    assert told["left_out"]["n"] == 3


# -- arguments that do not fit ----------------------------------------------------------------------------------------


def training(data, base, *more):
    return (
        "train",
        "--data",
        data,
        "--base",
        base,
        "--out",
        "net",
        "--layers",
        2,
        "--hold-out",
        6,
        "--threads",
        1,
        "--max-tokens",
        32,
        "--rank",
        2,
        *more,
    )


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--classes", 2, "--data", "three.csv"], "--classes 2 has labels 0 to 1; label 2 in three.csv, line 12 ('"),
        (["--max-tokens", 600], "reads at most 260 tokens"),
        (["--epochs", 0.01], "is no step: nothing would be trained"),
        (["--epochs", "nan"], "--epochs"),
        (["--epochs", 1e9], "--epochs"),
        (["--layers", 4], "--layers 4"),
        (["--tier-end", 9], "--tier-end 9"),
        (["--adapter-lr", 0], "--adapter-lr 0"),
        (["--adapter-lr", "nan"], "--adapter-lr"),
        (["--adapter-lr", "inf"], "--adapter-lr"),
        (["--adapter-lr", 1e30, "--epochs", 20], "choose a smaller --adapter-lr"),
        (["--rank", 1000], "--rank 1000"),
        (["--pruned-share", "nan"], "--pruned-share"),
        (["--hold-out", 40], "cannot hold out 40 of 40 rows"),
        (["--hold-out", 4000], "cannot hold out 4000 of 40 rows"),
        (["--threads", 100_000], "--threads"),
        (["--seed", -1], "--seed"),
        (["--seed", 2**70], "--seed"),
        (["--out", "three.csv"], "is a file; name a folder"),
        (["--out", "three.csv/net"], "cannot be written"),
        (["--out", "/proc/net"], "cannot be written"),
        (["--base", "./distil"], "a 'distilbert' encoder; supported families are bert, roberta, mpnet"),
        (["--base", "./bare"], "has no tokenizer that can be read"),
        (["--base", "./void"], "cannot read an encoder's config.json"),
        (["--data", "one.csv"], "have label 1: nothing to tell apart"),
        (["--data", "same.csv"], "nothing to train on: every text occurs among the last rows"),
        (["--split", "dev"], "no split 'dev'"),
    ],
)
def test_training_that_cannot_be_is_told_before_the_first_step(
    command, base_on_disk, rows, tmp_path, arguments, complaint
):
    data = written(tmp_path / "data.csv", rows(40), "train")
    written(
        tmp_path / "three.csv", [(text, 2 if at == 10 else label) for at, (text, label) in enumerate(rows(40))], "train"
    )
    written(tmp_path / "one.csv", [(text, 1) for text, _ in rows(40)], "train")
    written(tmp_path / "same.csv", rows(1) * 40, "train")
    base = base_on_disk("bert", 3)
    shutil.copytree(base, tmp_path / "bare", ignore=shutil.ignore_patterns("tokenizer*"))
    (tmp_path / "void").mkdir()
    config = DistilBertConfig(vocab_size=90, dim=8, hidden_dim=8, n_layers=3, n_heads=1)
    DistilBertModel(config).save_pretrained(tmp_path / "distil")
    shutil.copy(base / "tokenizer.json", tmp_path / "distil")
    done, said = command(*training(data, base), *arguments)
    assert done.exit_code != 0
    assert complaint in said
    assert not list(tmp_path.glob("**/adapters.safetensors"))


def test_what_fits_is_trained(command, base_on_disk, rows, tmp_path):
    data = written(tmp_path / "data.csv", rows(40), split=None)
    asked = training(data, base_on_disk("bert", 3), "--tier-end", 1, "--tier-end", 2, "--classes", 3)
    done, said = command(*asked)
    assert done.exit_code == 0, said
    assert "has no split column: every row is used; measure on other texts" in said
    assert "--classes 3, but no training text has label 2" in said
    assert any(
        tensor.any() for key, tensor in load_file(tmp_path / "net" / "adapters.safetensors").items() if ".B" in key
    )


@pytest.mark.parametrize("name", ["evaluate", "calibrate"])
def test_labels_that_a_bundle_does_not_have_are_told_by_row(command, bundle, rows, tmp_path, name):
    data = written(tmp_path / "data.csv", [(text, label + 1) for text, label in rows(80)])
    done, said = command(
        name,
        "--data",
        data,
        "--bundle",
        bundle,
        "--split",
        "test",
        *(["--hold-out", 60] if name == "calibrate" else []),
    )
    assert done.exit_code != 0
    assert f"has 2 labels (negative, positive); label 2 in {data}, line" in said


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--max-tokens", 600], "reads at most 260 tokens"),
        (["--bundle", "uncalibrated", "--save"], "has no card to save into"),
        (["--bundle", "hollow"], "cannot read the trained classifier"),
        (["--exclude-split", "test"], "nothing remains"),
        (["--data", "nosplit.csv"], "no split column: add one, or say --split all to use every row"),
    ],
)
def test_an_evaluation_that_cannot_be_is_told(command, bundle, rows, tmp_path, arguments, complaint):
    shutil.copytree(bundle, tmp_path / "uncalibrated", ignore=shutil.ignore_patterns("card.json"))
    shutil.copytree(bundle, tmp_path / "hollow", ignore=shutil.ignore_patterns("mpnet-4"))
    data = written(tmp_path / "data.csv", rows(20))
    written(tmp_path / "nosplit.csv", rows(20), split=None)
    done, said = command("evaluate", "--data", data, "--bundle", bundle, *arguments)
    assert done.exit_code != 0
    assert complaint in said


# -- texts that tell nothing ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda rows: [(text, 1) for text, _ in rows], "validation rows are 'positive': is the file sorted by label?"),
        (lambda rows: sorted(rows, key=lambda row: row[1]), "is the file sorted by label?"),
        (
            lambda rows: [*rows[:100], *rows[100:103] * 34],
            "3 distinct texts among 100 rows: calibration needs at least",
        ),
    ],
    ids=["one class", "sorted", "few texts"],
)
def test_validation_that_tells_nothing_is_refused(command, bundle, rows, tmp_path, make, complaint):
    data = written(tmp_path / "data.csv", make(rows(210)), "train")
    before = (bundle / "card.json").read_bytes()
    done, said = command("calibrate", "--data", data, "--bundle", bundle, "--hold-out", 100)
    assert done.exit_code != 0
    assert complaint in said
    assert (bundle / "card.json").read_bytes() == before


def test_labels_at_random_are_said_and_kept_in_the_card(command, bundle, rows, tmp_path):
    coin = [(text, (at * 7919 // 13) % 2) for at, (text, _) in enumerate(rows(200))]
    data = written(tmp_path / "data.csv", coin, "train")
    done, said = command(*calibration(data, bundle), "--hold-out", 150)
    assert done.exit_code == 0, said
    assert "no better than always saying their most frequent label" in said
    notes = json.loads((bundle / "card.json").read_text())["report"]["notes"]
    assert any("no better than" in note for note in notes)


def test_a_share_that_cannot_be_sent_on_is_said_and_is_status_1(command, bundle, rows, tmp_path, monkeypatch):
    """A threshold that a bisection cannot find: every confidence is 1."""
    monkeypatch.setattr("lab.fit.point.threshold_for", lambda *_: 0.0)
    data = written(tmp_path / "data.csv", rows(200), "train")
    done, said = command(*calibration(data, bundle), "--hold-out", 150, "--offload-share", 0.9)
    point = json.loads((bundle / "card.json").read_text())["report"]["operating_point"]
    assert done.exit_code == 1
    assert "--offload-share 0.9 cannot be met" in said
    assert (point["reached_target"], point["offload_share"]["reached"]) == (False, False)
