"""A mistake in a policy is told by the policy's name, its file and what to do."""

import pytest
from pydantic import field_validator

from shared.errors import BadDecision
from shared.policies import POLICIES, STAY, Decision, Policy, Where
from shared.policies.mistakes import decision, strangers

END = Where("end", ("edge", "cloud"), {"end": 3, "edge": 6, "cloud": 12})
CLOUD = Where("cloud", (), END.layers)


class Says(Policy):
    name = "says"
    said: object = None

    def before(self, where, clues, draw):
        return self.said

    def after(self, where, confidence, draw):
        return self.said


@pytest.mark.parametrize("method", ["before", "after"])
@pytest.mark.parametrize("said", ["edge", None, ("edge", 1.0), Decision])
def test_what_is_no_decision_is_told_with_what_to_return(method, said):
    with pytest.raises(BadDecision) as told:
        decision(Says(said=said), method, END, 0.5, 0.5)
    expected = f"policy says: `{method}` returned {said!r}; return a Decision or STAY (test_policy_mistakes.py)"
    assert str(told.value) == expected


@pytest.mark.parametrize(
    ("where", "to", "there"), [(END, "moon", "edge, cloud"), (END, "end", "edge, cloud"), (CLOUD, "edge", "none")]
)
def test_a_tier_that_cannot_be_reached_is_told_with_those_that_can(where, to, there):
    with pytest.raises(BadDecision) as told:
        decision(Says(said=Decision(to, 1.0, "policy")), "after", where, 0.5, 0.5)
    said = f"policy says: `after`, at {where.tier}: tier {to!r} is not in `where.reachable`: {there}"
    assert str(told.value) == f"{said} (test_policy_mistakes.py)"


@pytest.mark.parametrize("said", [STAY, Decision("cloud", 0.5, "policy", final=True)])
def test_a_decision_that_can_be_followed_is_the_policys_own(said):
    assert decision(Says(said=said), "before", END, None, 0.5) is said


class Strange(Policy):
    name = "strange"
    beta: float = 0.5

    def learn(self, *_): ...

    def _helper(self): ...

    def after(self, where, confidence, draw):
        return STAY

    @property
    def halved(self):
        return self.beta / 2

    @field_validator("beta")
    @classmethod
    def small(cls, beta):
        return beta


def test_public_methods_that_nobody_calls_are_told():
    learn, halved = strangers(Strange)
    assert learn.startswith(
        "policy strange: Tierwise never calls `learn` (it is a method of Learner: derive from that)"
    )
    assert halved == "policy strange: Tierwise never calls `halved`; begin the name of a helper with _"


def test_the_policies_that_come_with_tierwise_define_what_policies_have():
    assert not [told for policy in POLICIES.values() for told in strangers(policy) if "did you mean" in told]
