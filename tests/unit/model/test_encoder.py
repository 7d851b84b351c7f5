"""Both engines against transformers' own forward, and what leaving early must and must not change."""

from functools import cache

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModel, DistilBertConfig

from shared.errors import BadSetting
from shared.model.calibration import calibrated
from shared.model.classifier import read_trained
from shared.model.encoder import Encoder
from shared.model.exits import Confidence, Entropy, Patience, Similarity
from shared.model.tokens import SpecialTokens
from shared.model.torch_engine import MultiExitEncoder, TorchEngine, batch, load_base, load_encoder

FAMILIES = ["bert", "roberta", "mpnet"]
RULES = [Similarity(0.2, 1), Similarity(0.4, 2), Confidence(0.75), Entropy(0.5), Patience(1), Patience(2)]
TOLERANCE = 1e-4


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture(params=["openvino", "torch"])
def engine(request):
    return request.param


@pytest.fixture(scope="module")
def kept(tiny_classifier):
    """`tiny_classifier`, but the same one for the same arguments."""

    @cache
    def build(family, layers, engine, **options):
        return tiny_classifier(family, layers, engine=engine, **options)

    return build


@pytest.fixture
def classifier_of(kept, family, engine):
    """A classifier of a family on an engine."""
    return lambda layers=3, **options: kept(family, layers, engine, **options)


def reference(model, tokens, texts):
    """Hidden states [L, B, S, D] and attention received [L, B, S] by transformers' own eager forward; padding mask."""
    model.set_attn_implementation("eager")
    ids, segments, padding = batch(texts, tokens.pad_id, torch.device("cpu"))
    real = torch.ones(ids.shape) if padding is None else (~padding).float()
    inputs = {"input_ids": ids, "attention_mask": real.long()}
    if model.config.model_type == "bert":
        inputs["token_type_ids"] = segments
    with torch.inference_mode():
        out = model(**inputs, output_hidden_states=True, output_attentions=True)
    received = [(attention * real[:, None, :, None]).sum(dim=(1, 2)) for attention in out.attentions]
    return torch.stack(out.hidden_states[1:]), torch.stack(received), real.bool()


def watched(encoder):
    """Note what every layer of a torch encoder is given and gives, from now on."""
    calls = []

    def note(_layer, inputs, output):
        hidden = output[0] if isinstance(output, tuple) else output
        calls.append((len(inputs[0]), hidden))

    for layer in encoder.layers:
        layer.register_forward_hook(note)
    return calls


def counted(engine, monkeypatch):
    """Note how many texts every layer of an engine is given, from now on."""
    calls = []
    layer, keep, start = engine.layer, engine.keep, engine.start
    here = []

    def started(texts, **options):
        here[:] = range(len(texts))
        return start(texts, **options)

    def kept(state, rows):
        here[:] = rows
        return keep(state, rows)

    def ran(n, state):
        calls.append(len(here))
        return layer(n, state)

    for name, noting in (("layer", ran), ("keep", kept), ("start", started)):
        monkeypatch.setattr(engine, name, noting)
    return calls


def check_parity(model, tokens, texts):
    hidden, received, real = reference(model, tokens, texts)
    encoder = MultiExitEncoder(model, layers=len(hidden), classes=2).eval()
    engine = TorchEngine(encoder, tokens.pad_id)
    for importance in (False, True):  # two kernels
        calls = watched(encoder)
        traces = Encoder(engine=engine, temperatures=np.ones(len(hidden))).run(texts, None, importance=importance)
        ours = torch.stack([output for _, output in calls])
        assert ours.shape == hidden.shape
        assert (ours - hidden)[:, real].abs().max() < TOLERANCE
    total = received.sum(0).numpy()  # [B, S]
    for row, (trace, text) in enumerate(zip(traces, texts, strict=True)):
        assert trace.importance.shape == (len(text.ids),)
        assert np.abs(trace.importance - total[row, : len(text.ids)]).max() < TOLERANCE * len(hidden)


def batches(tokens, sentences, limit=64):
    one = [tokens.encode(sentences[0], None, limit)]
    padded = [tokens.encode(text, None, limit) for text in sentences[:4]]
    pairs = [tokens.encode(sentences[4], sentences[5], limit), tokens.encode("a film", "it is old", limit)]
    return {"single": one, "padded": padded, "pairs": pairs}


@pytest.mark.parametrize("batch", ["single", "padded", "pairs"])
def test_hidden_states_and_importance_are_transformers_own(tiny_base, sentences, family, batch):
    model, tokenizer = tiny_base(family, 3)
    tokens = SpecialTokens(tokenizer)
    check_parity(model, tokens, batches(tokens, sentences)[batch])


@pytest.mark.parametrize("batch", ["single", "padded"])
def test_the_real_encoders_agree_with_transformers(real_base, sentences, batch):
    model = AutoModel.from_pretrained(real_base, add_pooling_layer=False, dtype=torch.float32)
    tokens = SpecialTokens(Tokenizer.from_file(str(real_base / "tokenizer.json")))
    check_parity(model.eval(), tokens, batches(tokens, sentences)[batch])


@pytest.mark.parametrize("batch", ["single", "padded", "pairs"])
@pytest.mark.parametrize("rule", [None, *RULES], ids=str)
def test_openvino_agrees_with_the_reference(kept, sentences, family, batch, rule):
    ours, theirs = (kept(family, 4, name, seed=3) for name in ("openvino", "torch"))
    texts = batches(ours.tokens, sentences)[batch]
    for importance in (False, True):  # two graphs
        options = {"importance": importance, "every_exit": rule is None}
        traces = zip(ours.run(texts, rule, **options), theirs.run(texts, rule, **options), strict=True)
        for text, (a, b) in zip(texts, traces, strict=True):
            assert (a.exit_layer, a.cut, a.logits.shape) == (b.exit_layer, b.cut, b.logits.shape)
            assert a.logits.dtype == b.logits.dtype == np.float32
            assert np.abs(a.logits - b.logits).max() < TOLERANCE
            if importance:
                assert a.importance.shape == (len(text.ids),)
                assert np.abs(a.importance - b.importance).max() < TOLERANCE * a.exit_layer
            else:
                assert a.importance is b.importance is None


def test_each_query_gives_one_unit_of_attention_per_head_and_layer(classifier_of, sentences):
    classifier = classifier_of(3)
    texts = [classifier.encode(text) for text in sentences]
    for text, trace in zip(texts, classifier.run(texts, None, importance=True), strict=True):
        assert trace.importance.sum() == pytest.approx(3 * 4 * len(text.ids), rel=1e-4)


def one_by_one(classifier, texts, rule, **options):
    return [classifier.run([text], rule, **options)[0] for text in texts]


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_a_batch_gives_the_same_exits_as_one_text_at_a_time(classifier_of, sentences, rule):
    spreads = False
    for seed in (0, 3, 5):
        classifier = classifier_of(4, seed=seed).at([1.2, 1.1, 0.8, 1.1])
        texts = [classifier.encode(text) for text in sentences]
        together, alone = (
            classifier.run(texts, rule, importance=True),
            one_by_one(classifier, texts, rule, importance=True),
        )
        exits = [trace.exit_layer for trace in together]
        assert exits == [trace.exit_layer for trace in alone]
        spreads |= len(set(exits)) > 1
        for a, b in zip(together, alone, strict=True):
            assert a.logits.shape == (a.exit_layer, 2)
            p, q = (classifier.calibrate(trace.logits) for trace in (a, b))
            assert np.abs(p - q).max() < TOLERANCE
            assert np.abs(a.importance - b.importance).max() < TOLERANCE * a.exit_layer
    assert spreads  # else this test would show nothing


def test_layers_beyond_its_exit_are_not_computed_for_a_row(classifier_of, sentences, monkeypatch):
    classifier = classifier_of(4, seed=3)
    texts = [classifier.encode(text) for text in sentences]
    calls = counted(classifier.engine, monkeypatch)
    exits = [trace.exit_layer for trace in classifier.run(texts, Confidence(0.75))]
    still_here = [sum(exit_layer >= depth for exit_layer in exits) for depth in range(1, 5)]
    assert calls == [rows for rows in still_here if rows]
    assert still_here[-1] < still_here[0] == len(texts)


def test_no_layer_runs_once_every_row_has_left(classifier_of, sentences, monkeypatch):
    classifier = classifier_of(4)
    calls = counted(classifier.engine, monkeypatch)
    traces = classifier.run([classifier.encode(text) for text in sentences[:3]], Confidence(0.0))
    assert [trace.exit_layer for trace in traces] == [1, 1, 1]
    assert calls == [3]


def test_a_text_whose_time_is_over_leaves_by_the_exit_it_has_reached(classifier_of, sentences):
    classifier = classifier_of(3)
    texts = [classifier.encode(text) for text in sentences[:3]]
    asked = []
    whole = classifier.run(texts, None, every_exit=True)
    traces = classifier.run(texts, None, over=lambda rows: asked.append(rows) or [row == 1 for row in rows])
    assert asked == [[0, 1, 2], [0, 2]]
    assert [(trace.exit_layer, trace.cut) for trace in traces] == [(3, False), (1, True), (3, False)]
    for trace, same in zip(traces, whole, strict=True):
        assert trace.logits[0] == pytest.approx(same.logits[trace.exit_layer - 1], abs=TOLERANCE)


def test_theta_zero_never_leaves_early(classifier_of, sentences):
    classifier = classifier_of(4)
    texts = [classifier.encode(text) for text in sentences] * 2
    assert {trace.exit_layer for trace in classifier.run(texts, Similarity(0.0, 1))} == {4}
    assert {trace.exit_layer for trace in classifier.run(texts, Similarity(1.0, 1))} == {2}


def test_importance_covers_the_layers_that_ran_and_no_other(tiny_base, classifier_of, family, sentences):
    classifier = classifier_of(4, seed=3)
    texts = [classifier.encode(text) for text in sentences]
    _, received, _ = reference(tiny_base(family, 4, seed=3)[0], classifier.tokens, texts)
    for row, trace in enumerate(classifier.run(texts, Confidence(0.75), importance=True)):
        expected = received[: trace.exit_layer, row, : len(texts[row].ids)].sum(0).numpy()
        assert np.abs(trace.importance - expected).max() < TOLERANCE * 4


def test_nobody_gets_importance_who_did_not_ask(classifier_of, sentences):
    classifier = classifier_of()
    assert classifier.run([classifier.encode(sentences[0])], None)[0].importance is None


def test_asking_for_importance_changes_no_answer(classifier_of, sentences):
    classifier = classifier_of()
    texts = [classifier.encode(text) for text in sentences]
    plain, asked = classifier.run(texts, None), classifier.run(texts, None, importance=True)
    for a, b in zip(plain, asked, strict=True):
        assert np.abs(a.logits - b.logits).max() < TOLERANCE


@pytest.mark.parametrize("rule", [None, lambda history: np.arange(history.shape[1]) % 2 == 1])  # every second leaves
def test_what_is_kept_after_each_layer_is_what_leaving_there_gives_and_changes_no_answer(
    classifier_of, sentences, rule
):
    classifier = classifier_of(3)
    texts = [classifier.encode(text) for text in sentences]
    kept, after = {}, []

    def over(rows):
        after.append(dict(kept))
        return [False] * len(rows)

    whole = classifier.run(texts, rule, importance=True)
    watched_ = classifier.run(texts, rule, importance=True, over=over, so_far=kept)
    cut = classifier.run(texts, rule, importance=True, over=lambda rows: [True] * len(rows))
    assert after[0] == {}
    for ours, theirs in ((watched_, whole), (list(kept.values()), whole), (list(after[1].values()), cut)):
        for a, b in zip(ours, theirs, strict=True):
            assert (a.exit_layer, a.cut) == (b.exit_layer, b.cut)
            assert np.array_equal(a.logits, b.logits)
            assert np.array_equal(a.importance, b.importance)


def test_without_a_rule_only_the_last_exit_is_evaluated_unless_all_are_asked_for(
    classifier_on_disk, classifier_of, family, sentences
):
    classifier = classifier_of(3)
    texts = [classifier.encode(text) for text in sentences[:4]]
    last, every = classifier.run(texts, None), classifier.run(texts, None, every_exit=True)
    trained = read_trained(classifier_on_disk(family, 3))
    encoder = load_encoder(load_base(trained.base)[0], trained, 3)
    logits = encoder(*batch(texts, classifier.tokens.pad_id, torch.device("cpu"))).numpy()  # [E, B, C]
    for row, (a, b) in enumerate(zip(last, every, strict=True)):
        assert (a.exit_layer, b.exit_layer) == (3, 3)
        assert (a.logits.shape, b.logits.shape) == ((1, 2), (3, 2))
        assert a.logits[-1] == pytest.approx(b.logits[-1], abs=1e-5)
        assert b.logits == pytest.approx(logits[:, row], abs=TOLERANCE)


def test_each_exit_has_its_own_temperature(tiny_classifier):
    plain = tiny_classifier("bert", 3)
    classifier = plain.at([1.0, 2.0, 4.0])
    assert plain.temperatures.tolist() == [1.0, 1.0, 1.0]
    logits = np.array([[1.0, -1.0], [2.0, -2.0], [4.0, -4.0]], dtype=np.float32)
    same = pytest.approx(np.array([1 / (1 + np.exp(-2.0)), 1 / (1 + np.exp(2.0))]), abs=1e-6)
    for found in (
        *classifier.calibrate(logits),
        *classifier.calibrate(logits[:, None])[:, 0],
        *classifier.calibrate(logits[2:], last=3),
        *classifier.calibrate(logits[:2]),
    ):
        assert found == same


@pytest.fixture
def torch_classifier(tiny_classifier, family):
    return tiny_classifier(family, engine="torch")


def test_training_mode_drops_out_and_gradients_reach_every_head_and_layer(torch_classifier, sentences):
    texts = [torch_classifier.encode(text) for text in sentences[:4]]
    tensors = batch(texts, torch_classifier.tokens.pad_id, torch.device("cpu"))
    encoder = torch_classifier.engine.encoder.requires_grad_().train()
    first, second = encoder(*tensors), encoder(*tensors)
    assert first.shape == (3, 4, 2)
    assert not torch.equal(first, second)
    (first.softmax(-1)[..., 0] ** 2).sum().backward()
    trained = [*encoder.layers[0].named_parameters(), *encoder.layers[2].named_parameters()]
    trained += list(encoder.heads.named_parameters())
    for name, parameter in trained:
        if "k.bias" in name or "key.bias" in name:
            continue  # a constant added to every score of a query changes no softmax
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name
    encoder.eval()
    assert torch.equal(encoder(*tensors), encoder(*tensors))


def test_heads_stay_in_fp32_where_layers_do_not(torch_classifier, sentences):
    texts = [torch_classifier.encode(text) for text in sentences[:3]]
    tensors = batch(texts, torch_classifier.tokens.pad_id, torch.device("cpu"))
    encoder = torch_classifier.engine.encoder
    exact = encoder(*tensors).softmax(-1).numpy()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert encoder(*tensors).dtype == torch.float32
    encoder.half()
    assert {p.dtype for p in encoder.layers.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in encoder.heads.parameters()} == {torch.float32}
    for importance in (False, True):
        traces = torch_classifier.run(texts, None, importance=importance, every_exit=True)
        close = np.stack([trace.logits for trace in traces], axis=1)
        assert close.dtype == np.float32
        assert np.abs(calibrated(close, 1.0) - exact).max() < 0.1


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
def test_a_gpu_in_bf16_agrees_with_the_cpu_within_a_tolerance(tiny_classifier, family, sentences):
    classifier = tiny_classifier(family, engine="torch")
    gpu = tiny_classifier(family, engine="torch", precision="auto", device="cuda")
    assert gpu.runs_on == "torch bf16"
    texts = [classifier.encode(text) for text in sentences]
    exact = classifier.run(texts, None, importance=True, every_exit=True)
    for a, b in zip(exact, gpu.run(texts, None, importance=True, every_exit=True), strict=True):
        assert np.abs(calibrated(a.logits, 1.0) - calibrated(b.logits, 1.0)).max() < 0.1
        assert np.abs(a.importance - b.importance).max() < 0.05 * a.importance.max()


def test_a_family_that_it_cannot_read_is_refused():
    base = AutoModel.from_config(DistilBertConfig(vocab_size=9, dim=8, hidden_dim=8, n_layers=1, n_heads=1))
    with pytest.raises(
        BadSetting, match="cannot read a 'distilbert' encoder: supported families are bert, roberta, mpnet"
    ):
        MultiExitEncoder(base, layers=1, classes=2)


@pytest.mark.parametrize("layers", [0, 4])
def test_layers_that_the_base_does_not_have_are_refused(tiny_base, layers):
    with pytest.raises(BadSetting, match=f"asked for {layers} layers of an encoder that has 3"):
        MultiExitEncoder(tiny_base("bert", 3)[0], layers=layers, classes=2)
