"""The Grafana dashboards against a real Prometheus: which queries return no data."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import yaml

from shared.errors import TierwiseError
from shared.links.clients import Client

FOLDER = Path(__file__).resolve().parents[1] / "deploy" / "grafana" / "dashboards"
ALERTS = FOLDER.parents[1] / "prometheus" / "alerts.yml"
STEP_S = 5
CHOSEN = {  # what Grafana would fill in: all tiers, policies and links, the last quarter of an hour
    "tier": ".*",
    "policy": ".*",
    "link": ".*",
    "instance": ".*",
    "__rate_interval": "17s",
    "__range": "15m",
}


class NoPrometheus(TierwiseError):
    """It could not be reached, or refused a query."""


class Query(NamedTuple):
    """PromQL as Grafana would send it, and where it is from."""

    dashboard: str
    panel: str
    expression: str


def queries() -> Iterator[Query]:
    """Those of every panel, annotation and variable."""
    for name, dashboard in _dashboards().items():
        for variable in dashboard["templating"]["list"]:
            if variable["type"] == "datasource":  # the Prometheus that is asked
                continue
            _, metric, label = re.findall(r"\w+", variable["definition"])  # label_values(metric, label)
            yield Query(name, f"${variable['name']}", f'count by ({label}) ({metric}{{{label}!=""}})')
        for annotation in dashboard["annotations"]["list"]:
            yield Query(name, annotation["name"], filled(annotation["expr"]))
        for panel in dashboard["panels"]:
            for target in panel["targets"]:
                yield Query(name, panel["title"], filled(target["expr"]))


def alerts() -> Iterator[Query]:
    """What each alert asks."""
    for group in yaml.safe_load(ALERTS.read_text())["groups"]:
        for rule in group["rules"]:
            yield Query("alerts", rule["alert"], rule["expr"])


def filled(expression: str) -> str:
    """With every variable replaced.

    >>> filled('up{tier=~"$tier"}')
    'up{tier=~".*"}'
    """
    return re.sub(r"\$([a-z_]+)", lambda found: CHOSEN[found[1]], expression)


def check(prometheus_url: str, *, minutes: float = 5) -> list[str]:
    """What fails: one line for each query that is wrong, or has no number in the last `minutes`.

    Raises:
        NoPrometheus: nothing answers there.
    """
    failures = []
    with Client(prometheus_url, timeout=30) as client:
        for query in queries():
            try:
                series = query_range(client, query.expression, minutes=minutes)
            except NoPrometheus as error:
                if isinstance(error.__cause__, httpx.TransportError):
                    raise
                why = str(error)
            else:
                if any(not math.isnan(value) for _, points in series for value in points.values()):
                    continue
                why = "no series" if not series else f"{len(series)} series without a number"
            failures.append(f"{query.dashboard}: {query.panel}: {why}: {query.expression}")
    return failures


def query_range(
    client: Client, expression: str, *, minutes: float, step_s: float = STEP_S
) -> list[tuple[dict[str, str], dict[float, float]]]:
    """The series of a query: (labels, {time: value}), ordered by labels.

    Raises:
        NoPrometheus: nothing answers, or the query is wrong.
    """
    end = time.time() // step_s * step_s
    form = {"query": expression, "start": end - minutes * 60, "end": end, "step": step_s}
    try:
        answer = client.post("/api/v1/query_range", data=form).json()
    except (httpx.TransportError, ValueError) as error:
        raise NoPrometheus(f"no Prometheus answers at {client.base_url}: {error}") from error
    if answer["status"] != "success":
        raise NoPrometheus(answer["error"])
    return [(row["metric"], {t: float(value) for t, value in row["values"]}) for row in answer["data"]["result"]]


def _dashboards() -> dict[str, dict[str, Any]]:
    return {path.stem: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))}
