"""A trained classifier: merging its adapters, its round trip through a folder, and what is refused."""

import json
import shutil

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch.nn.functional import linear

from shared.errors import BadSetting, WrongWeights
from shared.model.base import NAMES, Checkpoint, check_factors, merge_adapters, read_config, read_layer
from shared.model.calibration import calibrated
from shared.model.classifier import load_classifier, precision_of
from shared.model.encoder import Encoder
from shared.model.tokens import SpecialTokens
from shared.model.torch_engine import MultiExitEncoder, TorchEngine, load_base, save_classifier

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


def merged(folder, factors, scale):
    """The tensors of the layers of a base on disk with these factors merged in, by name."""
    config, checkpoint = read_config(str(folder)), Checkpoint(folder)
    arrays = {key: value.numpy() for key, value in factors.items()}
    check_factors(arrays, config)
    return {
        f"encoder.layer.{n}.{NAMES[config.family][part]}.{kind}": torch.from_numpy(value)
        for n in range(config.layers)
        for part, pair in merge_adapters(read_layer(checkpoint, config, n), config, n, arrays, scale).items()
        for kind, value in zip(("weight", "bias"), pair, strict=True)
    }


@pytest.mark.parametrize("family", ["bert", "roberta", "mpnet"])
def test_merging_gives_what_peft_itself_merges(tiny_base, base_on_disk, family):
    peft_model = get_peft_model(tiny_base(family)[0], LoraConfig(r=4, lora_alpha=6, target_modules=TARGETS[family]))
    factors = factors_of(peft_model)
    assert len(factors) == 2 * 2 * 3
    theirs, before = peft_model.merge_and_unload().state_dict(), tiny_base(family)[0].state_dict()
    ours = merged(base_on_disk(family), factors, scale=6 / 4)
    assert ours.keys() == {key for key in theirs if key.startswith("encoder.layer.")}
    for key, value in ours.items():
        assert torch.allclose(value, theirs[key], atol=1e-6), key
        assert torch.equal(value, before[key]) == (key.removesuffix(".weight") + ".A" not in factors)


def test_merging_adds_the_scaled_product_of_the_factors(tiny_base, base_on_disk):
    layer, x = tiny_base("bert")[0].get_submodule(QUERY["bert"]), torch.randn(5, 32)
    a, b = torch.randn(4, 32), torch.randn(32, 4)
    expected = layer(x) + 2.0 * linear(linear(x, a), b)
    ours = merged(base_on_disk("bert"), {f"{QUERY['bert']}.A": a, f"{QUERY['bert']}.B": b}, scale=2.0)
    found = linear(x, ours[f"{QUERY['bert']}.weight"], ours[f"{QUERY['bert']}.bias"])
    assert torch.allclose(found, expected, atol=1e-4)


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
@pytest.mark.parametrize("engine", ["openvino", "torch"])
def test_adapters_that_do_not_fit_their_base_are_refused(tmp_path, tiny_base, base_on_disk, engine, factors, says):
    meta = {"base": str(base_on_disk("bert")), "layers": 3, "classes": 2, "scale": 1.0}
    save_classifier(tmp_path, factors, MultiExitEncoder(tiny_base("bert")[0], layers=3, classes=2), meta)
    refused(tmp_path, says=says, engine=engine)


@pytest.fixture(params=["bert", "roberta", "mpnet"])
def saved(request, tmp_path, tiny_base, base_on_disk):
    """A classifier's folder, and the encoder that must come back: base, merged factors and heads, rounded to fp16."""
    family = request.param
    base, tokenizer = tiny_base(family, 3)
    name = QUERY.get(family, QUERY["bert"])
    a, b = torch.randn(4, 32) * 0.2, torch.randn(32, 4) * 0.2
    encoder = MultiExitEncoder(base, layers=3, classes=3).eval()
    for parameter in encoder.heads.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    meta = {"base": str(base_on_disk(family, 3)), "layers": 3, "classes": 3, "scale": 2.0, "note": "kept"}
    save_classifier(tmp_path / "net", {f"{name}.A": a, f"{name}.B": b}, encoder, meta)
    base.get_submodule(name).weight.data += 2.0 * b.half().float() @ a.half().float()
    encoder.heads.load_state_dict({key: value.half().float() for key, value in encoder.heads.state_dict().items()})
    engine = TorchEngine(encoder, SpecialTokens(tokenizer).pad_id)
    return tmp_path / "net", Encoder(engine=engine, temperatures=np.ones(3))


def loaded(folder, *, layers=3, engine="openvino", **options):
    options = {"precision": "fp32", "device": "cpu", "max_tokens": 48} | options
    return load_classifier(folder, layers=layers, engine=engine, **options)


@pytest.mark.parametrize("engine", ["openvino", "torch"])
@pytest.mark.parametrize("layers", [2, 3])
def test_a_saved_classifier_or_its_first_layers_come_back(saved, sentences, engine, layers):
    folder, expected = saved
    classifier = loaded(folder, layers=layers, engine=engine)
    texts = [classifier.encode(text) for text in sentences]
    ours = classifier.run(texts, None, every_exit=True)
    theirs = expected.run(texts, None, every_exit=True)
    for trace, same in zip(ours, theirs, strict=True):
        assert trace.exit_layer == layers
        assert trace.logits == pytest.approx(same.logits[:layers], abs=1e-4)
    assert (classifier.max_tokens, classifier.runs_on) == (48, f"{engine} fp32")
    assert classifier.temperatures.tolist() == [1.0] * layers


def test_a_reference_that_was_loaded_is_not_trained_further(saved):
    encoder = loaded(saved[0], engine="torch").engine.encoder
    assert not any(p.requires_grad for p in encoder.parameters())
    assert not encoder.training


def test_what_is_saved_is_small_and_says_how_it_was_made(saved):
    folder, _ = saved
    tensors = load_file(folder / "adapters.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    assert sum(key.startswith("heads.") for key in tensors) == 3 * 3
    assert sum(key.endswith((".A", ".B")) for key in tensors) == 2
    assert json.loads((folder / "network.json").read_text())["note"] == "kept"


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
def test_on_a_gpu_layers_are_bf16_and_answers_stay_close(saved, sentences):
    folder, expected = saved
    classifier = load_classifier(folder, layers=3, max_tokens=48, device="cuda")
    assert classifier.runs_on == "torch bf16"
    texts = [classifier.encode(text) for text in sentences]
    for a, b in zip(classifier.run(texts, None), expected.run(texts, None), strict=True):
        assert np.abs(calibrated(a.logits, 1.0) - calibrated(b.logits, 1.0)).max() < 0.1


@pytest.fixture
def folder(tmp_path, classifier_on_disk):
    return shutil.copytree(classifier_on_disk("bert", 3), tmp_path / "net")


def refused(folder, *, says, error=WrongWeights, **options):
    with pytest.raises(error, match=says) as caught:
        loaded(folder, **options)
    assert len(str(caught.value).splitlines()) == 1


ENGINES = pytest.mark.parametrize("engine", ["openvino", "torch"])


@ENGINES
def test_a_folder_that_is_not_there_is_refused(tmp_path, engine):
    refused(tmp_path / "nothing", says="cannot read the trained classifier", engine=engine)


@ENGINES
@pytest.mark.parametrize("content", [None, b"", b"\x80\x04pickled", b"\xff" * 64])
def test_adapters_that_are_missing_or_no_safetensors_are_refused(folder, engine, content):
    (folder / "adapters.safetensors").unlink()
    if content is not None:
        (folder / "adapters.safetensors").write_bytes(content)
    refused(folder, says="cannot read the trained classifier", engine=engine)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"base": "x", "scale": 1}'])
def test_a_network_json_that_says_too_little_is_refused(folder, content):
    (folder / "network.json").write_text(content)
    refused(folder, says="cannot read the trained classifier")


@ENGINES
def test_heads_that_are_missing_or_of_another_shape_are_refused(folder, engine):
    path = folder / "adapters.safetensors"
    tensors = load_file(path)
    save_file({key: value for key, value in tensors.items() if not key.startswith("heads.2")}, path)
    refused(folder, says="exit heads do not fit 3 layers", engine=engine)
    loaded(folder, layers=2, engine=engine)  # what is missing is not needed here
    save_file({**tensors, "heads.0.weight": torch.zeros(2, 31).half()}, path)
    refused(folder, says="exit heads do not fit 3 layers", engine=engine)


@ENGINES
def test_heads_for_other_classes_than_the_classifier_says_are_refused(folder, engine):
    told = json.loads((folder / "network.json").read_text())
    (folder / "network.json").write_text(json.dumps({**told, "classes": 3}))
    refused(folder, says="exit heads do not fit 3 layers", engine=engine)


@ENGINES
@pytest.mark.parametrize("layers", [0, 4])
def test_layers_that_the_base_does_not_have_are_refused(folder, engine, layers):
    says = f"asked for {layers} layers of an encoder that has 3"
    refused(folder, layers=layers, says=says, error=BadSetting, engine=engine)


@ENGINES
def test_a_base_that_is_no_encoder_is_refused(tmp_path, folder, engine):
    told = json.loads((folder / "network.json").read_text())
    (tmp_path / "empty").mkdir()
    (folder / "network.json").write_text(json.dumps({**told, "base": str(tmp_path / "empty")}))
    refused(folder, says="cannot read an encoder's config.json", engine=engine)
    (tmp_path / "empty" / "config.json").write_text('{"model_type": "gpt2"}')
    refused(folder, says="supported families are bert, roberta, mpnet", error=BadSetting, engine=engine)
    (tmp_path / "empty" / "config.json").write_text('{"model_type": "bert", "hidden_act": "relu"}')
    refused(folder, says="only GELU", error=BadSetting, engine=engine)
    (tmp_path / "empty" / "config.json").write_text('{"model_type": "bert", "hidden_size": 32}')
    says = "cannot read an encoder from it" if engine == "openvino" else "cannot load an encoder from it"
    refused(folder, says=says, engine=engine)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"engine": "openvino", "precision": "int8"}, "TIERWISE_PRECISION=int8: this classifier has no quantization"),
        ({"engine": "torch", "precision": "int8"}, "TIERWISE_PRECISION=int8: the torch engine has bf16 and fp32"),
        ({"engine": "openvino", "device": "cuda"}, "TIERWISE_DEVICE=cuda: the openvino engine runs on CPUs"),
    ],
)
def test_what_an_engine_does_not_have_is_refused(folder, options, says):
    refused(folder, says=says, error=BadSetting, **options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch sees a CUDA device")
def test_a_gpu_that_is_not_there_is_refused(folder):
    refused(folder, says="torch sees no CUDA device", error=BadSetting, engine="torch", device="cuda")


@pytest.mark.parametrize(
    ("asked", "able", "quantized", "found"),
    [
        ("auto", ["FP32", "INT8", "BF16"], True, "int8"),
        ("auto", ["FP32", "INT8", "BF16"], False, "bf16"),
        ("auto", ["FP32", "BF16"], True, "bf16"),
        ("auto", ["FP32", "INT8"], False, "fp32"),
        ("bf16", ["FP32", "BF16"], True, "bf16"),
        ("fp32", ["FP32", "BF16", "INT8"], True, "fp32"),
    ],
)
def test_the_precision_is_the_one_asked_for_or_the_best_to_be_had(folder, monkeypatch, asked, able, quantized, found):
    assert precision_of(asked, able, quantized=quantized) == found


def test_a_precision_that_the_processor_does_not_have_is_refused():
    with pytest.raises(BadSetting, match="TIERWISE_PRECISION=bf16: this processor has no bfloat16"):
        precision_of("bf16", ["FP32", "INT8"], quantized=True)


@pytest.mark.parametrize(("family", "positions"), [("bert", 260), ("roberta", 258), ("mpnet", 258)])
@ENGINES
def test_a_tier_cannot_read_beyond_the_encoder_s_positions(tiny_classifier, family, positions, engine):
    classifier = tiny_classifier(family, max_tokens=positions, engine=engine)
    longest = classifier.encode("a " * 1000)
    assert len(longest.ids) == positions
    assert classifier.run([longest], None)[0].exit_layer == 3
    with pytest.raises(BadSetting, match=f"reads at most {positions} tokens, the bundle says {positions + 1}"):
        tiny_classifier(family, max_tokens=positions + 1, engine=engine)


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
    with pytest.raises(BadSetting, match="supported families are"):
        load_base(str(tmp_path))


def test_a_folder_without_an_encoder_is_refused(tmp_path):
    with pytest.raises(WrongWeights, match=r"cannot read an encoder's config\.json"):
        load_base(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(WrongWeights, match="transformers cannot load an encoder from it"):
        load_base(str(tmp_path))
