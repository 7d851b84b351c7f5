"""Words: what `str.split()` gives, wherever they start, in every script."""

import sys

from hypothesis import given
from hypothesis import strategies as st

from shared.model.words import count_words, starts_of, words_of

SPACES = [chr(c) for c in range(sys.maxunicode + 1) if chr(c).isspace()]
TEXTS = st.text(st.one_of(st.sampled_from(SPACES), st.characters()), max_size=60)


@given(TEXTS)
def test_words_and_starts_and_their_number_agree_with_str_split(text):
    words, starts = words_of(text), starts_of(text)
    assert words == text.split()
    assert count_words(text) == len(words)
    assert [text[start : start + len(word)] for start, word in zip(starts, words, strict=True)] == words


def test_every_white_space_of_python_ends_a_word():
    assert len(SPACES) >= 29
    assert {"\x1c", "\x1d", "\x1e", "\x1f", "\x85", "\xa0", "\u2028", "\u3000"} <= set(SPACES)
    for space in SPACES:
        assert starts_of(f"a{space}b") == [0, 2], repr(space)
        assert count_words(f"a{space}b{space}") == 2, repr(space)


def test_what_looks_like_white_space_but_is_none_stays_inside_a_word():
    for character in "\u200b\ufeff\u2060\u180e\x00":
        assert words_of(f"a{character}b") == [f"a{character}b"]
        assert starts_of(f"a{character}b") == [0]
        assert count_words(f"a{character}b") == 1


def test_a_blank_text_has_no_words():
    assert words_of(" \t\n\xa0") == starts_of(" \t\n\xa0") == []
    assert count_words(" \t\n\xa0") == count_words("") == 0
