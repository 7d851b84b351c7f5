"""The page's files and headers, and the policies that a tier offers to it; `system/test_page.py` has a real browser."""

import re
import tomllib
from pathlib import Path

import pytest

from shared.policies import POLICIES, names
from shared.policies.collaborative import Tabi
from shared.web.assets import FOLDER

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted(file.name for file in FOLDER.iterdir())
TIERS = ["end", "edge", "cloud"]


@pytest.mark.parametrize("name", FILES)
def test_every_file_is_served_with_its_type_and_a_strict_policy_of_content(alone, name):
    served = alone.get("/" if name == "index.html" else f"/page/{name}")
    assert served.status_code == 200
    assert served.content == (FOLDER / name).read_bytes()
    kinds = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
    assert served.headers["content-type"].startswith(kinds[name.rpartition(".")[2]])
    rules = served.headers["content-security-policy"].split("; ")
    assert "default-src 'none'" in rules
    assert "script-src 'self'" in rules
    assert not re.search("unsafe|https?:|data:", served.headers["content-security-policy"])
    assert served.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("path", ["/page/", "/page/../assets.py", "/page/%2e%2e/assets.py", "/page/none.js"])
def test_nothing_else_is_served(alone, path):
    assert alone.get(path).status_code == 404


@pytest.mark.parametrize("name", FILES)
def test_no_file_names_another_host_and_no_script_makes_markup_of_strings(name):
    text = (FOLDER / name).read_text().replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?://|//[a-z]+\.[a-z]", text)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|localStorage", text)


def test_the_page_has_no_script_or_style_in_it():
    text = (FOLDER / "index.html").read_text()
    assert re.findall("<script[^>]*>", text) == ['<script type="module" src="page/page.js">']
    assert not re.search(r"<style|\son[a-z]+=|\sstyle=", text)


def test_a_package_holds_every_file_of_the_page():
    package_data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    held = {file.name for glob in package_data["shared.web"] for file in (ROOT / "shared" / "web").glob(glob)}
    assert held == set(FILES)


def test_info_lists_the_tiers_of_the_bundle_shallowest_first(alone):
    assert alone.get("/info").json()["tiers"] == [
        {"name": "end", "layers": 3, "max_tokens": 64},
        {"name": "edge", "layers": 2, "max_tokens": 64},
        {"name": "cloud", "layers": 4, "max_tokens": 64},
    ]


# -- the policies ---------------------------------------------------------------------------------------------------


@pytest.fixture
def offered(alone):
    return {offer["name"]: offer for offer in alone.get("/v1/policies").json()["policies"]}


def test_every_policy_but_the_oracle_is_offered(offered):
    assert list(offered) == [name for name in names(TIERS) if name != "oracle"]


def test_a_policy_that_the_bundle_cannot_run_says_why(offered):
    refused = {name for name, offer in offered.items() if offer["refused"]}
    assert refused == {"splitee", "splitee-s", "i-splitee", "early-exit"}
    assert "holds 3 of its 4 layers" in offered["early-exit"]["refused"]


def test_an_offer_with_its_values_is_what_the_name_alone_gives(alone, offered):
    for name, offer in offered.items():
        if offer["refused"] is None and not offer["learns"]:  # one that learns tells the arm that it chose
            spec = {"name": name, **{one["name"]: one["value"] for one in offer["parameters"]}}
            short, long = (alone.classify("a fine film", policy=policy).json()["policy"] for policy in (name, spec))
            assert short == long


def test_parameters_have_the_card_s_values_and_the_code_s_bounds(offered, card):
    by_name = {one["name"]: one for one in offered["collaborative"]["parameters"]}
    assert by_name.keys() == POLICIES["collaborative"].model_fields.keys()
    threshold = by_name["offload_threshold"]
    assert threshold["value"] == card["policies"]["collaborative"]["offload_threshold"]
    assert (threshold["kind"], threshold["per_tier"], threshold["minimum"], threshold["maximum"]) == (
        "number",
        True,
        0,
        1,
    )
    assert (by_name["patience"]["kind"], by_name["patience"]["maximum"]) == ("integer", 64)
    assert by_name["exit_when_unsure"]["kind"] == "boolean"
    assert by_name["curve"]["choices"] == ["sigmoid", "linear", "step"]
    arm = offered["adaee"]["parameters"][1]
    assert (arm["name"], arm["nullable"], arm["minimum"]) == ("arm", True, 0)
    assert offered["length-quantile"]["parameters"][1]["kind"] == "json"
    assert offered["edge-only"]["parameters"] == []


def test_a_parameter_that_has_one_value_only_is_not_offered(offered):
    assert "theta" not in [one["name"] for one in offered["tabi"]["parameters"]]


def test_an_offer_says_whether_the_policy_would_learn_from_an_answer(offered):
    learning = {name for name, offer in offered.items() if offer["learns"]}
    assert learning == {"adaee", "recserve", "splitee", "splitee-s", "i-splitee"}


def test_a_policy_that_raises_spoils_its_own_offer_alone(serve, monkeypatch):
    def check(self, where):
        raise RuntimeError("a bug in /home/me/policy.py")

    monkeypatch.setattr(Tabi, "check", check)
    by_name = {offer["name"]: offer for offer in serve().get("/v1/policies").json()["policies"]}
    assert by_name["tabi"]["refused"] == "policy 'tabi' failed; the log of this tier says how"
    assert by_name["collaborative"]["refused"] is None
