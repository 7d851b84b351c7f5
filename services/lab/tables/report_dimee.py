"""DIMEE in the report."""

from __future__ import annotations

from typing import Any

from services.lab.stats import wilson
from services.lab.tables.markdown import interval, p_value, score, share, table
from services.lab.tables.published import published

COST_NOTE = (
    "Costs are DIMEE's units, **reconstructed, fitted to its Table I**, never the paper's own constants; relative to "
    "the whole model on the device (section IV-B) and to the cloud (abstract)."
)
PARAMETERS_NOTE = (
    "Every row has the parameters of the bundle's card, chosen on validation data. AdaEE, I-SplitEE and DIMEE-D learn "
    "from the texts that they are judged on, never from labels. Below each table what is compared at DIMEE-F's cost, "
    "as nearly as it can be met: length edges and the cascade's threshold are set on the judged texts. p is of "
    "accuracy (exact McNemar, stricter than a bootstrap interval), whatever the metric."
)
SCORE = {"accuracy": "accuracy", "mcc": "MCC", "f1": "F1"}


def dimee_1(parts: dict[str, Any]) -> list[str]:
    """Table I of every data set beside the paper's, and DIMEE's rivals at its cost."""
    out = ["## DIMEE, Table I", "", COST_NOTE + " *: replayed with the whole network on the first tier."]
    out += ["", PARAMETERS_NOTE]
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
                    p_value(row),
                    share(row["unit_cost"]["against_whole_model_on_device"]),
                    share(row["unit_cost"]["against_cloud_only"]),
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
            "p (accuracy)",
            "cost / device",
            "/ cloud",
            "modelled ms",
            "answered at",
            f"paper: {SCORE[metric]}",
            "cost",
        ]
        out += ["", f"### {name}, n = {made['made']['n']}", "", *table(columns, rows), "", *_rivals(made, metric)]
        out += ["", *_devices(made, metric)]
    return [*out, "", "![Each device, and the table as a picture](dimee-1.png)"]


def _rivals(made: dict[str, Any], metric: str) -> list[str]:
    rows = [
        [
            name,
            score(row, metric),
            interval(row["paired"][metric]),
            interval(row["paired"]["accuracy"]),
            p_value(row),
            share(row["unit_cost"]["against_whole_model_on_device"]),
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
        "p (accuracy)",
        "cost / device",
        "units more than DIMEE-F",
        "modelled ms",
    ]
    return table(columns, rows)


def _devices(made: dict[str, Any], metric: str) -> list[str]:
    """The paper's figure 2 (a), (b): what each device does alone, and at what cost."""
    rows = [
        [
            tier,
            *(
                score(own[which], metric) if own[which]["n"] else "-"
                for which in ("alone", "alone_on_what_dimee_sends", "dimee_on_what_it_sends")
            ),
            share(own["cost_against_cloud"]),
            f"{own['share_of_texts']:.0%}",
        ]
        for tier, own in made["devices"].items()
    ]
    alone = f"{SCORE[metric]} alone"
    return table(["device", alone, "on what DIMEE-F sends it", "DIMEE-F there", "cost alone / cloud", "texts"], rows)


def dimee_costs(parts: dict[str, Any]) -> list[str]:
    """The figure of score against cost."""
    sizes = ", ".join(f"{name} (n = {made['made']['n']})" for name, made in parts.items())
    return [
        "## DIMEE: costs",
        "",
        COST_NOTE + " Left: each method as its own threshold varies. DIMEE's pools stay the card's. "
        "Middle and right (the paper's figure 3): one unit cost is altered, alpha is chosen again by eq. 2-3 and pools "
        "are made again on held-out texts, mu stays the card's. The table gives the score at a quarter of and at four "
        f"times a unit cost, less the unaltered one's; intervals are over the judged texts. Data sets: {sizes}.",
        "",
        *_altered(parts),
        "",
        "![Score against cost, and as a unit cost changes](dimee-costs.png)",
    ]


def _altered(parts: dict[str, Any]) -> list[str]:
    rows, columns = [], ["data set", "chosen on", "unaltered"]
    for name, made in parts.items():
        own = made["cost_variation"]
        unaltered = next(row for row in own["rows"]["lambda1"] if row["factor"] == 1)
        cells = [name, f"{own['chosen_on']['n']}", f"{100 * unaltered['score']:.1f}, alpha {unaltered['alpha']:.2f}"]
        columns = columns[:3]
        for cost, points in own["rows"].items():
            for point in (points[0], points[-1]):
                columns.append(f"{cost} x {point['factor']:g}")
                same = point["alpha"] == unaltered["alpha"]
                cells.append("same alpha" if same else interval(point["less_unchanged"]))
        rows.append(cells)
    return table(columns, rows)


def dimee_pools(parts: dict[str, Any]) -> list[str]:
    """How often an embedding names the pool that the exits say."""
    rows = [
        [name, f"{made['made']['n']}", _agreeing(made), f"{made['agree_by_chance']:.0%}"]
        for name, made in parts.items()
    ]
    return [
        "## DIMEE: does an embedding tell a text's pool?",
        "",
        *table(["data set", "n", "texts put into the pool that their exits say", "expected by chance"], rows),
        "",
        "![t-SNE of the signatures, coloured by pool](dimee-pools.png)",
    ]


def _agreeing(made: dict[str, Any]) -> str:
    n = made["made"]["n"]
    low, high = wilson(round(made["agree"] * n), n)
    return f"{made['agree']:.0%} [{100 * low:.0f}, {100 * high:.0f}]"
