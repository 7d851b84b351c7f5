"""Pruning: which words travel, checked by hand and across tokenizers that split words differently."""

import doctest

import pytest
from hypothesis import given
from hypothesis import strategies as st

import shared.model.pruning
from shared.model.pruning import Pruning, keep_words, kept_words
from shared.model.tokens import SpecialTokens
from shared.model.words import Encoded

BARE = Pruning(1.0, min_keep_words=0, min_keep_ratio=0.0, whole_below_words=0)  # the paper's rule, no floors


def encoded(word_of, *, first_words=None, words=None):
    """A text as a tier read it: one id per entry, -1 for a special token."""
    count = words or max(word_of) + 1
    names = [f"w{i}" for i in range(count)]
    return Encoded([0] * len(word_of), [0] * len(word_of), word_of, names, first_words or count, truncated=False)


def bare(coefficient):
    return Pruning(coefficient, min_keep_words=0, min_keep_ratio=0.0, whole_below_words=0)


def test_a_word_must_receive_strictly_more_than_the_mean():
    text = encoded([-1, 0, 1, 2, 3, -1])
    assert BARE.mask(text, [9.0, 1.0, 2.0, 3.0, 2.0, 9.0]) == [False, False, True, False]  # the mean is 2.0
    assert BARE.mask(text, [9.0, 2.0, 2.0, 2.0, 2.0, 9.0]) == [False] * 4


def test_special_tokens_count_neither_in_the_mean_nor_in_the_mask():
    text = encoded([-1, 0, 1, -1])
    for sink in (0.0, 1000.0):
        assert BARE.mask(text, [sink, 1.0, 3.0, sink]) == [False, True]


def test_the_coefficient_moves_the_bar():
    text, importance = encoded([0, 1, 2, 3]), [1.0, 2.0, 3.0, 4.0]  # the mean is 2.5
    assert bare(0.39).mask(text, importance) == [True, True, True, True]
    assert bare(0.4).mask(text, importance) == [False, True, True, True]
    assert bare(1.25).mask(text, importance) == [False, False, False, True]
    assert bare(10.0).mask(text, importance) == [False] * 4


def test_a_coefficient_of_zero_keeps_even_what_received_nothing():
    assert bare(0.0).mask(encoded([0, 1]), [0.0, 0.0]) == [True, True]


def test_a_word_is_kept_if_any_of_its_pieces_is():
    text = encoded([-1, 0, 0, 0, 1, 1, 2, -1])  # w0 in three pieces, w1 in two
    assert BARE.mask(text, [0, 0.1, 5.0, 0.1, 0.1, 0.2, 1.0, 0]) == [True, False, False]  # the mean is 6.5 / 6


def test_a_pair_is_pruned_side_by_side():
    text = encoded([-1, 0, 1, -1, 2, 3, -1], first_words=2)
    # the means are 1.5 and 150: over both sides w0 and w1 would fall together
    assert BARE.mask(text, [0, 1.0, 2.0, 0, 100.0, 200.0, 0]) == [False, True, False, True]


def test_only_the_long_side_of_a_pair_is_pruned():
    text = encoded(list(range(40)), first_words=2)
    keep = Pruning(1.0).mask(text, [0.0, 0.0, *[0.0] * 19, *[1.0] * 19])
    assert keep[:2] == [True, True]
    assert keep[2:] == [False] * 19 + [True] * 19


def test_32_words_stay_whole_and_33_do_not():
    rising = [float(i) for i in range(33)]
    assert all(Pruning(1.0).mask(encoded(list(range(32))), rising[:32]))
    assert Pruning(1.0).mask(encoded(list(range(33))), rising) == [i > 16 for i in range(33)]


def test_floors_keep_the_strongest_words_however_high_the_bar():
    falling = [float(-i) for i in range(100)]
    twenty = Pruning(10.0).mask(encoded(list(range(100))), [value + 200 for value in falling])
    assert twenty == [True] * 20 + [False] * 80  # a fifth of 100
    eight = Pruning(10.0).mask(encoded(list(range(33))), [value + 200 for value in falling[:33]])
    assert eight == [True] * 8 + [False] * 25  # eight, more than a fifth of 33


def test_words_that_the_tier_did_not_read_are_kept():
    head_and_tail = encoded([-1, 0, 1, 8, 9, -1], words=10)
    assert BARE.mask(head_and_tail, [0, 1.0, 3.0, 1.0, 1.0, 0]) == [False, True, *[True] * 6, False, False]


def test_a_side_of_which_nothing_was_read_is_kept():
    one_side = encoded([-1, 0, 1, -1, -1], first_words=2, words=4)
    assert BARE.mask(one_side, [0, 1.0, 3.0, 0, 0]) == [False, True, True, True]


def test_kept_words_travel_as_written_in_order_and_a_space_stands_for_what_is_gone():
    text = "  It's\tNOT \n bad,\xa0  really… "
    assert kept_words(text, [True, True, False, True]) == "It's\tNOT really…"
    assert kept_words(text, [False] * 4) == ""


def test_a_mask_of_another_text_is_an_error():
    with pytest.raises(ValueError, match="zip"):
        kept_words("two words", [True])


@pytest.mark.parametrize("after", ["wordpiece", "bpe", "mpnet"])
@pytest.mark.parametrize("before", ["wordpiece", "bpe", "mpnet"])
def test_words_are_kept_or_dropped_whole_between_any_two_tokenizers(tiny_tokenizer, before, after):
    text = "Unbelievably, the plot is forgettable"
    first, then = SpecialTokens(tiny_tokenizer(before)), SpecialTokens(tiny_tokenizer(after))
    read = first.encode(text, None, 64)
    assert read.word_of.count(0) > 1  # split into pieces
    one_piece = read.word_of.index(0)
    importance = [1.0 if j == one_piece or word == 2 else 0.0 for j, word in enumerate(read.word_of)]
    sent = kept_words(text, BARE.mask(read, importance))
    assert sent == "Unbelievably, plot"
    arrived = then.encode(sent, None, 64)
    assert arrived.words == ["Unbelievably,", "plot"]
    alone = [
        then.encode(word if i == 0 or after != "bpe" else f" {word}", None, 64).ids[1:-1]
        for i, word in enumerate(arrived.words)
    ]
    assert arrived.ids[1:-1] == [id_ for ids in alone for id_ in ids]  # the next tier splits them its own way


WORDS = st.sampled_from(["a", "film", "Unbelievably", "old;", "été", "日本", "\u200b", "it's", "plot"])
SPACES = st.sampled_from([" ", "  ", "\n", "\t", "\xa0", "\u2003", "\u2028", "\x0b", "\x1c", "\x85"])
TEXTS = st.lists(st.tuples(WORDS, SPACES), min_size=1, max_size=70).map(lambda parts: "".join(w + s for w, s in parts))
PRUNINGS = st.builds(
    Pruning, st.floats(0, 3), st.integers(0, 10), st.floats(0, 1), whole_below_words=st.sampled_from([0, 8, 32])
)


@given(
    text=TEXTS, pruning=PRUNINGS, limit=st.integers(8, 90), kind=st.sampled_from(["wordpiece", "bpe"]), data=st.data()
)
def test_what_is_kept_is_a_subsequence_within_the_floors(tiny_tokenizer, text, pruning, limit, kind, data):
    tokens = SpecialTokens(tiny_tokenizer(kind))
    read = tokens.encode(f"film {text}", None, limit)
    seed = data.draw(st.randoms(use_true_random=False))
    keep = pruning.mask(read, [seed.random() for _ in read.ids])
    words = f"film {text}".split()
    kept = kept_words(f"film {text}", keep).split()
    assert kept == [word for word, stays in zip(words, keep, strict=True) if stays]
    rest = iter(words)
    assert all(word in rest for word in kept)
    assert len(kept) >= min(len(words), max(pruning.min_keep_words, pruning.min_keep_ratio * len(words)))
    assert all(keep) or len(words) > pruning.whole_below_words
    unread = set(range(len(words))) - set(read.word_of)
    assert all(keep[word] for word in unread)


LONG_TEXTS = st.lists(st.tuples(WORDS, SPACES), min_size=1, max_size=200).map(lambda some: "".join(map("".join, some)))


@given(
    text=LONG_TEXTS,
    pair=st.none() | LONG_TEXTS,
    own=st.integers(16, 90),
    behind=st.lists(st.integers(16, 90), min_size=1),
)
def test_without_the_unread_middle_every_tier_behind_reads_the_same(tiny_tokenizer, text, pair, own, behind):
    first, then = SpecialTokens(tiny_tokenizer("wordpiece")), SpecialTokens(tiny_tokenizer("alike"))
    text, pair = f"film {text}", None if pair is None else f"film {pair}"
    keep = first.unread_middle(text, pair, first.encode(text, pair, own), own, (min(behind), max(behind)))
    if keep is None:
        return
    sent = keep_words(text, pair, first.encode(text, pair, own), keep)
    for limit in behind:
        before, after = then.encode(text, pair, limit), then.encode(*sent, limit)
        assert (after.ids, after.segments) == (before.ids, before.segments)
    again = then.encode(*sent, max(behind))
    assert len(again.words) <= max(behind) + 60  # words of no token stay


@pytest.mark.parametrize("between", [*"\x0b\x0c\x1c\x1d\x1e\x1f\x85"])
def test_a_text_whose_words_a_tokenizer_may_join_travels_whole(tiny_tokenizer, between):
    tokens = SpecialTokens(tiny_tokenizer("wordpiece"))
    text = f"film a{between}film " + "a film " * 60
    assert tokens.unread_middle(text, None, tokens.encode(text, None, 32), 32, (32, 32)) is None


def test_a_text_with_no_known_word_at_its_ends_travels_whole(tiny_tokenizer):
    tokens = SpecialTokens(tiny_tokenizer("wordpiece"))
    text = "\U0001f92f " * 60 + "a film " + "\U0001f92f " * 60
    assert tokens.unread_middle(text, None, tokens.encode(text, None, 32), 32, (32, 32)) is None


def test_the_words_in_the_middle_stay_behind(tiny_tokenizer):
    tokens = SpecialTokens(tiny_tokenizer("wordpiece"))
    text = " ".join(f"film {n}" for n in range(100))
    read = tokens.encode(text, None, 32)
    keep = tokens.unread_middle(text, None, read, 32, (32, 32))
    assert 10 < sum(keep) < 40
    assert kept_words(text, keep).startswith("film 0 film 1")
    assert kept_words(text, keep).endswith("film 99")
    assert tokens.unread_middle("a film", None, tokens.encode("a film", None, 32), 32, (32, 32)) is None
    assert sum(tokens.unread_middle(text, None, read, 32, (16, 64))) > sum(
        keep
    )  # a tier behind reads more than this one
    assert tokens.unread_middle(text * 4, None, read, 32, (32, 32)) is None  # not all of it is tokenized


def test_the_printed_example_is_true():
    assert doctest.testmod(shared.model.pruning) == (0, 2)
