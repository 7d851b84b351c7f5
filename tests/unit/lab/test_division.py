"""How labelled rows are cleaned and divided, and how tiers share networks."""

import doctest
from collections import Counter
from pathlib import Path

import pytest

from lab.data.examples import Row, rows_of
from lab.fit import division as module
from lab.fit.division import divide
from lab.fit.networks import networks
from shared.errors import BadSetting

SAMPLE = Path(__file__).resolve().parents[3] / "lab" / "data" / "sample" / "tickets.csv"


def rows(counts, split=None):
    """So many rows of each label, with distinct texts."""
    return [Row(f"{label} {at}", None, label, split, f"{label} {at}") for label, n in counts.items() for at in range(n)]


def texts(part):
    return {example.text for example in part}


def test_every_part_has_each_label_by_its_share_and_no_text_is_in_two():
    found = divide("x", rows({"a": 120, "b": 60, "c": 20}))
    assert (len(found.test), len(found.validation), len(found.train)) == (30, 40, 130)
    assert Counter(example.label for example in found.test) == {0: 18, 1: 9, 2: 3}
    assert Counter(example.label for example in found.validation) == {0: 24, 1: 12, 2: 4}
    assert not texts(found.train) & texts(found.test) | texts(found.train) & texts(found.validation)
    assert len(found.kept) == 200


def test_the_parts_do_not_hang_on_the_order_of_the_rows_and_few_move_when_one_is_added():
    before = rows({"a": 80, "b": 80})
    first, second = divide("x", before), divide("x", before[::-1])
    assert texts(first.test) == texts(second.test)
    third = divide("x", [*before, *rows({"b": 81})[80:]])
    assert len(texts(first.test) ^ texts(third.test)) <= 2


@pytest.mark.parametrize(
    ("said", "labels"),
    [
        (["technical", "billing"], ("billing", "technical")),
        ([10, 9, 1], ("1", "9", "10")),
        ([0.0, 1.0], ("0", "1")),
        ([True, False], ("false", "true")),
        (["-1", "0", "1"], ("-1", "0", "1")),
        (["10", "9", "many"], ("10", "9", "many")),
    ],
)
def test_labels_are_numbers_by_value_or_words_by_the_alphabet(said, labels):
    assert divide("x", rows(dict.fromkeys(said, 60))).labels == labels


def test_what_cannot_be_used_is_left_out_with_its_reason():
    spoilt = [
        Row(" ", None, "a", None, "1"),
        Row("no label", None, None, None, "2"),
        Row("A  0", None, "a", None, "3"),  # as "a 0", but for case and spaces
        Row("both", None, "a", None, "4"),
        Row("Both", None, "b", None, "5"),
    ]
    found = divide("x", [*rows({"a": 60, "b": 60}), *spoilt])
    assert len(found.kept) == 120
    assert {row.place: why for row, why in found.left_out} == {
        "1": "the text is empty or blank",
        "2": "no label",
        "3": "the same text is there already",
        "4": "the same text is labelled a and b",
        "5": "the same text is labelled a and b",
    }


def test_a_pair_is_another_text_than_its_first_half():
    pairs = [Row("a 0", "with a pair", "a", None, "pair")]
    assert len(divide("x", [*rows({"a": 60, "b": 60}), *pairs]).kept) == 121


def test_a_split_column_comes_first_and_a_text_of_test_leaves_train():
    given = [*rows({"a": 90, "b": 90}, "train"), *rows({"a": 2, "b": 1}, "test"), Row("odd", None, "a", "extra", "odd")]
    found = divide("x", given)
    assert texts(found.test) == {"a 0", "a 1", "b 0"}
    assert len(found.validation) == 36  # a fifth of 180
    assert not texts(found.train) & texts(found.test)
    assert Counter(why for _, why in found.left_out) == {
        "the same text is there already": 3,
        "its split is 'extra'": 1,
    }


@pytest.mark.parametrize("name", ["validation", "dev", "val"])
def test_validation_is_a_split_too_or_stands_for_test_where_there_is_none(name):
    own = [Row(f"held {at}", None, "ab"[at % 2], name, "") for at in range(40)]
    tested = [Row(f"asked {at}", None, "ab"[at % 2], "test", "") for at in range(20)]
    train = rows({"a": 60, "b": 60}, "train")
    both = divide("x", [*train, *own, *tested])
    assert (len(both.validation), len(both.test), len(both.train)) == (40, 20, 120)
    alone = divide("x", [*train, *own])
    assert (len(alone.test), len(alone.validation), len(alone.train)) == (40, 32, 88)


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        (rows({"a": 40, "b": 40}), "80 rows can be used; it takes at least 100"),
        (rows({"a": 400, "b": 7}), "a label needs at least 8 rows: 'b' 7"),
        (rows({"a": 400}), "all rows have label 'a': nothing to tell apart"),
        (rows({"": 400}), "no row can be used"),
        (rows({"a": 60, "b": 60}, "TRAIN"), "its split column says TRAIN, never train"),
        (
            [*rows({"a": 120}, "train"), *[Row(f"b {at}", None, "b", "test", "") for at in range(9)]],
            "no row to train on has label 'b'",
        ),
    ],
)
def test_rows_that_do_not_do_are_refused(given, complaint):
    with pytest.raises(BadSetting, match=f"x: {complaint}"):
        divide("x", given)


def test_the_sample_is_400_distinct_messages_a_hundred_of_each_label():
    found = divide(str(SAMPLE), rows_of(str(SAMPLE)))
    assert not found.left_out
    assert found.labels == ("billing", "delivery", "praise", "technical")
    assert Counter(example.label for example in found.kept) == dict.fromkeys(range(4), 100)


def test_the_examples_hold():
    assert doctest.testmod(module).failed == 0


# -- networks ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def bases(monkeypatch):
    """Bases by name: their layers."""
    known = {"small": 6, "large": 12, "./own": 5, "sentence-transformers/all-MiniLM-L6-v2": 6}
    monkeypatch.setattr("lab.fit.networks.read_config", lambda name: type("Config", (), {"layers": known[name]}))


@pytest.mark.parametrize(
    ("asked", "tiers", "expected"),
    [
        ([], [], {"all-minilm-l6-v2": {"end": 2, "edge": 3, "cloud": 6}}),
        (["large"], [], {"large": {"end": 3, "edge": 6, "cloud": 12}}),
        (["./own"], ["end,cloud"], {"own": {"end": 3, "cloud": 5}}),
        (["small", "cloud=large"], ["end=6", "cloud=12"], {"small": {"end": 6}, "large": {"cloud": 12}}),
        (["large", "end=small"], [], {"small": {"end": 6}, "large": {"edge": 6, "cloud": 12}}),
    ],
)
def test_tiers_of_one_base_share_a_network_that_is_cut(bases, asked, tiers, expected):
    order, found = networks(asked, tiers)
    assert {network.name: dict(network.layers) for network in found} == expected
    assert order == [tier for tier in ("end", "edge", "cloud") if any(tier in one for one in expected.values())]


def test_a_network_weighs_the_layers_at_which_its_shallower_tiers_end(bases):
    _, (network,) = networks(["large"], [])
    assert (network.ends, network.depth) == ((3, 6), 12)
