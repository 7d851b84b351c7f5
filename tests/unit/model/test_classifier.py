"""A trained classifier: merging its adapters, its round trip through a folder, and what is refused."""

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch.nn.functional import linear

from shared.errors import BadSetting, WrongWeights
from shared.model.classifier import load_base, load_classifier, merge_adapters, save_classifier
from shared.model.encoder import MultiExitEncoder

TARGETS = {"bert": ["query", "value"], "roberta": ["query", "value"], "mpnet": ["q", "o"]}
QUERY = {"bert": "encoder.layer.0.attention.self.query", "mpnet": "encoder.layer.0.attention.attn.q"}


def factors_of(model):
    """A peft model's trained factors under the names of its base."""
    out = {}
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(len(out)))
            name = name.removeprefix("base_model.model.").replace(".lora_A.default.weight", ".A")
            out[name.replace(".lora_B.default.weight", ".B")] = parameter.detach().clone()
    return out


@pytest.mark.parametrize("family", ["bert", "roberta", "mpnet"])
def test_merging_gives_what_peft_itself_merges(tiny_base, family):
    config = LoraConfig(r=4, lora_alpha=6, target_modules=TARGETS[family])
    peft_model = get_peft_model(tiny_base(family)[0], config)
    factors = factors_of(peft_model)
    assert len(factors) == 2 * 2 * 3
    theirs = peft_model.merge_and_unload().state_dict()
    ours = tiny_base(family)[0]
    before = {key: value.clone() for key, value in ours.state_dict().items()}
    merge_adapters(ours, factors, scale=6 / 4)
    assert ours.state_dict().keys() == theirs.keys()
    for key, value in ours.state_dict().items():
        assert torch.allclose(value, theirs[key], atol=1e-6), key
        assert torch.equal(value, before[key]) == (key.removesuffix(".weight") + ".A" not in factors)


def test_merging_adds_the_scaled_product_of_the_factors(tiny_base):
    base, _ = tiny_base("bert")
    layer, x = base.get_submodule(QUERY["bert"]), torch.randn(5, 32)
    a, b = torch.randn(4, 32), torch.randn(32, 4)
    expected = layer(x) + 2.0 * linear(linear(x, a), b)
    merge_adapters(base, {f"{QUERY['bert']}.A": a, f"{QUERY['bert']}.B": b}, scale=2.0)
    assert torch.allclose(layer(x), expected, atol=1e-4)


A, B = torch.zeros(4, 32), torch.zeros(32, 4)


@pytest.mark.parametrize(
    ("factors", "says"),
    [
        ({f"{QUERY['bert']}.A": A}, "exactly the factors A and B"),
        ({f"{QUERY['bert']}.B": B}, "exactly the factors A and B"),
        ({f"{QUERY['bert']}.A": A, f"{QUERY['bert']}.B": B, f"{QUERY['bert']}.C": B}, "exactly the factors A and B"),
        ({f"bert.{QUERY['bert']}.A": A, f"bert.{QUERY['bert']}.B": B}, "no linear map 'bert.encoder"),
        ({"encoder.layer.7.attention.self.query.A": A, "encoder.layer.7.attention.self.query.B": B}, "no linear map"),
        ({"encoder.layer.0.attention.A": A, "encoder.layer.0.attention.B": B}, "no linear map"),
        ({f"{QUERY['bert']}.A": A, f"{QUERY['bert']}.B": torch.zeros(16, 4)}, "does not fit"),
        ({f"{QUERY['bert']}.A": A, f"{QUERY['bert']}.B": torch.zeros(32, 5)}, "does not fit"),
        ({f"{QUERY['bert']}.A": torch.zeros(4, 31), f"{QUERY['bert']}.B": B}, "does not fit"),
    ],
)
def test_adapters_that_do_not_fit_their_base_are_refused(tiny_base, factors, says):
    with pytest.raises(WrongWeights, match=says):
        merge_adapters(tiny_base("bert")[0], factors, scale=1.0)


@pytest.fixture(params=["bert", "roberta", "mpnet"])
def saved(request, tmp_path, tiny_base, tiny_classifier, base_on_disk):
    """A classifier's folder, and the encoder that must come back: base, merged factors and heads, rounded to fp16."""
    family = request.param
    encoder = tiny_classifier(family, 3, classes=3).encoder
    name = QUERY.get(family, QUERY["bert"])
    factors = {f"{name}.A": torch.randn(4, 32) * 0.2, f"{name}.B": torch.randn(32, 4) * 0.2}
    meta = {"base": str(base_on_disk(family, 3)), "layers": 3, "classes": 3, "scale": 2.0, "note": "kept"}
    save_classifier(tmp_path / "net", factors, encoder, meta)
    base, _ = tiny_base(family, 3)
    merge_adapters(base, {key: value.half().float() for key, value in factors.items()}, 2.0)
    expected = MultiExitEncoder(base, layers=3, classes=3).eval()
    expected.heads.load_state_dict({key: value.half().float() for key, value in encoder.heads.state_dict().items()})
    return tmp_path / "net", expected


def test_a_saved_classifier_comes_back(saved, sentences):
    folder, expected = saved
    classifier = load_classifier(folder, layers=3, max_tokens=48)
    texts = [classifier.encode(text) for text in sentences]
    ours = classifier.run(texts, None, every_exit=True)
    for trace, same in zip(ours, expected.run(texts, classifier.tokens, None, every_exit=True), strict=True):
        assert torch.allclose(trace.logits, same.logits, atol=1e-5)
    assert classifier.max_tokens == 48
    assert not any(p.requires_grad for p in classifier.encoder.parameters())
    assert not classifier.encoder.training


def test_what_is_saved_is_small_and_says_how_it_was_made(saved):
    folder, _ = saved
    tensors = load_file(folder / "adapters.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    assert sum(key.startswith("heads.") for key in tensors) == 3 * 3
    assert sum(key.endswith((".A", ".B")) for key in tensors) == 2
    assert json.loads((folder / "network.json").read_text())["note"] == "kept"


def test_a_tier_may_load_only_the_first_layers(saved, sentences):
    folder, expected = saved
    classifier = load_classifier(folder, layers=2, max_tokens=48)
    text = classifier.encode(sentences[0])
    trace = classifier.run([text], None, every_exit=True)[0]
    assert trace.exit_layer == 2
    assert torch.allclose(
        trace.logits, expected.run([text], classifier.tokens, None, every_exit=True)[0].logits[:2], atol=1e-5
    )


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
def test_on_a_gpu_layers_are_bf16_and_answers_stay_close(saved, sentences):
    folder, expected = saved
    classifier = load_classifier(folder, layers=3, max_tokens=48, device="cuda")
    assert next(classifier.encoder.layers.parameters()).dtype == torch.bfloat16
    texts = [classifier.encode(text) for text in sentences]
    for a, b in zip(classifier.run(texts, None), expected.run(texts, classifier.tokens, None), strict=True):
        assert (a.logits.softmax(-1) - b.logits.softmax(-1)).abs().max() < 0.1


@pytest.fixture
def folder(tmp_path, tiny_classifier, base_on_disk):
    meta = {"base": str(base_on_disk("bert", 3)), "layers": 3, "classes": 2, "scale": 2.0}
    save_classifier(tmp_path / "net", {}, tiny_classifier("bert", 3).encoder, meta)
    return tmp_path / "net"


def refused(folder, *, layers=3, max_tokens=64, says):
    with pytest.raises(WrongWeights, match=says):
        load_classifier(folder, layers=layers, max_tokens=max_tokens)


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    refused(tmp_path / "nothing", says="cannot read the trained classifier")


@pytest.mark.parametrize("content", [b"", b"\x80\x04pickled", b"\xff" * 64])
def test_adapters_that_are_no_safetensors_are_refused(folder, content):
    (folder / "adapters.safetensors").write_bytes(content)
    refused(folder, says="cannot read the trained classifier")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"base": "x", "scale": 1}'])
def test_a_network_json_that_says_too_little_is_refused(folder, content):
    (folder / "network.json").write_text(content)
    refused(folder, says="cannot read the trained classifier")


def test_heads_that_are_missing_or_of_another_shape_are_refused(folder):
    path = folder / "adapters.safetensors"
    tensors = load_file(path)
    save_file({key: value for key, value in tensors.items() if not key.startswith("heads.2")}, path)
    refused(folder, says="exit heads do not fit 3 layers")
    load_classifier(folder, layers=2, max_tokens=64)  # what is missing is not needed here
    save_file({**tensors, "heads.0.weight": torch.zeros(2, 31).half()}, path)
    refused(folder, says="exit heads do not fit 3 layers")


def test_more_layers_than_the_base_has_are_refused(folder):
    with pytest.raises(BadSetting, match="asked for 4 layers of an encoder that has 3"):
        load_classifier(folder, layers=4, max_tokens=64)


@pytest.mark.parametrize(("family", "positions"), [("bert", 260), ("roberta", 258), ("mpnet", 258)])
def test_a_tier_cannot_read_beyond_the_encoder_s_positions(tmp_path, tiny_classifier, base_on_disk, family, positions):
    meta = {"base": str(base_on_disk(family, 3)), "layers": 3, "classes": 2, "scale": 2.0}
    save_classifier(tmp_path, {}, tiny_classifier(family, 3).encoder, meta)
    classifier = load_classifier(tmp_path, layers=3, max_tokens=positions)
    longest = classifier.encode("a " * 1000)
    assert len(longest.ids) == positions
    assert classifier.run([longest], None)[0].exit_layer == 3
    with pytest.raises(BadSetting, match=f"reads at most {positions} tokens, the bundle says {positions + 1}"):
        load_classifier(tmp_path, layers=3, max_tokens=positions + 1)


def test_a_base_without_a_fast_tokenizer_file_still_gives_one(tmp_path, tiny_base):
    model, tokenizer = tiny_base("bert")
    model.save_pretrained(tmp_path)
    vocabulary = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    (tmp_path / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    _, found = load_base(str(tmp_path))
    tokenizer.no_padding()
    assert found.encode("a fine film").ids == tokenizer.encode("a fine film").ids


def test_a_pickled_checkpoint_is_never_read(tmp_path, tiny_base):
    model, _ = tiny_base("bert")
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(WrongWeights, match="transformers cannot load an encoder from it"):
        load_base(str(tmp_path))


def test_code_beside_the_weights_is_never_run(tmp_path, tiny_base):
    model, _ = tiny_base("bert")
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    own = {"auto_map": {"AutoConfig": "own.Own", "AutoModel": "own.Own"}, "model_type": "own"}
    (tmp_path / "config.json").write_text(json.dumps({**config, **own}))
    (tmp_path / "own.py").write_text("raise SystemExit('code of the folder')")
    with pytest.raises(WrongWeights, match="transformers cannot load an encoder from it"):
        load_base(str(tmp_path))


def test_a_folder_without_an_encoder_is_refused(tmp_path):
    with pytest.raises(WrongWeights, match="transformers cannot load an encoder from it"):
        load_base(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(WrongWeights, match="transformers cannot load an encoder from it"):
        load_base(str(tmp_path))
