"""Text or state: the estimates by hand, and what they hang on."""

import pytest

from shared.links.profile import FRAME, HTTP
from shared.pipeline.carry import Carry, Costs, Load

LOAD = Load(1_000, 1_200, 98_000, sent_tokens=60, tokens=100, done=3, layers=6)


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
