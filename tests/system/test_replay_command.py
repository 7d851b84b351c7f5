"""`tierwise replay` as its users run it, on the tiny random bundle: a fresh cache, then a full one."""

import json
import os

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from lab.cli.main import app
from lab.data.examples import digest, load
from shared.errors import TierwiseError


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def command(cache, tmp_path, monkeypatch):
    """The command in this process: a new one takes seconds to start."""
    for name in [name for name in os.environ if name.startswith("TIERWISE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("TIERWISE_CACHE_DIR", str(cache))
    for pause in ("REST", "SECONDS"):  # times are not what is tested
        monkeypatch.setattr(f"lab.replay.profile.{pause}", 0.0)
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(app, ["replay", *arguments])


@pytest.fixture
def complained(command):
    """What the command says against its arguments."""

    def ask(*arguments):
        done = command(*arguments)
        assert isinstance(done.exception, (TierwiseError, SystemExit)), done.exception
        assert done.exit_code != 0
        return " ".join(f"{done.exception} {done.stderr}".replace("│", " ").split())

    return ask


@pytest.fixture(scope="module")
def data(tmp_path_factory, sentences):
    path = tmp_path_factory.mktemp("data") / "data.csv"
    rows = [f'"{text}",{row % 2},test' for row, text in enumerate(sentences)]
    path.write_text("\n".join(["text,label,split", *rows]) + "\n")
    return path


def test_every_policy_from_a_fresh_cache_and_from_a_full_one(command, data, tiny_bundle, whole_bundle, tmp_path):
    reports = []
    for out in ("first", "second"):
        arguments = ("--data", data, "--bundle", f"{tiny_bundle},{whole_bundle}", "--policy", "all", "--n", "12")
        done = command(*map(str, arguments), "--out", str(tmp_path / out))
        assert done.exit_code == 0, done.exception
        assert "MODELLED" in done.stdout
        assert (tmp_path / f"{out}-{tiny_bundle.name}.png").stat().st_size > 1000
        reports.append(json.loads((tmp_path / f"{out}.json").read_text()))
    first, second = reports
    assert min(first.pop("took_s"), second.pop("took_s")) > 0
    assert first.pop("texts_run") > 0
    assert second.pop("texts_run") == 0
    assert first == second
    tiny, whole = first["bundles"].values()
    engines = {engine for bundle in (tiny, whole) for engine in bundle["engine"].split(", ")}
    assert first["hardware"]["engine"] == ", ".join(sorted(engines))
    names = {"collaborative", "tabi", "dimee", "adaee", "splitee", "early-exit", "random", "oracle", "cloud-only"}
    assert names <= set(tiny["policies"])
    assert [name for name, f in tiny["policies"].items() if f["replay_only"]] == [
        "splitee",
        "splitee-s",
        "i-splitee",
        "early-exit",
        "oracle",
    ]
    assert {name for name, f in whole["policies"].items() if f["replay_only"]} == {"oracle"}
    assert set(whole["refused"]) == {"dimee", "length-quantile", "jei-dnn", "network-aware", "path-gates"}
    for part in (tiny, whole):
        assert part["verdict"].startswith("collaborative takes ")
        assert " times as long as cloud-only, at " in part["verdict"]
        assert " times as long as tabi, at " in part["verdict"]
    assert done.stdout.rstrip().endswith(whole["verdict"])
    assert all(f["chance"]["n"] == 12 for f in tiny["policies"].values())
    assert tiny["policies"]["end-only"]["chance"]["accuracy_over_chance"] == [0.0, 0.0, 0.0]
    assert "over chance," in done.stdout
    reference = tiny["policies"]["cloud-only"]
    assert reference["accuracy_minus_reference"] == [0.0, 0.0, 0.0]
    assert reference["modelled_ms"]["mean"] > reference["modelled_ms"]["link"] > 0


def test_differences_are_against_the_policy_that_is_named(command, data, tiny_bundle, tmp_path):
    asked = ("--data", str(data), "--bundle", str(tiny_bundle), "--policy", "collaborative", "--policy", "end-only")
    done = command(*asked, "--against", "edge-only", "--out", str(tmp_path / "out"))
    assert done.exit_code == 0, done.exception
    report = json.loads((tmp_path / "out.json").read_text())
    own = report["bundles"][tiny_bundle.name]
    assert (report["against"], [*own["policies"]]) == ("edge-only", ["collaborative", "end-only"])
    alone = command(*asked, "--policy", "edge-only", "--out", str(tmp_path / "alone"))
    assert alone.exit_code == 0, alone.exception
    policies = json.loads((tmp_path / "alone.json").read_text())["bundles"][tiny_bundle.name]["policies"]
    edge = policies["edge-only"]
    for name, figures in own["policies"].items():
        beside = figures["beside_reference"]
        assert beside["accuracy"][0] == pytest.approx(figures["accuracy"] - edge["accuracy"])
        assert figures["accuracy_minus_reference"][0] == pytest.approx(figures["accuracy"] - edge["accuracy"])
        assert beside["time_ratio"][0] == pytest.approx(figures["modelled_ms"]["mean"] / edge["modelled_ms"]["mean"])
        assert beside["p95_ratio"] == pytest.approx(figures["modelled_ms"]["p95"] / edge["modelled_ms"]["p95"])
        sent, theirs = (sum(one["bytes_per_request"].values()) for one in (figures, edge))
        assert beside["bytes_ratio"] == pytest.approx(sent / theirs), name
    assert "vs reference," in done.stdout
    assert " times as long as edge-only, at " in own["verdict"]
    assert (
        policies["collaborative"]["beside_reference"]["time_ratio"]
        != own["policies"]["collaborative"]["beside_reference"]["time_ratio"]
    )


def test_a_folder_and_the_dev_split_will_do(command, data, tiny_bundle, tmp_path):
    (tmp_path / "dev.csv").write_text(data.read_text().replace(",test", ",dev"))
    (tmp_path / "notes.txt").write_text("not data")
    arguments = ["--data", str(tmp_path), "--bundle", str(tiny_bundle), "--n", "5"]
    done = command(*arguments, "--policy", "end-only", "--out", str(tmp_path / "out"))
    assert done.exit_code == 0, done.exception
    own = json.loads((tmp_path / "out.json").read_text())["bundles"][tiny_bundle.name]
    assert (own["n"], "end-only" in own["policies"]) == (5, True)


def test_a_text_that_no_tier_reads_is_named_and_every_other_has_a_record(command, tiny_bundle, tmp_path):
    rows = ["a fine film,1", "\U0001f642,1", '" ",0', "a waste of time,0"]
    (tmp_path / "data.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    asked = ("--data", "data.csv", "--bundle", str(tiny_bundle), "--policy", "end-only", "--policy", "cloud-only")
    refused = command(*asked)
    assert "data.csv: no split column: add one, or say --split all" in str(refused.exception)
    done = command(*asked, "--split", "all", "--out", "own [x]/r")
    assert done.exit_code == 0, done.exception
    assert "left out, as no tier reads them: 2 texts" in done.stderr
    assert "data.csv, line 3 (" in done.stderr
    own = json.loads((tmp_path / "own [x]" / "r.json").read_text())["bundles"][tiny_bundle.name]
    assert (own["n"], own["split"], own["left_out"]["n"]) == (4, "all", 2)
    records = pq.read_table(tmp_path / "own [x]" / "r.parquet").to_pylist()
    assert [(record["row"], record["policy"]) for record in records] == [
        (row, policy) for row in (0, 3) for policy in ("cloud-only", "end-only")
    ]
    for name, figures in own["policies"].items():
        these = [record for record in records if record["policy"] == name]
        assert figures["modelled_ms"]["mean"] == pytest.approx(sum(record["ms"] for record in these) / 2)
        assert figures["bytes_per_request"]["up"] == pytest.approx(sum(record["bytes_up"] for record in these) / 2)
        assert figures["accuracy"] == sum(record["label"] == record["predicted"] for record in these) / 2
    assert records[0]["links"][0]["link"] == "end-cloud"


@pytest.fixture
def bench(tiny_bundle, data):
    examples = load(str(data), "test")
    return {
        "n": len(examples),
        "data_sha256": digest(examples),
        "first_tier": {"bundle": tiny_bundle.name, "links": [{"to": "edge", "profile": "5g-nsa"}]},
        "policies": {
            "whole end-only (OpenVINO int8)": {"asked": None, "latency_ms": {"mean": 7.5}},
            "any name": {"asked": "end-only", "latency_ms": {"mean": 12.5}},
        },
    }


def test_measured_times_stand_beside_the_modelled_ones(command, data, tiny_bundle, tmp_path, bench):
    (tmp_path / "bench.json").write_text(json.dumps(bench))
    arguments = ["--data", str(data), "--bundle", str(tiny_bundle), "--policy", "end-only", "--policy", "edge-only"]
    done = command(*arguments, "--measured", str(tmp_path / "bench.json"), "--out", str(tmp_path / "out"))
    assert done.exit_code == 0, done.exception
    policies = json.loads((tmp_path / "out.json").read_text())["bundles"][tiny_bundle.name]["policies"]
    off_by = policies["end-only"]["modelled_ms"]["mean"] / 12.5 - 1
    assert policies["end-only"]["measured_ms"] == {"mean": 12.5, "n": bench["n"], "modelled_is_off_by": off_by}
    assert "measured_ms" not in policies["edge-only"]
    assert "measured" in done.stdout


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"data_sha256": "0"}, "other texts"),
        ({"n": 3}, "other texts"),
        ({"first_tier": {"links": [{"to": "edge", "profile": "lte"}]}}, "measured over lte to the edge, not 5g-nsa"),
        ({"policies": 3}, "not a bench"),
    ],
)
def test_times_measured_elsewhere_are_refused(complained, data, tiny_bundle, tmp_path, bench, change, complaint):
    first = bench["first_tier"] | change.get("first_tier", {})
    (tmp_path / "bench.json").write_text(json.dumps(bench | change | {"first_tier": first}))
    arguments = ["--data", str(data), "--bundle", str(tiny_bundle), "--policy", "end-only"]
    assert complaint in complained(*arguments, "--measured", str(tmp_path / "bench.json"))


def test_a_policy_that_one_bundle_lacks_is_replayed_on_the_others(command, data, tiny_bundle, tmp_path):
    two = tmp_path / "two"
    two.mkdir()
    tier = {"network": str(tiny_bundle / "mpnet-4"), "layers": 4, "max_tokens": 64}
    (two / "bundle.json").write_text(json.dumps({"labels": ["a", "b"], "tiers": {"end": tier, "cloud": tier}}))
    arguments = ["--data", str(data), "--bundle", f"{two},{tiny_bundle}", "--n", "6", "--policy", "edge-only"]
    done = command(*arguments, "--out", str(tmp_path / "out"))
    assert done.exit_code == 0, done.exception
    bundles = json.loads((tmp_path / "out.json").read_text())["bundles"]
    assert "edge-only" in bundles[tiny_bundle.name]["policies"]
    assert "unknown policy 'edge-only'" in bundles["two"]["refused"]["edge-only"]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "name the labelled texts to replay with --data"),
        (["--data", "DATA", "--data", "COPY", "--bundle", "TINY"], "on two data sets"),
        (["--data", "EMPTY"], "no .csv, .tsv, .jsonl or .parquet file in this folder"),
        (["--data", "DATA"], "no split 'train'"),
        (["--data", "nowhere.csv"], "no such file"),
        (["--data", "DATA", "--split", "train"], "no split 'train'"),
        (["--data", "DATA", "--bundle", "nonsense"], "bundle 'nonsense'"),
        (["--data", "DATA", "--bundle", "TINY", "--policy", "nonsense"], "unknown policy 'nonsense'"),
        (["--data", "DATA", "--bundle", "TINY", "--policy", "tabi:"], "expected NAME:key=value"),
        (["--data", "DATA", "--bundle", "TINY", "--against", "nonsense"], "unknown policy 'nonsense'"),
        (["--data", "DATA", "--bundle", "TINY", "--links", "lte"], "expected ACCESS/BACKBONE"),
        (["--data", "DATA", "--bundle", "TINY", "--links", "warp/metro"], "'warp'"),
    ],
)
def test_a_wrong_argument_is_told(complained, data, tiny_bundle, tmp_path, arguments, complaint):
    (tmp_path / "copy").mkdir()
    copy = tmp_path / "copy" / "copy.csv"
    copy.write_text(data.read_text())
    empty = tmp_path / "empty"
    empty.mkdir()
    named = {"DATA": str(data), "COPY": str(copy), "EMPTY": str(empty), "TINY": str(tiny_bundle)}
    assert complaint in complained(*(named.get(item, item) for item in arguments))


def test_a_file_of_words_that_no_bundle_was_calibrated_on_needs_a_bundle(complained, tmp_path):
    (tmp_path / "words.csv").write_text(
        "text,label,split\n" + "a fine film,positive,train\na dull one,negative,test\n" * 2
    )
    assert "words.csv: name one with --bundle (collaborative," in complained("--data", str(tmp_path / "words.csv"))
