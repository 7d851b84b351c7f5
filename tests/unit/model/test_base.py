"""A base read as arrays: embeddings and relative positions are transformers' own, whatever the file is like."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from shared.errors import WrongWeights
from shared.model.base import (
    Checkpoint,
    Embeddings,
    load_tokenizer,
    read_config,
    read_layer,
    read_tensor,
    relative_buckets,
)
from shared.model.tokens import SpecialTokens

FAMILIES = pytest.mark.parametrize("family", ["bert", "roberta", "mpnet"])


def embeddings_of(folder):
    return Embeddings.of_base(Checkpoint(folder), read_config(str(folder)))


@FAMILIES
@pytest.mark.parametrize("padding", [0, 7])
def test_embeddings_are_transformers_own(tiny_base, base_on_disk, sentences, family, padding):
    model, tokenizer = tiny_base(family)
    embeddings, tokens = embeddings_of(base_on_disk(family)), SpecialTokens(tokenizer)
    for text, pair in zip(sentences, [None, *sentences[:-1]], strict=True):
        encoded = tokens.encode(text, pair, 100)
        ids, segments = encoded.ids + [tokens.pad_id] * padding, encoded.segments + [0] * padding
        own = {"token_type_ids": torch.tensor([segments])} if family == "bert" else {}
        with torch.inference_mode():
            expected = model.embeddings(input_ids=torch.tensor([ids]), **own)[0].numpy()
        found = embeddings(ids, segments)
        assert found.dtype == np.float32
        assert found == pytest.approx(expected, abs=1e-5)
        assert embeddings.words(ids) == pytest.approx(model.embeddings.word_embeddings.weight[ids].detach().numpy())


@pytest.mark.parametrize("length", [1, 16, 100, 258])
def test_mpnet_s_relative_bias_is_transformers_own(tiny_base, base_on_disk, length):
    encoder = tiny_base("mpnet")[0].encoder
    with torch.inference_mode():
        expected = encoder.compute_position_bias(torch.zeros(1, length, 32))[0].numpy()  # [H, S, S]
    found = embeddings_of(base_on_disk("mpnet")).relative_bias(length)
    assert found.flags.c_contiguous
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("buckets", [8, 32, 64])
def test_relative_buckets_are_transformers_own(tiny_base, buckets):
    encoder = tiny_base("mpnet")[0].encoder
    at = torch.arange(512)
    expected = encoder.relative_position_bucket(at[None, :] - at[:, None], num_buckets=buckets)
    assert np.array_equal(relative_buckets(512, buckets), expected.numpy())


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_the_other_families_have_no_relative_bias(base_on_disk, family):
    assert embeddings_of(base_on_disk(family)).relative_bias(16) is None


@pytest.mark.parametrize(("family", "positions"), [("bert", 260), ("roberta", 258), ("mpnet", 258)])
def test_a_config_says_what_transformers_reads_in_it(tiny_base, base_on_disk, family, positions):
    told, found = tiny_base(family)[0].config, read_config(str(base_on_disk(family)))
    assert (found.family, found.layers, found.hidden, found.heads) == (family, 3, 32, 4)
    assert (found.positions, found.eps, found.pad_id) == (positions, told.layer_norm_eps, told.pad_token_id)
    assert found.relative_buckets == getattr(told, "relative_attention_num_buckets", 0)


def changed(folder, out, change):
    """A copy of a base whose tensors are those that `change` makes of them."""
    save_file(change(load_file(folder / "model.safetensors")), out / "model.safetensors")
    (out / "config.json").write_text((folder / "config.json").read_text())
    return out


def prefixed(prefix):
    return lambda tensors: {f"{prefix}{key}": value for key, value in tensors.items()}


def of_old(tensors):
    return {
        f"bert.{key}".replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
        for key, value in tensors.items()
    } | {"cls.predictions.bias": torch.zeros(3)}


def everything(folder, config):
    """All tensors that are read of a base, by name."""
    checkpoint = Checkpoint(folder)
    maps = {
        (n, part, at): array
        for n in range(config.layers)
        for part, pair in read_layer(checkpoint, config, n).items()
        for at, array in enumerate(pair)
    }
    return Embeddings.of_base(checkpoint, config).tables | maps


def same(ours, theirs):
    a, b = (everything(folder, read_config(str(theirs))) for folder in (ours, theirs))
    return a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize(
    ("family", "change"),
    [
        ("bert", prefixed("bert.")),
        ("roberta", prefixed("roberta.")),
        ("mpnet", prefixed("mpnet.")),
        ("mpnet", prefixed("0.auto_model.")),
        ("bert", of_old),
    ],
    ids=["bert.", "roberta.", "mpnet.", "0.auto_model.", "gamma and beta"],
)
def test_what_a_checkpoint_s_names_are_prefixed_with_does_not_matter(base_on_disk, tmp_path, family, change):
    assert same(changed(base_on_disk(family), tmp_path, change), base_on_disk(family))


@FAMILIES
def test_a_checkpoint_may_lie_in_several_files(base_on_disk, tmp_path, family):
    folder = changed(base_on_disk(family), tmp_path, lambda tensors: dict(list(tensors.items())[::2]))
    rest = dict(list(load_file(base_on_disk(family) / "model.safetensors").items())[1::2])
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    save_file(rest, folder / "model-00002-of-00002.safetensors")
    assert same(folder, base_on_disk(family))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_every_float_is_read_as_float32(tmp_path, dtype):
    values = torch.cat([torch.randn(40), torch.tensor([0.0, -0.0, 1e-3, 65504.0, -2.0, 1 / 3, 6e-5, 1.0])])
    tensors = {"embeddings.a": values.reshape(6, 8).to(dtype), "b": torch.zeros(3, 1, dtype=dtype)}
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    for name in tensors:
        found = read_tensor(tmp_path / "model.safetensors", name)
        assert found.dtype == np.float32
        assert np.array_equal(found, tensors[name].float().numpy())


@FAMILIES
def test_a_base_in_bfloat16_is_read_as_torch_reads_it(base_on_disk, tmp_path, family):
    halves = lambda tensors: {  # noqa: E731
        key: value.bfloat16() if value.is_floating_point() else value for key, value in tensors.items()
    }
    folder = changed(base_on_disk(family), tmp_path, halves)
    expected = load_file(folder / "model.safetensors")
    checkpoint = Checkpoint(folder)
    for key, value in expected.items():
        assert np.array_equal(checkpoint.get(key), value.float().numpy()), key


def test_a_tensor_that_is_missing_is_named(base_on_disk):
    checkpoint = Checkpoint(base_on_disk("bert"))
    assert "encoder.layer.0.attention.self.query.weight" in checkpoint
    assert "encoder.layer.9.attention.self.query.weight" not in checkpoint
    with pytest.raises(WrongWeights, match=r"no tensor 'encoder\.layer\.9\.output\.dense\.bias'"):
        checkpoint.get("encoder.layer.9.output.dense.bias")


@pytest.mark.parametrize("content", [b"", b"\x80\x04pickled", b"\xff" * 64])
def test_a_damaged_checkpoint_is_refused(tmp_path, content):
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(WrongWeights, match="cannot read an encoder from it") as caught:
        Checkpoint(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["", "{", "[]", "3", "{}", '{"model_type": "bert", "hidden_size": "wide"}'])
def test_a_config_that_cannot_be_read_is_refused(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(WrongWeights, match=r"cannot read an encoder's config\.json"):
        read_config(str(tmp_path))


def test_a_damaged_tokenizer_is_refused(tmp_path):
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": "none"}))
    with pytest.raises(WrongWeights, match="has no tokenizer that can be read"):
        load_tokenizer(str(tmp_path))
