"""The offline jobs: intervals, expectations over paths, the choice of exits, the command line."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

import services.cloud
import services.edge
import services.end
from lab.cli.config import rows
from lab.data.examples import Example, hold_out, load, without
from lab.fit.cascade import NEARLY, Cascade, Past, Setting, threshold_for
from lab.fit.exits import similarity_rule
from lab.live.stack import Layout
from lab.policies import parse_policy
from lab.stats import paired_difference, wilson
from shared.errors import BadSetting
from shared.model.bundle import load_bundle
from shared.model.ensemble import Ensemble, Weighting


def probabilities(*positive: float) -> np.ndarray:
    return np.array([[1 - p, p] for p in positive])


def cascade(*tiers: list[float], labels: list[int] | None = None, seconds: list[list[float]] | None = None) -> Cascade:
    """Tiers from the chance of label 1 that each gives every text."""
    names, shape = ("end", "edge", "cloud")[-len(tiers) :], (len(tiers), len(tiers[0]))
    return Cascade(
        names if len(tiers) != 2 else ("end", "cloud"),
        np.array(labels or [1] * shape[1]),
        np.stack([probabilities(*tier) for tier in tiers]),
        np.ones(shape, dtype=np.int64),
        np.array(seconds or [[0.0] * shape[1]] * shape[0]),
    )


def test_wilson_matches_a_published_example():
    low, high = wilson(81, 263)  # Newcombe 1998, table I
    assert (round(low, 4), round(high, 4)) == (0.2553, 0.3662)


def test_paired_difference_of_a_constant_shift_has_no_width():
    a = np.arange(50.0)
    assert paired_difference(a + 2, a) == (2.0, 2.0, 2.0)


def test_paths_sum_to_one_and_follow_the_dispatcher():
    stop = cascade([0.6, 0.99], [0.9, 0.9]).chances(Setting({"end": 0.8}, 10))
    assert np.allclose(stop.sum(0), 1)
    assert stop[1, 0] == 1  # below the threshold: always sent on
    assert stop[1, 1] < 0.05


def test_expected_latency_is_that_of_the_tier_where_a_text_stops():
    texts = cascade([0.6], [0.9], seconds=[[0.01], [0.31]])
    expected = texts.expected(texts.chances(Setting({"end": 1.0}, 10)), Ensemble(), Weighting.LAST)
    assert (expected.accuracy, round(expected.seconds, 6)) == (1.0, 0.31)
    assert expected.nll == pytest.approx(-np.log(0.9), abs=1e-6)
    assert texts.expected(np.array([[0.5], [0.5]]), Ensemble(), Weighting.LAST).seconds == pytest.approx(0.16)


def test_fitted_weights_trust_the_tier_that_is_right():
    texts = cascade([0.3, 0.3, 0.7, 0.7] * 10, [0.9, 0.8, 0.1, 0.2] * 10, labels=[1, 1, 0, 0] * 10)
    weights = texts.fitted_weights(texts.chances(Setting({"end": 1.0}, 10)))
    assert "end" not in weights  # no text stops there
    assert weights["end+cloud"][1] > 0.99


def test_settings_are_every_pair_of_thresholds():
    texts = cascade([0.6, 0.2, 0.8], [0.6, 0.2, 0.8], [0.6, 0.2, 0.8])
    settings = texts.settings()
    assert len({(*setting.thresholds.items(), setting.steepness) for setting in settings}) == 5 * 14 * 14
    assert all(np.allclose(texts.chances(setting).sum(0), 1) for setting in settings)


def test_the_fastest_setting_that_is_accurate_enough_is_taken_else_the_most_accurate():
    texts = cascade([0.4, 0.9], [0.9, 0.9], seconds=[[0.1, 0.1], [1.0, 1.0]])  # the end is wrong about the first
    found = {}
    for wanted in (0.5, 0.99, 1.01):
        setting = texts.fastest(Ensemble(), Weighting.LAST, wanted)
        found[wanted] = texts.expected(texts.chances(setting), Ensemble(), Weighting.LAST)
    every = [texts.expected(texts.chances(s), Ensemble(), Weighting.LAST) for s in texts.settings()]
    assert found[0.5].seconds <= NEARLY * min(own.seconds for own in every)
    assert found[0.99].seconds <= NEARLY * min(own.seconds for own in every if own.accuracy >= 0.99)
    assert found[0.99].accuracy >= 0.99
    assert found[1.01].accuracy == max(own.accuracy for own in every)


def three(past: Past) -> Cascade:
    """Two texts that the end is unsure of: the edge is wrong about the second, and takes a second."""
    tiers = cascade([0.55, 0.7], [0.9, 0.2], [0.9, 0.9], seconds=[[0.1] * 2, [1.1] * 2, [2.1] * 2])
    return replace(tiers, past=past)


def test_a_text_that_skips_takes_the_way_past_the_tiers_between():
    texts = three(Past(probabilities(0.9, 0.9), np.array([1.3, 1.3])))
    chances = texts.chances(Setting({"end": 0.8, "edge": 0.95}, 10, skip_below=0.6))
    assert chances.T.tolist() == [[0, 0, 0, 1], [0, 0, 1, 0]]  # at the end, at the edge, at the cloud, past the edge
    assert texts.expected(chances, Ensemble(), Weighting.LAST).seconds == pytest.approx((1.3 + 2.1) / 2)
    assert texts.fitted_weights(chances).keys() == {"end+edge+cloud", "end+cloud"}


def test_skipping_is_chosen_with_the_thresholds_and_no_more_than_it_gains():
    texts = three(Past(probabilities(0.1, 0.1), np.full(2, 0.9)))
    right_past_the_edge = replace(texts, labels=np.array([0, 0]))
    assert right_past_the_edge.fastest(Ensemble(), Weighting.LAST, 1.0).skip_below == 0.75  # the least above .7
    assert texts.fastest(Ensemble(), Weighting.LAST, 0.5).skip_below == 0


def test_a_wanted_offload_share_gives_its_threshold():
    chances = np.linspace(0.5, 1, 201).tolist()
    texts = cascade(chances, chances)
    threshold = threshold_for(texts.probabilities[0].max(-1).tolist(), 0.4, 10)
    stop = texts.chances(Setting({"end": threshold}, 10))
    assert stop[1].mean() == pytest.approx(0.4, abs=0.01)


def test_exits_are_chosen_only_where_they_cost_little():
    agreeing = np.tile(probabilities(*[0.9] * 6), (40, 1, 1))  # [N, E, C]
    late = agreeing.copy()
    late[:, :5] = [0.9, 0.1]  # every exit but the last agrees on the wrong label
    labels = np.ones(40, dtype=np.int64)
    assert similarity_rule({"end": agreeing}, labels, 0.0025)["theta"]["end"] > 0
    assert similarity_rule({"end": late}, labels, 0.0025)["theta"]["end"] == 0


def test_an_exit_that_is_right_only_when_sure_asks_for_confidence():
    exits = np.tile(probabilities(*[0.99] * 6), (40, 1, 1))  # [N, E, C]
    exits[20:, :5] = [0.4, 0.6]  # half of the texts: unsure, and wrong until the last exit
    exits[20:, 5] = [0.9, 0.1]
    labels = np.array([1] * 20 + [0] * 20)
    rule = similarity_rule({"end": exits}, labels, 0.001)
    assert rule["theta"]["end"] > 0
    assert rule["exit_min_confidence"]["end"] > 0.6


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
    path.write_text("words,label\nhello,1\n")
    with pytest.raises(BadSetting, match="needs columns text"):
        load(str(path))
    with pytest.raises(BadSetting, match="no such file"):
        load(str(tmp_path / "y.csv"))
    path.write_text("text,label,split\nhello,1,train\nbye,0,test\n")
    assert load(str(path), "test") == [Example("bye", None, 0)]
    with pytest.raises(BadSetting, match="no split 'dev'"):
        load(str(path), "dev")


@pytest.mark.parametrize(
    ("layout", "command"),
    [
        (Layout(), "make serve"),
        (Layout(port=8190), "tierwise serve --port 8190"),
        (Layout("./mine", access="lte"), "tierwise serve --link lte --bundle ./mine"),
    ],
)
def test_tiers_know_the_command_that_keeps_them_up(layout, command):
    assert layout.command == command


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


def test_settings_are_shown_as_a_user_sets_them(monkeypatch):
    for name in ("TIERWISE_ALLOW_OPEN", "TIERWISE_LEDGER"):
        monkeypatch.delenv(name, raising=False)
    shown = {row.variable: row.value for row in rows("end")}
    assert (shown["TIERWISE_ALLOW_OPEN"], shown["TIERWISE_LEDGER"]) == ("false", "")
    assert not {"None", "True", "False"} & set(shown.values())
