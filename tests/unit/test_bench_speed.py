"""What `make bench` makes of times, without models."""

from importlib.metadata import PackageNotFoundError

import numpy as np
import pytest

from lab.whole import build
from lab.whole.runtimes import inputs_of
from shared.errors import BadSetting
from shared.model.words import Encoded
from tests.bench.engines import alternately, ratio, ratio_of_means, texts_of
from tests.bench.goals import Goal, goals


def test_every_side_goes_first_in_turn_and_warm_rounds_do_not_count():
    order = []
    sides = {name: lambda number, name=name: order.append((number, name)) for name in "abc"}
    ms = alternately(sides, 3, warm=1)
    assert [name for _, name in order] == [*"cab", *"abc", *"bca", *"cab"]
    assert {name: len(times) for name, times in ms.items()} == {"a": 3, "b": 3, "c": 3}


def test_a_ratio_is_of_rounds_not_of_medians():
    ours, theirs = np.array([1.0, 20.0, 3.0]), np.array([2.0, 10.0, 6.0])
    assert ratio(ours, theirs) == [0.5, 0.5, 2.0]
    assert ratio_of_means(ours, ours) == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("ends", "verdict"), [((1.0, 1.15), "met"), ((1.0, 1.16), "open"), ((1.15, 1.2), "open"), ((1.16, 1.2), "missed")]
)
def test_a_goal_is_missed_only_where_its_whole_interval_is(ends, verdict):
    assert Goal("full depth", "here", 1.15, [1.15, *ends]).verdict == verdict


def test_every_goal_names_its_place():
    at = {"classifier": "c", "tokens": 256, "batch": 8}
    three = [1.0, 1.0, 1.0]
    shape = at | {"ours_over_best": three, "ours_over_onnxruntime": three, "importance_over_ours": three}
    figures = {
        "shapes": [shape, shape | {"tokens": 64}],
        "rules": [{"classifier": "c", "tokens": 64, "rule_over_best": [0.5, 0.4, 0.6]}],
        "tiers": [{"tier": "end", "client_ms": 1.0, "client_ms_ci95": [0.9, 1.1]}],
        "hop": {"through": "end > edge", "hop_ms": [2.0, 1.6, 2.4]},
    }
    found = [goal.report() for goal in goals(figures)]
    assert [goal["at"] for goal in found[2:4]] == ["c, 256 tokens, batch 8", "c, 64 tokens, batch 8"]
    assert [goal["verdict"] for goal in found] == ["met", "met", "missed", "missed", "met", "met", "met", "missed"]


def test_without_data_texts_are_long_and_differ():
    texts = texts_of(None, 10)
    assert len({*texts.timed, *texts.fitted}) == len(texts.timed) + len(texts.fitted)
    assert min(len(text.split()) for text in texts.timed) > 256
    assert not texts.labelled


def test_rivals_get_a_padded_batch():
    short, long = Encoded([5, 6], [0, 0], [0, 1], ["a", "b"], 2, False), Encoded([7], [0], [0], ["c"], 1, False)
    given = inputs_of([short, long], pad_id=1)
    assert given["input_ids"].tolist() == [[5, 6], [7, 1]]
    assert given["attention_mask"].tolist() == [[1, 1], [1, 0]]
    given = inputs_of([short], pad_id=1, multiple=4)
    assert given["input_ids"].tolist() == [[5, 6, 1, 1]]


def test_a_rival_that_is_not_installed_is_named_with_its_extra(monkeypatch):
    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(build, "version", missing)
    with pytest.raises(BadSetting, match=r"onnx is not installed: install tierwise\[rivals,torch\]"):
        build.versions()
