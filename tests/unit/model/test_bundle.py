"""Bundles: which classifier each tier runs, and files that say too little or too much."""

import json
import shutil

import pytest

from shared.errors import BadSetting
from shared.model.bundle import MODELS, load_bundle
from shared.model.ensemble import Weighting
from shared.model.pools import NO_POOLS
from shared.policies import Where, build


@pytest.fixture
def folder(tiny_bundle, tmp_path):
    """A copy of the tiny bundle that a test may spoil."""
    return shutil.copytree(tiny_bundle, tmp_path / "mine")


def test_a_bundle_says_what_each_tier_runs_shallowest_first(tiny_bundle):
    bundle = load_bundle(str(tiny_bundle))
    assert bundle.order == ("end", "edge", "cloud")
    assert [bundle.tiers[tier].layers for tier in bundle.order] == [3, 2, 4]
    assert bundle.tiers["edge"].network == bundle.tiers["cloud"].network
    assert bundle.labels == ("negative", "positive")
    assert bundle.card.temperatures["edge"] == [1.4, 1.2]
    assert bundle.card.ensemble().weights(["end", "edge"], Weighting.FITTED) == [0.3, 0.7]


def test_the_deepest_network_is_cut_where_the_tiers_end_that_share_it_or_where_the_file_says(folder):
    bundle = load_bundle(str(folder))
    assert bundle.segments == (2, 4)  # the end has another network
    assert [bundle.shares(*pair) for pair in (("edge", "cloud"), ("end", "cloud"))] == [True, False]
    assert load_bundle("split-imdb").segments == (3, 6, 12)
    told = json.loads((folder / "bundle.json").read_text())
    (folder / "bundle.json").write_text(json.dumps({**told, "segments": [1, 3, 4]}))
    assert load_bundle(str(folder)).segments == (1, 3, 4)


@pytest.mark.parametrize("segments", [[0, 4], [2, 2, 4], [3, 2, 4], [1, 3], [4, 5]])
def test_segments_that_cannot_be_are_refused(folder, segments):
    told = json.loads((folder / "bundle.json").read_text())
    (folder / "bundle.json").write_text(json.dumps({**told, "segments": segments}))
    with pytest.raises(BadSetting, match="segments"):
        load_bundle(str(folder))


def test_every_bundle_that_is_shipped_can_be_read_by_name():
    for path in MODELS.glob("*/bundle.json"):
        bundle = load_bundle(path.parent.name)
        assert all((bundle.folder / tier.network / "network.json").is_file() for tier in bundle.tiers.values())


def test_a_bundle_without_a_card_is_uncalibrated_and_neither_exits_early_nor_prunes(folder):
    assert load_bundle(str(folder)).card.calibrated
    (folder / "card.json").unlink()
    bundle = load_bundle(str(folder))
    assert (bundle.card.calibrated, bundle.card.temperatures, bundle.card.accuracy) == (False, {}, {})
    for name in ("collaborative", "tabi"):
        policy = build(name, bundle.order, bundle.card.policies)
        assert policy.exit_rule(Where("end", ("edge",), {"end": 3, "edge": 2, "cloud": 4})) is None
        assert policy.pruning("end").coefficient == 0


def test_the_digest_names_what_answers_so_it_changes_with_the_card(folder):
    before = load_bundle(str(folder)).digest
    assert load_bundle(str(folder)).digest == before
    card = json.loads((folder / "card.json").read_text())
    (folder / "card.json").write_text(json.dumps({**card, "accuracy": {}}))
    assert load_bundle(str(folder)).digest != before


@pytest.mark.parametrize(
    ("report", "pools"), [({"pools": {"chosen": None}}, NO_POOLS), ({"pools": {"chosen": {}}}, None), ({}, None)]
)
def test_a_bundle_tells_texts_without_pools_from_pools_that_are_missing(folder, report, pools):
    (folder / "pools.safetensors").unlink(missing_ok=True)
    card = json.loads((folder / "card.json").read_text())
    (folder / "card.json").write_text(json.dumps({**card, "report": report}))
    assert load_bundle(str(folder)).pools == pools


@pytest.mark.parametrize("name", ["collaborative", "collaborative/", "split-imdb"])
def test_a_shipped_bundle_s_name_comes_before_a_folder_that_lies_here(folder, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folder, tmp_path / name)
    assert load_bundle(name).folder == MODELS / name
    assert load_bundle(f"./{name}").folder == tmp_path / name


@pytest.mark.parametrize("name", ["mine", "./mine", "../{here}/mine", "{tmp}/mine", "~/mine"])
def test_a_bundle_of_one_s_own_is_named_by_its_folder(folder, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    bundle = load_bundle(name.format(here=tmp_path.name, tmp=tmp_path))
    assert (bundle.name, bundle.folder.resolve()) == ("mine", folder)


def test_a_bundle_knows_what_names_it_on_a_command_line(folder, monkeypatch):
    assert load_bundle("split-imdb").argument == "split-imdb"
    assert load_bundle(str(folder)).argument == str(folder)
    monkeypatch.chdir(folder.parent)
    assert load_bundle(str(folder)).argument == "./mine"


def test_no_name_at_all_is_no_bundle(folder, monkeypatch):
    monkeypatch.chdir(folder)
    with pytest.raises(BadSetting, match=r"there are .*collaborative"):
        load_bundle("")
    assert load_bundle(".").name == "mine"


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(
        BadSetting, match=r"bundle 'colaborative': no bundle.json in .*; there are .*collaborative.*; did you mean coll"
    ):
        load_bundle("colaborative")


@pytest.mark.parametrize("name", ["mien", "./mien"])
def test_an_unknown_name_is_refused_with_the_folders_that_lie_here(folder, monkeypatch, name):
    monkeypatch.chdir(folder.parent)
    with pytest.raises(BadSetting, match=r"there are collaborative.*, \./mine; did you mean \./mine\?"):
        load_bundle(name)


@pytest.mark.parametrize(
    ("file", "change", "says"),
    [
        ("bundle.json", {"labels": ["only"]}, "labels"),
        ("bundle.json", {"tiers": {}}, "tiers"),
        ("bundle.json", {"tiers": {"end": {"network": "n", "layers": 0, "max_tokens": 64}}}, "layers"),
        ("bundle.json", {"tiers": {"end": {"network": "n", "layers": 1, "max_tokens": 7}}}, "max_tokens"),
        ("bundle.json", {"tier": {}}, "Extra inputs"),
        ("card.json", {"temperature": {}}, "Extra inputs"),
        ("card.json", {"accuracy": {"end": "good"}}, "accuracy"),
        ("bundle.json", {"labels": ["a", "a"]}, "labels: 'a' is there twice"),
        ("bundle.json", {"labels": ["\u00e9", "e\u0301"]}, "labels: .* is there twice"),
        ("bundle.json", {"labels": ["", ""]}, "labels.0: '' is blank"),
        ("bundle.json", {"labels": ["a", " "]}, "labels.1: ' ' is blank"),
        ("bundle.json", {"labels": ["a", "a "]}, "labels.1: 'a ' is blank, or has spaces"),
        ("bundle.json", {"labels": ["a", "\x1b[2Jb"]}, "labels.1: .* has control characters"),
        ("bundle.json", {"labels": ["a", "b" * 101]}, "labels.1"),
        ("bundle.json", {"labels": ["a", "b", "c"]}, "3 labels; .*network.json has 2 classes"),
        ("bundle.json", {"tiers": {"end": {"network": "bert-3", "layers": 4, "max_tokens": 64}}}, "4 layers; .*has 3"),
        ("bundle.json", {"tiers": {"a+b": {"network": "bert-3", "layers": 3, "max_tokens": 64}}}, r"tiers.a\+b"),
        ("card.json", {"accuracy": {"end": 1.2}}, "accuracy.end"),
        ("card.json", {"accuracy": {"ending": 0.9}}, "speaks of tier 'ending'; the bundle has end, edge, cloud"),
        ("card.json", {"temperatures": {"end": [1.0]}}, "temperatures.end: 1 values; it needs 3, one per layer"),
        ("card.json", {"temperatures": {"end": [1.0, 0.0, 1.0]}}, "temperatures.end.1"),
        ("card.json", {"model_temperatures": {"end": -1.0}}, "model_temperatures.end"),
        ("card.json", {"model_temperatures": {"end": float("nan")}}, "model_temperatures.end|JSON"),
        ("card.json", {"fitted_weights": {"end+edge": [0.9, 0.9]}}, r"fitted_weights.end\+edge: weights sum to 1.8"),
        ("card.json", {"fitted_weights": {"end+edge": [1.0]}}, "1 values; it needs 2, one per tier"),
        ("card.json", {"fitted_weights": {"end+x": [0.5, 0.5]}}, "speaks of tier 'x'"),
    ],
)
def test_a_file_that_does_not_say_what_it_must_is_refused(folder, file, change, says):
    content = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps({**content, **change}))
    with pytest.raises(BadSetting, match=says) as told:
        load_bundle(str(folder))
    assert "\n" not in str(told.value)


def test_what_is_not_json_is_refused(folder):
    (folder / "card.json").write_text("{")
    with pytest.raises(BadSetting, match="JSON"):
        load_bundle(str(folder))
