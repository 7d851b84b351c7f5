"""The Grafana dashboards against a real Prometheus: which queries return no data; and a figure of the same data.

python -m services.lab.dashboards [URL] [--figure FILE]        exit status 1 if a query returns nothing
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import httpx
import typer

from services.lab.arguments import address
from shared.errors import TierwiseError
from shared.http import Client

FOLDER = Path(__file__).resolve().parents[2] / "deploy" / "grafana" / "dashboards"
STEP_S = 5
CHOSEN = {  # what Grafana would fill in: all tiers, policies and links, the last quarter of an hour
    "tier": ".*",
    "policy": ".*",
    "link": ".*",
    "__rate_interval": "17s",
    "__range": "15m",
}


Series = list[tuple[str, dict[float, float]]]  # (legend, {time: value})


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
            _, metric, label = re.findall(r"\w+", variable["definition"])  # label_values(metric, label)
            yield Query(name, f"${variable['name']}", f'count by ({label}) ({metric}{{{label}!=""}})')
        for annotation in dashboard["annotations"]["list"]:
            yield Query(name, annotation["name"], filled(annotation["expr"]))
        for panel in dashboard["panels"]:
            for target in panel["targets"]:
                yield Query(name, panel["title"], filled(target["expr"]))


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


def figure(prometheus_url: str, path: Path, *, minutes: float = 15) -> None:
    """Draw the Latency dashboard's first four panels from the same queries, without Grafana.

    Raises:
        NoPrometheus: nothing answers there.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    panels = _dashboards()["latency"]["panels"][:4]
    drawing, axes = plt.subplots(2, 2, figsize=(13, 7.5), layout="constrained", sharex=True)
    with Client(prometheus_url, timeout=30) as client:
        for axis, panel in zip(axes.flat, panels, strict=True):
            found = [
                (_legend(target["legendFormat"], labels), points)
                for target in panel["targets"]
                for labels, points in query_range(client, filled(target["expr"]), minutes=minutes)
            ]
            axis.set_title(panel["title"], loc="left", fontsize=11)
            draw = _heatmap if panel["type"] == "heatmap" else _lines
            draw(axis, found, time.time(), panel)
    for axis in axes[1]:
        axis.set_xlabel("minutes ago")
    drawing.suptitle("Latency dashboard: the panels' own queries, drawn from Prometheus' data", x=0.01, ha="left")
    drawing.savefig(path, dpi=110)
    plt.close(drawing)


def _lines(axis: Any, found: Series, now: float, panel: Mapping[str, Any]) -> None:
    """Lines, or areas on top of each other; what never reaches a hundredth of the largest is left out."""
    peaks = {name: max((v for v in points.values() if math.isfinite(v)), default=0) for name, points in found}
    least = max(peaks.values(), default=0) / 100
    shown = [(name, points) for name, points in found if peaks[name] > least]
    times = sorted({t for _, points in shown for t in points})
    minutes = [(t - now) / 60 for t in times]
    rows = [[points.get(t, math.nan) for t in times] for _, points in shown]
    names = [name for name, _ in shown]
    if panel["fieldConfig"]["defaults"]["custom"]["stacking"]["mode"] == "none":
        for name, row in zip(names, rows, strict=True):
            axis.plot(minutes, row, label=name, linewidth=1.2)
    else:
        colours = [f"C{i}" for i in range(10)] if len(rows) <= 10 else _many(len(rows))
        axis.stackplot(
            minutes, [[0 if math.isnan(v) else v for v in row] for row in rows], labels=names, colors=colours
        )
    unit = panel["fieldConfig"]["defaults"]["unit"]
    axis.set_ylabel({"s": "seconds", "percentunit": "share"}.get(unit, unit))
    axis.set_ylim(bottom=0, top=1 if unit == "percentunit" else None)
    axis.legend(fontsize=8, loc="lower left" if unit == "percentunit" else "upper left", ncols=3)


def _many(count: int) -> list[Any]:
    from matplotlib import colormaps

    return [colormaps["tab20"](i % 20) for i in range(count)]


def _heatmap(axis: Any, found: Series, now: float, panel: Mapping[str, Any]) -> None:
    """How many fell into each bucket; Prometheus' buckets are cumulative."""
    buckets = sorted((float(bound), points) for bound, points in found if bound != "+Inf")
    times = sorted({t for _, points in buckets for t in points})
    if not times:
        return
    bounds = [bound for bound, _ in buckets]
    upto = [[points.get(t, 0) for t in times] for _, points in buckets]
    below = [[0.0] * len(times), *upto[:-1]]
    cells = [[b - a for a, b in zip(*rows, strict=True)] for rows in zip(below, upto, strict=True)]
    minutes = [(t - now) / 60 for t in [*times, times[-1] + STEP_S]]
    edges = [bounds[0] ** 2 / bounds[1], *bounds]
    axis.pcolormesh(minutes, edges, cells, cmap="Oranges")
    hit = [row for row, cell in enumerate(cells) if any(value > 0 for value in cell)]
    axis.set_yscale("log")
    if hit:
        axis.set_ylim(edges[hit[0]] / 2, edges[hit[-1] + 1] * 2)
    axis.set_ylabel(panel["options"]["yAxis"]["unit"].replace("s", "seconds"))


def _legend(template: str, labels: Mapping[str, str]) -> str:
    return re.sub(r"\{\{(\w+)\}\}", lambda found: labels.get(found[1], ""), template)


def _dashboards() -> dict[str, dict[str, Any]]:
    return {path.stem: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))}


def main(
    url: Annotated[
        str, typer.Argument(help="A Prometheus that reads running, loaded tiers.", callback=address)
    ] = "http://127.0.0.1:9090",
    draw: Annotated[Path | None, typer.Option("--figure", help="Also draw the Latency dashboard here.")] = None,
) -> None:
    """Run every query of every dashboard and say which return no data."""
    failures = check(url)
    for failure in failures:
        print(failure)
    print(f"{len(list(queries()))} queries, {len(failures)} without data")
    if draw:
        figure(url, draw)
    raise SystemExit(bool(failures))


if __name__ == "__main__":
    typer.run(main)
