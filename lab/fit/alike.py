"""Whether two tokenizers split words alike: then a tier knows which words the tiers behind it will not read."""

from __future__ import annotations

import json

from shared.model.base import load_tokenizer
from shared.model.bundle import Bundle
from shared.model.classifier import read_trained
from shared.model.tokens import SpecialTokens


def reads_alike(bundle: Bundle) -> dict[str, list[str]]:
    """Per tier, those behind it whose tokenizers give every word the same pieces, and add no fewer special tokens."""
    tokens = {
        tier: SpecialTokens(load_tokenizer(read_trained(bundle.folder / model.network).base))
        for tier, model in bundle.tiers.items()
    }
    order = bundle.order
    found = {a: [b for b in order[at + 1 :] if _alike(tokens[a], tokens[b])] for at, a in enumerate(order)}
    return {tier: behind for tier, behind in found.items() if behind}


def _alike(first: SpecialTokens, second: SpecialTokens) -> bool:
    no_fewer = len(first.single) <= len(second.single) and len(first.pair) <= len(second.pair)
    told = [json.loads(tokens.tokenizer.to_str()) for tokens in (first, second)]
    if any(one["model"]["type"] != "WordPiece" for one in told):  # others look at the white space around a word
        return False
    pieces = [one["model"].pop("vocab").keys() for one in told]
    rules = [[one[part] for part in ("normalizer", "pre_tokenizer", "model")] for one in told]
    never = all(_never_met(second, piece) for piece in pieces[0] ^ pieces[1])
    return no_fewer and never and rules[0] == rules[1]


def _never_met(tokens: SpecialTokens, piece: str) -> bool:
    """Whether no word has this piece: it would be split before pieces are looked for, as `[PAD]` is."""
    return len(tokens.tokenizer.pre_tokenizer.pre_tokenize_str(piece.removeprefix("##"))) > 1
