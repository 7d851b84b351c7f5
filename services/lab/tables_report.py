"""The report in Markdown, from its JSON and the papers' numbers alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from services.lab.published import published
from services.lab.tables_findings import findings
from services.lab.tables_hu import beats

COST_NOTE = (
    "Costs are DIMEE's units, **reconstructed, fitted to its Table I**, never the paper's own constants; relative to "
    "the whole model on the device (section IV-B) and to the cloud (abstract)."
)
SCORE = {"accuracy": "accuracy", "mcc": "MCC", "f1": "F1"}


def markdown(report: dict[str, Any]) -> str:
    """The whole report."""
    tables, hardware = report["tables"], report["hardware"]
    made = [part for table in tables.values() for part in table.values()]
    links = ", ".join(sorted({part["made"]["links"] for part in made}))
    notes = sorted({note for part in made for note in part["made"].get("notes", [])})
    head = [
        "# The papers' tables, made again",
        "",
        f"Made by `tierwise tables` from recorded texts; {hardware['cpu']}, {hardware['cores']} cores, "
        f"{hardware['device']}; links {links}. **Times are modelled**: per-layer tables measured on this machine plus "
        "the links' profiles, no waiting. Brackets are 95 % intervals: Wilson's for an accuracy, paired bootstrap for "
        "a difference; p is McNemar's. Texts that occur in train are left out. The papers used BERT and other "
        "machines: compare shapes, not milliseconds." + "".join(f" Note: {note}." for note in notes),
        "",
        "## What was found",
        "",
        *(f"- {line}" for line in findings(report)),
        "",
    ]
    body = [line for name, write in SECTIONS.items() if name in tables for line in (*write(tables[name]), "")]
    return "\n".join([*head, *body, *_provenance(tables), ""])


def table(columns: list[str], rows: list[list[str]]) -> list[str]:
    """A Markdown table."""
    return [f"| {' | '.join(row)} |" for row in (columns, ["---"] * len(columns), *rows)]


def interval(estimate: list[float], factor: float = 100, digits: int = 1) -> str:
    """A difference with its interval, in points unless `factor` says otherwise."""
    value, low, high = (factor * part for part in estimate)
    return f"{value:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"


def score(row: dict[str, Any], metric: str) -> str:
    """A score with its interval, times 100."""
    low, high = row[f"{metric}_ci95"]
    return f"{100 * row[metric]:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def _p(row: dict[str, Any]) -> str:
    p = row["paired"]["mcnemar_p"]
    return "<.001" if p < 0.001 else f"{p:.3f}"[1:] if p < 1 else "1"


def _share(value: float) -> str:
    return f"{value:+.0%}"


# -- Zhang et al. -----------------------------------------------------------------------------------------------------


_SAME = "accuracy | modelled ms | points vs theta 0 | p | % time saved"


def _hu_1(parts: dict[str, Any]) -> list[str]:
    made = parts["imdb"]
    losses, cloud = made["points"], made["table"]["cloud_only"]
    weights = ", ".join(
        f"{100 * (plain['accuracy'] - (r['accuracy'] - r['paired']['accuracy'][0])):+.1f}"
        for r in losses["rows"]
        for plain in made["table"]["rows"]
        if plain["spec"]["theta"] == 0 and plain["spec"]["offload_threshold"] == r["spec"]["offload_threshold"]
    )
    allowed = f"{100 * losses['may_lose']:.1f}"
    paper = "paper: accuracy | ms | points vs theta 0 | % saved"
    return [
        "## Zhang et al., Table I (IMDB)",
        "",
        f"n = {made['made']['n']}, bundle `{made['made']['bundle']}`, steepness 10 and patience 2 (ours: the paper "
        "gives none), weights by accuracy, no pruning. The deepest tier alone: "
        f"{score(cloud, 'accuracy')}, {cloud['modelled_ms']['mean']:.0f} ms.",
        "",
        *table(f"threshold | theta | {_SAME} | {paper}".split(" | "), _hu_rows(made["table"]["rows"])),
        "",
        "### Operating points that must beat it",
        "",
        "theta per tier, patience, and the confidence that leaving needs besides, chosen on "
        f"{losses['chosen_on']['n']} validation texts as the fastest whose loss and one standard error stay within "
        f"{allowed} points; fitted weights. Asked of unseen texts: at least 17 % less mean time than theta = 0 at the "
        f"same threshold for at most {allowed} points. Beyond doubt: the intervals say so too. With weights by "
        f"accuracy, the table's, theta = 0 has {weights} points against the baseline here, theta = 0 with fitted ones.",
        "",
        *table(
            f"threshold | theta | patience | least confidence | {_SAME} | holds".split(" | "),
            [_hu_point(row) for row in losses["rows"]],
        ),
        "",
        "![Table I by theta, and our points](hu-1.png)",
    ]


def _hu_rows(rows: list[dict[str, Any]]) -> list[list[str]]:
    """The twelve rows, the paper's figures beside ours."""
    paper = {(tau, theta): (ms, accuracy) for tau, theta, ms, accuracy in published("hu-1")["rows"]}
    out = []
    for row in rows:
        tau, theta = row["spec"]["offload_threshold"], row["spec"]["theta"]
        (ms, accuracy), (ms_0, accuracy_0) = paper[tau, theta], paper[tau, 0.0]
        theirs = [f"{100 * accuracy:.2f}", f"{ms:.0f}", f"{100 * (accuracy - accuracy_0):+.1f}"]
        out.append([f"{tau}", f"{theta:g}", *_against_theta_0(row), *theirs, f"{100 * (1 - ms / ms_0):+.0f}"])
    return out


def _hu_point(row: dict[str, Any]) -> list[str]:
    """One operating point of ours, and whether it keeps what it must."""
    spec, held = row["spec"], beats(row)
    theta = spec["theta"] if isinstance(spec["theta"], dict) else {"every tier": spec["theta"]}
    return [
        f"{spec['offload_threshold']}",
        ", ".join(f"{tier} {value:g}" for tier, value in theta.items()),
        f"{spec['patience']}",
        f"{spec.get('exit_min_confidence', 0):g}",
        *_against_theta_0(row),
        "yes" if held["at_95"] else "on these texts, not beyond doubt" if held["here"] else "no",
    ]


def _against_theta_0(row: dict[str, Any]) -> list[str]:
    return [
        score(row, "accuracy"),
        f"{row['modelled_ms']['mean']:.0f}",
        interval(row["paired"]["accuracy"]),
        _p(row),
        interval(row["paired"]["time_saved"], 100, 0),
    ]


def _hu_parts(parts: dict[str, Any]) -> list[str]:
    made = parts["imdb"]
    base = made["base"]
    rows = [
        [
            name,
            score(row, "accuracy"),
            interval(row["paired"]["accuracy"]),
            _p(row),
            f"{row['modelled_ms']['mean']:.0f}",
            interval(row["paired"]["modelled_ms"], 1, 0),
            f"{1 - row['answered_by_tier'].get('end', 0):.0%}",
            "-" if row["words_sent_of_words_in"] is None else f"{row['words_sent_of_words_in']:.0%}",
            f"{row['bytes_per_request']['up']:.0f}",
        ]
        for name, row in {"(the card's)": {**base, "paired": None}, **made["rows"]}.items()
        if row["paired"] is not None
    ]
    return [
        "## Zhang et al.: what each part contributes",
        "",
        f"n = {made['made']['n']}; one part of the card's operating point changed at a time, paired with it: accuracy "
        f"{score(base, 'accuracy')}, {base['modelled_ms']['mean']:.0f} ms, "
        f"{1 - base['answered_by_tier'].get('end', 0):.0%} of the texts sent on, {base['bytes_per_request']['up']:.0f} "
        "bytes up. *As many sent*: thresholds set on validation texts so that each tier sends on as many as the S "
        "curve does. **Not done**: networks trained without pruned texts (there is one of each kind; MPNet saw pruned "
        "texts in training, MiniLM did not).",
        "",
        *table(
            ["change", "accuracy", "points", "p", "modelled ms", "ms", "sent on", "words sent", "bytes up"],
            rows,
        ),
        "",
        "![What each part contributes](hu-parts.png)",
    ]


# -- DIMEE ------------------------------------------------------------------------------------------------------------


def _dimee_1(parts: dict[str, Any]) -> list[str]:
    out = ["## DIMEE, Table I", "", COST_NOTE + " *: replayed with the whole network on the first tier."]
    for name, made in parts.items():
        metric = made["made"]["metric"]
        paper = published("dimee-1")["rows"]
        rows = []
        for row_name, row in {**made["rows"], "cloud-only": made["cloud_only"]}.items():
            printed = paper.get(row_name, {}).get(name)
            rows.append(
                [
                    f"{row_name}{' *' if row['replay_only'] else ''}",
                    score(row, metric),
                    *([score(row, "accuracy")] if metric != "accuracy" else []),
                    interval(row["paired"][metric]),
                    _p(row),
                    _share(row["unit_cost"]["against_whole_model_on_device"]),
                    _share(row["unit_cost"]["against_cloud_only"]),
                    f"{row['modelled_ms']['mean']:.0f}",
                    " ".join(f"{tier} {share:.0%}" for tier, share in row["answered_by_tier"].items()),
                    f"{printed[0]:.1f}" if printed else "-",
                    f"{printed[1]:+d}%" if printed else "-",
                ]
            )
        columns = [
            "row",
            SCORE[metric],
            *(["accuracy"] if metric != "accuracy" else []),
            f"{SCORE[metric]} vs whole model",
            "p",
            "cost / device",
            "/ cloud",
            "modelled ms",
            "answered at",
            f"paper: {SCORE[metric]}",
            "cost",
        ]
        out += ["", f"### {name}, n = {made['made']['n']}", "", *table(columns, rows), "", *_rivals(made, metric)]
    return [*out, "", "![Each device, and the table as a picture](dimee-1.png)"]


def _rivals(made: dict[str, Any], metric: str) -> list[str]:
    rows = [
        [
            name,
            score(row, metric),
            interval(row["paired"][metric]),
            interval(row["paired"]["accuracy"]),
            _p(row),
            _share(row["unit_cost"]["against_whole_model_on_device"]),
            interval(row["paired"]["unit_cost"], 1),
            f"{row['modelled_ms']['mean']:.0f}",
        ]
        for name, row in made["against_dimee"].items()
    ]
    columns = [
        "at DIMEE-F's cost",
        SCORE[metric],
        "less DIMEE-F's",
        "accuracy less DIMEE-F's",
        "p",
        "cost / device",
        "units more than DIMEE-F",
        "modelled ms",
    ]
    return table(columns, rows)


def _dimee_costs(parts: dict[str, Any]) -> list[str]:
    sizes = ", ".join(f"{name} (n = {made['made']['n']})" for name, made in parts.items())
    return [
        "## DIMEE: costs",
        "",
        COST_NOTE + " Left: each method as its own threshold varies. Right: the same decisions at other prices of "
        f"offloading. Data sets: {sizes}.",
        "",
        "![Score against cost](dimee-costs.png)",
    ]


def _dimee_pools(parts: dict[str, Any]) -> list[str]:
    rows = [
        [name, f"{made['made']['n']}", f"{made['agree']:.0%}", f"{made['agree_by_chance']:.0%}"]
        for name, made in parts.items()
    ]
    return [
        "## DIMEE: does an embedding tell a text's pool?",
        "",
        *table(["data set", "n", "texts put into the pool that their exits say", "expected by chance"], rows),
        "",
        "![t-SNE of the signatures, coloured by pool](dimee-pools.png)",
    ]


SECTIONS: dict[str, Callable[[dict[str, Any]], list[str]]] = {
    "hu-1": _hu_1,
    "hu-parts": _hu_parts,
    "dimee-1": _dimee_1,
    "dimee-costs": _dimee_costs,
    "dimee-pools": _dimee_pools,
}


def _provenance(tables: dict[str, Any]) -> list[str]:
    """What each table was made of."""
    rows = [
        [
            f"{name} {part}",
            f"`{made['made']['bundle']}`",
            made["made"]["split"],
            f"{made['made']['n']}",
            f"{made['made']['seed']}",
            made["made"]["links"],
            " ".join(f"{tier} {count}" for tier, count in made["made"]["threads"].items()),
            f"`{made['made']['data_sha256'][:12]}`",
            f"`{made['made']['card_sha256'][:12]}`",
        ]
        for name, own in tables.items()
        for part, made in own.items()
    ]
    columns = ["table", "bundle", "split", "n", "seed", "links", "threads", "data sha256", "card sha256"]
    return [
        "## Made of",
        "",
        *table(columns, rows),
        "",
        *(f"Paper: {published(t)['source']}." for t in ("hu-1", "dimee-1")),
    ]
