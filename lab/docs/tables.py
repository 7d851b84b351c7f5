"""The tables of README.md and docs/, from the measured JSON and from the code: `make docs`.

    python -m lab.docs.tables            write every table
    python -m lab.docs.tables --check    exit with status 1 where a page differs from its sources

A table stands between `<!-- made: NAME -->` and `<!-- end -->`; words after NAME narrow it (`made: dimee-1 cola`).
A table is its rows and a format for each column; `Cells` says what a format may do. Sentences are written by hand,
outside of the markers. Left out: pictures (`pictures.py`).
"""

from __future__ import annotations

import json
import os
import re
import string
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from lab.cli.config import rows as settings_of
from lab.papers.hu import beats
from lab.papers.published import published
from lab.policies import shown
from lab.stats import wilson
from shared.errors import BadSetting
from shared.links.profile import PROFILES
from shared.model.bundle import MODELS
from shared.policies import POLICIES
from shared.web.settings import PREFIX

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "docs" / "results"
_BLOCK = re.compile(r"(<!-- made: ([a-z0-9 -]+) -->\n).*?(<!-- end -->)", re.DOTALL)
Row = dict[str, Any]  # JSON
METRICS = {"accuracy": "accuracy", "mcc": "MCC", "f1": "F1"}


class Cells(string.Formatter):
    """Fills a cell from a row; what a row lacks is `-`.

    >>> Cells().format("{ms[mean]:.0f}, {up:100*+.1f}, {ran:.0%}", ms={"mean": 9}, up=[0, -0.01, 0.02], ran={"end": 1})
    '9, +0.0 [-1.0, +2.0], end 100%'
    """

    def get_field(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        try:
            return super().get_field(name, args, kwargs)
        except (KeyError, IndexError, TypeError):
            return None, name

    def format_field(self, value: Any, spec: str) -> str:
        """`100*` scales; a mapping is listed; three numbers are a value and its interval, two an interval."""
        factor, star, rest = spec.rpartition("*")
        if isinstance(value, dict):
            return ", ".join(f"{key} {self.format_field(own, spec)}" for key, own in value.items()) or "-"
        if isinstance(value, list):
            *middle, low, high = (self.format_field(own, spec) for own in value)
            return " ".join([*middle, f"[{low}, {high}]"])
        if value is None or isinstance(value, bool):
            return {None: "-", True: "yes", False: "no"}[value]
        if spec == "p":
            return "<.001" if value < 0.001 else f"{value:.3f}"[1:] if value < 1 else "1"
        return format(float(factor) * value if star else value, rest)


def table(rows: Iterable[Row], columns: Mapping[str, str]) -> str:
    """A Markdown table.

    >>> print(table([{"n": 2}, {"n": 3}], {"n": "{n}", "as a share": "{n:.0%}"}))
    | n | as a share |
    |---|---|
    | 2 | 200% |
    | 3 | 300% |
    """
    body = [" | ".join(Cells().vformat(cell, (), row) for cell in columns.values()) for row in rows]
    return "\n".join([f"| {' | '.join(columns)} |", "|" + "---|" * len(columns), *(f"| {line} |" for line in body)])


def read(path: Path) -> Any:
    """A measured file."""
    return json.loads(path.read_text())


def _named(rows: Mapping[str, Row]) -> list[Row]:
    return [{"name": name, **row} for name, row in rows.items()]


def _paper(name: str) -> dict[str, Row]:
    """One table of the papers' report: data set -> what was measured."""
    return read(RESULTS / "report.json")["tables"][name]


# Live tiers

_ACCURACY = "{accuracy:.3f} {accuracy_ci95:.3f}"
_TIMES = {"mean ms": "{latency_ms[mean]:.0f}", "p50": "{latency_ms[p50]:.0f}", "p95": "{latency_ms[p95]:.0f}"}


def bench(which: str = "whole") -> str:
    """Every policy of the bench; `short` is the README's seven rows."""
    report = read(RESULTS / "bench.json")
    first = {f"policy (n = {report['n']})": "`{name}`", "accuracy [95 %]": _ACCURACY}
    ran = {"tiers that ran": "{ran_by_tier:.0%}"}
    whole = {
        "points against the first [95 %]": "{accuracy_minus_first:100*+.1f}",
        **_TIMES,
        "p99": "{latency_ms[p99]:.0f}",
        "ms against the first [95 %]": "{latency_minus_first_ms:+.0f}",
        **ran,
        "bytes up": "{bytes_per_request[up]:.0f}",
        "infer ms": "{stages_ms[infer]:.0f}",
        "link ms": "{stages_ms[link]:.0f}",
    }
    return table(_named(report["policies"]), first | (_TIMES | ran if which == "short" else whole))


def cells() -> str:
    """The bench over netem links: three columns per pair of links."""
    reports = {path.stem.removeprefix("netem-"): read(path) for path in sorted(RESULTS.glob("netem-*.json"))}
    first = next(iter(reports.values()))
    rows = [
        row | {cell: report["policies"][row["name"]]["latency_ms"] for cell, report in reports.items()}
        for row in _named(first["policies"])
    ]
    times = {f"{cell}: {key}": f"{{{cell}[{key}]:.0f}}" for cell in reports for key in ("p50", "mean", "p95")}
    return table(rows, {f"policy (n = {first['n']})": "`{name}`", "accuracy [95 %]": _ACCURACY, **times})


def load() -> str:
    """`make load`."""
    counts = {"degraded": "{degraded:.0%}", "refused": "{refused}", "errors": "{errors}"}
    times = {"p50 ms": "{p50:.0f}", "p99 ms": "{p99:.0f}", "refusals p95 ms": "{refused_p95:.0f}"}
    return table(
        [p for p in read(RESULTS / "load.json")["phases"] if p["name"] != "ladder"],
        {"load": "{name}", "offered/s": "{rate:.1f}", "n": "{n}", "answers/s": "{goodput:.1f}", **counts, **times},
    )


def links() -> str:
    """`tierwise link compare`."""
    report = read(RESULTS / "links.json")
    rows = [row | {"off": [row["difference"], *row["difference_ci95"]]} for row in report["profiles"]]
    sides = {
        f"{side}: {key}{' ms' if key == 'p50' else ''}": f"{{{side}_ms[{key}]:.1f}}"
        for side in ("netem", "simulated")
        for key in ("p50", "mean", "p95")
    }
    return table(rows, {f"profile (n = {report['n']})": "`{profile}`", **sides, "p50 differs by [95 %]": "{off:+.0%}"})


def speed(of: str) -> str:
    """`make bench`: `encoders` against transformers' own, or what `tiers` add to their model, and their memory."""
    measured = read(RESULTS / "speed.json")
    if of == "tiers":
        over = {"client less model, p50 ms": "{client_ms:.1f}", "server less model, p50 ms": "{server_ms:.1f}"}
        n = measured["requests"]
        memory = {f"MB after {n // 2}": "{resident_mb[0]:.0f}", f"after {n}": "{resident_mb[1]:.0f}"}
        return table(measured[of], {"tier": "{tier}", **over, **memory})
    times = {"transformers ms": "{transformers_ms:.0f}", "ours / transformers": "{plain:.3f}"}
    shape = {"base": "{base}", "tokens": "{tokens}", "batch": "{batch}"}
    rows = [row | {"base": row["base"].partition("/")[2]} for row in measured[of]]
    return table(rows, shape | times | {"with importance / transformers": "{importance:.3f}"})


# Trained bundles


def exits() -> str:
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
    last = {"last exit: accuracy [95 %]": "{accuracy:.3f} {ci95:.3f}", "ECE": "{ece:.3f}"}
    every = {"accuracy of every exit": "{every}", "exits worse than the one before": "{worse}"}
    return table(rows, {f"tier (n = {test['n']})": "{tier}", **last, **every})


def _cards() -> Iterator[Row]:
    """The report of every committed bundle that has a card."""
    for path in sorted(MODELS.glob("*/card.json")):
        metric = read(path.parent / "bundle.json").get("metric", "accuracy")
        yield {"name": path.parent.name, "metric": metric, **read(path)["report"]}


def bundles() -> str:
    """The last exit of every tier on unseen texts, for each committed bundle."""

    def last(tier: Row, metric: str) -> str:
        own = tier["exits"][-1]
        low, high = own["ci95" if metric == "accuracy" else f"{metric}_ci95"]
        return f"{tier['name']} ({len(tier['exits'])}) {own[metric]:.3f} [{low:.3f}, {high:.3f}]"

    rows = [
        card | {"last": "; ".join(last(tier, card["metric"]) for tier in _named(card["test"]["tiers"]))}
        for card in _cards()
        if "test" in card
    ]
    said = {"tier (layers): its last exit [95 %]": "{last}"}
    return table(rows, {"bundle": "`{name}`", "metric": "{metric}", "n": "{test[n]}", **said})


def routing() -> str:
    """How well a text's pool can be told before any layer runs, on validation texts."""
    rows = []
    for card in _cards():
        if by := card.get("pools", {}).get("routing"):
            sizes = "/".join(map(str, by["known_pools"]["sent_to"]))
            over = {way: own | {"over": own["accuracy"] - own["accuracy_at_random"]} for way, own in by.items()}
            rows.append(card | over | {"sizes": sizes})
    ways = {"length-quantile": "length_quantile", "pools known": "known_pools"}
    ways = {way: way for way in ("mean_word", "layernorm_mean", "token_norms")} | ways
    columns = {title: f"{{{way}[accuracy]:.3f}} ({{{way}[over]:100*+.1f}})" for title, way in ways.items()}
    alpha = {"alpha: its pools": "{pools[chosen][alpha]:.2f}: {sizes}"}
    return table(rows, {"bundle": "`{name}`", "n": "{validation[n]}", **alpha, **columns})


# Replay


def replay() -> str:
    """Every policy on every bundle: score / modelled mean ms; * runs in replay only."""
    own = read(RESULTS / "replay.json")["bundles"]
    names = dict.fromkeys(name for bundle in own.values() for name in bundle["policies"])
    rows: list[Row] = [{"policy": name} for name in names]
    for row in rows:
        for bundle, said in own.items():
            f = said["policies"].get(row["policy"])
            star = "\\*" if f and f["replay_only"] else ""
            row[bundle] = f"{f[said['metric']]:.3f} / {f['modelled_ms']['mean']:.0f}{star}" if f else "-"
    heads = {f"{bundle}: {said['metric']}, n = {said['n']}": f"{{{bundle}}}" for bundle, said in own.items()}
    return table(rows, {"policy": "`{policy}`", **heads})


def modelled() -> str:
    """`tierwise check-times`: modelled times beside live ones."""
    rows = [
        {**said, **own, "stack": path.stem.removeprefix("modelled-"), "policy": shown(policy)}
        for path in sorted(RESULTS.glob("modelled-*.json"))
        for said in [read(path)]
        for policy, own in said["policies"].items()
    ]
    parts = {
        f"{part}: {side}{' ms' if side == 'live' else ''}": f"{{{side}_ms[{part}]:.0f}}"
        for part in ("total", "compute", "link")
        for side in ("live", "modelled")
    }
    stack = {"stack, rounds x texts": "{stack}, {rounds} x {n}", "policy": "`{policy}`"}
    return table(rows, {**stack, "modelled is off by [95 %]": "{off_by:+.1%}", **parts})


# The papers

_PERCENT = "{accuracy:100*.1f} {accuracy_ci95:100*.1f}"
_MODELLED = {"modelled ms": "{modelled_ms[mean]:.0f}"}
_POINTS = {"points": "{paired[accuracy]:100*+.1f}", "p": "{paired[mcnemar_p]:p}"}
_THRESHOLD = {"threshold": "{spec[offload_threshold]}"}
_SAVED = {"points vs theta 0": _POINTS["points"], "p": _POINTS["p"], "% time saved": "{paired[time_saved]:100*+.0f}"}
_VS_THETA_0 = {"accuracy": _PERCENT, **_MODELLED, **_SAVED}
_BESIDE = "{ran_by_tier[cloud]:.0%}", "{bytes_per_request[up]:.0f}"


def hu_1() -> str:
    """Zhang et al., Table I: ours, and the paper's figures beside it."""
    paper = {(tau, theta): (ms, 100 * accuracy) for tau, theta, ms, accuracy in published("hu-1")["rows"]}
    rows = []
    for row in _paper("hu-1")["imdb"]["table"]["rows"]:
        tau, theta = row["spec"]["offload_threshold"], row["spec"]["theta"]
        (ms, accuracy), (ms_0, accuracy_0) = paper[tau, theta], paper[tau, 0.0]
        rows.append(row | {"their": accuracy, "ms": ms, "points": accuracy - accuracy_0, "saved": 1 - ms / ms_0})
    theirs = {"paper: accuracy": "{their:.2f}", "paper: ms": "{ms:.0f}", "paper: points vs theta 0": "{points:+.1f}"}
    columns = _THRESHOLD | {"theta": "{spec[theta]:g}"} | _VS_THETA_0 | theirs
    return table(rows, columns | {"paper: % saved": "{saved:100*+.0f}"})


def hu_points() -> str:
    """Our operating points, and those of eq. 13-14 alone."""
    rows = [dict(row) for row in _paper("hu-1")["imdb"]["points"]["rows"]]
    for row in rows:
        held = beats(row)
        row["holds"] = "yes" if held["at_95"] else "on these texts, not at 95 %" if held["here"] else "no"
        row["unsure"] = row["spec"].get("exit_when_unsure", False)
    rule = {"rule": "{rule}", "theta": "{spec[theta]:g}", "patience": "{spec[patience]}"}
    least = {"least confidence": "{spec[exit_min_confidence]:g}", "unsure leave": "{unsure}"}
    beside = {
        "cloud ran (theta 0)": "{ran_by_tier[cloud]:.0%} ({base[ran_by_tier][cloud]:.0%})",
        "bytes up (theta 0)": "{bytes_per_request[up]:.0f} ({base[bytes_per_request][up]:.0f})",
    }
    return table(rows, _THRESHOLD | rule | least | _VS_THETA_0 | {"holds": "{holds}"} | beside)


def hu_points_beside() -> str:
    """Each point against theta = 0 at equal time, and with theta = 1."""
    equal = {
        "theta 0, as long: threshold": "{at_equal_time[spec][offload_threshold]:.3f}",
        "points over it": "{at_equal_time[paired][accuracy]:100*+.1f}",
        "p": "{at_equal_time[paired][mcnemar_p]:p}",
    }
    never = {"theta 1: points": "{theta_1[paired][accuracy]:100*+.1f}"}
    never |= {"theta 1: ms": "{theta_1[paired][modelled_ms]:+.0f}"}
    return table(_paper("hu-1")["imdb"]["points"]["rows"], _THRESHOLD | {"rule": "{rule}"} | equal | never)


def hu_thresholds() -> str:
    """Theta = 0 at lower thresholds."""
    beside = dict(zip(("cloud ran", "bytes up"), _BESIDE, strict=True))
    columns = _THRESHOLD | {"accuracy": _PERCENT} | _MODELLED | beside
    return table(_paper("hu-1")["imdb"]["points"]["without_exit"], columns)


def hu_parts() -> str:
    """One part of the operating point changed at a time."""
    rows = [
        row | {"sent": 1 - row["answered_by_tier"].get("end", 0)} for row in _named(_paper("hu-parts")["imdb"]["rows"])
    ]
    sent = {"sent on": "{sent:.0%}", "words sent": "{words_sent_of_words_in:.0%}", "bytes up": _BESIDE[1]}
    change = {"change": "{name}", "accuracy": _PERCENT, **_POINTS}
    return table(rows, change | _MODELLED | {"ms": "{paired[modelled_ms]:+.0f}"} | sent)


def hu_pruned() -> str:
    """Networks trained with pruned texts and without, on pruned texts."""
    trained = {
        title: f"{{{key}[accuracy]:100*.1f}} {{{key}[accuracy_ci95]:100*.1f}}"
        for title, key in (
            ("trained on whole texts", "trained_on_whole"),
            ("on pruned ones too", "trained_on_pruned_too"),
        )
    }
    kept = {"pruning coefficient": "{pruning_coefficient:g}", "words kept": "{words_kept:.0%}"}
    return table(_paper("hu-pruned")["imdb"]["rows"], kept | trained | _POINTS)


def _dimee(data: str) -> tuple[Row, list[Row]]:
    """One data set of DIMEE's Table I, with the paper's score and cost beside each row that it has."""
    part, paper = _paper("dimee-1")[data], published("dimee-1")["rows"]
    rows = _named(part["rows"] | {"cloud-only": part["cloud_only"]})
    for row in rows:
        row["paper"] = paper.get(row["name"], {}).get(data, [None, None])
        row["star"] = " \\*" if row["replay_only"] else ""
        _scored(row, part)
    return part, rows


def _scored(row: Row, part: Row) -> Row:
    """The row, with `score`, its interval and its gain, in the metric of its data set."""
    metric = part["made"]["metric"]
    row["metric"], row["score"] = METRICS[metric], row.get(metric)
    row["score_ci95"], row["gain"] = row.get(f"{metric}_ci95"), row.get("paired", {}).get(metric)
    return row


_SCORE = "{score:100*.1f} {score_ci95:100*.1f}"
_OF_DEVICE = {"cost / device": "{unit_cost[against_whole_model_on_device]:+.0%}"}


def dimee_short() -> str:
    """DIMEE, Table I at first sight: score and cost against the whole model on the device; the paper's in brackets."""
    rows: dict[str, Row] = {}
    heads = {}
    for data in _paper("dimee-1"):
        part, own = _dimee(data)
        heads[f"{data}: {METRICS[part['made']['metric']]}, n = {part['made']['n']}"] = f"{{{data}}}"
        for row in own:
            form = "{score:100*.1f}, " + _OF_DEVICE["cost / device"]
            form += " ({paper[0]:.1f}, {paper[1]:+d}%)" if row["paper"][0] else ""
            rows.setdefault(row["name"], {"name": row["name"]})[data] = Cells().vformat(form, (), row)
    return table(rows.values(), {"method": "{name}", **heads})


def dimee_1(data: str) -> str:
    """DIMEE, Table I of one data set in full; * is replayed with the whole network on the first tier."""
    part, rows = _dimee(data)
    score = METRICS[part["made"]["metric"]]
    head = {f"method (n = {part['made']['n']})": "{name}{star}", score: _SCORE}
    head |= {} if score == "accuracy" else {"accuracy": _PERCENT}
    gains = {f"{score} vs whole model": "{gain:100*+.1f}", "p (accuracy)": _POINTS["p"]}
    cost = _OF_DEVICE | {"/ cloud": "{unit_cost[against_cloud_only]:+.0%}"} | _MODELLED
    theirs = {f"paper: {score}": "{paper[0]:.1f}", "paper: % cost": "{paper[1]:+d}"}
    return table(rows, head | gains | cost | {"answered at": "{answered_by_tier:.0%}"} | theirs)


def dimee_rivals() -> str:
    """DIMEE-F's rivals at its cost."""
    rows = [
        _scored(row, part) | {"data": data}
        for data, part in _paper("dimee-1").items()
        for row in _named(part["against_dimee"])
    ]
    head = {"data set": "{data}", "at DIMEE-F's cost": "{name}", "score": "{metric} " + _SCORE}
    gains = {"less DIMEE-F's": "{gain:100*+.1f}", "accuracy less DIMEE-F's": _POINTS["points"]}
    gains |= {"p (accuracy)": _POINTS["p"]}
    units = {"units more than DIMEE-F": "{paired[unit_cost]:+.1f}"}
    return table(rows, head | gains | _OF_DEVICE | units | _MODELLED)


def dimee_devices() -> str:
    """The paper's figure 2 (a), (b): what each device does alone, and at what cost."""
    which = {
        "alone": "alone",
        "on what DIMEE-F sends it": "alone_on_what_dimee_sends",
        "DIMEE-F there": "dimee_on_what_it_sends",
    }
    rows = [
        _scored(row, part) | {"data": data} | {key: _scored(row[key], part) for key in which.values()}
        for data, part in _paper("dimee-1").items()
        for row in _named(part["devices"])
    ]
    scores = {title: f"{{{key}[score]:100*.1f}} {{{key}[score_ci95]:100*.1f}}" for title, key in which.items()}
    costs = {"cost alone / cloud": "{cost_against_cloud:+.0%}", "texts": "{share_of_texts:.0%}"}
    return table(rows, {"data set": "{data}: {metric}", "device": "{name}"} | scores | costs)


def dimee_costs() -> str:
    """DIMEE-F's score at a quarter of and at four times a unit cost, less the unaltered one's."""
    rows: list[Row] = []
    for data, part in _paper("dimee-costs").items():
        own = part["cost_variation"]
        same = next(point for point in own["rows"]["lambda1"] if point["factor"] == 1)
        moved = {
            f"{cost} x {points[at]['factor']:g}": points[at] for cost, points in own["rows"].items() for at in (0, -1)
        }
        gains = [Cells().format("{less_unchanged:100*+.1f}", **point) for point in moved.values()]
        told = [
            "same alpha" if point["alpha"] == same["alpha"] else gain
            for point, gain in zip(moved.values(), gains, strict=True)
        ]
        rows.append({"data": data, "n": own["chosen_on"]["n"], **same, "heads": [*moved], "moves": told})
    head = {"data set": "{data}", "chosen on": "{n}", "unaltered": "{score:100*.1f}, alpha {alpha:.2f}"}
    return table(rows, head | {name: f"{{moves[{at}]}}" for at, name in enumerate(rows[0]["heads"])})


def dimee_pools() -> str:
    """How often an embedding names the pool that the exits say."""
    rows = [
        row | {"in": [row["agree"], *wilson(round(row["agree"] * row["made"]["n"]), row["made"]["n"])]}
        for row in _named(_paper("dimee-pools"))
    ]
    agree = {"% of texts put into the pool that their exits say": "{in:100*.0f}"}
    return table(rows, {"data set": "{name}", "n": "{made[n]}", **agree, "by chance": "{agree_by_chance:100*.0f}"})


def made_of() -> str:
    """What each table of the papers was made of."""
    rows = [
        {"table": f"{name} {part}", **own["made"]}
        for name, parts in read(RESULTS / "report.json")["tables"].items()
        for part, own in parts.items()
    ]
    plain = {key: f"{{{key}}}" for key in ("split", "n", "seed", "links", "threads", "hardware")}
    digests = {"data sha256": "`{data_sha256:.12}`", "card sha256": "`{card_sha256:.12}`"}
    return table(rows, {"table": "{table}", "bundle": "`{bundle}`", **plain, **digests})


# The code's own documentation


def settings() -> str:
    """Every setting of the first tier, as it is where the environment names none."""
    named = {name: os.environ.pop(name) for name in [*os.environ] if name.startswith(PREFIX)}
    try:
        rows = [row._asdict() | {"shown": f"`{row.value}`" if row.value else "none"} for row in settings_of("end")]
    finally:
        os.environ.update(named)
    return table(rows, {"variable": "`{variable}`", "default (end tier)": "{shown}", "meaning": "{meaning}"})


def parameters(*policies: str) -> str:
    """The parameters of policies that have the same ones."""
    rows = []
    for field, own in POLICIES[policies[0]].model_fields.items():
        by = {name: json.dumps(POLICIES[name].model_fields[field].default) for name in policies}
        default = next(iter(by.values())) if len({*by.values()}) == 1 else Cells().format("{by}", by=by)
        rows.append({"name": own.alias or field, "default": default.replace('"', ""), "meaning": own.description})
    return table(rows, {"parameter": "`{name}`", "default without a card": "{default}", "meaning": "{meaning}"})


def profiles() -> str:
    """The link profiles, with their sources; rates of 0 are unlimited."""
    rates = {"up Mbit/s": "{rate_up:g}", "down Mbit/s": "{rate_down:g}"}
    rest = {"RTT ms": "{rtt:g}", "jitter ms": "{jitter:g}", "loss %": "{loss:g}", "source": "{source}"}
    return table(_named(yaml.safe_load(PROFILES.read_text())), {"profile": "`{name}`", **rates, **rest})


TABLES: dict[str, Callable[..., str]] = {
    make.__name__.replace("_", "-"): make
    for make in (
        *(bench, cells, load, links, speed, exits, bundles, routing, replay, modelled),
        *(hu_1, hu_points, hu_points_beside, hu_thresholds, hu_parts, hu_pruned),
        *(dimee_short, dimee_1, dimee_rivals, dimee_devices, dimee_costs, dimee_pools, made_of),
        *(settings, parameters, profiles),
    )
}


def filled(text: str) -> str:
    """A page with every table made anew.

    Raises:
        BadSetting: a table that nothing here makes.
    """

    def made(block: re.Match[str]) -> str:
        name, *narrowed = block[2].split()
        if name not in TABLES:
            raise BadSetting(f"no table {name!r}: there are {', '.join(TABLES)}")
        return f"{block[1]}{TABLES[name](*narrowed)}\n{block[3]}"

    return _BLOCK.sub(made, text)


def pages() -> list[Path]:
    """The README, and every page of the site."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def main() -> int:
    """Write the tables, or with `--check` name the pages that differ."""
    stale = {page: new for page in pages() if (new := filled(old := page.read_text())) != old}
    for page, new in stale.items():
        if "--check" in sys.argv:
            sys.stderr.write(f"{page.relative_to(ROOT)}: tables differ from their sources; run `make docs`\n")
        else:
            page.write_text(new)
    return int(bool(stale) and "--check" in sys.argv)


if __name__ == "__main__":
    sys.exit(main())
