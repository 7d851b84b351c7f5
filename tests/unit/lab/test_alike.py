"""Which tiers' tokenizers split words alike."""

import json

import pytest

from lab.fit.alike import reads_alike
from shared.model.bundle import load_bundle


@pytest.fixture
def bundle_of(tmp_path, tiny_tokenizer):
    """A builder: a bundle of one tier per kind of tokenizer, which has nothing but tokenizers."""

    def build(*kinds):
        tiers = {}
        for at, kind in enumerate(kinds):
            (tmp_path / kind).mkdir(exist_ok=True)
            tiny_tokenizer(kind).save(str(tmp_path / kind / "tokenizer.json"))
            meta = {"base": f"./../{kind}", "layers": 1, "classes": 2, "scale": 1}
            (tmp_path / f"net-{kind}").mkdir(exist_ok=True)
            (tmp_path / f"net-{kind}" / "network.json").write_text(json.dumps(meta))
            tiers[f"tier{at}"] = {"network": f"net-{kind}", "layers": 1, "max_tokens": 32}
        (tmp_path / "bundle.json").write_text(json.dumps({"labels": ["a", "b"], "tiers": tiers}))
        return load_bundle(str(tmp_path))

    return build


def test_the_same_pieces_in_another_layout_are_alike_and_others_are_not(bundle_of):
    assert reads_alike(bundle_of("wordpiece", "alike", "mpnet")) == {"tier0": ["tier1"]}


def test_a_tier_behind_that_adds_fewer_special_tokens_may_read_more(bundle_of):
    assert reads_alike(bundle_of("alike", "wordpiece")) == {}


def test_byte_level_bpe_reads_the_space_before_a_word_too(bundle_of):
    assert reads_alike(bundle_of("bpe", "bpe")) == {}
