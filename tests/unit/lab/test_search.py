"""What the planner tries: the grid, single steps around a front, and the rows that it may look at."""

import numpy as np
import pytest
from rich.console import Console

from lab.data.examples import Example
from lab.replay.gated import gated
from lab.replay.profile import Http, Table
from lab.replay.recorder import Kernel, Recorders
from lab.replay.search import (
    EVERY,
    FIRST,
    SENDERS,
    SKIPS,
    STEEPNESS,
    THRESHOLDS,
    Knob,
    Search,
    beside,
    coarse,
    knobs,
    token_choices,
)
from lab.replay.times import Times
from lab.replay.trial import Conditions, Trial, links_of
from shared.errors import BadSetting
from shared.model.bundle import load_bundle
from shared.policies import POLICIES

ORDER = ("end", "edge", "cloud")
THRESHOLD = Knob("offload_threshold", (0.5, 0.9), (None, 0.5, 0.7, 0.9), SENDERS, apart=True)
THETA = Knob("theta", (0.0, 0.2), (0.0, 0.1, 0.2), EVERY)
PATIENCE = Knob("patience", (1, 2), (1, 2, 3), after="theta")


@pytest.fixture
def bundle(tiny_bundle, monkeypatch, tmp_path):
    monkeypatch.setenv("TIERWISE_CACHE_DIR", str(tmp_path))
    return load_bundle(str(tiny_bundle))


@pytest.fixture
def trial(bundle, sentences):
    recorders = Recorders(Console(quiet=True))
    examples = [Example(text, None, row % 2) for row, text in enumerate(sentences)]
    trial = Trial(bundle, examples, Conditions(recorders), split="train")
    layers = {station.recorder.digest: station.recorder.source.layers for station in trial.replay.stations}
    tables = {
        (digest, 1): Table(
            lengths=[8, 64],
            infer={kernel: [[layer * 1e-3, layer * 8e-3] for layer in range(1, depth + 1)] for kernel in Kernel},
            whole={kernel: [depth * 1e-3, depth * 8e-3] for kernel in Kernel},
            words=[0, 100],
            tokenize=[0.0, 0.1],
            prune=[0.01, 0.01],
            spread=1.0,
        )
        for digest, depth in layers.items()
    }
    links, threads = links_of(bundle, "5g-nsa/metro"), dict.fromkeys(bundle.order, 1)
    times = Times(trial.replay, threads, links, recorders.console, tables=tables, http=Http(client=0.003, hop=0.002))
    trial.__dict__["times"] = times
    return trial


def test_the_grid_is_every_combination_that_can_matter_once():
    grid = list(coarse("collaborative", [THRESHOLD, THETA, PATIENCE], ORDER))
    assert grid[0] == {"name": "collaborative"}  # the card's point
    assert len(grid) == 1 + 4 * (1 + 2)  # without an exit patience changes nothing
    assert {"end": 0.5, "edge": 0.9} in [spec.get("offload_threshold") for spec in grid]


def test_one_parameter_of_one_tier_goes_one_step():
    setting = {"name": "collaborative", "offload_threshold": {"end": 0.7}, "theta": 0.0, "patience": 1}
    steps = list(beside(setting, [THRESHOLD, THETA, PATIENCE], ORDER))
    changed = [{key: step[key] for key in step if step[key] != setting[key]} for step in steps]
    assert changed == [
        {"offload_threshold": {"end": 0.5}},
        {"offload_threshold": {"end": 0.9}},
        {"offload_threshold": {"end": 0.7, "edge": 0.5}},
        {"theta": {"end": 0.1, "edge": 0.0, "cloud": 0.0}},
        {"theta": {"end": 0.0, "edge": 0.1, "cloud": 0.0}},
        {"theta": {"end": 0.0, "edge": 0.0, "cloud": 0.1}},
    ]


def test_the_lowest_step_of_a_threshold_is_a_tier_that_sends_nothing():
    steps = beside({"name": "tabi", "offload_threshold": {"end": 0.5, "edge": 0.5}}, [THRESHOLD], ORDER)
    assert {"edge": 0.5} in [step["offload_threshold"] for step in steps]


def test_tokens_step_up_to_as_many_as_the_bundle_says():
    tokens = Knob("max_tokens", (), (96, 128, None), FIRST)
    found = {str(step["max_tokens"]) for step in beside({"max_tokens": {"end": 128}}, [tokens], ORDER)}
    assert found == {"{'end': 96}", "{}"}
    assert [step["max_tokens"] for step in beside({"max_tokens": None}, [tokens], ORDER)] == [{"end": 128}]


def test_every_policy_and_parameter_that_is_searched_exists(bundle):
    for name, of in knobs(bundle, (0.0,), token_choices((), bundle)).items():
        if name in POLICIES:
            aliases = {info.alias or field for field, info in POLICIES[name].model_fields.items()}
            assert {knob.name for knob in of} <= aliases
            assert all(value in knob.fine or knob.apart for knob in of for value in knob.coarse if value is not None)


def test_tokens_are_asked_for_by_tier(bundle):
    assert token_choices(["cloud=16,64,32"], bundle) == {"end": [], "edge": [], "cloud": [16, 32]}
    for wrong, why in (("moon=16", "tier"), ("cloud=x", "TIER=N,N"), ("cloud=65", "8 to 64"), ("cloud=7", "8 to 64")):
        with pytest.raises(BadSetting, match=why):
            token_choices([wrong], bundle)


def test_a_search_looks_at_its_rows_alone_and_tries_each_setting_once(trial):
    rows = np.arange(0, 12, 3)
    search = Search(trial, rows, coefficients=(0.0,), tokens=token_choices(["end=12"], trial.bundle))
    asked = []
    search.run(lambda every: asked.append(len(every)) or [0])
    assert len(search.specs) == len({str(spec) for spec in search.specs}) > 100
    assert {spec["name"] for spec in search.specs} >= {"collaborative", "tabi", "recserve", "pabee", "cloud-only"}
    assert any(spec.get("max_tokens") == {"end": 12} for spec in search.specs)
    at = search.specs.index({"name": "cloud-only"})
    whole = trial.of("cloud-only")
    assert search.every[at].right[rows].tolist() == whole.right[rows].tolist()
    assert search.every[at].ms[rows] == pytest.approx(whole.ms[rows])
    run = trial.of_some({"name": "collaborative", "max_tokens": {"end": 12}}, rows).run
    tokens = trial.replay.stations_of(run)[0].table(trial.replay.numbers[rows], Kernel.PLAIN).tokens
    assert max(tokens[trial.replay.numbers[rows]]) == 12
    assert set(tokens[np.delete(trial.replay.numbers, rows)]) == {-1}  # never recorded


def test_fewer_tokens_take_less_time_by_the_same_table(trial):
    full, short = (
        trial.of({"name": "end-only"}),
        trial.of({"name": "collaborative", "offload_threshold": {}, "theta": 0}),
    )
    assert short.ms == pytest.approx(full.ms)
    short = trial.of({"name": "collaborative", "offload_threshold": {}, "theta": 0, "max_tokens": {"end": 10}})
    assert (short.ms <= full.ms + 1e-9).all()
    assert (short.ms < full.ms).any()


def test_gates_are_tried_at_every_price_and_judged_by_others_than_they_were_fitted_on(trial, monkeypatch):
    monkeypatch.setattr("lab.fit.prices.STAKES", (0.1,))
    card = trial.bundle.card
    card.policies["path-gates"]["profiles"][0]["links"] = "5g-nsa/metro"
    card.report["gates"] = {"path-gates": {"5g-nsa/metro": {"chosen": 0.5}}}
    before, search = str(card), Search(trial, np.arange(4), coefficients=(0.0,), tokens=token_choices((), trial.bundle))
    for full, outcomes in gated(trial):
        search.add(full, outcomes)
    assert str(card) == before
    first, own = search.specs
    assert own == {"name": "path-gates"}
    assert [profile["links"] for profile in first["profiles"]] == ["5g-nsa/metro"]
    for spec, seen in zip(search.specs, search.every, strict=True):
        assert trial.of(spec).right.tolist() == seen.right.tolist()
    known, unseen = trial.replay.run(trial.replay.policy(first)), trial.of(first)
    assert (known.label == trial.truth).mean() > unseen.right.mean()  # labels by turns: what was fitted only seems good


def test_the_values_that_calibration_chooses_from_are_the_planners(bundle):
    knobs_of = {knob.name: knob.fine for knob in knobs(bundle, (0.0,), token_choices((), bundle))["collaborative"]}
    assert knobs_of["offload_threshold"] is THRESHOLDS
    assert (knobs_of["skip_below"], knobs_of["steepness"]) == (SKIPS, STEEPNESS)
    assert "speculate_below" in knobs_of
