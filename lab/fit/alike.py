"""Whether two tokenizers split words alike: then a tier knows which words the tiers behind it will not read."""

from __future__ import annotations

import json
from typing import Any

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
    return no_fewer and _pieces(first) == _pieces(second)


def _pieces(tokens: SpecialTokens) -> dict[str, Any]:
    """What decides into which pieces a word falls; byte-level BPE looks at the white space around it too."""
    told = json.loads(tokens.tokenizer.to_str())
    model = told["model"]
    if model["type"] != "WordPiece":
        return {"its own": id(tokens)}
    special = {token["content"] for token in told["added_tokens"]}
    pieces = model.pop("vocab").keys() - special
    return {"normalizer": told["normalizer"], "pre_tokenizer": told["pre_tokenizer"], "model": model, "pieces": pieces}
