"""Texts to tokens and back to words: what a tier reads, and which word each of its tokens belongs to.

Tokens are mapped to words by character offsets, which holds for WordPiece and for byte-level BPE. A text longer than
the tier reads is read at both ends (head + tail): reviews state their verdict early or late. Words in the gap are
*unread*, not lost: pruning keeps them. What is too far from both ends to be read is not tokenized: a megabyte of
punctuation would hold the process for seconds. A control token typed in a text is text. Left out: tokenizers without
offsets (slow ones such as BERTweet's).
"""

from __future__ import annotations

import re
from bisect import bisect_right

from tokenizers import Encoding, Tokenizer

from shared.errors import UnreadableText
from shared.model.pruning import without_middle
from shared.model.words import Encoded, starts_of, words_of

_JOINS = re.compile("[\x0b\x0c\x1c-\x1f\x85]")  # white space to Python; tokenizers drop it, and join what it parts
REACH = 32  # characters looked at for each token that there is room for, from either end


class SpecialTokens:
    """Where a tokenizer puts its special tokens around one text or a pair, and what pads a batch."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        tokenizer.no_truncation()  # the files of both base models carry truncation at 128 and fixed padding
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = True  # `[SEP]` typed in a text is four letters and brackets, not a separator
        self.tokenizer = tokenizer
        pad = next((t for t in ("[PAD]", "<pad>") if tokenizer.token_to_id(t) is not None), None)
        self.pad_id = (tokenizer.token_to_id(pad) if pad else None) or 0
        unknown = next((t for t in ("[UNK]", "<unk>") if tokenizer.token_to_id(t) is not None), None)
        self.unknown_id: int | None = tokenizer.token_to_id(unknown) if unknown else None
        self.single = self._layout(tokenizer.encode("a"))
        self.pair = self._layout(tokenizer.encode("a", "a"))

    @staticmethod
    def _layout(sample: Encoding) -> list[tuple[int, int, int]]:
        """(id, segment, side) in order; side is -1 for a special token, else the side that goes there."""
        layout, side = [], -1
        for id_, segment, special in zip(sample.ids, sample.type_ids, sample.special_tokens_mask, strict=True):
            if not special:
                side += 1
            layout.append((id_, segment, -1 if special else side))
        return layout

    def encode(self, text: str, pair: str | None, max_tokens: int) -> Encoded:
        """Read a text, or a pair of texts, into at most `max_tokens` ids including special tokens.

        Raises:
            UnreadableText: no word of it gives a token that the tokenizer knows.
        """
        reach = REACH * max_tokens
        sides = [side if len(side) <= 2 * reach else side.strip() for side in (text, pair) if side is not None]
        layout = self.single if pair is None else self.pair
        room = max_tokens - sum(side == -1 for _, _, side in layout)
        tokens: list[tuple[list[int], list[int]]] = []
        words: list[str] = []
        firsts: list[int] = []
        for side in sides:
            own = words_of(side)
            tokens.append(self._side(side, len(own), offset=len(words), reach=reach))
            words.extend(own)
            firsts.append(len(words))
        if all(id_ == self.unknown_id for ids, _ in tokens for id_ in ids):
            raise UnreadableText("no word of the text is known to the tokenizer")
        lengths = _share([len(ids) for ids, _ in tokens], room)
        out_ids: list[int] = []
        out_segments: list[int] = []
        out_words: list[int] = []
        for id_, segment, at in layout:
            ids, word_of = ([id_], [-1]) if at == -1 else (_ends(part, lengths[at]) for part in tokens[at])
            out_ids += ids
            out_segments += [segment] * len(ids)
            out_words += word_of
        truncated = any(len(ids) > length for (ids, _), length in zip(tokens, lengths, strict=True))
        truncated |= any(len(side) > 2 * reach for side in sides)
        return Encoded(out_ids, out_segments, out_words, words, firsts[0], truncated)

    def unread_middle(
        self, text: str, pair: str | None, encoded: Encoded, own: int, behind: tuple[int, int]
    ) -> list[bool] | None:
        """Which words to send on so that tiers behind read the same; null: all of them.

        `encoded` is the text as read into `own` tokens; `behind` the fewest and the most tokens that those tiers read.
        They split words like this tokenizer, and add no fewer special tokens.
        """
        least, most = behind
        if any(len(side) > 2 * REACH * least or _JOINS.search(side) for side in (text, pair or "")):
            return None  # some of it is not tokenized there, or a piece may belong to two words
        if not encoded.truncated and len(encoded.ids) <= most:
            return None  # all of it is read there
        read = encoded if most == own else self.encode(text, pair, most)
        known = any(word >= 0 and id_ != self.unknown_id for id_, word in zip(read.ids, read.word_of, strict=True))
        return without_middle(read) if read.truncated and known else None  # without a known word it would be refused

    def _side(self, text: str, words: int, *, offset: int, reach: int) -> tuple[list[int], list[int]]:
        """Ids, and the word of each, of one side with so many words; of a very long one, of its two ends."""
        if len(text) <= 2 * reach:
            return self._part(text, offset=offset)
        tail = text[-reach:]
        before_tail = offset + words - len(starts_of(tail))  # a word cut in two counts as the tail's first
        parts = self._part(text[:reach], offset=offset), self._part(tail, offset=before_tail)
        return tuple(head + rest for head, rest in zip(*parts, strict=True))  # type: ignore[return-value]

    def _part(self, text: str, *, offset: int) -> tuple[list[int], list[int]]:
        encoding = self.tokenizer.encode(text, add_special_tokens=False)
        starts = starts_of(text)
        ids, word_of = [], []
        for id_, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
            if starts:  # the last character: byte-level BPE counts the space before a word in, or makes it a token
                ids.append(id_)
                word_of.append(offset + max(0, bisect_right(starts, max(start, end - 1)) - 1))
        return ids, word_of


def _ends(part: list[int], length: int) -> list[int]:
    """The first and last tokens, half each (the odd one goes to the head)."""
    if len(part) <= length:
        return part
    tail = length // 2
    return part[: length - tail] + part[len(part) - tail :]


def _share(lengths: list[int], room: int) -> list[int]:
    """Divide `room` among the sides: a side shorter than its share leaves the rest to the other."""
    if sum(lengths) <= room or len(lengths) == 1:
        return [min(length, room) for length in lengths]
    half = room // 2
    first = min(lengths[0], max(half, room - lengths[1]))
    return [first, min(lengths[1], room - first)]
