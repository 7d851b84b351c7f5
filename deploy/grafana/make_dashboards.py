"""Write dashboards/*.json from the tables below, or with `--check` say whether they still fit.

A panel is a question, its unit, and the queries that answer it. Only Grafana's own panel types; Grafana 11 and later.
What Grafana fills in: `$tier`, `$policy` and `$link` (chosen at the top of a dashboard), `$__rate_interval` (a window
that holds several scrapes) and `$__range` (the time shown). Stages, exits, confidences and words carry no policy: only
panels whose queries name `$policy` follow that choice.

Leaves out: alerts, and thresholds, since what is slow depends on the links.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from shared.contracts import STAGES

FOLDER = Path(__file__).resolve().parent / "dashboards"
SOURCE = {"type": "prometheus", "uid": "prometheus"}
STEP = "15s"  # least time between points; a rate then covers 17 s
HEIGHT, WIDTH = 8, 24  # of a panel, of the grid

VARIABLES = {  # name -> (metric, label): the choices are that label's values
    "tier": ("tierwise_build_info", "tier"),
    "policy": ("tierwise_answered_total", "policy"),
    "link": ("tierwise_link_config_delay_seconds", "link"),
}
TIER, POLICY, LINK = 'tier=~"$tier"', 'policy=~"$policy"', 'link=~"$link"'
FIRST = 'tier="end"'  # clients ask this tier: its request times are end to end
ANSWERED = 'outcome=~"ok|degraded"'
REQUESTS, STAGE_TIMES = "tierwise_request_duration_seconds", "tierwise_stage_duration_seconds"
COMPUTING = "|".join(stage for stage in STAGES if stage not in ("queue", "link"))

Queries = list[tuple[str, str]]  # (PromQL, legend)


class Kind(StrEnum):
    """How a panel draws its queries."""

    LINES = "lines"
    STACKED = "stacked"  # lines on top of each other
    SHARES = "shares"  # the same as parts of their sum
    HEATMAP = "heatmap"  # a histogram's buckets over time
    BUCKETS = "buckets"  # a histogram's buckets, as bars
    BARS = "bars"  # one bar a series
    FACTS = "facts"  # one tile a series


@dataclass(frozen=True)
class Panel:
    """One question. `log` draws a logarithmic axis; `each_tier` repeats the panel for every chosen tier."""

    title: str
    unit: str
    queries: Queries
    kind: Kind = Kind.LINES
    about: str = ""
    width: int = 12
    log: bool = False
    each_tier: bool = False


@dataclass(frozen=True)
class Dashboard:
    """One file. `link_changes` marks them in every panel over time."""

    title: str
    variables: tuple[str, ...]
    panels: list[Panel]
    link_changes: bool = False


def rate(metric: str, *labels: str, by: str = "") -> str:
    """Per second, summed."""
    return f"sum by ({by}) (rate({metric}{{{', '.join(labels)}}}[$__rate_interval]))"


def buckets(metric: str, *labels: str) -> Queries:
    """How many fell into each bucket of a histogram over the time shown."""
    return [(f"sum by (le) (increase({metric}_bucket{{{', '.join(labels)}}}[$__range]))", "{{le}}")]


def quantile(q: float, metric: str, *labels: str, by: str = "") -> str:
    """One quantile of a histogram."""
    return f"histogram_quantile({q}, {rate(metric + '_bucket', *labels, by=f'{by}, le' if by else 'le')})"


def quantiles(metric: str, *labels: str, by: str = "", legend: str = "") -> Queries:
    """p50, p90 and p99 of a histogram."""
    return [(quantile(q / 100, metric, *labels, by=by), f"{legend} p{q}".strip()) for q in (50, 90, 99)]


def share_of_time(stages: str) -> str:
    """The part that these stages have in the time of all stages of all tiers."""
    return rate(STAGE_TIMES + "_sum", f'stage=~"{stages}"') + " / " + rate(STAGE_TIMES + "_sum")


LATENCY = Dashboard(
    "Latency",
    ("tier", "policy"),
    [
        Panel("How long does a client wait?", "s", quantiles(REQUESTS, FIRST, ANSWERED, POLICY)),
        Panel(
            "How do the waits spread?",
            "s",
            [(rate(REQUESTS + "_bucket", FIRST, ANSWERED, POLICY, by="le"), "{{le}}")],
            Kind.HEATMAP,
        ),
        Panel(
            "Which stages make up the mean wait?",
            "s",
            [
                (
                    rate(STAGE_TIMES + "_sum", TIER, by="tier, stage")
                    + f" / scalar({rate(REQUESTS + '_count', FIRST, ANSWERED)})",
                    "{{tier}} {{stage}}",
                )
            ],
            Kind.STACKED,
            "Seconds in each stage of each tier, per answered request; all policies. The rest is HTTP and JSON.",
        ),
        Panel(
            "Does the time go to computing, queueing or links?",
            "percentunit",
            [
                (share_of_time(COMPUTING), "computing"),
                (share_of_time("queue"), "queueing"),
                (share_of_time("link"), "links"),
            ],
            Kind.STACKED,
            "All tiers, all policies.",
        ),
        Panel(
            "How long does each tier take to answer?",
            "s",
            quantiles(REQUESTS, TIER, ANSWERED, POLICY, by="tier", legend="{{tier}}"),
            about="With all that it waits for: links and the tiers behind them.",
            width=24,
        ),
        *(
            Panel(
                f"How long does each stage take (p{q})?",
                "s",
                [(quantile(q / 100, STAGE_TIMES, TIER, by="tier, stage"), "{{tier}} {{stage}}")],
                width=8,
            )
            for q in (50, 90, 99)
        ),
    ],
    link_changes=True,
)

COLLABORATION = Dashboard(
    "Collaboration",
    ("tier", "policy"),
    [
        Panel(
            "Which tier answers?",
            "suffix: texts/s",
            [(rate("tierwise_answered_total", 'by=~"$tier"', POLICY, by="by"), "{{by}}")],
            Kind.SHARES,
            "The last tier that ran its model; the answer is the ensemble of all that did.",
        ),
        Panel(
            "How many texts are sent on, and why?",
            "suffix: texts/s",
            [
                (
                    rate("tierwise_offloads_total", 'from=~"$tier"', POLICY, by="from, to, reason"),
                    "{{from}} to {{to}}: {{reason}}",
                )
            ],
        ),
        Panel(
            "At which layer do texts leave the $tier tier's model?",
            "short",
            [
                (
                    f"sum by (layer) (label_replace(increase(tierwise_exits_total{{{TIER}}}[$__range]), "
                    '"layer", "0$1", "layer", "(.)"))',  # 01 to 12: so they sort
                    "layer {{layer}}",
                )
            ],
            Kind.BARS,
            "Texts over the time shown.",
            24,
            each_tier=True,
        ),
        Panel(
            "How sure is the $tier tier?",
            "short",
            buckets("tierwise_confidence", TIER),
            Kind.BUCKETS,
            "Texts over the time shown, by calibrated confidence up to the value below the bar.",
            24,
            each_tier=True,
        ),
        Panel(
            "How likely is the $tier tier to send a text on?",
            "short",
            buckets("tierwise_offload_probability", TIER),
            Kind.BUCKETS,
            "Texts over the time shown, by offload probability after inference up to the value below the bar.",
            24,
            each_tier=True,
        ),
        Panel(
            "How many words come in, and how many are sent on?",
            "suffix: words/s",
            [(rate("tierwise_words_total", TIER, by="tier, kind"), "{{tier}} {{kind}}")],
            about="`kept` are the words of texts that were sent on, after pruning.",
        ),
        Panel(
            "How much does each link carry?",
            "Bps",
            [(rate("tierwise_link_bytes_total", TIER, by="link, direction"), "{{link}} {{direction}}")],
            about="Bodies, without HTTP headers.",
        ),
        Panel(
            "Why are answers less than planned?",
            "suffix: texts/s",
            [(rate("tierwise_degraded_total", TIER, by="reason"), "{{reason}}")],
            Kind.STACKED,
        ),
        Panel(
            "What do answers say?",
            "suffix: texts/s",
            [(rate("tierwise_answers_total", TIER, by="label"), "{{label}}")],
            Kind.SHARES,
        ),
    ],
    link_changes=True,
)


def link_setting(name: str) -> Queries:
    """A setting of each direction of each link."""
    return [(f"max by (link, direction) (tierwise_link_config_{name}{{{LINK}}})", "{{link}} {{direction}}")]


LINKS = Dashboard(
    "Links",
    ("tier", "link"),
    [
        Panel(
            "Is the round trip what was configured?",
            "s",
            [
                (
                    f"sum by (link) (max by (link, direction) (tierwise_link_config_delay_seconds{{{LINK}}}))",
                    "{{link}} configured",
                ),
                (f"avg by (link) (tierwise_link_rtt_seconds{{{LINK}}})", "{{link}} measured"),
            ],
            about="Configured: the delay of both directions.",
        ),
        Panel(
            "Does a link carry less than its configured rate?",
            "bps",
            [
                (
                    f"8 * max by (link, direction) (tierwise_link_config_rate_bytes_per_second{{{LINK}}})",
                    "{{link}} {{direction}} configured",
                ),
                ("8 * " + rate("tierwise_link_sent_bytes_total", LINK, by="link, tier"), "{{link}} sent by {{tier}}"),
            ],
            about="Configured 0: no limit. What is sent includes all headers.",
            log=True,
        ),
        Panel(
            "How long are calls on the links of a tier?",
            "s",
            quantiles(STAGE_TIMES, 'stage="link"', TIER, by="tier", legend="{{tier}}"),
            about="What the caller waited less what the callee took: round trip, transfer, lost packets.",
        ),
        Panel("How much delay is configured?", "s", link_setting("delay_seconds")),
        Panel(
            "How much jitter is configured?",
            "s",
            link_setting("jitter_seconds"),
            about="A standard deviation per direction.",
        ),
        Panel("How much loss is configured?", "percentunit", link_setting("loss_ratio")),
        Panel(
            "How many packets are dropped?",
            "suffix: packets/s",
            [(rate("tierwise_link_drops_total", LINK, by="link, tier"), "{{link}} from {{tier}}")],
            about="By configured loss or by a full queue.",
        ),
        Panel(
            "When did a link change?",
            "short",
            [
                (
                    f"sum by (link, kind) (increase(tierwise_link_changes_total{{{LINK}}}[$__rate_interval]))",
                    "{{link}} {{kind}}",
                )
            ],
        ),
    ],
    link_changes=True,
)

SERVICE = Dashboard(
    "Service",
    ("tier", "policy"),
    [
        Panel(
            "Is every tier up, and every shaper?",
            "bool_yes_no",
            [("max by (tier, job) (up)", "{{tier}} {{job}}")],
            Kind.FACTS,
        ),
        Panel(
            "What does each tier run?",
            "short",
            [(f"tierwise_build_info{{{TIER}}}", "{{tier}}: {{bundle}}, version {{version}}, {{device}}")],
            Kind.FACTS,
        ),
        Panel(
            "How many requests does each tier get?",
            "reqps",
            [(rate(REQUESTS + "_count", TIER, POLICY, by="tier"), "{{tier}}")],
        ),
        Panel(
            "How do requests end?",
            "reqps",
            [(rate(REQUESTS + "_count", TIER, POLICY, by="tier, outcome"), "{{tier}} {{outcome}}")],
            about="Refused and failed requests count with policy `none`.",
        ),
        Panel(
            "Why are requests refused?",
            "reqps",
            [(rate("tierwise_rejected_total", TIER, by="tier, reason"), "{{tier}} {{reason}}")],
        ),
        Panel(
            "How many requests wait for the model?",
            "short",
            [(f"tierwise_queue_depth{{{TIER}}}", "{{tier}}")],
        ),
        Panel("How many requests are under way?", "short", [(f"tierwise_inflight{{{TIER}}}", "{{tier}}")]),
        Panel(
            "Which links are left alone?",
            "short",
            [(f"max by (link) (tierwise_breaker_open{{{TIER}}})", "{{link}}")],
            about="1 while the breaker is open: the upstream failed again and again, and is only probed.",
        ),
        Panel(
            "How much memory does each tier hold?",
            "bytes",
            [(f'process_resident_memory_bytes{{job="tier", {TIER}}}', "{{tier}}")],
        ),
        Panel(
            "How many cores does each tier use?",
            "suffix: cores",
            [(rate("process_cpu_seconds_total", 'job="tier"', TIER, by="tier"), "{{tier}}")],
        ),
    ],
)

DASHBOARDS = (LATENCY, COLLABORATION, LINKS, SERVICE)


# -- from the tables to Grafana's JSON --------------------------------------------------------------------------------

CHANGES = {
    "name": "link changes",
    "datasource": SOURCE,
    "enable": True,
    "iconColor": "orange",
    "expr": "sum by (link, kind) (increase(tierwise_link_changes_total[10s]))",
    "step": "10s",  # as long as the window: every change is one mark
    "titleFormat": "{{link}} {{kind}}",
}
LAST = {"calcs": ["lastNotNull"], "fields": "", "values": False}
TYPES = {Kind.HEATMAP: "heatmap", Kind.BUCKETS: "bargauge", Kind.BARS: "bargauge", Kind.FACTS: "stat"}
YES_NO = [{"color": "red", "value": None}, {"color": "green", "value": 1}]


def options(panel: Panel) -> dict[str, Any]:
    """What Grafana calls the options of a panel's type."""
    match panel.kind:
        case Kind.HEATMAP:
            return {
                "calculate": False,
                "color": {"mode": "scheme", "scheme": "Oranges", "exponent": 0.5, "steps": 64},
                "filterValues": {"le": 1e-9},
                "rowsFrame": {"layout": "auto"},
                "tooltip": {"mode": "single", "yHistogram": True},
                "yAxis": {"axisPlacement": "left", "unit": panel.unit},
            }
        case Kind.BUCKETS | Kind.BARS:
            return {"displayMode": "basic", "orientation": "vertical", "reduceOptions": LAST, "showUnfilled": False}
        case Kind.FACTS:
            text = "value_and_name" if panel.unit == "bool_yes_no" else "name"
            return {"colorMode": "background", "graphMode": "none", "reduceOptions": LAST, "textMode": text}
        case _:
            legend = {"displayMode": "list", "placement": "bottom", "showLegend": True}
            return {"legend": legend, "tooltip": {"mode": "multi", "sort": "desc"}}


def defaults(panel: Panel) -> dict[str, Any]:
    """Unit, axis and colours."""
    out: dict[str, Any] = {"unit": panel.unit, "min": 0}
    if panel.unit == "bool_yes_no":
        out |= {"color": {"mode": "thresholds"}, "thresholds": {"mode": "absolute", "steps": YES_NO}}
    elif panel.kind not in TYPES:
        stacking = {Kind.STACKED: "normal", Kind.SHARES: "percent"}.get(panel.kind, "none")
        scale = {"type": "symlog", "log": 10, "linearThreshold": 1000} if panel.log else {"type": "linear"}
        out["custom"] = {
            "fillOpacity": 0 if stacking == "none" else 60,
            "scaleDistribution": scale,
            "stacking": {"group": "A", "mode": stacking},
        }
    elif panel.kind is not Kind.HEATMAP:
        out["color"] = {"mode": "fixed", "fixedColor": "blue"}
    return out


def target(panel: Panel, index: int) -> dict[str, Any]:
    """One query of a panel."""
    expression, legend = panel.queries[index]
    histogram = panel.kind in (Kind.HEATMAP, Kind.BUCKETS)
    return {
        "refId": "ABC"[index],
        "datasource": SOURCE,
        "expr": expression,
        "legendFormat": legend,
        "format": "heatmap" if histogram else "time_series",
        "range": True,
    }


def panels(dashboard: Dashboard) -> list[dict[str, Any]]:
    """The panels, set row by row."""
    out: list[dict[str, Any]] = []
    x = y = 0
    for number, panel in enumerate(dashboard.panels, start=1):
        if x + panel.width > WIDTH:
            x, y = 0, y + HEIGHT
        out.append(
            {
                "id": number,
                "type": TYPES.get(panel.kind, "timeseries"),
                "title": panel.title,
                "description": panel.about,
                "datasource": SOURCE,
                "gridPos": {"x": x, "y": y, "w": panel.width, "h": HEIGHT},
                "interval": STEP,
                "fieldConfig": {"defaults": defaults(panel), "overrides": []},
                "options": options(panel),
                "targets": [target(panel, index) for index in range(len(panel.queries))],
            }
        )
        if panel.kind in (Kind.BUCKETS, Kind.BARS):
            out[-1]["maxDataPoints"] = 30  # only the last one is drawn, and each covers all the time shown
        if panel.each_tier:
            out[-1] |= {"repeat": "tier", "repeatDirection": "h", "maxPerRow": 3}
        x += panel.width
    return out


def variable(name: str) -> dict[str, Any]:
    """A choice at the top of a dashboard: any or all values of a label."""
    query = "label_values({}, {})".format(*VARIABLES[name])
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


def document(dashboard: Dashboard) -> dict[str, Any]:
    """A dashboard as Grafana reads it."""
    return {
        "uid": f"tierwise-{dashboard.title.lower()}",
        "title": dashboard.title,
        "tags": ["tierwise"],
        "schemaVersion": 39,
        "editable": False,
        "graphTooltip": 1,
        "refresh": "5s",
        "time": {"from": "now-15m", "to": "now"},
        "links": [{"type": "dashboards", "tags": ["tierwise"], "title": "", "keepTime": True, "includeVars": True}],
        "annotations": {"list": [CHANGES] if dashboard.link_changes else []},
        "templating": {"list": [variable(name) for name in dashboard.variables]},
        "panels": panels(dashboard),
    }


def files() -> dict[str, str]:
    """Every file's name and text."""
    return {f"{d.title.lower()}.json": json.dumps(document(d), indent=1) + "\n" for d in DASHBOARDS}


def main() -> int:
    """Write, or compare."""
    if "--check" not in sys.argv:
        for name, text in files().items():
            (FOLDER / name).write_text(text)
        return 0
    found = {path.name: path.read_text() for path in FOLDER.glob("*.json")}
    if found != files():
        print("deploy/grafana/dashboards does not fit make_dashboards.py: run it", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
