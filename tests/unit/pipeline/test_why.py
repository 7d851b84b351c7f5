"""Why an answer ended where it did: every sentence can occur, each for its own reason."""

import pytest

from shared.contracts import Hop, Why
from shared.pipeline.why import why
from shared.policies import Where, build

LAYERS = {"end": 3, "edge": 6, "cloud": 12}
TIERS = tuple(LAYERS)
COLLABORATIVE = {"name": "collaborative", "offload_threshold": {"end": 0.8, "edge": 0.6}}


def hop(tier, confidence, probability=0.0, to=None, draw=0.5):
    return Hop(
        tier=tier,
        card="tiny@0",
        exit_layer=2,
        layers=LAYERS[tier],
        label="positive",
        probabilities={"negative": round(1 - confidence, 6), "positive": confidence},
        confidence=confidence,
        offload_probability=probability,
        draw=draw,
        offloaded_to=to,
        words_in=3,
        truncated=False,
        timings_ms={"total": 1.0},
    )


UNSURE, DRAWN = hop("end", 0.7, 1.0, "edge"), hop("end", 0.9, 0.5, "edge", draw=0.4)
UNSURE_EDGE, SURE_EDGE = hop("edge", 0.5, 1.0, "cloud"), hop("edge", 0.9, 0.2)
CASES = [
    pytest.param([hop("end", 0.95, 0.1)], {}, Why.SURE, id="its draw kept it"),
    pytest.param([hop("end", 1.0)], {}, Why.SURE, id="no chance of going on"),
    pytest.param([hop("end", 0.5)], {"reachable": ()}, Why.DEEPEST, id="no link, or max_tier is here"),
    pytest.param([hop("cloud", 0.5)], {"tier": "cloud", "reachable": ()}, Why.DEEPEST, id="the last tier was asked"),
    pytest.param([hop("end", 0.5)], {"policy": "end-only"}, Why.POLICY, id="the policy sends nothing on"),
    pytest.param([hop("end", 0.5, 0.667)], {"policy": "random"}, Why.POLICY, id="a chance before any layer"),
    pytest.param([hop("edge", 0.5)], {"policy": "edge-only"}, Why.POLICY, id="sent before any layer"),
    pytest.param([UNSURE, SURE_EDGE], {}, Why.UNSURE_NEXT, id="sent below the threshold"),
    pytest.param([UNSURE, hop("edge", 1.0)], {}, Why.UNSURE_NEXT, id="and quite sure there"),
    pytest.param([UNSURE, UNSURE_EDGE, hop("cloud", 0.6)], {}, Why.UNSURE_DEEPEST, id="to the last tier"),
    pytest.param([UNSURE, hop("edge", 0.5)], {}, Why.UNSURE_NEXT, id="the edge has no link"),
    pytest.param([UNSURE, hop("edge", 0.5)], {"reachable": ("edge",)}, Why.UNSURE_DEEPEST, id="max_tier is the edge"),
    pytest.param(
        [UNSURE, hop("edge", 0.5)],
        {"policy": {**COLLABORATIVE, "offload_threshold": {"end": 0.8}}},
        Why.UNSURE_DEEPEST,
        id="the policy sends nothing on from the edge",
    ),
    pytest.param(
        [hop("end", 0.1, 1.0, "cloud"), hop("cloud", 0.5)],
        {"policy": {"name": "adaee", "arm": 0.6}, "final": True},
        Why.UNSURE_DEEPEST,
        id="a bandit sends to the last tier",
    ),
    pytest.param([UNSURE, hop("cloud", 0.9, 0.4)], {}, Why.UNSURE_DEEPEST, id="a chance on the deepest tier"),
    pytest.param(
        [hop("edge", 0.5, 1.0, "cloud"), hop("cloud", 0.9)], {}, Why.UNSURE_DEEPEST, id="the edge read it first"
    ),
    pytest.param([DRAWN, SURE_EDGE], {}, Why.DRAWN_NEXT, id="sent by its draw"),
    pytest.param([DRAWN, UNSURE_EDGE, hop("cloud", 0.9)], {}, Why.UNSURE_DEEPEST, id="the last two hops count"),
    pytest.param([UNSURE, hop("edge", 0.7, 0.3, "cloud"), hop("cloud", 0.9)], {}, Why.DRAWN_DEEPEST, id="drawn there"),
    pytest.param([hop("end", 0.5)], {"policy": "network-aware"}, Why.NOT_WORTH, id="the link kept it"),
    pytest.param([hop("end", 0.5)], {"policy": "network-aware", "reachable": ()}, Why.DEEPEST, id="with no link"),
    pytest.param([hop("end", 0.7)], {"policy": "path-gates"}, Why.GATED, id="its gates kept it"),
    pytest.param([UNSURE, hop("edge", 0.5)], {"policy": "path-gates"}, Why.GATED_NEXT, id="a gate sent it"),
    pytest.param([UNSURE, hop("cloud", 0.5)], {"policy": "path-gates"}, Why.GATED_DEEPEST, id="a gate sent it deepest"),
    pytest.param([UNSURE], {"degraded": "upstream_timeout"}, Why.FAILED, id="the edge failed"),
    pytest.param([UNSURE, UNSURE_EDGE], {"degraded": "breaker_open"}, Why.FAILED, id="the cloud failed"),
    pytest.param([hop("end", 0.5)], {"degraded": "deadline"}, Why.DEADLINE, id="cut here"),
    pytest.param([UNSURE], {"degraded": "deadline"}, Why.DEADLINE, id="no time to ask"),
]


@pytest.mark.parametrize(("hops", "given", "expected"), CASES)
def test_the_sentence_is_the_reason(hops, given, expected):
    policy = build(given.get("policy", COLLABORATIVE), TIERS, {})
    where = Where(given.get("tier", "end"), given.get("reachable", ("edge", "cloud")), LAYERS)
    assert why(hops, given.get("degraded"), policy, where, final=given.get("final", False)) is expected


def test_every_sentence_can_occur():
    assert {case.values[2] for case in CASES} == set(Why)
