"""Text or state: the estimates by hand, and what they hang on."""

from dataclasses import dataclass

import pytest

from shared.contracts import InferredRow, TextPair
from shared.links.profile import FRAME, HTTP
from shared.model.bundle import load_bundle
from shared.model.state import Form
from shared.pipeline.carry import Carry, Costs, Load, States
from shared.pipeline.text import Answer, Text
from shared.policies import Clues, Decision
from tests.hops import a_hop

LOAD = Load(1_000, 1_200, 98_000, sent_tokens=60, tokens=100, done=3, layers=6)


@dataclass
class Link:
    """An upstream over which bytes take no time."""

    target: str = "cloud"
    byte_s: float = 0.0
    takes_states: bool = True


@pytest.fixture(scope="module")
def edge_model(tiny_classifier):
    return tiny_classifier("mpnet", 4)


@pytest.fixture
def states(tiny_bundle, edge_model):
    """Those of an edge with two layers of the cloud's four."""
    bundle = load_bundle(str(tiny_bundle))
    return States(
        name="edge",
        bundle=bundle,
        segment=edge_model.segment,
        carry=Carry.AUTO,
        form=Form.FP16,
        most_bytes=2_000_000,
    )


@pytest.fixture
def a_text(edge_model, sentences):
    """One that the edge sends to the cloud after its two layers."""
    encoded = edge_model.encode(sentences[0])
    [trace] = edge_model.run([encoded], None, until=2, states=True)
    text = Text(0, TextPair(text=sentences[0]), 0.5, Clues(12), decision=Decision("cloud", 1.0, "policy"))
    text.answer = Answer(encoded, 2, [[0.5, 0.5]], None, state=trace.state)
    return text


@pytest.fixture
def rows(a_text):
    def build(*, exit_layer, infer_ms):
        hop = a_hop(tier="cloud", exit_layer=exit_layer, layers=4, words_in=12, timings_ms={"infer": infer_ms})
        return [InferredRow(index=0, hops=[hop])]

    return build


def test_costs_by_hand():
    costs = LOAD.costs(1e-6, 1e-5)
    text_wire = 1_000 + HTTP + 2 * FRAME  # one packet of headers, one of text
    state_wire = 99_200 + HTTP + (1 + 69) * FRAME  # 68.5 packets of 1448
    assert costs.text_s == pytest.approx(text_wire * 1e-6 + 60 * 6 * 1e-5)
    assert costs.state_s == pytest.approx(state_wire * 1e-6 + 100 * 3 * 1e-5)


@pytest.mark.parametrize(
    ("byte_s", "token_layer_s", "cheaper"),
    [(0.0, 1e-5, Carry.STATE), (1e-6, 1e-5, Carry.TEXT), (1e-9, 1e-5, Carry.STATE), (0.0, 0.0, Carry.TEXT)],
)
def test_the_cheaper_way_hangs_on_the_rate_and_the_receiver(byte_s, token_layer_s, cheaper):
    assert LOAD.costs(byte_s, token_layer_s).cheaper is cheaper


def test_text_goes_where_both_cost_the_same():
    assert Costs(0.5, 0.5).cheaper is Carry.TEXT


def test_a_receiver_s_pace_is_learned_from_its_answers(states, a_text, rows):
    states.learn("cloud", [a_text], rows(exit_layer=4, infer_ms=24.0), by_state=False)
    way = a_text.way = states.way(a_text, Link(), own_s=1.0, limit=lambda tier: None)
    pace = 24.0 / (a_text.state.tokens * 4)
    assert way.text_ms == pytest.approx(pace * a_text.state.tokens * 4, abs=1e-3)
    assert way.state_ms == pytest.approx(pace * a_text.state.tokens * 2, abs=1e-3)
    states.learn("cloud", [a_text], rows(exit_layer=2, infer_ms=1.0), by_state=True)  # none of the layers ran
    assert states.way(a_text, Link(), own_s=1.0, limit=lambda tier: None) == way


@pytest.mark.parametrize(
    ("link", "limit"),
    [
        (Link(takes_states=False), None),
        (Link(target="end"), None),  # another network
        (Link(target="edge"), None),  # no further layer
        (Link(), {"cloud": 8}),  # it reads fewer tokens
    ],
)
def test_a_text_goes_as_text_where_its_state_cannot_go(states, a_text, link, limit):
    a_text.decision = Decision(link.target, 1.0, "policy")
    assert states.way(a_text, link, own_s=1.0, limit=(limit or {}).get) is None


def test_until_a_receiver_has_answered_it_is_taken_to_be_as_fast_as_this_tier(states, a_text):
    way = states.way(a_text, Link(), own_s=0.001, limit=lambda tier: None)
    assert way.text_ms == pytest.approx(a_text.state.tokens * 4)
    assert (way.by, way.layer) == ("state", 2)
    assert states.way(a_text, Link(), own_s=None, limit=lambda tier: None).by == "text"  # nothing is known


def test_a_state_that_no_body_holds_stays_here(states, a_text):
    states._most_bytes = 3_000
    assert states.way(a_text, Link(), own_s=1.0, limit=lambda tier: None) is None
