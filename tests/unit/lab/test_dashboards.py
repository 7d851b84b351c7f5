"""The dashboards: made by their generator, asking for metrics that exist, every panel a question with a unit."""

import json
import re
import runpy
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest

from shared.telemetry import Telemetry
from tests.dashboards import FOLDER, NoPrometheus, alerts, check, filled, queries

GENERATOR = FOLDER.parent / "make_dashboards.py"
DASHBOARDS = {path.stem: json.loads(path.read_text()) for path in FOLDER.glob("*.json")}
PANELS = [(name, panel) for name, dashboard in DASHBOARDS.items() for panel in dashboard["panels"]]
SHAPER = {
    "tierwise_link_config_rate_bytes_per_second": {"link", "direction"},
    "tierwise_link_config_delay_seconds": {"link", "direction"},
    "tierwise_link_config_jitter_seconds": {"link", "direction"},
    "tierwise_link_config_loss_ratio": {"link", "direction"},
    "tierwise_link_rtt_seconds": {"link"},
    "tierwise_link_sent_bytes_total": {"link"},
    "tierwise_link_drops_total": {"link"},
    "tierwise_link_changes_total": {"link", "kind"},
}
TARGET = {"job", "instance", "tier"}  # prometheus.yml puts these on every series


def exported():
    """Every metric and its labels, as Prometheus stores them."""
    telemetry = Telemetry(
        tier="end", tiers=["end", "edge"], policies=["tabi"], layers=2, labels=["good"], upstreams=["edge"]
    )
    telemetry.info.labels("end", "1", "tiny", "cpu")
    out = {"up": set(TARGET)}
    for family in telemetry.registry.collect():
        for sample in family.samples:
            out.setdefault(sample.name, set(TARGET)).update(sample.labels)
    return out | {name: labels | TARGET for name, labels in SHAPER.items()}


def test_the_files_are_what_the_generator_makes():
    assert runpy.run_path(str(GENERATOR))["files"]() == {path.name: path.read_text() for path in FOLDER.glob("*.json")}


def test_check_fails_for_other_files(monkeypatch, tmp_path, capsys):
    main = runpy.run_path(str(GENERATOR))["main"]
    main.__globals__["FOLDER"] = tmp_path
    monkeypatch.setattr(sys, "argv", ["make_dashboards.py", "--check"])
    assert main() == 1
    assert "run make_dashboards.py" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["make_dashboards.py"])
    assert main() == 0
    monkeypatch.setattr(sys, "argv", ["make_dashboards.py", "--check"])
    assert main() == 0


def test_the_four_dashboards_have_names_of_their_own():
    assert set(DASHBOARDS) == {"latency", "collaboration", "links", "service"}
    assert len({dashboard["uid"] for dashboard in DASHBOARDS.values()}) == 4
    for dashboard in DASHBOARDS.values():
        ids = [panel["id"] for panel in dashboard["panels"]]
        titles = [panel["title"] for panel in dashboard["panels"]]
        assert len(set(ids)) == len(ids)
        assert len(set(titles)) == len(titles)


@pytest.mark.parametrize("panel", [panel for _, panel in PANELS], ids=[f"{name}: {p['title']}" for name, p in PANELS])
def test_a_panel_is_a_question_with_a_unit(panel):
    assert panel["title"].endswith("?")
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["type"] in {"timeseries", "heatmap", "bargauge", "stat"}
    assert all(target["expr"] and target["legendFormat"] for target in panel["targets"])
    assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24


@pytest.mark.parametrize("panel", [panel for _, panel in PANELS], ids=[f"{name}: {p['title']}" for name, p in PANELS])
def test_a_panel_says_what_it_shows_in_which_unit_and_what_to_do_when_it_is_bad(panel):
    shown, unit, bad = panel["description"].split("\n\n")
    assert shown.endswith(".")
    assert re.fullmatch(r"Unit: [a-z0-9 %]+\.", unit)
    assert bad.startswith("When it is bad: ")
    assert bad.endswith(".")


@pytest.mark.parametrize("name", DASHBOARDS)
def test_every_query_follows_the_choice_of_data_source_and_of_instance(name):
    dashboard = DASHBOARDS[name]
    first, *_, last = dashboard["templating"]["list"]
    assert (first["name"], first["type"], last["name"]) == ("datasource", "datasource", "instance")
    marks = dashboard["annotations"]["list"]
    targets = [target for panel in dashboard["panels"] for target in panel["targets"]]
    asking = [*targets, *marks, *dashboard["panels"], *dashboard["templating"]["list"][1:]]
    assert {one["datasource"]["uid"] for one in asking} == {"${datasource}"}
    for one in [*targets, *marks]:
        metrics = re.findall(r"\b(?:tierwise|process)_\w+|\bup\b", re.sub(r'"[^"]*"', "", one["expr"]))
        assert one["expr"].count('instance=~"$instance"') == len(metrics), one["expr"]


@pytest.mark.parametrize(
    ("asked", "held"),
    [
        ("up", 'up{instance=~"$instance"}'),
        ('x_up + tierwise_a{b="up"}', 'x_up + tierwise_a{b="up", instance=~"$instance"}'),
        (
            "rate(tierwise_a[5m]) / tierwise_b",
            'rate(tierwise_a{instance=~"$instance"}[5m]) / tierwise_b{instance=~"$instance"}',
        ),
    ],
)
def test_an_instance_is_asked_of_every_metric_and_of_nothing_else(asked, held):
    assert runpy.run_path(str(GENERATOR))["of_instance"](asked) == held


@pytest.mark.parametrize("query", [*queries(), *alerts()], ids=lambda query: f"{query.dashboard}: {query.panel}")
def test_every_query_asks_for_metrics_and_labels_that_exist(query):
    metrics = exported()
    words = re.sub(r'"[^"]*"', "", query.expression)  # without label values
    asked = set(re.findall(r"\b(?:tierwise_\w+|process_\w+|up\b)", words))
    assert asked
    assert asked <= metrics.keys()
    known = set.union(*(metrics[name] for name in asked))
    used = re.findall(r"(\w+)\s*(?:=~|!=|=)", words)
    used += [label for group in re.findall(r"by \(([\w, ]*)\)", words) for label in group.split(", ") if label]
    assert set(used) <= known


def test_every_legend_names_labels_that_the_query_keeps():
    for _, panel in PANELS:
        for target in panel["targets"]:
            kept = {label for group in re.findall(r"by \(([\w, ]*)\)", target["expr"]) for label in group.split(", ")}
            named = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            assert not kept or named <= kept, panel["title"]


def test_an_expression_is_filled_in():
    assert filled('rate(x{tier=~"$tier"}[$__rate_interval])') == 'rate(x{tier=~".*"}[17s])'
    assert (
        filled('label_replace(x, "layer", "0$1", "layer", "(.)")') == 'label_replace(x, "layer", "0$1", "layer", "(.)")'
    )
    assert not [query for query in queries() if re.search(r"\$[a-z_]", query.expression)]


# -- check ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def prometheus():
    """A builder: a server that gives every query this status and body; its URL."""
    servers = []

    def serve(status, body):
        class Answer(BaseHTTPRequestHandler):
            def do_POST(self):
                self.rfile.read(int(self.headers["content-length"]))
                self.send_response(status)
                self.end_headers()
                self.wfile.write(json.dumps(body).encode())

            def log_message(self, *arguments):
                pass

        servers.append(HTTPServer(("127.0.0.1", 0), Answer))
        Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


def series(*values):
    rows = [{"metric": {"tier": "end"}, "values": [[1, value]]} for value in values]
    return {"status": "success", "data": {"resultType": "matrix", "result": rows}}


@pytest.mark.parametrize(
    ("status", "body", "why"),
    [
        pytest.param(200, series(), "no series", id="nothing"),
        pytest.param(200, series("NaN", "NaN"), "2 series without a number", id="not a number"),
        pytest.param(400, {"status": "error", "error": "parse error"}, "parse error", id="wrong query"),
    ],
)
def test_check_names_every_query_without_data(prometheus, status, body, why):
    failures = check(prometheus(status, body))
    assert len(failures) == len(list(queries()))
    assert all(f": {why}: " in failure for failure in failures)
    assert failures[0].startswith("collaboration: $tier: ")


@pytest.mark.parametrize("values", [("0",), ("NaN", "1"), ("+Inf",)])
def test_a_number_is_data_even_if_it_is_zero(prometheus, values):
    assert check(prometheus(200, series(*values))) == []


def test_no_prometheus_is_said_plainly():
    with pytest.raises(NoPrometheus, match="no Prometheus answers at"):
        check("http://127.0.0.1:9")
