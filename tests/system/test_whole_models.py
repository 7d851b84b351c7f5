"""`tierwise bench --whole`: whole models take turns with the policies of live tiers, over the same links."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from lab.live.stack import free_ports
from lab.whole.build import has_vnni
from lab.whole.runtimes import inputs_of, load, runnable
from shared.model.classifier import load_classifier
from shared.model.weights import cache_dir
from tests.commands import tierwise
from tests.conftest import LABELS


@pytest.fixture
def data(tmp_path, sentences):
    """Training texts, and five to test of which no tier reads one."""
    rows = [f'"{text}",{LABELS[at % 2]},train' for at, text in enumerate(sentences)]
    rows += [f'"{text}",{LABELS[at % 2]},test' for at, text in enumerate(["\U0001f642", *sentences[:4]])]
    path = tmp_path / "data.csv"
    path.write_text("\n".join(["text,label,split", *rows]) + "\n")
    return path


def test_whole_models_stand_beside_the_policies(data, tiny_bundle, tmp_path, sentences):
    wholes = ["whole cloud-only (OpenVINO int8)", "whole end-only (OpenVINO int8)"]
    out, policies = tmp_path / "b", ["end-only", "cloud-only"]
    arguments = ["bench", "--data", str(data), "--bundle", str(tiny_bundle), "--port", str(free_ports(3))]
    arguments += ["--link", "wifi", "--backbone", "metro", "--whole", "openvino", "--out", str(out)]
    for policy in policies:
        arguments += ["--policy", policy]
    done = tierwise(*arguments, TIERWISE_PRECISION="fp32", TIERWISE_CACHE_DIR=str(cache_dir()))
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "b.json").read_text())
    assert [*report["policies"]] == [*policies, *wholes]
    assert [report["policies"][name]["asked"] for name in wholes] == [None, None]
    cloud, end = (report["policies"][name] for name in wholes)
    assert cloud["links"] == report["policies"]["cloud-only"]["links"] == ["end-cloud wifi+metro (simulated)"]
    assert (end["links"], end["exits"]) == ([], {"end": {"3": 4}})
    assert report["left_out"]["n"] == 1
    about = report["wholes"][wholes[0]]
    assert (about["tier"], about["layers"], about["threads"], about["link"]) == ("cloud", 4, 2, "wifi+metro")
    assert report["wholes"][wholes[1]]["threads"] == 1
    assert [*report["beside"]] == ["cloud-only", *wholes]
    assert [[*by_policy] for by_policy in report["beside"].values()] == [["end-only"], policies, policies]
    assert report["verdict"].startswith("end-only takes ")
    assert all(f" times as long as {other}, at " in report["verdict"] for other in report["beside"])
    assert done.stdout.rstrip().endswith(report["verdict"])
    rows = pq.read_table(f"{out}.parquet").to_pylist()
    assert len(rows) == 4 * 4
    theirs = [row["predicted"] == row["label"] for row in rows if row["policy"] == wholes[0]]
    assert sum(theirs) / 4 == cloud["accuracy"]
    assert not (tmp_path / "b.jsonl").exists()
    for tier, whole in zip(("cloud", "end"), wholes, strict=True):
        check_built(tiny_bundle, tier, report["wholes"][whole]["built"], sentences)


def check_built(tiny_bundle, tier, built, sentences):
    """Every export answers as the network does, at lengths that it was not exported with, padded or not."""
    name, layers = {"cloud": ("mpnet-4", 4), "end": ("bert-3", 3)}[tier]
    ours = load_classifier(tiny_bundle / name, layers=layers, max_tokens=64, engine="torch", precision="fp32")
    texts = [ours.encode(text) for text in sentences]
    last = np.array([np.diff(trace.logits[-1])[0] for trace in ours.run(texts, None)])
    for model in runnable():
        rival = load(model, cache_dir() / "rivals" / built, threads=1)
        for multiple in (1, 32):
            theirs = [rival(inputs_of([text], ours.tokens.pad_id, multiple=multiple))[0] for text in texts]
            agreed = np.corrcoef(last, [np.diff(logits)[0] for logits in theirs])[0, 1]
            assert agreed > (0.95 if has_vnni() else 0.9), (model, tier, multiple)  # else weights have 7 bits


@pytest.mark.parametrize("running", [["--url", "http://127.0.0.1:1"], ["--cell", "lte/metro"]])
def test_whole_models_need_tiers_that_are_started_here(data, running):
    done = tierwise("bench", "--data", str(data), "--whole", "openvino", *running)
    assert done.returncode == 2
    assert "--whole needs tiers" in done.stderr


def test_pairs_of_texts_are_refused_before_anything_starts(tmp_path, tiny_bundle):
    path = tmp_path / "pairs.csv"
    path.write_text("text_a,text_b,label,split\na,b,0,train\na,b,0,test\n")
    arguments = ["--bundle", str(tiny_bundle), "--whole", "openvino", "--out", str(tmp_path / "b")]
    done = tierwise("bench", "--data", str(path), *arguments)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "whole models read one text, and these are pairs" in done.stderr
