"""Tiny random encoders and tokenizers, built in seconds: nothing is downloaded.

tiny_tokenizer(kind)                "wordpiece" in BERT's layout, "bpe" in RoBERTa's, "mpnet": WordPiece in RoBERTa's,
                                    "alike": the same with the pieces of "wordpiece"
tiny_base(family, layers=3)         transformers' own BERT, RoBERTa or MPNet: hidden 32, 4 heads, fresh at each call
tiny_classifier(family, layers=3)   the same as a Classifier, on OpenVINO in fp32: exits after each layer, 64 tokens
base_on_disk(family, layers=3)      a folder with config.json, tokenizer.json and model.safetensors
classifier_on_disk(family, ...)     a trained classifier's folder over it
tiny_bundle                         a folder for TIERWISE_BUNDLE: end (BERT, 3 layers), edge and cloud (MPNet, 2 and 4)
whole_bundle                        the same, the end holding all four layers of the MPNet

The cache is a new folder in which only the pinned base weights are the user's: what is built or recorded stays there.
"""

import json
import os
import signal
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoModel, BertConfig, MPNetConfig, RobertaConfig, logging

from shared.model.classifier import load_classifier
from shared.model.pools import Pools, Signature
from shared.model.torch_engine import MultiExitEncoder, save_classifier
from shared.model.weights import cache_dir

pytest_plugins = ["tests.hooks"]
torch.set_num_threads(1)
os.environ["TIERWISE_PRECISION"] = "fp32"  # the same numbers on every processor; tests of int8 and bf16 ask for them
logging.disable_progress_bar()
settings.register_profile("tierwise", deadline=None, derandomize=True)  # a busy machine is no failure
settings.load_profile("tierwise")

MAX_TOKENS = 64
LABELS = ["negative", "positive"]
# gates of path-gates, and such of them as take texts by every way
SURE, UNSURE, KEPT = [1.0, 0, 0, 0, 0, 0, -0.66], [-1.0, 0, 0, 0, 0, 0, 0.56], [0, 0, 0, 0, -1.0, 0.3, -0.1]
PATHS = {
    "end": [[SURE, KEPT, UNSURE]] * 3,
    "edge": [[SURE, [*UNSURE[:-1], 0.9]]] * 2,
    "cloud": [[KEPT]] * 3,
}
# of network-aware: a text below 0.6 goes to the edge, and from there to the cloud
GAINS = {
    "confidences": {"end": [0.5999, 0.6], "edge": [0.5999, 0.6]},
    "gains": {"end": {"edge": [0.2, 0.0], "cloud": [0.1, 0.0]}, "edge": {"cloud": [0.1, 0.0]}},
}
SENTENCES = [
    "a fine film with a strong cast and a quiet, unbelievably moving end",
    "the plot is thin and the jokes are old; i left before the second act",
    "an honest story, told slowly, about people who rarely say what they mean",
    "it is not the worst film of the year but it is close to it",
    "wonderful music and beautiful pictures cannot save a boring script",
    "i laughed, i cried, and i would watch it again tomorrow",
    "the actors try hard, yet nothing that they say is believable",
    "one of the best comedies in years: clever, warm and never too long",
    "a waste of time and of a good idea",
    "some scenes are great, others are terrible, most are simply forgettable",
    "the director knows exactly where to put the camera and when to move it",
    "don't believe the critics, this one deserves a better audience",
]
_CONFIGS = {"bert": BertConfig, "roberta": RobertaConfig, "mpnet": MPNetConfig}
_TOKENIZERS = {"bert": "wordpiece", "roberta": "bpe", "mpnet": "mpnet"}
_FACTORS = {"bert": "encoder.layer.{}.attention.self.query", "mpnet": "encoder.layer.{}.attention.attn.q"}
_FACTORS["roberta"] = _FACTORS["bert"]


def _pieces(every: int) -> list[str]:
    """A WordPiece vocabulary by hand (the trainer's differs from run to run): letters, and every n-th word whole."""
    text = "".join(SENTENCES)
    letters = sorted(set(text) - {" "})
    words = sorted({word for sentence in SENTENCES for word in sentence.split() if word.isalpha() and len(word) > 1})
    return [*letters, *(f"##{letter}" for letter in letters), *words[::every]]


def _tokenizer(kind: str) -> Tokenizer:
    if kind == "bpe":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        trainer = trainers.BpeTrainer(
            vocab_size=420,
            special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(SENTENCES, trainer)
    else:
        own = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        special = own if kind == "wordpiece" else ["<s>", "<pad>", "</s>", "<unk>", "[UNK]", "<mask>"]
        vocabulary = {piece: id_ for id_, piece in enumerate([*special, *_pieces(3 if kind == "mpnet" else 2)])}
        tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    cls, sep = ("[CLS]", "[SEP]") if kind == "wordpiece" else ("<s>", "</s>")
    ends = [(sep, tokenizer.token_to_id(sep)), (cls, tokenizer.token_to_id(cls))]
    if kind == "wordpiece":
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
        )
    else:
        tokenizer.post_processor = processors.RobertaProcessing(*ends, trim_offsets=True, add_prefix_space=False)
    tokenizer.enable_truncation(16)  # the real files carry both, at 128
    pad = "[PAD]" if kind == "wordpiece" else "<pad>"
    tokenizer.enable_padding(length=16, pad_id=tokenizer.token_to_id(pad), pad_token=pad)
    return tokenizer


@pytest.fixture(autouse=True)
def apps_can_be_freed():
    """FastAPI keeps the last 4,096 endpoints that it looked at, and with them hundreds of apps and their engines."""
    yield
    if "fastapi" in sys.modules:
        for remembered in vars(sys.modules["fastapi.dependencies.models"]).values():
            if hasattr(remembered, "cache_clear"):
                remembered.cache_clear()


@pytest.fixture(autouse=True, scope="session")
def interruptible():
    """Ctrl-C interrupts, also where a shell started the tests in the background, which ignores it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def own_cache():
    """TIERWISE_CACHE_DIR for all tests and what they start."""
    bases = cache_dir() / "base"
    with tempfile.TemporaryDirectory(prefix="tierwise-cache-") as folder, pytest.MonkeyPatch.context() as patch:
        if bases.is_dir():
            (Path(folder) / "base").symlink_to(bases.resolve())
        patch.setenv("TIERWISE_CACHE_DIR", folder)
        yield Path(folder)


@pytest.fixture(scope="session")
def sentences():
    """Twelve sentences that the tiny tokenizers were trained on."""
    return list(SENTENCES)


@pytest.fixture(scope="session")
def tiny_tokenizer():
    """A builder: the tokenizer of a kind, fresh at each call, with truncation and padding switched on in its file."""
    files = {}

    def build(kind):
        if kind not in files:
            files[kind] = _tokenizer(kind).to_str()
        return Tokenizer.from_str(files[kind])

    return build


@pytest.fixture(scope="session")
def tiny_base(tiny_tokenizer):
    """A builder: (model, tokenizer) of a family, the same weights for the same arguments; `options` go to its config.

    Weights are larger than usual (std 0.3): attention is far from uniform, so that a wrong one shows.
    """

    def build(family, layers=3, *, seed=0, **options):
        tokenizer = tiny_tokenizer(_TOKENIZERS[family])
        pad = "[PAD]" if family == "bert" else "<pad>"
        config = _CONFIGS[family](
            vocab_size=tokenizer.get_vocab_size(),
            hidden_size=32,
            num_hidden_layers=layers,
            num_attention_heads=4,
            intermediate_size=64,
            max_position_embeddings=260,
            pad_token_id=tokenizer.token_to_id(pad),
            initializer_range=0.3,
            **options,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = AutoModel.from_config(config, add_pooling_layer=False)
        return model.eval(), tokenizer

    return build


@pytest.fixture(scope="session")
def tiny_classifier(classifier_on_disk):
    """A builder: an untrained Classifier whose exits are sure of some texts and unsure of others, fresh at each call.

    `engine` "torch" is the reference.
    """

    def build(
        family, layers=3, *, classes=2, seed=0, max_tokens=MAX_TOKENS, engine="openvino", precision="fp32", device="cpu"
    ):
        folder = classifier_on_disk(family, layers, classes=classes, seed=seed)
        return load_classifier(
            folder, layers=layers, max_tokens=max_tokens, engine=engine, precision=precision, device=device
        )

    return build


@pytest.fixture(scope="session")
def classifier_on_disk(tmp_path_factory, tiny_base, base_on_disk):
    """A builder: a folder that `load_classifier` reads, with heads but no adapters; the same for the same arguments."""
    folders = {}

    def build(family, layers=3, *, classes=2, seed=0):
        asked = (family, layers, classes, seed)
        if asked not in folders:
            encoder = MultiExitEncoder(tiny_base(family, layers, seed=seed)[0], layers=layers, classes=classes)
            _random_heads(encoder, seed)
            base = str(base_on_disk(family, layers, seed=seed))
            folders[asked] = tmp_path_factory.mktemp(f"{family}-{layers}-classifier")
            meta = {"base": base, "layers": layers, "classes": classes, "scale": 2.0}
            save_classifier(folders[asked], {}, encoder, meta)
        return folders[asked]

    return build


@pytest.fixture(scope="session")
def base_on_disk(tmp_path_factory, tiny_base):
    """A builder: a folder that `load_base` reads, the same one for the same arguments."""
    folders = {}

    def build(family, layers=3, *, seed=0):
        if (family, layers, seed) not in folders:
            folder = tmp_path_factory.mktemp(f"{family}-{layers}")
            model, tokenizer = tiny_base(family, layers, seed=seed)
            model.save_pretrained(folder)
            tokenizer.save(str(folder / "tokenizer.json"))
            folders[family, layers, seed] = folder
        return folders[family, layers, seed]

    return build


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory, tiny_base, base_on_disk) -> Path:
    """A bundle's folder: three tiers over two tiny classifiers, with a card; its base weights are folders on disk."""
    folder = tmp_path_factory.mktemp("tiny-bundle")
    for name, family, layers in (("bert-3", "bert", 3), ("mpnet-4", "mpnet", 4)):
        encoder = MultiExitEncoder(tiny_base(family, layers)[0], layers=layers, classes=len(LABELS))
        _random_heads(encoder, seed=layers)
        meta = {"base": str(base_on_disk(family, layers)), "layers": layers, "classes": len(LABELS), "scale": 2.0}
        save_classifier(folder / name, _random_factors(family, layers), encoder, meta)
    tiers = {
        "end": {"network": "bert-3", "layers": 3, "max_tokens": MAX_TOKENS},
        "edge": {"network": "mpnet-4", "layers": 2, "max_tokens": MAX_TOKENS},
        "cloud": {"network": "mpnet-4", "layers": 4, "max_tokens": MAX_TOKENS},
    }
    card = {
        "engine": "openvino fp32",
        "temperatures": {"end": [1.3, 1.2, 1.1], "edge": [1.4, 1.2], "cloud": [1.4, 1.2, 1.1, 0.9]},
        "model_temperatures": {"end": 1.2, "edge": 1.3, "cloud": 1.1},
        "accuracy": {"end": 0.8, "edge": 0.85, "cloud": 0.9},
        "fitted_weights": {
            "end": [1.0],
            "end+edge": [0.3, 0.7],
            "end+cloud": [0.2, 0.8],
            "end+edge+cloud": [0.1, 0.2, 0.7],
        },
        "reads_alike": {"edge": ["cloud"]},
        "policies": {
            "collaborative": {"offload_threshold": 0.6, "theta": 0.05, "patience": 1},
            "tabi": {"offload_threshold": 0.6},
            "dimee": {"exit_threshold": 0.55},
            "length-quantile": {"exit_threshold": 0.55, "edges": [10, 13]},
            "early-exit": {"exit_threshold": 0.6},
            "jei-dnn": {"gates": {"cloud": [[8.0, 0, 0, 0, -4.9]] * 3}},
            "network-aware": GAINS,
            "path-gates": {"profiles": [{"links": "ideal/ideal", "tiers": PATHS}]},
        },
        "report": {"note": "random weights: these numbers mean nothing"},
    }
    classifier = load_classifier(
        folder / "bert-3", layers=3, max_tokens=MAX_TOKENS, engine="openvino", precision="fp32"
    )
    means = {  # three of the sentences stand for their pools
        kind: tuple(classifier.signature(classifier.encode(text), kind) for text in SENTENCES[:3]) for kind in Signature
    }
    Pools((4, 3, 2), means).save(folder)
    (folder / "bundle.json").write_text(json.dumps({"labels": LABELS, "tiers": tiers}))
    (folder / "card.json").write_text(json.dumps(card))
    return folder


@pytest.fixture(scope="session")
def whole_bundle(tmp_path_factory, tiny_bundle) -> Path:
    """A bundle whose first tier holds the whole model, over the classifiers of `tiny_bundle`."""
    folder = tmp_path_factory.mktemp("whole-bundle")
    model = {"network": str(tiny_bundle / "mpnet-4"), "layers": 4, "max_tokens": MAX_TOKENS}
    tiers = {"end": model, "edge": {**model, "layers": 2}, "cloud": model}
    (folder / "bundle.json").write_text(json.dumps({"labels": LABELS, "tiers": tiers}))
    return folder


def _random_heads(encoder, seed):
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for head in encoder.heads:
            head.query.normal_(0, 0.3, generator=noise)
            head.classify.weight.normal_(0, 0.2, generator=noise)
            head.classify.bias.zero_()


def _random_factors(family, layers):
    noise = torch.Generator().manual_seed(layers)
    names = [_FACTORS[family].format(layer) for layer in range(layers)]
    return {
        f"{name}.{factor}": torch.randn(shape, generator=noise) * 0.1
        for name in names
        for factor, shape in (("A", (2, 32)), ("B", (32, 2)))
    }
