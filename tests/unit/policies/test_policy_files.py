"""A policy file where a policy's name would do."""

import json

import pytest

from lab.cli.config import rows
from lab.policies import parse_policy
from shared.errors import BadSetting, UnknownPolicy
from shared.policies import build, named
from shared.web.app import create_app
from shared.web.settings import Settings


def test_a_name_is_a_name_and_a_file_is_its_parameters(tmp_path):
    path = tmp_path / "fast.policy.json"
    path.write_text(json.dumps({"name": "collaborative", "theta": 0.25}))
    assert named("tabi") == "tabi"
    assert named(str(path)) == parse_policy(str(path)) == {"name": "collaborative", "theta": 0.25}
    assert build(named(str(path)), ("end", "cloud"), {"collaborative": {"patience": 3}}).model_dump()["theta"] == 0.25


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (None, "No such file"),
        ("{", "not JSON"),
        ("\udcff", "not JSON"),
        ("[]", 'expected {"name": "collaborative"'),
        ('{"theta": 0.1}', 'expected {"name": "collaborative"'),
    ],
)
def test_a_file_that_is_no_policy_is_told(tmp_path, text, complaint):
    path = tmp_path / "broken.json"
    if text is not None:
        path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(BadSetting, match=r"policy file .*broken\.json") as told:
        named(str(path))
    assert complaint in str(told.value)


def test_a_tier_answers_by_its_policy_file_and_refuses_a_wrong_one(tmp_path, tiny_bundle, monkeypatch):
    path = tmp_path / "plan.policy.json"
    path.write_text(json.dumps({"name": "collaborative", "offload_threshold": 0.125}))
    settings = {"tier": "end", "bundle": str(tiny_bundle), "links": "none"}
    app = create_app(Settings(**settings, policy=str(path)))
    assert app is not None
    monkeypatch.setenv("TIERWISE_BUNDLE", str(tiny_bundle))
    monkeypatch.setenv("TIERWISE_POLICY", str(path))
    assert str(path) in [row.value for row in rows("end")]
    path.write_text(json.dumps({"name": "collaborative", "offload_threshold": 2}))
    with pytest.raises(UnknownPolicy, match="offload_threshold"):
        create_app(Settings(**settings, policy=str(path)))
