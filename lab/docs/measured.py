"""The rows of the documentation's tables: measured JSON of docs/results, model cards, and the code's own words.

A table whose rows stand in a file as they are needs no function here. Left out: headings and formats (`tables.yaml`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lab.cli.config import rows as settings_of
from lab.docs.markdown import Row, filled_in
from lab.papers.hu import beats
from lab.papers.published import published
from lab.policies import shown
from lab.stats import wilson
from shared.links.profile import PROFILES
from shared.model.bundle import MODELS
from shared.policies import POLICIES
from shared.web.settings import PREFIX

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "docs" / "results"
METRICS = {"accuracy": "accuracy", "mcc": "MCC", "f1": "F1"}


@dataclass(frozen=True)
class Rows:
    """Rows, what fills the headings, and the columns that only the data can name: they stand last."""

    rows: list[Row]
    about: Row = field(default_factory=dict)
    columns: dict[str, str] = field(default_factory=dict)


def read(path: Path) -> Any:
    """A measured file."""
    return json.loads(path.read_text())


def rows_at(place: str) -> Rows:
    """Rows as they stand in a file: FILE.json/KEY/KEY; where they have names, each row has its `name`."""
    file, *keys = place.split("/")
    about = found = read(RESULTS / file)
    for key in keys:
        found = found[key]
    return Rows(_named(found) if isinstance(found, dict) else found, about)


def _named(rows: Mapping[str, Row]) -> list[Row]:
    return [{"name": name, **row} for name, row in rows.items()]


def _paper(name: str) -> dict[str, Row]:
    """One table of the papers' report: data set -> what was measured."""
    return read(RESULTS / "report.json")["tables"][name]


# -- meshes -----------------------------------------------------------------------------------------------------------


def mesh(file: str) -> Rows:
    """`tierwise mesh`: every cell of a report, docs/results/FILE.json."""
    report = read(RESULTS / f"{file}.json")
    return Rows(report["cells"], report)


# -- live tiers --------------------------------------------------------------------------------------------------------


def beside(word: str) -> Rows:
    """`tierwise bench`: every policy beside the others whose names begin with this word: cloud-only, tabi, whole."""
    report = read(RESULTS / "bench.json")
    others = {name: rows for name, rows in report["beside"].items() if name.split()[0] == word}
    return Rows([{"other": name, **row} for name, rows in others.items() for row in _named(rows)], report)


def trace(name: str) -> Rows:
    """`tierwise bench --trace`: every policy, and beside the last of them."""
    report = read(RESULTS / f"trace-{name}.json")
    *_, last = report["policies"]
    rows = [row | {"beside": report["beside"][last].get(row["name"], {})} for row in _named(report["policies"])]
    return Rows(rows, report)


def cells() -> Rows:
    """The bench over netem links: four columns per pair of links; ratios are against the cloud alone."""
    reports = {path.stem.removeprefix("netem-"): read(path) for path in sorted(RESULTS.glob("netem-*.json"))}
    first = next(iter(reports.values()))
    rows = [
        {"name": name} | {cell: _cell(report, name) for cell, report in reports.items()} for name in first["policies"]
    ]
    shown = {
        "accuracy": "[accuracy]:.3f",
        "mean ms": "[mean]:.0f",
        "times the cloud's": "[time_ratio]:.2f",
        "p95": "[p95]:.0f",
    }
    columns = {f"{cell}: {what}": f"{{{cell}{key}}}" for cell in reports for what, key in shown.items()}
    return Rows(rows, first, columns)


def _cell(report: Row, name: str) -> Row:
    """A policy over one pair of links."""
    policy = report["policies"][name]
    beside = report["beside"]["cloud-only"].get(name, {})
    return policy["latency_ms"] | {"accuracy": policy["accuracy"], "time_ratio": beside.get("time_ratio")}


def ways(here: str) -> Rows:
    """`tierwise check-states`: text and state from a tier to the next, by link and length; the cheaper in bold."""
    report = read(RESULTS / "check-states.json")
    links: dict[str, Row] = {}
    columns: dict[str, str] = {}
    for way in report["ways_modelled"]:
        if way["hop"].split()[0] == here:
            row = links.setdefault(way["link"], {"link": way["link"]})
            for kind in ("text", "state"):
                shown = f"{way[f'{kind}_ms']:.1f}"
                row[f"{kind}{way['tokens']}"] = f"**{shown}**" if kind == way["choice"] else shown
                columns[f"{way['tokens']} tokens: {kind}, ms"] = f"{{{kind}{way['tokens']}}}"
    return Rows(list(links.values()), report, columns)


def load() -> Rows:
    """`make load`, less the search for saturation."""
    return Rows([phase for phase in read(RESULTS / "load.json")["phases"] if phase["name"] != "ladder"])


def _speed(part: str, times: str, file: str = "speed.json") -> Rows:
    """Rows of `make bench`, with a column for what each engine took."""
    rows = read(RESULTS / file)[part]
    return Rows(rows, columns={f"{name}, ms": f"{{{times}[{name}]:.1f}}" for name in rows[0][times]})


def speed_shapes() -> Rows:
    """`make bench`: our encoder at full depth beside its rivals."""
    return _speed("shapes", "ms")


def speed_shapes_without_amx() -> Rows:
    """The same on a processor without AMX."""
    return _speed("shapes", "ms", "speed-without-amx.json")


def speed_rules() -> Rows:
    """`make bench`: the card's exit rule beside the rivals, which have none."""
    return _speed("rules", "mean_ms")


def speed_of_tiers() -> Rows:
    """`make bench`: what a tier adds to its model, and its memory after half and after all of the requests."""
    measured = read(RESULTS / "speed.json")
    return Rows(measured["tiers"], measured | {"half": measured["requests"] // 2})


# -- trained bundles ---------------------------------------------------------------------------------------------------


def exits() -> Rows:
    """The exits of `collaborative` on test texts."""
    test = read(MODELS / "collaborative" / "card.json")["report"]["test"]
    rows = [
        {
            **tier["exits"][-1],
            "tier": f"{tier['name']} ({tier['max_tokens']} tokens)",
            "every": " ".join(f"{e['accuracy']:.3f}"[1:] for e in tier["exits"]),
            "worse": ", ".join(str(e["exit"]) for e in tier["exits"] if e["worse_than_the_exit_before"]) or None,
        }
        for tier in _named(test["tiers"])
    ]
    return Rows(rows, test)


def _cards() -> Iterator[Row]:
    """The report of every committed bundle that has a card."""
    for path in sorted(MODELS.glob("*/card.json")):
        metric = read(path.parent / "bundle.json").get("metric", "accuracy")
        yield {"name": path.parent.name, "metric": metric, **read(path)["report"]}


def bundles() -> Rows:
    """The last exit of every tier on unseen texts, for each committed bundle."""
    rows = []
    for card in _cards():
        if tiers := card.get("test", {}).get("tiers"):
            rows.append(card | {"last": "; ".join(_last_exit(tier, card["metric"]) for tier in _named(tiers))})
    return Rows(rows)


def _last_exit(tier: Row, metric: str) -> str:
    tested = tier["exits"][-1]
    low, high = tested["ci95" if metric == "accuracy" else f"{metric}_ci95"]
    return f"{tier['name']} ({len(tier['exits'])}) {tested[metric]:.3f} [{low:.3f}, {high:.3f}]"


def routing() -> Rows:
    """How well a text's pool can be told before any layer runs, on validation texts."""
    rows = []
    for card in _cards():
        if ways := card.get("pools", {}).get("routing"):
            over = {way: told | {"over": told["accuracy"] - told["accuracy_at_random"]} for way, told in ways.items()}
            rows.append(card | over | {"sizes": "/".join(map(str, ways["known_pools"]["sent_to"]))})
    return Rows(rows)


# -- replay ------------------------------------------------------------------------------------------------------------


def replay() -> Rows:
    """Every policy on every bundle: score / modelled mean ms; * runs in replay only."""
    bundles = read(RESULTS / "replay.json")["bundles"]
    names = dict.fromkeys(name for report in bundles.values() for name in report["policies"])
    rows: list[Row] = [{"policy": name} for name in names]
    for row in rows:
        for bundle, report in bundles.items():
            if figures := report["policies"].get(row["policy"]):
                star = "\\*" if figures["replay_only"] else ""
                row[bundle] = f"{figures[report['metric']]:.3f} / {figures['modelled_ms']['mean']:.0f}{star}"
    heads = {f"{name}: {report['metric']}, n = {report['n']}": f"{{{name}}}" for name, report in bundles.items()}
    return Rows(rows, columns=heads)


def levers() -> Rows:
    """One lever of the card's operating point moved at a time: replayed, paired with that point."""
    part = read(RESULTS / "levers.json")["bundles"]["collaborative"]
    rows = [row | {"lever": row["name"].partition(":")[2] or row["name"]} for row in _named(part["policies"])]
    return Rows(rows, part)


def tasks() -> Rows:
    """Policies on other tasks, beside the cloud alone: replayed."""
    rows = []
    for path in sorted(RESULTS.glob("task-*.json")):
        for bundle, part in read(path)["bundles"].items():
            rows += [row | {"bundle": bundle, "n": part["n"]} for row in _named(part["policies"])]
    return Rows(rows)


def unread() -> Rows:
    """What it is worth that words which no further tier reads stay behind: over slow links, beside all words sent."""
    rows = []
    for path in sorted(RESULTS.glob("unread-*.json")):
        report = read(path)
        stay, travel = report["bundles"]["collaborative"]["policies"].values()
        rows.append(stay | {"links": report["links"], "n": report["bundles"]["collaborative"]["n"], "travel": travel})
    return Rows(rows, rows[0])


def modelled() -> Rows:
    """`tierwise check-times`: modelled times beside live ones."""
    reports = {path.stem.removeprefix("modelled-"): read(path) for path in sorted(RESULTS.glob("modelled-*.json"))}
    rows = [
        {**report, **figures, "stack": stack, "policy": shown(policy)}
        for stack, report in reports.items()
        for policy, figures in report["policies"].items()
    ]
    return Rows(rows)


# -- the papers --------------------------------------------------------------------------------------------------------


def hu_1() -> Rows:
    """Zhang et al., Table I: ours, and the paper's figures beside it."""
    paper = {(tau, theta): (ms, 100 * accuracy) for tau, theta, ms, accuracy in published("hu-1")["rows"]}
    rows = []
    for row in _paper("hu-1")["imdb"]["table"]["rows"]:
        tau, theta = row["spec"]["offload_threshold"], row["spec"]["theta"]
        (ms, accuracy), (ms_0, accuracy_0) = paper[tau, theta], paper[tau, 0.0]
        rows.append(row | {"their": accuracy, "ms": ms, "points": accuracy - accuracy_0, "saved": 1 - ms / ms_0})
    return Rows(rows)


def hu_points() -> Rows:
    """Our operating points, and those of eq. 13-14 alone."""
    rows = []
    for row in _paper("hu-1")["imdb"]["points"]["rows"]:
        held = beats(row)
        holds = "yes" if held["at_95"] else "on these texts, not at 95 %" if held["here"] else "no"
        rows.append(row | {"holds": holds, "unsure": row["spec"].get("exit_when_unsure", False)})
    return Rows(rows)


def hu_parts() -> Rows:
    """One part of the operating point changed at a time."""
    rows = _named(_paper("hu-parts")["imdb"]["rows"])
    return Rows([row | {"sent": 1 - row["answered_by_tier"].get("end", 0)} for row in rows])


def recserve() -> Rows:
    """RecServe beside the card's operating point, and thresholds that stand beside those that it learns."""
    kinds = {"learned": "collaborative", "fixed": "learned"}
    made = _paper("recserve")["imdb"]["rows"]
    return Rows(
        [
            row[kind] | {"beta": row["beta"], "thresholds": kind, "against": against}
            for row in made
            for kind, against in kinds.items()
        ]
    )


def gates() -> Rows:
    """`path-gates` and `jei-dnn` at five prices, beside the rules that take as long."""
    rivals = {"path-gates": ("collaborative", "threshold"), "jei-dnn": ("threshold",)}
    rows = []
    for made in _paper("gates")["imdb"]["rows"]:
        for policy, names in rivals.items():
            for rival in names:
                own, other = made[policy], made[policy][rival]
                p95_ratio = own["modelled_ms"]["p95"] / other["modelled_ms"]["p95"]
                told = {"price": made["price"], "policy": policy, "rival": rival, "p95_ratio": p95_ratio}
                rows.append(own | {"paired": other["paired"]} | told)
    return Rows(rows)


def _dimee(data: str) -> list[Row]:
    """One data set of DIMEE's Table I, with the paper's score and cost beside each row that it has."""
    part, paper = _paper("dimee-1")[data], published("dimee-1")["rows"]
    rows = _named(part["rows"] | {"cloud-only": part["cloud_only"]})
    return [
        _scored(row, part)
        | {"paper": paper.get(row["name"], {}).get(data, [None, None]), "star": " \\*" if row["replay_only"] else ""}
        for row in rows
    ]


def _scored(row: Row, part: Row) -> Row:
    """The row, with `score`, its interval and its gain, in the metric of its data set."""
    metric = part["made"]["metric"]
    gain = row.get("paired", {}).get(metric)
    score = {"score": row.get(metric), "score_ci95": row.get(f"{metric}_ci95"), "gain": gain}
    return row | score | {"metric": METRICS[metric]}


def dimee_short() -> Rows:
    """DIMEE, Table I at first sight: score and cost against the whole model on the device; the paper's in brackets."""
    rows: dict[str, Row] = {}
    heads = {}
    for data, part in _paper("dimee-1").items():
        heads[f"{data}: {METRICS[part['made']['metric']]}, n = {part['made']['n']}"] = f"{{{data}}}"
        for row in _dimee(data):
            form = "{score:100*.1f}, {unit_cost[against_whole_model_on_device]:+.0%}"
            form += " ({paper[0]:.1f}, {paper[1]:+d}%)" if row["paper"][0] else ""
            rows.setdefault(row["name"], {"name": row["name"]})[data] = filled_in(form, row)
    return Rows([*rows.values()], columns=heads)


def dimee_1(data: str) -> Rows:
    """DIMEE, Table I of one data set in full; * is replayed with the whole encoder on the first tier."""
    made = _paper("dimee-1")[data]["made"]
    return Rows(_dimee(data), {"n": made["n"], "score": METRICS[made["metric"]]})


def dimee_rivals() -> Rows:
    """DIMEE-F's rivals at its cost."""
    parts = _paper("dimee-1").items()
    return Rows([_scored(row, p) | {"data": data} for data, p in parts for row in _named(p["against_dimee"])])


def dimee_devices() -> Rows:
    """The paper's figure 2 (a), (b): what each device does alone, and at what cost."""
    rows = []
    for data, part in _paper("dimee-1").items():
        for row in _named(part["devices"]):
            ways = ("alone", "alone_on_what_dimee_sends", "dimee_on_what_it_sends")
            rows.append(_scored(row, part) | {"data": data} | {way: _scored(row[way], part) for way in ways})
    return Rows(rows)


def dimee_costs() -> Rows:
    """DIMEE-F's score at a quarter of and at four times a unit cost, less the unaltered one's."""
    rows: list[Row] = []
    heads: dict[str, str] = {}
    for data, part in _paper("dimee-costs").items():
        varied = part["cost_variation"]
        same = next(point for point in varied["rows"]["lambda1"] if point["factor"] == 1)
        row = {"data": data, "n": varied["chosen_on"]["n"], **same}
        for cost, points in varied["rows"].items():
            for at in (0, -1):
                gain = filled_in("{less_unchanged:100*+.1f}", points[at])
                row[f"{cost}{at}"] = "same alpha" if points[at]["alpha"] == same["alpha"] else gain
                heads[f"{cost} x {points[at]['factor']:g}"] = f"{{{cost}{at}}}"
        rows.append(row)
    return Rows(rows, columns=heads)


def dimee_pools() -> Rows:
    """How often an embedding names the pool that the exits say."""
    rows = _named(_paper("dimee-pools"))
    for row in rows:
        n = row["made"]["n"]
        row["in"] = [row["agree"], *wilson(round(row["agree"] * n), n)]
    return Rows(rows)


def made_of() -> Rows:
    """What each table of the papers was made of."""
    tables = read(RESULTS / "report.json")["tables"]
    return Rows([{"table": f"{t} {part}", **own["made"]} for t, parts in tables.items() for part, own in parts.items()])


# -- what the code says of itself --------------------------------------------------------------------------------------


def settings() -> Rows:
    """Every setting of the first tier, as it is where the environment names none."""
    named = {name: os.environ.pop(name) for name in [*os.environ] if name.startswith(PREFIX)}
    try:
        rows = [row._asdict() | {"shown": f"`{row.value}`" if row.value else "none"} for row in settings_of("end")]
    finally:
        os.environ.update(named)
    return Rows(rows)


def parameters(*policies: str) -> Rows:
    """The parameters of policies that have the same ones."""
    rows = []
    for parameter, info in POLICIES[policies[0]].model_fields.items():
        by = {name: json.dumps(POLICIES[name].model_fields[parameter].default) for name in policies}
        default = next(iter(by.values())) if len({*by.values()}) == 1 else filled_in("{by}", {"by": by})
        rows.append({"name": info.alias or parameter, "default": default.replace('"', ""), "meaning": info.description})
    return Rows(rows)


def profiles() -> Rows:
    """The link profiles, with their sources; rates of 0 are unlimited."""
    return Rows(_named(yaml.safe_load(PROFILES.read_text())))
