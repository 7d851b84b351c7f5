"""The alerts: what each fires at, by `promtool`; metrics that exist; a line for a person, and what to do about it.

`alerts.yaml` holds the cases. `promtool` comes with Prometheus (Debian's `prometheus`, or a release's archive).
"""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from shared.telemetry import REJECTIONS
from tests.dashboards import ALERTS

ROOT = Path(__file__).resolve().parents[3]
CASES = Path(__file__).with_name("alerts.yaml")
RULES = [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]
NAMES = [rule["alert"] for rule in RULES]


@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool is not on the PATH")
def test_every_alert_fires_where_it_must_and_at_no_other_time():
    done = subprocess.run(["promtool", "test", "rules", CASES], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_a_case_that_fires_and_one_that_does_not():
    cases = [case for test in yaml.safe_load(CASES.read_text())["tests"] for case in test["alert_rule_test"]]
    for fires in (True, False):
        assert {case["alertname"] for case in cases if bool(case["exp_alerts"]) is fires} == set(NAMES)


@pytest.mark.parametrize("rule", RULES, ids=NAMES)
def test_an_alert_says_what_is_wrong_and_which_section_says_what_to_do(rule):
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert rule["annotations"].keys() == {"summary", "runbook"}
    page, _, anchor = rule["annotations"]["runbook"].partition("#")
    headings = re.findall(r"^#+ (.*)$", (ROOT / page).read_text(), re.MULTILINE)
    assert anchor == rule["alert"].lower()
    assert rule["alert"] in headings


def test_an_alert_names_reasons_that_a_request_can_be_refused_for():
    named = re.findall(r'reason=~?"([\w|]+)"', ALERTS.read_text())
    assert named
    assert {reason for group in named for reason in group.split("|")} <= set(REJECTIONS)


def test_the_configuration_that_is_shipped_loads_the_alerts():
    config = yaml.safe_load(ALERTS.with_name("prometheus.yml").read_text())
    assert config["rule_files"] == [ALERTS.name]
