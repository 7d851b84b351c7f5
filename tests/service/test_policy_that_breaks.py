"""A policy is a user's code: whatever it raises costs its own request a 500, and nobody else anything."""

import asyncio
import io
import json
import sys
from pathlib import Path

import pytest
import structlog

from shared import policies
from shared.logs import configure_logs
from shared.policies.base import Decision, Policy
from shared.policies.learner import Learner


class Unprintable(Exception):
    def __str__(self):
        raise ValueError("not even this")


class Panic(BaseException):
    """As extensions in other languages raise."""


BREAKS = {
    "before": lambda *_: 1 / 0,
    "after": lambda *_: {}["a secret path"],
    "exit_rule": lambda *_: [][1],
    "signature": lambda *_: (_ for _ in ()).throw(asyncio.CancelledError),
    "may_offload_after": lambda *_: (_ for _ in ()).throw(KeyboardInterrupt),
    "speculates_at": lambda *_: 1 / 0,
    "prunes_at": lambda *_: (_ for _ in ()).throw(Panic),
    "check": lambda *_: (_ for _ in ()).throw(Unprintable),
    "bound": lambda *_: sys.exit("bye"),
    "ensemble_weighting": lambda *_: Path("/nowhere").read_text(),
    "learns": property(lambda _: 1 / 0),
}


@pytest.fixture
def broken(monkeypatch):
    """A builder: a policy that breaks in one of its methods, under a name of its own."""

    def build(method):
        class Mine(Learner if method in ("bound", "learns") else Policy):
            name = f"breaks-in-{method}"

            def initial_state(self, *_):
                return {}

            def bound(self, _):
                return self

        how = BREAKS[method]
        setattr(Mine, method, how if isinstance(how, property) else lambda self, *args: how(*args))
        monkeypatch.setitem(policies.POLICIES, Mine.name, Mine)
        return Mine.name

    return build


@pytest.fixture
def lines():
    out = io.StringIO()
    configure_logs("info", out)
    yield lambda: [json.loads(line) for line in out.getvalue().splitlines()]
    structlog.reset_defaults()


@pytest.mark.parametrize("method", BREAKS)
def test_a_policy_that_raises_is_a_problem_document_and_one_readable_log_line(serve, broken, lines, method):
    name, caller = broken(method), serve()
    response = caller.classify("a fine film", {"x-request-id": "r-500"}, policy=name)
    assert response.status_code == 500, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert (problem["type"], problem["status"]) == ("urn:tierwise:internal", 500)
    assert problem["request_id"] == response.headers["x-request-id"] == "r-500"
    assert "secret" not in response.text
    assert ".py" not in response.text
    (line,) = [line for line in lines() if line["event"] == "failed"]
    assert (line["request_id"], line["level"]) == ("r-500", "error")
    assert ":" in line["at"]
    assert line["at"].rpartition(":")[0].endswith(".py")
    assert line["error"]
    assert all("\n" not in entry for entry in line["traceback"])
    assert len(line["traceback"]) > 2
    (request,) = [line for line in lines() if line["event"] == "request"]
    assert (request["status"], request["outcome"]) == (500, "error")
    assert (
        sum(n for (metric, *labels), n in caller.samples().items() if metric.endswith("_count") and "error" in labels)
        == 1
    )
    assert caller.classify("a fine film").status_code == 200


def test_the_log_names_the_line_of_the_users_code(serve, broken, lines):
    serve().classify("a fine film", policy=broken("before"))
    (line,) = [line for line in lines() if line["event"] == "failed"]
    assert line["error"] == "ZeroDivisionError: division by zero"
    file, _, number = line["at"].rpartition(":")
    assert "1 / 0" in Path(file).read_text().splitlines()[int(number) - 1]


@pytest.mark.parametrize(
    ("said", "complaint"),
    [("edge", "`after` returned 'edge'; return a Decision or STAY"), (Decision("moon", 1.0, "policy"), "tier 'moon'")],
)
def test_a_decision_that_no_tier_can_follow_is_a_500_and_the_log_tells_the_author(
    serve, lines, monkeypatch, said, complaint
):
    class Mine(Policy):
        name = "mine"

        def after(self, *_):
            return said

    monkeypatch.setitem(policies.POLICIES, Mine.name, Mine)
    answer = serve().classify("a fine film", policy="mine")
    assert answer.status_code == 500
    assert "mine" not in answer.json()["detail"]
    (line,) = [line for line in lines() if line["event"] == "failed"]
    assert "policy mine: " in line["error"]
    assert complaint in line["error"]
    assert Path(__file__).name in line["error"]


def test_a_weighting_that_is_none_is_a_500_and_the_log_tells_the_author(serve, lines, monkeypatch):
    class Mine(Policy):
        name = "mine"

        def ensemble_weighting(self):
            return "surest"

    monkeypatch.setitem(policies.POLICIES, Mine.name, Mine)
    assert serve().classify("a fine film", policy="mine").status_code == 500
    (line,) = [line for line in lines() if line["event"] == "failed"]
    assert "policy mine: `ensemble_weighting` returned 'surest'; return one of Weighting.ACCURACY" in line["error"]


def test_a_tier_that_breaks_while_it_describes_itself_answers_with_a_problem_too(serve, lines, monkeypatch):
    caller = serve()
    monkeypatch.setattr(caller.app.state.front.states, "described", lambda: 1 / 0)
    response = caller.get("/info")
    assert (response.status_code, response.json()["type"]) == (500, "urn:tierwise:internal")
    (line,) = [line for line in lines() if line["event"] == "failed"]
    assert line["request_id"] == response.json()["request_id"]


def test_others_are_answered_while_a_policy_breaks(serve, broken):
    caller, name = serve(), broken("after")

    async def crowd():
        asked = [caller.ask("a fine film", **({"policy": name} if at % 2 else {})) for at in range(12)]
        return [answer.status_code for answer in await asyncio.gather(*asked)]

    assert asyncio.run(crowd()) == [200, 500] * 6
