"""`path-gates` and `jei-dnn`: what hand-made gates decide, which profile's gates hold, and what is refused."""

import json
from dataclasses import replace

import pytest

from shared.errors import UnknownPolicy
from shared.model.ensemble import Weighting
from shared.model.gates import JeiDnn, Path
from shared.model.pruning import Pruning
from shared.policies import STAY, Clues, Decision, Link, Sight, Visit, Where, build, spec_of, travelling

TIERS = ("end", "edge", "cloud")
LAYERS = {"end": 3, "edge": 2, "cloud": 4}
ANSWER, EDGE, CLOUD = [1.0, 0, 0, 0, 0, 0, -0.9], [0, 0, 0, 0, 1.0, 0, -0.3], [-1.0, 0, 0, 0, 0, 0, 0.6]
GATES = {"end": [[ANSWER, EDGE, CLOUD]] * 3, "edge": [[ANSWER, CLOUD]] * 2, "cloud": [[ANSWER]] * 3}


class Seen(Sight):
    """A text whose exits said this, before links of these profiles."""

    def __init__(self, *positive, links=None, down=()):
        self.exits, self.profiles, self.down = tuple((1 - p, p) for p in positive), links or {}, down

    def visits(self):
        best = tuple(map(max, self.exits))
        return (Visit("end", len(best), best[-1], best, self.exits[-1], self.exits),)

    def link(self, to):
        through, profile = self.profiles.get(to, (to, "5g-nsa"))
        return Link(through, profile, 1.0, 1.0, 0.02, is_down=to in self.down)


def at(tier, *positive, **links):
    return Where(tier, TIERS[TIERS.index(tier) + 1 :], LAYERS, Seen(*positive, **links))


def made(**parameters):
    profiles = [{"links": "5g-nsa/metro", "tiers": GATES}]
    return build({"name": "path-gates", "profiles": profiles, **parameters}, TIERS, {})


def after(where):
    return made().after(where, where.visits[-1].confidence, draw=0.0)


def test_what_scores_most_is_done_wherever_the_text_left():
    assert after(at("end", 0.95)) == Decision(None, 0.0, "policy")
    assert after(at("end", 0.95, 0.45)) == Decision("edge", 1.0, "policy")  # it moved by .5
    assert after(at("end", 0.55)) == Decision("cloud", 1.0, "policy")
    assert after(at("end", 0.75, 0.75, 0.75)) == Decision(None, 0.0, "policy")  # nothing is above 0: the least below


def test_a_tier_out_of_reach_or_behind_a_broken_link_is_no_choice():
    assert after(replace(at("end", 0.55), reachable=("edge",))).to == "edge"  # it scores -.3, to answer -.35
    assert after(at("end", 0.55, down=("cloud",))).to == "edge"
    assert after(replace(at("end", 0.55), reachable=())) == Decision(None, 0.0, "no_link")
    assert after(at("end", 0.55, down=TIERS)) == Decision(None, 0.0, "policy")


def test_the_exit_rule_has_the_gates_of_what_can_be_done():
    answer, edge, cloud = map(tuple, (ANSWER, EDGE, CLOUD))
    policy = made()
    assert policy.exit_rule(at("end")) == Path(((answer, edge, cloud),) * 2)
    assert policy.exit_rule(replace(at("end"), reachable=())) == Path(((answer,),) * 2)
    assert policy.exit_rule(at("end", down=("edge",))) == Path(((answer, cloud),) * 2)
    assert policy.exit_rule(at("cloud")) == Path(((answer,),) * 3)


def test_nothing_is_drawn_or_pruned_and_the_ensemble_is_fitted():
    policy = made()
    assert policy.before(at("end"), Clues(9), 0.0) == STAY
    assert policy.may_offload_after(at("edge"))
    assert not policy.may_offload_after(at("cloud"))
    assert policy.pruning("end") == Pruning(0, unread_words=False)
    assert policy.ensemble_weighting() is Weighting.FITTED


@pytest.mark.parametrize(
    ("links", "holds"),
    [
        ({"edge": ("edge", "lte"), "cloud": ("cloud", "lte+regional")}, "lte/regional"),
        ({"edge": ("edge", "lte"), "cloud": ("edge", "lte")}, "lte/metro"),  # all that is seen; the first that fits
        ({"edge": ("edge", "lte"), "cloud": ("cloud", "3g+regional")}, "5g-nsa/metro"),  # none fits: the first
        ({"edge": ("edge", "unshaped"), "cloud": ("cloud", "unshaped")}, "5g-nsa/metro"),
    ],
)
def test_the_gates_of_the_links_are_settled_once_and_travel_alone(links, holds):
    names = ("5g-nsa/metro", "lte/metro", "lte/regional")
    policy = made(profiles=[{"links": name, "tiers": GATES} for name in names])
    settled = policy.settled(at("end", links=links))
    assert [profile["links"] for profile in spec_of(settled)["profiles"]] == [holds]
    assert build(spec_of(settled), TIERS, {"path-gates": policy.model_dump()}) == settled


CARD = {
    "path-gates": {"profiles": [{"links": "lte/metro", "tiers": GATES}, {"links": "5g-nsa/metro", "tiers": GATES}]},
    "jei-dnn": {"gates": {"cloud": [[1.0, 0, 0, 0, -0.5]] * 3}},
}
OTHERS = {
    "path-gates": {"profiles": [{"links": "5g-nsa/metro", "tiers": {**GATES, "cloud": [[EDGE]] * 3}}]},
    "jei-dnn": {"gates": {"cloud": [[2.0, 0, 0, 0, -0.5]] * 3}},
}


@pytest.mark.parametrize("name", CARD)
def test_gates_of_the_card_stay_at_the_tiers_and_a_digest_travels(name):
    policy = build({"name": name, **({"unread_words": True} if name == "path-gates" else {})}, TIERS, CARD)
    settled = policy.settled(at("end"))
    spec = travelling(settled, CARD)
    assert len(json.dumps(spec)) < 130 < len(json.dumps(spec_of(settled)))
    assert build(spec, TIERS, CARD) == settled
    assert build(json.loads(json.dumps(spec)), TIERS, json.loads(json.dumps(CARD))) == settled


def test_what_travels_names_the_links():
    links = {"edge": ("edge", "5g-nsa"), "cloud": ("cloud", "5g-nsa+metro")}
    (gates,) = travelling(build("path-gates", TIERS, CARD).settled(at("end", links=links)), CARD)["profiles"]
    assert gates.partition("@")[0] == "5g-nsa/metro"


@pytest.mark.parametrize("name", CARD)
@pytest.mark.parametrize("card", [{}, OTHERS], ids=["none", "others"])
def test_a_tier_whose_card_has_other_gates_refuses_and_says_so(name, card):
    spec = travelling(build(name, TIERS, CARD).settled(at("end")), CARD)
    with pytest.raises(
        UnknownPolicy, match=rf"'{name}': .*sent on with the gates .* this tier's card has .*all tiers one card"
    ):
        build(spec, TIERS, card)


@pytest.mark.parametrize("name", CARD)
def test_gates_that_a_request_gives_travel_whole(name):
    policy = build({"name": name, **OTHERS[name]}, TIERS, CARD)
    assert travelling(policy, CARD) == spec_of(policy)
    assert build(travelling(policy, CARD), TIERS, {}) == policy


def test_a_tier_between_that_is_asked_first_has_the_backbone_before_it():
    policy = made(profiles=[{"links": name, "tiers": GATES} for name in ("5g-nsa/metro", "lte/regional")])
    settled = policy.settled(at("edge", links={"cloud": ("cloud", "regional")}))
    assert settled.profiles[0].links == "lte/regional"
    assert policy.settled(replace(at("end"), reachable=())).profiles[0].links == "5g-nsa/metro"


@pytest.mark.parametrize(
    ("tiers", "fault"),
    [
        pytest.param({}, "end has gates at 0 exits, not at 3", id="none"),
        pytest.param({**GATES, "end": GATES["end"][:2]}, "end has gates at 2 exits, not at 3", id="an exit short"),
        pytest.param({**GATES, "cloud": GATES["cloud"] * 2}, "cloud has gates at 6 exits, not at 3", id="exits over"),
        pytest.param(
            {**GATES, "edge": [GATES["edge"][0], [ANSWER]]},
            "edge, exit 2: 1 gates, not one for each of answer, cloud",
            id="an action short",
        ),
        pytest.param({**GATES, "fog": []}, "unknown tier 'fog': this bundle has end, edge, cloud", id="another tier"),
    ],
)
def test_gates_for_other_tiers_exits_or_actions_are_refused_by_place(tiers, fault):
    made().check(at("end"))
    policy = made(profiles=[{"links": "lte/metro", "tiers": GATES}, {"links": "5g-nsa/metro", "tiers": tiers}])
    with pytest.raises(UnknownPolicy) as refused:
        policy.check(at("end"))
    assert str(refused.value) == f"policy 'path-gates', gates of 5g-nsa/metro: {fault}"


def test_links_have_gates_once():
    with pytest.raises(UnknownPolicy, match="profiles: lte/metro has gates twice"):
        made(profiles=[{"links": "lte/metro", "tiers": GATES}] * 2)


def test_what_every_action_scored_is_told_by_exit():
    where = at("end", 0.75, 0.25)  # it moved by .5
    first, second = made().scores(where)
    assert first == pytest.approx({"answer": -0.15, "edge": -0.3, "cloud": -0.15})
    assert second == pytest.approx({"answer": -0.15, "edge": 0.2, "cloud": -0.15})
    assert made().after(where, 0.75, draw=0.0).to == max(second, key=second.__getitem__)
    assert made().scores(replace(where, reachable=()))[0].keys() == {"answer"}
    assert len(made().scores(replace(at("cloud", *[0.9] * 4)))) == 3  # it has no choice at its last exit


def test_jei_dnn_tells_the_chance_to_leave_by_exit():
    policy = build({"name": "jei-dnn", "tier": "end", "gates": {"end": [[1.0, 0, 0, 0, -0.9]] * 2}}, TIERS, {})
    assert policy.scores(at("end", 0.9, 0.95, 0.99))[0] == {"answer": 0.5}
    assert len(policy.scores(at("end", 0.9, 0.95, 0.99))) == 2
    assert policy.scores(at("edge", 0.9)) == []


def test_without_a_card_there_are_none():
    with pytest.raises(UnknownPolicy, match=r"'path-gates' needs gates; `tierwise calibrate` fits them"):
        build("path-gates", TIERS, {}).check(at("end"))
    with pytest.raises(
        UnknownPolicy, match=r"jei-dnn.*cloud needs a gate for each of its exits but the last, 3 in all"
    ):
        build("jei-dnn", TIERS, {}).check(at("end"))


def path_gates(*gates):
    return {"name": "path-gates", "profiles": [{"links": "lte/metro", "tiers": {"end": [[[1.0] * 7], list(gates)]}}]}


@pytest.mark.parametrize(
    ("spec", "fault"),
    [
        (path_gates([1.0] * 6), "profiles.0.tiers.end.1.0: must have at least 7 items, not 6"),
        (path_gates([1.0] * 7, [float("nan")] * 7), "profiles.0.tiers.end.1.1.6: must be a finite number"),
        ({"name": "jei-dnn", "gates": {"cloud": [[1.0] * 4]}}, "gates.cloud.0: must have at least 5 items, not 4"),
        ({"name": "jei-dnn", "gates": {"fog": [[1.0] * 5]}}, "unknown tier 'fog': this bundle has end, edge, cloud"),
    ],
)
def test_gates_of_another_size_or_tier_are_refused_by_place(spec, fault):
    with pytest.raises(UnknownPolicy, match=fault):
        build(spec, TIERS, {})


def test_jei_dnn_has_one_tier_answer_by_its_gates():
    gates = {"cloud": [[1.0, 0, 0, 0, -0.5]] * 3, "end": [[2.0, 0, 0, 0, -0.5]] * 2}
    policy = build({"name": "jei-dnn", "gates": gates}, TIERS, {})
    policy.check(at("end"))
    assert policy.before(at("end"), Clues(9), 0.5) == Decision("cloud", 1.0, "policy", final=True)
    assert policy.exit_rule(at("cloud")) == JeiDnn(((1.0, 0, 0, 0, -0.5),) * 3)
    assert policy.exit_rule(at("edge")) is None  # all layers, where its upstream fails
    own = build({"name": "jei-dnn", "gates": gates, "tier": "end"}, TIERS, {})
    own.check(at("end"))
    assert own.before(at("end"), Clues(9), 0.5) == STAY
    with pytest.raises(UnknownPolicy, match="edge needs a gate"):
        build({"name": "jei-dnn", "gates": gates, "tier": "edge"}, TIERS, {}).check(at("end"))
