"""Policies of one's own: files of a folder, packages' entry points, and what becomes of those that are broken."""

import asyncio
import json
import logging
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from shared.errors import BadSetting, UnknownPolicy
from shared.policies import Clues, Outcome, Visit, Where, build, load, names, own, registry, reload, spec_of
from shared.policies.states import States
from shared.web.app import create_app
from shared.web.reload import load_policy
from shared.web.settings import Settings

ROOT = Path(__file__).resolve().parents[3]
TIERS = ("end", "edge", "cloud")
LAYERS = {"end": 3, "edge": 6, "cloud": 12}
END = Where("end", ("edge", "cloud"), LAYERS)
POLICY = "from shared.policies.base import Policy\nclass {}(Policy):\n    name = {!r}\n"
GOOD = POLICY.format("Good", "good")


@pytest.fixture(autouse=True)
def _as_before(monkeypatch):
    """The registry is a process's; every test leaves it as it was."""
    kept = [
        (known, dict(known))
        for known in (registry.POLICIES, registry.BROKEN, registry._meant, registry._files, registry._versions)
    ]
    monkeypatch.setattr(registry, "_folder", None)
    yield
    for known, before in kept:
        known.clear()
        known.update(before)


def made(spec):
    return build(spec, TIERS, {})


def refusal(spec):
    with pytest.raises(UnknownPolicy) as told:
        made(spec)
    return str(told.value)


def served(bundle, folder, body, path="/v1/classify", **settings):
    app = create_app(Settings(tier="end", bundle=str(bundle), policy_dir=folder, **settings))

    async def ask():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://end") as client:
            return await (client.post(path, json=body) if body else client.get(path))

    try:
        return asyncio.run(ask())
    finally:
        app.state.tier.worker.close()


# -- the manual's example ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pasted():
    page = (ROOT / "docs" / "write-a-policy.md").read_text()
    return re.findall(r"```python\n(.*?)```", page, re.DOTALL)


def test_the_pasted_policies_work_as_they_stand(pasted, tmp_path, tiny_bundle):
    assert len(pasted) == 2
    for example in pasted:
        (tmp_path / "least_sure.py").write_text(example)
        asked = {"inputs": "a fine film", "options": {"policy": "least-sure"}}
        answer = served(tiny_bundle, tmp_path, asked)
        assert answer.status_code == 200, answer.text
        assert answer.json()["results"][0]["tier"] == "end"


def test_the_pasted_policy_is_recserve(pasted, tmp_path):
    (tmp_path / "least_sure.py").write_text(pasted[1])
    load(tmp_path)
    pick = random.Random(0)
    for beta in (0.0, 0.1, 0.3, 1.0):
        policies = made({"name": "least-sure", "beta": beta}), made({"name": "recserve", "beta": beta})
        states = [policy.initial_state(END, None) for policy in policies]
        for _ in range(60):
            ways = [round(pick.random(), 2) for _ in range(pick.randint(1, 3))]
            text = Outcome(Clues(3), tuple(Visit(t, 1, c, (c,)) for t, c in zip(TIERS, ways, strict=False)))
            bound = [policy.bound(state) for policy, state in zip(policies, states, strict=True)]
            assert len({policy.after(END, ways[0], 0.5) for policy in bound}) == 1
            states = [p.learn(s, b, text) for p, s, b in zip(policies, states, bound, strict=True)]
            assert states[0] == states[1]


# -- files that cannot be used -----------------------------------------------------------------------------------------

BROKEN = {
    "syntax error": ("class Mine(Policy:\n    pass\n", "mine.py, line 1"),
    "missing package": ("\nimport a_package_that_nobody_has\n", "mine.py, line 2"),
    "raises": (POLICY.format("Mine", "mine") + "raise RuntimeError('half way')\n", "mine.py, line 4"),
    "exits": ("import sys\nsys.exit(3)\n", "mine.py, line 2"),
    "a name that is no text": (POLICY.format("Mine", ["mine"]), "must be 1 to 64"),
    "a name that nobody can ask for": (POLICY.format("Mine", "my policy"), "must be 1 to 64"),
    "a name that is taken": (POLICY.format("Mine", "tabi"), "'tabi' is taken"),
    "a name that another file has": (POLICY.format("Mine", "good"), "'good' is taken"),
    "a tier's policy": (POLICY.format("Mine", "cloud-only"), "'cloud-only' is taken"),
    "a bad field": (POLICY.format("Mine", "mine") + "    x: 'nothing' = 1 / 0\n", "mine.py, line 4"),
    "a reserved field": (POLICY.format("Mine", "mine") + "    sha256: str = ''\n", "sha256"),
    "no policy": ("x = 1\n", "no class in it derives from Policy"),
    "a byte that is no text": ("\x00\n", "null bytes"),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_file_that_cannot_be_used_harms_no_other_and_is_said_once(tmp_path, caplog, how):
    source, complaint = BROKEN[how]
    (tmp_path / "mine.py").write_text(source)
    (tmp_path / "good.py").write_text(GOOD)
    with caplog.at_level(logging.WARNING):
        load(tmp_path)
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("policy file mine.py is left out: ")
    assert complaint in line
    assert "\n" not in line
    assert [made(name).name for name in ("tabi", "good")] == ["tabi", "good"]
    assert "mine" not in names(TIERS)
    assert len(set(names(TIERS))) == len(names(TIERS))
    assert "mine.py cannot be used: " in refusal("mine")
    assert complaint in refusal("mine")


def test_who_asks_for_a_broken_policy_is_told_and_others_are_answered(tmp_path, tiny_bundle):
    (tmp_path / "mine.py").write_text(BROKEN["raises"][0])
    refused = served(tiny_bundle, tmp_path, {"inputs": "a film", "options": {"policy": "mine"}})
    assert (refused.status_code, refused.headers["content-type"]) == (422, "application/problem+json")
    assert "RuntimeError: half way (mine.py, line 4)" in refused.json()["detail"]
    assert str(tmp_path) not in refused.text
    assert served(tiny_bundle, tmp_path, {"inputs": "a film"}).status_code == 200
    with pytest.raises(UnknownPolicy, match="half way"):
        create_app(Settings(tier="end", bundle=str(tiny_bundle), policy_dir=tmp_path, policy="mine"))


def test_of_many_broken_files_the_one_that_is_asked_for_is_told_first(tmp_path, tiny_bundle):
    raises = POLICY + "raise RuntimeError('{}, which is a rather long reason " + "and so on " * 12 + "')\n"
    for at in range(5):
        (tmp_path / f"a_broken_{at}.py").write_text(raises.format("Mine", f"other-{at}", f"broken {at}"))
    (tmp_path / "z_last.py").write_text(raises.format("Mine", "mine", "mine"))
    for asked, file, reason in (
        ("mine", "z_last.py", "mine"),
        ("a-broken-3", "a_broken_3.py", "broken 3"),
        ("other-3", "a_broken_3.py", "broken 3"),
    ):
        refused = served(tiny_bundle, tmp_path, {"inputs": "a film", "options": {"policy": asked}}).json()["detail"]
        assert refused.startswith(f"unknown policy '{asked}': {file} cannot be used: RuntimeError: {reason}, which")
        assert f"({file}, line 4); " in refused
        assert "cannot be used either (see the log)" in refused
    assert "a_broken_0.py, a_broken_1.py, a_broken_2.py, ... cannot be used (see the log); choose" in refusal("nobody")


def test_a_broken_file_is_not_told_to_who_probably_meant_another_policy(tmp_path):
    (tmp_path / "mine.py").write_text(BROKEN["raises"][0])
    load(tmp_path)
    assert refusal("tabbi").startswith("unknown policy 'tabbi' (did you mean tabi?): choose one of ")
    assert refusal("nobody").startswith("unknown policy 'nobody': mine.py cannot be used: RuntimeError: half way (")
    (tmp_path / "tabbi.py").write_text(BROKEN["raises"][0])
    load(tmp_path)
    assert "(did you mean tabi?): tabbi.py cannot be used: RuntimeError" in refusal("tabbi")
    assert "mine.py" not in refusal("tabbi")


def test_a_folder_that_is_not_there_stops_the_start(tmp_path, tiny_bundle):
    with pytest.raises(BadSetting, match=r"TIERWISE_POLICY_DIR=.*nowhere: no such folder"):
        create_app(Settings(tier="end", bundle=str(tiny_bundle), policy_dir=tmp_path / "nowhere"))


@pytest.mark.parametrize(("command", "loads"), [("classify", False), ("bench", True)])
def test_a_broken_file_keeps_no_command_from_running_and_is_told_where_policies_decide(tmp_path, command, loads):
    (tmp_path / "mine.py").write_text(BROKEN["raises"][0])
    env = {**os.environ, "PYTHONPATH": str(ROOT), "TIERWISE_POLICY_DIR": str(tmp_path)}
    (tmp_path / "films.csv").write_text("text,label\na fine film,1\na bad film,0\n")
    asked = ["a film"] if command == "classify" else ["--data", "films.csv", "--split", "all"]
    words = [sys.executable, "-m", "lab.cli.main", command, *asked, "--url", "http://127.0.0.1:1"]
    client = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, env=env)
    assert "http://127.0.0.1:1" in client.stdout + client.stderr  # it went as far as asking
    assert ("mine.py, line 4" in client.stderr) is loads
    assert "Traceback" not in client.stderr


def test_files_that_begin_with_an_underscore_are_not_policies(tmp_path):
    (tmp_path / "_notes.py").write_text("raise RuntimeError")
    load(tmp_path)
    assert own() == {}
    assert registry.BROKEN == {}


# -- versions ----------------------------------------------------------------------------------------------------------


def write(folder, words):
    text = f"from shared.policies import Policy\nclass Mine(Policy):\n    name = 'mine'\n    words: int = {words}\n"
    (folder / "mine.py").write_text(text)


def test_a_files_version_travels_and_another_one_is_refused(tmp_path):
    write(tmp_path, 1)
    load(tmp_path)
    spec = spec_of(made({"name": "mine", "words": 7}))
    assert spec == {"name": "mine", "sha256": own()["mine"], "words": 7}
    assert made(spec).words == 7
    assert "sha256" not in spec_of(made("tabi"))
    said = refusal({**spec, "sha256": "0123456789ab"})
    assert "asked for with sha256 '0123456789ab'" in said
    assert f"this tier has {own()['mine']}" in said
    assert "none of a file" in refusal({"name": "tabi", "sha256": "0123456789ab"})


def test_a_reload_takes_effect_at_once_and_serves_the_former_version_to_who_asks_for_it(tmp_path):
    write(tmp_path, 1)
    load(tmp_path)
    former = spec_of(made("mine"))
    del former["words"]
    write(tmp_path, 2)
    (tmp_path / "good.py").write_text(GOOD)
    assert made("mine").words == 1  # nothing changes by itself
    reload()
    assert made("mine").words == 2
    assert made("good").name == "good"
    assert made(former).words == 1
    (tmp_path / "mine.py").unlink()
    reload()
    assert "mine" not in names(TIERS)
    assert "unknown policy" in refusal("mine")
    assert made(former).words == 1  # a tier that has not read its folder yet may still ask for it


@pytest.mark.parametrize(
    "code",
    ["class Panic(BaseException): pass\nraise Panic('now')", "raise KeyboardInterrupt", "raise GeneratorExit"],
)
def test_a_file_that_raises_anything_at_all_breaks_nothing_but_itself(tmp_path, caplog, code):
    (tmp_path / "good.py").write_text(GOOD)
    (tmp_path / "worst.py").write_text(code)
    load(tmp_path)
    assert made("good").name == "good"
    assert "worst.py is left out" in caplog.text


@pytest.mark.parametrize(
    "parameter", ["cuts: tuple[float, ...] = (0.9, 0.8)", "limit: float = float('inf')", "mode: Mode = Mode.FAST"]
)
def test_a_parameter_that_does_not_travel_as_json_is_told_when_the_file_is_loaded(tmp_path, caplog, parameter):
    (tmp_path / "odd.py").write_text(
        "from enum import Enum\nfrom shared.policies import Policy\n"
        "class Mode(Enum):\n    FAST = 'fast'\n"
        f"class Odd(Policy):\n    name = 'odd'\n    {parameter}\n"
    )
    load(tmp_path)
    assert f"{parameter.partition(':')[0]} does not travel as JSON" in caplog.text


def test_a_file_that_broke_keeps_its_last_version_and_says_so(tmp_path, caplog):
    write(tmp_path, 1)
    load(tmp_path)
    before = own()
    (tmp_path / "mine.py").write_text("class Mine(\n")
    (tmp_path / "good.py").write_text(GOOD)
    reload()
    assert "policy file mine.py keeps its last version: SyntaxError" in caplog.text
    assert made("mine").words == 1
    assert own()["mine"] == before["mine"]
    assert made("good").name == "good"
    write(tmp_path, 3)
    reload()
    assert made("mine").words == 3
    assert registry.BROKEN == {}


def test_a_folder_that_went_away_changes_nothing(tmp_path):
    folder = tmp_path / "policies"
    folder.mkdir()
    write(folder, 1)
    load(folder)
    (folder / "mine.py").unlink()
    folder.rmdir()
    with pytest.raises(BadSetting, match="no such folder"):
        reload()
    assert made("mine").words == 1


def test_the_default_policy_follows_a_reload_and_stays_where_it_cannot(tmp_path, tiny_bundle):
    write(tmp_path, 1)
    app = create_app(Settings(tier="end", bundle=str(tiny_bundle), policy_dir=tmp_path, policy="mine"))
    front = app.state.front
    try:
        write(tmp_path, 2)
        assert load_policy(front, "mine")
        assert front.default_policy.words == 2
        (tmp_path / "mine.py").unlink()
        assert not load_policy(front, "mine")
        assert front.default_policy.words == 2
    finally:
        app.state.tier.worker.close()


def test_info_names_own_policies_and_their_versions(tmp_path, tiny_bundle):
    write(tmp_path, 1)
    assert served(tiny_bundle, tmp_path, None, "/info").json()["own_policies"] == own()


LEARNS = """
from shared.policies import Learner
class Mine(Learner):
    name = "mine"
    def initial_state(self, where, pools):
        return {"n": 0}
    def bound(self, state):
        return self
    def learn(self, state, bound, outcome):
        return {"n": state["n"] + 1}
"""


def test_what_another_version_of_a_file_learned_is_left_out_and_stops_no_start(tmp_path):
    folder, path = tmp_path / "policies", tmp_path / "end.json"
    folder.mkdir()
    (folder / "mine.py").write_text(LEARNS)
    load(folder)
    state = json.dumps({json.dumps(spec_of(made("mine")), sort_keys=True): {"n": 5}})
    path.write_text(state)

    def states():
        return States(path, made, lambda policy: policy.initial_state(END, None))

    store = states()
    assert store.of(made("mine")) == {"n": 5}
    (folder / "mine.py").write_text(LEARNS + "# changed\n")
    reload()
    assert store.of(made("mine")) == {"n": 0}
    registry._versions.clear()  # as after a restart
    assert store.described() == []
    path.write_text(state)
    assert states().of(made("mine")) == {"n": 0}


# -- packages ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["their_policies", "their_policies:Good"])
def test_an_installed_package_brings_policies(tmp_path, value):
    (tmp_path / "their_policies.py").write_text(GOOD)
    info = tmp_path / "theirs-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    points = f"[tierwise.policies]\ntheirs = {value}\nbroken = nobody_has_this\n"
    (info / "entry_points.txt").write_text(points)
    code = "from shared.policies import build, own; print(build('good', ('end',), {}).name, own())"
    env = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"good \{'good': '[0-9a-f]{12}'\}\n", done.stdout)
    assert "policy file broken is left out: ModuleNotFoundError" in done.stderr
