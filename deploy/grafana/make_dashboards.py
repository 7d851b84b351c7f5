"""Write dashboards/*.json from questions.yaml, or with `--check` say whether they still fit.

questions.yaml holds what a reader of the dashboards cares about: questions, units, queries. Here is what Grafana needs
besides: where a panel stands, how it is drawn, and the choices of data source and instance that hold for every query.
Only Grafana's own panel types; Grafana 11 and later.
"""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

QUESTIONS = Path(__file__).with_name("questions.yaml")
FOLDER = Path(__file__).with_name("dashboards")
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
SHIPPED = {
    "text": "Prometheus",
    "value": "prometheus",
}  # the one that provisioning/ makes; first where there is another
STEP = "15s"  # least time between points; a rate then covers 17 s
HEIGHT, WIDTH = 8, 24  # of a panel, of the grid
CHANGES = {
    "name": "link changes",
    "datasource": SOURCE,
    "enable": True,
    "iconColor": "orange",
    "expr": 'sum by (link, kind) (increase(tierwise_link_changes_total{instance=~"$instance"}[10s]))',
    "step": "10s",  # as long as the window: every change is one mark
    "titleFormat": "{{link}} {{kind}}",
}

Json = dict[str, Any]


def _lines(stacking: str = "none", **scale: Any) -> tuple[str, Json, Json]:
    """Lines over time, alone or on top of each other; `scale` is that of the axis, if not linear."""
    options = {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }
    custom = {
        "fillOpacity": 0 if stacking == "none" else 60,
        "scaleDistribution": scale or {"type": "linear"},
        "stacking": {"group": "A", "mode": stacking},
    }
    return "timeseries", options, {"custom": custom}


BLUE = {"color": {"mode": "fixed", "fixedColor": "blue"}}
YES_NO = [{"color": "red", "value": None}, {"color": "green", "value": 1}]
LAST = {"calcs": ["lastNotNull"], "fields": "", "values": False}
BARS = {"displayMode": "basic", "orientation": "vertical", "reduceOptions": LAST, "showUnfilled": False}
TILES = {"colorMode": "background", "graphMode": "none", "reduceOptions": LAST}
HEATMAP = {
    "calculate": False,
    "color": {"mode": "scheme", "scheme": "Oranges", "exponent": 0.5, "steps": 64},
    "filterValues": {"le": 1e-9},
    "rowsFrame": {"layout": "auto"},
    "tooltip": {"mode": "single", "yHistogram": True},
    "yAxis": {"axisPlacement": "left", "unit": "s"},
}
KINDS = {  # how a panel draws its queries: Grafana's type of panel, its options, and its fields' colours and axis
    "lines": _lines(),
    "lines on a logarithmic axis": _lines(type="symlog", log=10, linearThreshold=1000),
    "stacked": _lines("normal"),
    "shares": _lines("percent"),  # stacked, as parts of their sum
    "heatmap": ("heatmap", HEATMAP, {}),  # a histogram's buckets over time
    "buckets": ("bargauge", BARS, BLUE),  # a histogram's buckets as bars
    "bars": ("bargauge", BARS, BLUE),  # one bar a series
    "names": ("stat", TILES | {"textMode": "name"}, BLUE),  # one tile a series
    "states": (
        "stat",
        TILES | {"textMode": "value_and_name"},
        {"color": {"mode": "thresholds"}, "thresholds": {"mode": "absolute", "steps": YES_NO}},
    ),
}


UNITS = {  # Grafana's word -> a reader's; a suffix says itself what it counts
    "s": "seconds",
    "short": "a number",
    "bytes": "bytes",
    "Bps": "bytes per second",
    "bps": "bits per second",
    "reqps": "requests per second",
    "percentunit": "a share of 100 %",
    "bool_yes_no": "yes or no",
}


@dataclass(frozen=True)
class Panel:
    """One entry of questions.yaml, which says what the keys mean; one that is not known is refused."""

    question: str
    about: str
    bad: str
    unit: str
    queries: dict[str, str]
    draw: str = "lines"
    width: int = 12
    each: str = ""

    @property
    def description(self) -> str:
        """What it shows, in which unit, and what to do when it is bad."""
        suffix = self.unit.removeprefix("suffix: ").replace("/s", " per second")
        return f"{self.about}\n\nUnit: {UNITS.get(self.unit, suffix)}.\n\nWhen it is bad: {self.bad}"


def of_instance(expression: str) -> str:
    """A query held to the instances that are chosen.

    >>> of_instance('sum by (tier) (rate(tierwise_words_total{tier=~"$tier"}[5m])) + up')
    'sum by (tier) (rate(tierwise_words_total{tier=~"$tier", instance=~"$instance"}[5m])) + up{instance=~"$instance"}'
    """
    chosen = 'instance=~"$instance"'
    metric = r"\b(tierwise_\w+|process_\w+|up)\b(?:\{([^}]*)\})?"
    return re.sub(metric, lambda found: f"{found[1]}{{{', '.join(filter(None, (found[2], chosen)))}}}", expression)


def targets(panel: Panel) -> list[Json]:
    """A panel's queries as Grafana reads them."""
    form = "heatmap" if panel.draw in ("heatmap", "buckets") else "time_series"
    out: list[Json] = []
    for legend, expression in panel.queries.items():
        for q in ("50", "90", "99") if "QQ" in legend else ("",):
            out.append(
                {
                    "refId": "ABC"[len(out)],
                    "datasource": SOURCE,
                    "expr": of_instance(expression).replace("QQ", q),
                    "legendFormat": legend.replace("QQ", q),
                    "format": form,
                    "range": True,
                }
            )
    return out


def panels(questions: list[Json]) -> list[Json]:
    """The panels, set row by row."""
    out: list[Json] = []
    x = y = 0
    for number, panel in enumerate((Panel(**entry) for entry in questions), start=1):
        if x + panel.width > WIDTH:
            x, y = 0, y + HEIGHT
        kind, options, look = KINDS[panel.draw]
        out.append(
            {
                "id": number,
                "type": kind,
                "title": panel.question,
                "description": panel.description,
                "datasource": SOURCE,
                "gridPos": {"x": x, "y": y, "w": panel.width, "h": HEIGHT},
                "interval": STEP,
                "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0} | look, "overrides": []},
                "options": options,
                "targets": targets(panel),
            }
        )
        if kind == "bargauge":
            out[-1]["maxDataPoints"] = 30  # only the last one is drawn, and each covers all the time shown
        if panel.each:
            out[-1] |= {"repeat": panel.each, "repeatDirection": "h", "maxPerRow": 3}
        x += panel.width
    return out


def variable(name: str, query: str) -> Json:
    """A choice at the top of a dashboard: any or all values of a label."""
    return {
        "name": name,
        "type": "query",
        "datasource": SOURCE,
        "query": {"query": query, "refId": name},
        "definition": query,
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": ["All"], "value": ["$__all"]},
    }


def choices(dashboard: Json, queries: dict[str, str]) -> list[Json]:
    """All choices of a dashboard: first where its numbers come from, last which instances."""
    source = {"name": "datasource", "type": "datasource", "query": "prometheus", "current": SHIPPED}
    return [source, *(variable(name, queries[name]) for name in (*dashboard["variables"], "instance"))]


def files() -> dict[str, str]:
    """Every file's name and text: a dashboard as Grafana reads it."""
    questions = yaml.safe_load(QUESTIONS.read_text())
    out: dict[str, str] = {}
    for dashboard in questions["dashboards"]:
        title = dashboard["title"]
        document = {
            "uid": f"tierwise-{title.lower()}",
            "title": title,
            "tags": ["tierwise"],
            "schemaVersion": 39,
            "editable": False,
            "graphTooltip": 1,
            "refresh": "5s",
            "time": {"from": "now-15m", "to": "now"},
            "links": [{"type": "dashboards", "tags": ["tierwise"], "title": "", "keepTime": True, "includeVars": True}],
            "annotations": {"list": [CHANGES] if dashboard.get("marks") == CHANGES["name"] else []},
            "templating": {"list": choices(dashboard, questions["variables"])},
            "panels": panels(dashboard["panels"]),
        }
        out[f"{title.lower()}.json"] = json.dumps(document, indent=1) + "\n"
    return out


def main() -> int:
    """Write, or compare."""
    if "--check" not in sys.argv:
        for name, text in files().items():
            (FOLDER / name).write_text(text)
    elif files() != {path.name: path.read_text() for path in FOLDER.glob("*.json")}:
        print("deploy/grafana/dashboards does not fit questions.yaml: run make_dashboards.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
