"""`calibrate` over a tiny bundle: one run writes what every policy needs."""

import json
import shutil

import pytest
from rich.console import Console

from lab.data.examples import Example
from lab.fit.calibrate import Calibration
from lab.fit.evaluate import evaluate
from lab.fit.exits import every_exit
from lab.replay.recorder import Recorders, runs_on
from shared.errors import BadSetting
from shared.model.bundle import load_bundle
from shared.model.openvino_engine import capabilities
from shared.model.pools import NO_POOLS, Signature
from shared.model.quantization import FILE, adapters_digest
from shared.policies import POLICIES, Where, bind, build, first_state


@pytest.fixture
def bundle(tiny_bundle, tmp_path, monkeypatch, quick_profile):
    """A copy of the tiny bundle without card and pools, judged by Matthews' correlation."""
    monkeypatch.setenv("TIERWISE_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("TIERWISE_PRECISION")
    folder = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, folder, ignore=shutil.ignore_patterns("card.json", "pools.safetensors"))
    file = json.loads((folder / "bundle.json").read_text())
    (folder / "bundle.json").write_text(json.dumps({**file, "metric": "mcc"}))
    return folder


@pytest.fixture
def texts(sentences, bundle):
    """Labelled by most of the tiers, so that each is right more often than not."""
    words = " ".join(sentences).split()
    texts = [" ".join(words[n : n + 3 + n % 11]) for n in range(len(words) - 3)]
    read = load_bundle(str(bundle))
    logits = every_exit(read, [Example(text, None, 0) for text in texts], Recorders(Console(quiet=True)))
    votes = sum(exits[:, -1].argmax(-1) for exits in logits.values())
    return [Example(text, None, int(vote >= 2)) for text, vote in zip(texts, votes, strict=True)]


def calibration(bundle, texts):
    return Calibration(str(bundle), texts, access="5g-nsa", backbone="metro", threads=1, console=Console(quiet=True))


def test_one_run_gives_every_policy_what_it_needs(bundle, texts):
    calibration(bundle, texts).run(within=1.0, offload_share=None)
    calibrated = load_bundle(str(bundle))
    card, where = calibrated.card, Where("end", ("edge", "cloud"), {"end": 3, "edge": 2, "cloud": 4})
    assert card.engine == runs_on(calibrated)
    assert "INT8" not in capabilities() or card.engine == "openvino int8"  # it found the tables first
    point = card.report["operating_point"]
    skips = {row["skip_below"]: row["accuracy"] for row in point["skips"]}
    assert {0.0, 1.0} < skips.keys()  # from all texts through the edge to all past it
    assert skips[point["skip_below"]] == pytest.approx(point["expected"]["accuracy"])
    assert {"end", "end+edge", "end+cloud"} <= card.fitted_weights.keys()
    assert card.reads_alike == {"edge": ["cloud"]}
    assert card.report["pruning"] == {"chosen": 0.0, "by": [], "not_tried": "0 texts are long enough"}
    assert "mcc" in card.report["exits"]["cloud"][-1]
    assert calibrated.pools is not None
    assert sum(calibrated.pools.sizes) == len(texts)
    for name in POLICIES.keys() - {"oracle", "early-exit", "splitee", "splitee-s", "i-splitee"}:
        policy = build(name, calibrated.order, card.policies)
        policy.check(where)
        bind(policy, first_state(policy, where, calibrated.pools))
    for kind in Signature:
        policy = build({"name": "dimee", "signature": kind.value}, calibrated.order, card.policies)
        assert len(policy.initial_state(where, calibrated.pools)["means"]) == 3
    figures = evaluate(str(bundle), texts, max_tokens=None, threads=1, console=Console(quiet=True), save=True)
    assert figures["engine"] == card.engine
    assert figures["tiers"]["end"]["exits"][0].keys() >= {"accuracy", "mcc", "mcc_ci95"}


def test_a_calibration_without_pools_leaves_none_of_an_earlier_one(bundle, texts, monkeypatch):
    monkeypatch.setattr("lab.fit.pools.SMALLEST", 1.0)  # no pool has all texts, if another has some
    job = calibration(bundle, texts)
    (bundle / "pools.safetensors").write_bytes(b"of an earlier calibration")
    job.run(within=1.0, offload_share=None)
    assert not (bundle / "pools.safetensors").exists()
    assert load_bundle(str(bundle)).pools == NO_POOLS


def test_a_table_that_was_found_for_other_adapters_is_found_anew(bundle, texts):
    folder = bundle / "bert-3"
    calibrate = calibration(bundle, texts)
    calibrate._quantize()
    if "INT8" not in capabilities():
        assert not (folder / FILE).exists()
        return
    first = (folder / FILE).read_bytes()
    (folder / FILE).write_bytes(first.replace(adapters_digest(folder).encode(), b"0" * 64))
    calibrate._quantize()
    assert (folder / FILE).read_bytes() == first


def test_the_strongest_pruning_that_costs_little_is_chosen_and_every_tier_gets_what_it_leaves(
    bundle, texts, monkeypatch
):
    monkeypatch.setattr("lab.fit.calibrate.PRUNING_TEXTS", 20)
    monkeypatch.setattr("lab.fit.calibrate.PRUNING_COST", 1.0)
    long = [Example(" ".join([text.text] * 14), None, text.label) for text in texts[:60]]
    calibration(bundle, long).run(within=1.0, offload_share=None)
    card = load_bundle(str(bundle)).card
    by = card.report["pruning"]["by"]
    assert [row["coefficient"] for row in by] == [0.0, 0.75, 0.9, 1.0, 1.1, 1.25]
    kept = [row["words_kept"] for row in by]
    assert kept == sorted(kept, reverse=True)
    assert kept[0] == 1 > kept[-1]
    assert card.policies["collaborative"]["pruning_coefficient"] == card.report["pruning"]["chosen"] == 1.25
    assert card.report["stages"].keys() == {"end", "edge", "cloud"}


def test_the_others_alone_leave_the_card_as_it_is(bundle, texts):
    with pytest.raises(BadSetting, match="calibrate it in full first"):
        calibration(bundle, texts).others(within=1.0)
    calibration(bundle, texts).run(within=1.0, offload_share=None)
    before = json.loads((bundle / "card.json").read_text())
    del before["policies"]["dimee"]
    (bundle / "card.json").write_text(json.dumps(before))
    calibration(bundle, texts).others(within=1.0)
    after = json.loads((bundle / "card.json").read_text())
    assert after["policies"].pop("dimee")["exit_threshold"] > 0
    assert after == before
