"""States: going on from one gives what a whole run gives, and bytes that are no state are refused."""

import warnings
import zlib
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import BadState
from shared.model.exits import Confidence, Patience, Similarity
from shared.model.state import HEADER, LARGEST, Form, Segment, State, pack, packed_bytes, unpack

SEGMENT = Segment(digest="ab" * 32, first=0, last=4, hidden=8, classes=3, max_tokens=16)


def a_state(tokens=5, done=2, *, received=True, seed=0):
    random = np.random.default_rng(seed)
    hidden = random.normal(size=(tokens, 8)).astype(np.float32)
    exits = random.normal(size=(done, 3)).astype(np.float32)
    return State(hidden, exits, random.random(tokens).astype(np.float32) if received else None)


@pytest.fixture(scope="module")
def classifier_of(tiny_classifier):
    @cache
    def build(family, engine):
        return tiny_classifier(family, 4, engine=engine).at([1.4, 1.3, 1.2, 1.1])

    return build


@pytest.fixture(params=["openvino", "torch"])
def classifier(request, classifier_of):
    return classifier_of("mpnet", request.param)


@pytest.fixture
def bert(classifier_of):
    return classifier_of("bert", "openvino")


def encoded(classifier, sentences):
    return [classifier.encode(text) for text in sentences]


def stopped_at(classifier, texts, layer, **options):
    return [trace.state for trace in classifier.run(texts, None, until=layer, states=True, **options)]


@pytest.mark.parametrize("layer", [1, 2, 3])
def test_going_on_gives_exactly_the_exits_of_a_whole_run(classifier, sentences, layer):
    for text in encoded(classifier, sentences[:4]):
        [whole] = classifier.run([text], None, every_exit=True, importance=True)
        [left] = classifier.run([text], None, until=layer, states=True, importance=True)
        assert left.exit_layer == left.state.done == layer
        assert len(left.logits) == 1  # as without states
        [done] = classifier.run([left.state], None, every_exit=True, importance=True)
        assert np.array_equal(done.logits, whole.logits)
        assert np.array_equal(done.importance, whole.importance)


def test_it_goes_on_segment_by_segment(classifier, sentences):
    text = classifier.encode(sentences[0])
    [whole] = classifier.run([text], None, every_exit=True)
    [state] = stopped_at(classifier, [text], 1)
    for end in (2, 4):
        [trace] = classifier.run([state], None, until=end, states=True)
        state = trace.state
    assert np.array_equal(state.exits, whole.logits)


@pytest.mark.parametrize("rule", [Confidence(0.75), Similarity(0.3, 2), Patience(2), Confidence(0.999)])
def test_a_rule_lets_texts_out_where_a_whole_run_would(classifier, sentences, rule):
    texts = encoded(classifier, sentences)
    whole = [classifier.run([text], rule)[0] for text in texts]
    states = [stopped_at(classifier, [text], 2)[0] for text in texts]
    gone_on = [classifier.run([state], rule)[0] for state in states]
    assert [trace.exit_layer for trace in gone_on] == [trace.exit_layer for trace in whole]
    assert all(np.array_equal(a.logits, b.logits) for a, b in zip(gone_on, whole, strict=True))


def test_a_batch_of_states_goes_on_as_each_alone(bert, sentences):
    states = stopped_at(bert, encoded(bert, sentences), 2)
    alone = [bert.run([state], Confidence(0.75))[0] for state in states]
    together = bert.run(states, Confidence(0.75))
    assert len({trace.exit_layer for trace in together}) > 1
    assert all(np.array_equal(a.logits, b.logits) for a, b in zip(alone, together, strict=True))


def test_states_of_different_layers_and_layers_that_are_not_held_are_refused(bert, sentences):
    one, two = (stopped_at(bert, [bert.encode(sentences[0])], layer)[0] for layer in (1, 2))
    last = stopped_at(bert, [bert.encode(sentences[0])], 4)[0]
    with pytest.raises(BadState, match="same layer"):
        bert.run([one, two], None)
    with pytest.raises(BadState, match="layers 5 to 4"):
        bert.run([last], None)
    with pytest.raises(BadState, match="layers 3 to 2"):
        bert.run([two], None, until=2)
    with pytest.raises(BadState, match="layers 3 to 5"):
        bert.run([two], None, until=5)


@pytest.mark.parametrize("engine", ["openvino", "torch"])
def test_a_segment_goes_on_from_states_and_reads_no_text(tiny_classifier, classifier_on_disk, sentences, engine):
    from shared.model.classifier import load_classifier

    whole = tiny_classifier("mpnet", 4, engine=engine)
    upper = load_classifier(
        classifier_on_disk("mpnet", 4), layers=4, max_tokens=64, engine=engine, precision="fp32", first=2
    )
    assert upper.segment == replace(whole.segment, first=2)
    text = whole.encode(sentences[1])
    [state], [wanted] = stopped_at(whole, [text], 2), whole.run([text], None, every_exit=True)
    assert np.array_equal(upper.run([state], None, every_exit=True)[0].logits, wanted.logits)
    with pytest.raises(BadState, match="3 to 4 are held"):
        upper.run([text], None)


def test_the_digest_names_the_network_whatever_is_held_of_it(tiny_classifier):
    assert tiny_classifier("mpnet", 4).segment.digest != tiny_classifier("mpnet", 4, seed=1).segment.digest


@pytest.mark.parametrize("received", [True, False])
@pytest.mark.parametrize(("form", "error"), [(Form.FP32, 0), (Form.FP16, 1e-3), (Form.INT8, 1 / 127)])
def test_a_packed_state_comes_back(form, error, received):
    state = a_state(received=received)
    packed = pack(state, SEGMENT, form)
    assert len(packed) == packed_bytes(SEGMENT, 5, 2, form, received=received)
    back = unpack(packed, SEGMENT)
    largest = np.abs(state.hidden).max(-1, keepdims=True)
    assert (np.abs(back.hidden - state.hidden) <= error * largest).all()
    assert np.array_equal(back.exits, state.exits)
    assert back.received is None if not received else np.array_equal(back.received, state.received)


def test_int8_keeps_a_token_of_zeros_and_the_largest_value():
    state = a_state()
    state.hidden[0] = 0
    state.hidden[1] = [127, -127, 1, 2, 3, 4, 5, 6]
    back = unpack(pack(state, SEGMENT, Form.INT8), SEGMENT)
    assert np.array_equal(back.hidden[:2], state.hidden[:2])


@pytest.mark.parametrize("form", [Form.FP16, Form.INT8])
def test_a_whole_run_is_met_within_the_forms_tolerance(classifier, sentences, form):
    for text in encoded(classifier, sentences[:4]):
        [whole] = classifier.run([text], None, every_exit=True)
        [state] = stopped_at(classifier, [text], 2)
        segment = classifier.segment
        [done] = classifier.run([unpack(pack(state, segment, form), segment)], None, every_exit=True)
        assert np.abs(done.logits - whole.logits).max() < {Form.FP16: 1e-2, Form.INT8: 0.5}[form]


PACKED = pack(a_state(), SEGMENT, Form.INT8)


@pytest.mark.parametrize(
    ("segment", "told"),
    [
        (replace(SEGMENT, digest="cd" * 32), "of network abababababab; this is cdcdcdcdcdcd"),
        (replace(SEGMENT, first=3), "after layer 2; here layers 4 to 4 run"),
        (replace(SEGMENT, last=2), "after layer 2; here layers 1 to 2 run"),
        (replace(SEGMENT, max_tokens=4), "5 tokens; from 1 to 4"),
        (replace(SEGMENT, hidden=16), "8 wide with 3 classes; here it is 16 with 3"),
        (replace(SEGMENT, classes=2), "8 wide with 3 classes; here it is 8 with 2"),
    ],
)
def test_a_state_of_something_else_is_refused(segment, told):
    with pytest.raises(BadState, match=told):
        unpack(PACKED, segment)


@pytest.mark.parametrize("cut", [0, 1, HEADER - 1, HEADER, len(PACKED) - 1])
def test_a_state_that_is_cut_off_is_refused(cut):
    with pytest.raises(BadState, match=f"a state of {cut} bytes"):
        unpack(PACKED[:cut], SEGMENT)


def test_bytes_behind_a_state_are_refused():
    with pytest.raises(BadState, match=f"a state of {len(PACKED) + 1} bytes"):
        unpack(PACKED + b"\0", SEGMENT)


def test_every_altered_byte_is_noticed():
    for at in range(len(PACKED)):
        altered = bytearray(PACKED)
        altered[at] ^= 0x10
        with pytest.raises(BadState):
            unpack(bytes(altered), SEGMENT)


@given(st.binary(max_size=400) | st.binary(max_size=300).map(lambda more: PACKED[:HEADER] + more))
def test_any_bytes_are_a_state_or_refused(body):
    with pytest.raises(BadState):
        unpack(body, SEGMENT)


@pytest.mark.parametrize("form", list(Form))
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_never_leave(form, value):
    for part in ("hidden", "exits"):
        state = a_state()
        getattr(state, part)[0, 0] = value
        with pytest.raises(BadState, match="does not hold"):
            pack(state, SEGMENT, form)


def test_values_beyond_fp16_never_leave_in_it():
    state = a_state()
    state.hidden[0, 0] = 1e5
    with pytest.raises(BadState, match="fp16 does not hold"):
        pack(state, SEGMENT, Form.FP16)
    assert unpack(pack(state, SEGMENT, Form.FP32), SEGMENT).hidden[0, 0] == np.float32(1e5)


def test_values_that_are_not_finite_are_refused_whoever_sent_them(monkeypatch):
    monkeypatch.setattr(np, "isfinite", lambda values: np.ones(values.shape, dtype=bool))  # a sender without the check
    state = a_state(received=False)
    state.exits[1, 2] = np.nan
    packed = pack(state, SEGMENT, Form.FP16)
    monkeypatch.undo()
    with pytest.raises(BadState, match="not finite"):
        unpack(packed, SEGMENT)


def test_attention_below_zero_is_refused():
    state = a_state()
    state.received[0] = -1
    with pytest.raises(BadState, match="below zero"):
        unpack(pack(state, SEGMENT, Form.FP16), SEGMENT)


@pytest.mark.parametrize(
    ("part", "form", "value"),
    [
        ("hidden", Form.FP32, 3e38),
        ("hidden", Form.FP32, -3e38),
        ("hidden", Form.FP32, 1.01 * LARGEST),
        ("hidden", Form.INT8, 1e36),
        ("exits", Form.FP16, -3e38),
    ],
)
def test_values_that_no_network_computes_are_refused(part, form, value):
    state = a_state()
    getattr(state, part)[0, 0] = value
    with pytest.raises(BadState, match="beyond 1e"):
        unpack(pack(state, SEGMENT, form), SEGMENT)


def test_a_scale_that_overflows_is_refused_without_a_warning():
    packed = bytearray(pack(a_state(received=False), SEGMENT, Form.INT8))
    at = HEADER + 4 * 2 * SEGMENT.classes
    packed[at : at + 4] = np.float32(3e38).tobytes()
    packed[HEADER - 4 : HEADER] = zlib.crc32(packed[HEADER:], zlib.crc32(packed[: HEADER - 4])).to_bytes(4, "little")
    with warnings.catch_warnings(action="error"), pytest.raises(BadState, match="not finite"):
        unpack(bytes(packed), SEGMENT)
