"""The encoder against transformers' own forward, and what leaving early must and must not change."""

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModel, DistilBertConfig

from shared.errors import BadSetting
from shared.model.encoder import MultiExitEncoder
from shared.model.exits import Confidence, Entropy, Patience, Similarity
from shared.model.tokens import SpecialTokens

FAMILIES = ["bert", "roberta", "mpnet"]
RULES = [Similarity(0.2, 1), Similarity(0.4, 2), Confidence(0.75), Entropy(0.5), Patience(1), Patience(2)]
TOLERANCE = 1e-4


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


def reference(model, tokens, texts):
    """Hidden states [L, B, S, D] and attention received [L, B, S] by transformers' own eager forward; padding mask."""
    model.set_attn_implementation("eager")
    ids, segments, padding = tokens.batch(texts, torch.device("cpu"))
    real = torch.ones(ids.shape) if padding is None else (~padding).float()
    inputs = {"input_ids": ids, "attention_mask": real.long()}
    if model.config.model_type == "bert":
        inputs["token_type_ids"] = segments
    with torch.inference_mode():
        out = model(**inputs, output_hidden_states=True, output_attentions=True)
    received = [(attention * real[:, None, :, None]).sum(dim=(1, 2)) for attention in out.attentions]
    return torch.stack(out.hidden_states[1:]), torch.stack(received), real.bool()


def watched(encoder):
    """Note what every layer is given and gives, from now on."""
    calls = []

    def note(_layer, inputs, output):
        hidden = output[0] if isinstance(output, tuple) else output
        calls.append((len(inputs[0]), hidden))

    for layer in encoder.layers:
        layer.register_forward_hook(note)
    return calls


def check_parity(model, tokens, texts):
    hidden, received, real = reference(model, tokens, texts)
    encoder = MultiExitEncoder(model, layers=len(hidden), classes=2).eval()
    for importance in (False, True):  # two kernels
        calls = watched(encoder)
        traces = encoder.run(texts, tokens, None, importance=importance)
        ours = torch.stack([output for _, output in calls])
        assert ours.shape == hidden.shape
        assert (ours - hidden)[:, real].abs().max() < TOLERANCE
    total = received.sum(0)  # [B, S]
    for row, (trace, text) in enumerate(zip(traces, texts, strict=True)):
        assert trace.importance.shape == (len(text.ids),)
        assert (trace.importance - total[row, : len(text.ids)]).abs().max() < TOLERANCE * len(hidden)


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


def test_each_query_gives_one_unit_of_attention_per_head_and_layer(tiny_classifier, sentences, family):
    classifier = tiny_classifier(family, 3)
    texts = [classifier.encode(text) for text in sentences]
    for text, trace in zip(texts, classifier.run(texts, None, importance=True), strict=True):
        assert trace.importance.sum().item() == pytest.approx(3 * 4 * len(text.ids), rel=1e-4)


def one_by_one(classifier, texts, rule, **options):
    return [classifier.run([text], rule, **options)[0] for text in texts]


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_a_batch_gives_the_same_exits_as_one_text_at_a_time(tiny_classifier, sentences, family, rule):
    spreads = False
    for seed in (0, 3, 5):
        classifier = tiny_classifier(family, 4, seed=seed)
        classifier.encoder.temperatures.copy_(torch.tensor([1.2, 1.1, 0.8, 1.1]))
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
            p, q = (classifier.encoder.calibrate(trace.logits) for trace in (a, b))
            assert (p - q).abs().max() < TOLERANCE
            assert (a.importance - b.importance).abs().max() < TOLERANCE * a.exit_layer
    assert spreads  # else this test would show nothing


def test_layers_beyond_its_exit_are_not_computed_for_a_row(tiny_classifier, sentences, family):
    classifier = tiny_classifier(family, 4, seed=3)
    texts = [classifier.encode(text) for text in sentences]
    calls = watched(classifier.encoder)
    exits = [trace.exit_layer for trace in classifier.run(texts, Confidence(0.75))]
    still_here = [sum(exit_layer >= depth for exit_layer in exits) for depth in range(1, 5)]
    assert [rows for rows, _ in calls] == [rows for rows in still_here if rows]
    assert still_here[-1] < still_here[0] == len(texts)


def test_no_layer_runs_once_every_row_has_left(tiny_classifier, sentences, family):
    classifier = tiny_classifier(family, 4)
    calls = watched(classifier.encoder)
    traces = classifier.run([classifier.encode(text) for text in sentences[:3]], Confidence(0.0))
    assert [trace.exit_layer for trace in traces] == [1, 1, 1]
    assert [rows for rows, _ in calls] == [3]


def test_theta_zero_never_leaves_early(tiny_classifier, sentences, family):
    classifier = tiny_classifier(family, 4)
    texts = [classifier.encode(text) for text in sentences] * 2
    assert {trace.exit_layer for trace in classifier.run(texts, Similarity(0.0, 1))} == {4}
    assert {trace.exit_layer for trace in classifier.run(texts, Similarity(1.0, 1))} == {2}


def test_importance_covers_the_layers_that_ran_and_no_other(tiny_base, tiny_classifier, sentences, family):
    classifier = tiny_classifier(family, 4, seed=3)
    texts = [classifier.encode(text) for text in sentences]
    _, received, _ = reference(tiny_base(family, 4, seed=3)[0], classifier.tokens, texts)
    for row, trace in enumerate(classifier.run(texts, Confidence(0.75), importance=True)):
        expected = received[: trace.exit_layer, row, : len(texts[row].ids)].sum(0)
        assert (trace.importance - expected).abs().max() < TOLERANCE * 4


def test_nobody_gets_importance_who_did_not_ask(tiny_classifier, sentences):
    classifier = tiny_classifier("bert")
    assert classifier.run([classifier.encode(sentences[0])], None)[0].importance is None


def test_asking_for_importance_changes_no_answer(tiny_classifier, sentences, family):
    classifier = tiny_classifier(family)
    texts = [classifier.encode(text) for text in sentences]
    plain, asked = classifier.run(texts, None), classifier.run(texts, None, importance=True)
    for a, b in zip(plain, asked, strict=True):
        assert (a.logits - b.logits).abs().max() < TOLERANCE


def test_without_a_rule_only_the_last_exit_is_evaluated_unless_all_are_asked_for(tiny_classifier, sentences, family):
    classifier = tiny_classifier(family, 3)
    texts = [classifier.encode(text) for text in sentences[:4]]
    last, every = classifier.run(texts, None), classifier.run(texts, None, every_exit=True)
    logits = classifier.encoder(*classifier.tokens.batch(texts, torch.device("cpu")))  # [E, B, C]
    for row, (a, b) in enumerate(zip(last, every, strict=True)):
        assert (a.exit_layer, b.exit_layer) == (3, 3)
        assert (a.logits.shape, b.logits.shape) == ((1, 2), (3, 2))
        assert torch.allclose(a.logits[-1], b.logits[-1], atol=1e-5)
        assert torch.allclose(b.logits, logits[:, row], atol=1e-5)


def test_the_first_layers_of_a_deeper_encoder_give_its_first_exits(tiny_base, tiny_classifier, sentences, family):
    whole = tiny_classifier(family, 4)
    part = MultiExitEncoder(tiny_base(family, 4)[0], layers=2, classes=2).eval()
    part.heads.load_state_dict(whole.encoder.heads[:2].state_dict())
    text = whole.encode(sentences[0])
    expected = whole.run([text], None, every_exit=True)[0].logits[:2]
    assert torch.allclose(part.run([text], whole.tokens, None, every_exit=True)[0].logits, expected, atol=1e-6)


def test_each_exit_has_its_own_temperature(tiny_classifier):
    encoder = tiny_classifier("bert", 3).encoder
    encoder.temperatures.copy_(torch.tensor([1.0, 2.0, 4.0]))
    logits = torch.tensor([[1.0, -1.0], [2.0, -2.0], [4.0, -4.0]])
    same = torch.tensor([1.0, -1.0]).softmax(-1)
    assert torch.allclose(encoder.calibrate(logits), same.expand(3, 2))
    assert torch.allclose(encoder.calibrate(logits[:, None])[:, 0], same.expand(3, 2))
    assert torch.allclose(encoder.calibrate(logits[2:], last=3), same)
    assert torch.allclose(encoder.calibrate(logits[:2]), same.expand(2, 2))


def test_training_mode_drops_out_and_gradients_reach_every_head_and_layer(tiny_classifier, sentences, family):
    classifier = tiny_classifier(family, 3)
    batch = classifier.tokens.batch([classifier.encode(text) for text in sentences[:4]], torch.device("cpu"))
    encoder = classifier.encoder.train()
    first, second = encoder(*batch), encoder(*batch)
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
    classifier.encoder.eval()
    assert torch.equal(encoder(*batch), encoder(*batch))


def test_heads_stay_in_fp32_where_layers_do_not(tiny_classifier, sentences, family):
    classifier = tiny_classifier(family)
    texts = [classifier.encode(text) for text in sentences[:3]]
    batch = classifier.tokens.batch(texts, torch.device("cpu"))
    exact = classifier.encoder(*batch).softmax(-1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert classifier.encoder(*batch).dtype == torch.float32
    encoder = classifier.encoder.half()
    assert {p.dtype for p in encoder.layers.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in encoder.heads.parameters()} == {torch.float32}
    for importance in (False, True):
        traces = classifier.run(texts, None, importance=importance, every_exit=True)
        close = torch.stack([trace.logits for trace in traces], dim=1)
        assert close.dtype == torch.float32
        assert (close.softmax(-1) - exact).abs().max() < 0.1


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
def test_a_gpu_in_bf16_agrees_with_the_cpu_within_a_tolerance(tiny_classifier, sentences, family):
    classifier = tiny_classifier(family)
    texts = [classifier.encode(text) for text in sentences]
    exact = classifier.run(texts, None, importance=True, every_exit=True)
    classifier.encoder.half().to("cuda")
    for a, b in zip(exact, classifier.run(texts, None, importance=True, every_exit=True), strict=True):
        assert b.logits.device.type == b.importance.device.type == "cpu"
        assert (a.logits.softmax(-1) - b.logits.softmax(-1)).abs().max() < 0.1
        assert (a.importance - b.importance).abs().max() < 0.05 * a.importance.max()


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
