"""The offline jobs: intervals, expectations over paths, the choice of exits, the command line."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import Tensor

import services.cloud
import services.edge
import services.end
from lab.data.examples import Example, hold_out, load, without
from lab.fit.calibrate import choose_exits
from lab.fit.operating import Stage, expectation, fitted, paths, sweep, threshold_for
from lab.live.stack import Layout
from lab.policies import parse_policy
from lab.stats import paired_difference, wilson
from shared.errors import BadSetting
from shared.model.bundle import load_bundle
from shared.model.ensemble import Ensemble, Weighting


def probabilities(*positive: float) -> Tensor:
    return torch.tensor([[1 - p, p] for p in positive])


def test_wilson_matches_a_published_example():
    low, high = wilson(81, 263)  # Newcombe 1998, table I
    assert (round(low, 4), round(high, 4)) == (0.2553, 0.3662)


def test_paired_difference_of_a_constant_shift_has_no_width():
    a = np.arange(50.0)
    assert paired_difference(a + 2, a) == (2.0, 2.0, 2.0)


def test_paths_sum_to_one_and_follow_the_dispatcher():
    stages = [
        Stage("end", probabilities(0.6, 0.99), torch.zeros(2)),
        Stage("cloud", probabilities(0.9, 0.9), torch.ones(2)),
    ]
    stop = paths(stages, {"end": 0.8}, 10)
    assert torch.allclose(stop.sum(0), torch.ones(2))
    assert stop[1, 0] == 1  # below the threshold: always sent on
    assert stop[1, 1] < 0.05


def test_expected_latency_counts_every_tier_on_the_way():
    stages = [
        Stage("end", probabilities(0.6), torch.tensor([0.01])),
        Stage("cloud", probabilities(0.9), torch.tensor([0.3])),
    ]
    labels = torch.tensor([1])
    accuracy, nll, seconds = expectation(stages, labels, paths(stages, {"end": 1.0}, 10), Ensemble(), Weighting.LAST)
    assert (accuracy, round(seconds, 6)) == (1.0, 0.31)
    assert nll == pytest.approx(-np.log(0.9), abs=1e-6)


def test_fitted_weights_trust_the_tier_that_is_right():
    labels = torch.tensor([1, 1, 0, 0] * 10)
    wrong, right = probabilities(*[0.3, 0.3, 0.7, 0.7] * 10), probabilities(*[0.9, 0.8, 0.1, 0.2] * 10)
    stages = [Stage("end", wrong, torch.zeros(40)), Stage("cloud", right, torch.zeros(40))]
    weights = fitted(stages, labels, paths(stages, {"end": 1.0}, 10))
    assert "end" not in weights  # no text stops there
    assert weights["end+cloud"][1] > 0.99


def test_a_sweep_covers_every_pair_of_thresholds_and_shares_sum_to_one():
    stages = [Stage(t, probabilities(0.6, 0.2, 0.8), torch.ones(3)) for t in ("end", "edge", "cloud")]
    points = list(sweep(stages, torch.tensor([1, 0, 1]), Ensemble(), Weighting.LAST))
    assert len({(tuple(p.thresholds.items()), p.steepness) for p in points}) == len(points) == 2 * 12 * 12
    assert all(sum(p.stops.values()) == pytest.approx(1) for p in points)


def test_a_wanted_offload_share_gives_its_threshold():
    stage = Stage("end", probabilities(*np.linspace(0.5, 1, 201)), torch.zeros(201))
    threshold = threshold_for(stage.probabilities.amax(-1).tolist(), 0.4, 10)
    stop = paths([stage, stage], {"end": threshold}, 10)
    assert stop[1].mean().item() == pytest.approx(0.4, abs=0.01)


def test_exits_are_chosen_only_where_they_cost_little():
    agreeing = probabilities(*[0.9] * 6).expand(40, 6, 2)
    late = agreeing.clone()
    late[:, :5] = torch.tensor([0.9, 0.1])  # every exit but the last agrees on the wrong label
    labels = torch.ones(40, dtype=torch.long)
    assert choose_exits({"end": agreeing}, labels).theta["end"] > 0
    assert choose_exits({"end": late}, labels).theta["end"] == 0


def test_policies_are_written_with_parameters():
    assert parse_policy("tabi") == "tabi"
    assert parse_policy("collaborative:theta=0.1,curve=step") == {
        "name": "collaborative",
        "theta": 0.1,
        "curve": "step",
    }


def test_held_out_texts_are_not_trained_on():
    examples = [Example(text, None, 0) for text in ("a", "b", "c", "a")]
    train, validation = hold_out(examples, 1)
    assert ([e.text for e in train], [e.text for e in validation]) == (["b", "c"], ["a"])
    assert without(validation, examples) == []


def test_data_without_its_columns_is_refused_by_name(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("body,label\nhello,1\n")
    with pytest.raises(BadSetting, match="needs columns text"):
        load(str(path))
    with pytest.raises(BadSetting, match="no such file"):
        load(str(tmp_path / "y.csv"))
    path.write_text("text,label,split\nhello,1,train\nbye,0,test\n")
    assert load(str(path), "test") == [Example("bye", None, 0)]
    with pytest.raises(BadSetting, match="no split 'dev'"):
        load(str(path), "dev")


def test_the_first_tier_has_a_direct_link_to_every_deeper_one():
    bundle = load_bundle("collaborative")
    first, second, last = (Layout(access="lte").environment(bundle, index) for index in range(3))
    assert first["TIERWISE_LINK_PROFILES"] == "edge=lte,cloud=lte+metro"
    assert second["TIERWISE_LINK_PROFILES"] == "cloud=metro"
    assert last["TIERWISE_LINK_PROFILES"] == ""


def test_what_nobody_asked_for_is_as_the_services_say():
    bundle = load_bundle("collaborative")
    for index, tier in enumerate((services.end, services.edge, services.cloud)):
        given = Layout().environment(bundle, index)
        assert set(given) == {"TIERWISE_TIER", "TIERWISE_BUNDLE", "TIERWISE_LINKS", "TIERWISE_PORT"}
        assert given["TIERWISE_PORT"] == str(tier.ROLE.port)


@pytest.mark.parametrize("command", [[], ["train"], ["serve"]])
def test_help_needs_no_torch(command):
    code = (
        "import sys; from lab.cli.main import app\n"
        "try: app(sys.argv[1:])\n"
        "except SystemExit as stop: assert stop.code == 0\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code, *command, "--help"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout
