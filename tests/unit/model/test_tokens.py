"""Tokens: what a tier reads of a text or a pair, and which word each token belongs to."""

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, pre_tokenizers, processors

from shared.errors import UnreadableText
from shared.model.tokens import SpecialTokens
from shared.model.torch_engine import batch

KINDS = ["wordpiece", "bpe", "mpnet"]
WORDS = [
    "a",
    "film",
    "Unbelievably",
    "it",
    "don't",
    "old;",
    "left",
    "forgettable",
    "zzz",
    "été",
    "日本",
    "\u200b",
    "🎬!",
]
TEXTS = st.lists(st.sampled_from(WORDS), min_size=1, max_size=12).map(" ".join)
ALL = 10_000


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def tokens(kind, tiny_tokenizer):
    return SpecialTokens(tiny_tokenizer(kind))


@pytest.fixture(scope="module")
def own(kind, tiny_tokenizer):
    """The tokenizer itself, reading everything."""
    tokenizer = tiny_tokenizer(kind)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def readable(tokens, text, pair=None, max_tokens=ALL):
    try:
        return tokens.encode(text, pair, max_tokens)
    except UnreadableText:
        return None


def pieces(tokenizer, encoded, word):
    return [tokenizer.id_to_token(i) for i, w in zip(encoded.ids, encoded.word_of, strict=True) if w == word]


def test_a_tokenizer_file_that_truncates_and_pads_is_read_whole(tiny_tokenizer, sentences):
    tokenizer = tiny_tokenizer("wordpiece")
    text = " ".join(sentences)
    assert len(tokenizer.encode(text).ids) == len(tokenizer.encode("a").ids) == 16  # as the file says
    tokens = SpecialTokens(tokenizer)
    assert len(tokens.encode(text, None, ALL).ids) > 100
    assert len(tokens.encode("a", None, ALL).ids) == 3


@given(text=TEXTS, pair=TEXTS)
def test_one_text_and_a_pair_are_laid_out_as_the_tokenizer_itself_does(tokens, own, text, pair):
    for sides in ((text,), (text, pair)):
        encoded, expected = readable(tokens, *sides), own.encode(*sides)
        if encoded is not None:
            assert encoded.ids == expected.ids
            assert encoded.segments == expected.type_ids
            assert [word == -1 for word in encoded.word_of] == [bool(s) for s in expected.special_tokens_mask]
            assert not encoded.truncated


@pytest.mark.parametrize(
    "sides", [("A fine film,\u200b told slowly.",), ("It is old; don't!", "Is it\xa0unbelievable?")]
)
def test_the_real_tokenizers_lay_out_texts_and_pairs_alike(real_base, sides):
    tokenizer = Tokenizer.from_file(str(real_base / "tokenizer.json"))
    encoded = SpecialTokens(tokenizer).encode(*sides, *[None] * (2 - len(sides)), 256)
    assert (encoded.ids, encoded.segments) == (tokenizer.encode(*sides).ids, tokenizer.encode(*sides).type_ids)


@pytest.mark.parametrize(
    "text", ["a fine, unbelievable film", "a  fine,\tunbelievable\nfilm ", "\xa0a fine, unbelievable film"]
)
def test_pieces_belong_to_their_word_by_either_algorithm(tokens, text):
    encoded = tokens.encode(text, None, 64)
    assert encoded.words == ["a", "fine,", "unbelievable", "film"]
    found = [pieces(tokens.tokenizer, encoded, word) for word in range(4)]
    letters = ["".join(re.findall(r"[a-z,]", "".join(part))) for part in found]
    assert letters == ["a", "fine,", "unbelievable", "film"]
    assert len(found[2]) > 2


def test_a_tokenizer_that_counts_the_space_before_a_word_in_maps_it_to_the_word_it_precedes(tiny_tokenizer):
    tokenizer = tiny_tokenizer("bpe")
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), trim_offsets=False)
    tokens = SpecialTokens(tokenizer)
    encoded = tokens.encode("a film it is", None, 64)
    assert tokenizer.encode("a film", add_special_tokens=False).offsets[1][0] == 1  # the space
    assert [pieces(tokenizer, encoded, word) for word in range(4)] == [["a"], ["Ġfilm"], ["Ġit"], ["Ġis"]]


@given(text=st.text(max_size=40), pair=st.one_of(st.none(), st.text(max_size=20)))
def test_words_are_those_of_str_split_and_tokens_come_in_their_order(tokens, text, pair):
    encoded = readable(tokens, text, pair)
    if encoded is not None:
        first, second = text.split(), (pair or "").split()
        assert encoded.words == first + second
        assert encoded.first_words == len(first)
        own = [word for word in encoded.word_of if word >= 0]
        assert own == sorted(own)
        assert len(own) > 0
        assert max(own) < len(encoded.words)


def test_the_second_side_s_words_are_counted_on_from_the_first(tokens):
    encoded = tokens.encode("a fine film", "it is old", 64)
    assert encoded.words == ["a", "fine", "film", "it", "is", "old"]
    assert encoded.first_words == 3
    assert sorted(set(encoded.word_of)) == [-1, 0, 1, 2, 3, 4, 5]
    layout = [word for i, word in enumerate(encoded.word_of) if i == 0 or word != encoded.word_of[i - 1]]
    assert layout == [-1, 0, 1, 2, -1, 3, 4, 5, -1]


def test_a_long_text_is_read_at_both_ends_with_room_for_special_tokens(tokens, own, sentences):
    text = " ".join(sentences)
    whole = own.encode(text, add_special_tokens=False).ids
    for limit in (8, 9, 31, 64):
        encoded = tokens.encode(text, None, limit)
        assert encoded.truncated
        assert len(encoded.ids) == limit
        head, tail = (limit - 1) // 2, (limit - 2) // 2  # the odd one goes to the head
        assert encoded.ids[1:-1] == whole[:head] + whole[len(whole) - tail :]
        assert encoded.words == text.split()
        assert encoded.word_of[-2] == len(encoded.words) - 1


def test_a_text_that_just_fits_is_not_truncated(tokens, own):
    text = "a fine film with a strong cast"
    length = len(own.encode(text).ids)
    assert not tokens.encode(text, None, length).truncated
    assert tokens.encode(text, None, length - 1).truncated


@given(a=st.integers(1, 60), b=st.integers(1, 60), limit=st.integers(8, 80))
def test_a_pair_shares_the_room_and_a_short_side_leaves_its_rest(tokens, own, a, b, limit):
    encoded = tokens.encode(" ".join(["a"] * a), " ".join(["i"] * b), limit)
    room = limit - own.num_special_tokens_to_add(True)
    sides = [sum(0 <= w < a for w in encoded.word_of), sum(w >= a for w in encoded.word_of)]
    assert sum(sides) == min(room, a + b)
    assert len(encoded.ids) <= limit
    assert encoded.truncated == (a + b > room)
    for length, got in zip((a, b), sides, strict=True):
        assert got >= min(length, room // 2)


@pytest.mark.parametrize("text", ["\u200b", "\ufeff", "\u200b \ufeff", "\x00", "日本", "🎬 🎬", "\u0301"])
def test_a_text_with_no_word_that_the_tokenizer_knows_is_unreadable(tiny_tokenizer, text):
    for kind in ("wordpiece", "mpnet"):
        with pytest.raises(UnreadableText, match="no word of the text is known"):
            SpecialTokens(tiny_tokenizer(kind)).encode(text, None, 64)


@pytest.mark.parametrize("text", ["\u200b", "\ufeff"])
def test_the_real_tokenizers_cannot_read_invisible_characters_either(real_base, text):
    with pytest.raises(UnreadableText):
        SpecialTokens(Tokenizer.from_file(str(real_base / "tokenizer.json"))).encode(text, None, 64)


@pytest.mark.parametrize("text", ["", " ", "\n\t", "\x1c", "\xa0\u3000"])
def test_a_blank_text_is_unreadable_to_all(tokens, text):
    with pytest.raises(UnreadableText):
        tokens.encode(text, None, 64)


CONTROL = ["<pad> <pad> <pad>", "[SEP]", "[MASK]", "</s>", "<mask>", "[CLS]", "[UNK]", "<s>", "[PAD]", "<unk>"]


@pytest.mark.parametrize("typed", [*CONTROL, "</s></s>", "film<mask>", "[PAD]film[SEP]", "\xa0<mask>\t", "<pad> " * 20])
@pytest.mark.parametrize("sides", [(0,), (1,), (0, 1)], ids=["text", "pair", "both"])
def test_a_control_token_typed_in_a_text_is_read_as_text(tokens, typed, sides):
    texts = [f"a {typed} film" if side in sides else "a film" for side in (0, 1)]
    controls = {tokens.tokenizer.token_to_id(token) for name in CONTROL for token in name.split()} - {None}
    unknown = {tokens.unknown_id, tokens.tokenizer.token_to_id("[UNK]")}  # a bracket the tiny vocabulary does not have
    encoded = tokens.encode(*texts, 400)
    read = [(id_, word) for id_, word in zip(encoded.ids, encoded.word_of, strict=True) if word >= 0]
    assert not {id_ for id_, _ in read} & (controls - unknown)
    assert encoded.words == " ".join(texts).split()
    assert {word for _, word in read} == set(range(len(encoded.words)))  # every word, the typed one too


@pytest.mark.parametrize("typed", CONTROL)
def test_the_real_tokenizers_read_a_typed_control_token_as_text_too(real_base, typed):
    tokenizer = Tokenizer.from_file(str(real_base / "tokenizer.json"))
    tokens = SpecialTokens(tokenizer)
    controls = {id_ for id_, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    encoded = tokens.encode(f"a {typed} film", None, 64)
    assert not {id_ for id_, word in zip(encoded.ids, encoded.word_of, strict=True) if word >= 0} & controls
    assert "".join(pieces(tokenizer, encoded, 1)).replace("##", "") == typed.split()[0].lower()


def test_one_known_word_makes_a_text_or_a_pair_readable(tokens):
    assert tokens.encode("\u200b film", None, 64).words == ["\u200b", "film"]
    assert tokens.encode("\u200b", "film", 64).first_words == 1
    assert tokens.encode("film", "\u200b", 64).words == ["film", "\u200b"]


def test_a_batch_is_padded_to_its_longest_text(tokens):
    short, long = tokens.encode("a film", None, 64), tokens.encode("a fine film", "it is old", 64)
    ids, segments, padding = batch([short, long], tokens.pad_id, torch.device("cpu"))
    S = len(long.ids)
    assert ids.shape == segments.shape == padding.shape == (2, S)
    assert ids.dtype == segments.dtype == torch.int64
    assert ids[0].tolist() == short.ids + [tokens.pad_id] * (S - len(short.ids))
    assert padding[0].tolist() == [False] * len(short.ids) + [True] * (S - len(short.ids))
    assert not padding[1].any()
    assert segments[1].tolist() == long.segments
    assert tokens.tokenizer.id_to_token(tokens.pad_id) in ("[PAD]", "<pad>")


def test_a_batch_of_equal_lengths_has_no_padding(tokens):
    text = tokens.encode("a film", None, 64)
    assert batch([text, text], tokens.pad_id, torch.device("cpu"))[2] is None


def test_of_a_very_long_text_only_the_ends_are_tokenized_and_read_as_ever(tokens, monkeypatch):
    text = " ".join(WORDS[at % len(WORDS)] for at in range(4000))
    whole = tokens.encode(text, "not it", 40)
    seen = []
    encode = tokens._part
    monkeypatch.setattr(tokens, "_part", lambda part, **own: (seen.append(part), encode(part, **own))[1])
    monkeypatch.setattr("shared.model.tokens.REACH", 20)
    assert tokens.encode(text, "not it", 40) == whole
    assert sum(map(len, seen)) == 2 * 20 * 40 + len("not it")
    assert whole.truncated


def test_a_readable_word_between_oceans_of_white_space_is_read(tokens):
    text = f"{' ' * 30_000}a film{' ' * 30_000}"
    assert [tokens.encode(text, None, 12).words, tokens.encode(text, None, 12).truncated] == [["a", "film"], False]
