"""The report in Markdown, from its JSON and the papers' numbers alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from services.lab.tables.findings import findings
from services.lab.tables.markdown import table
from services.lab.tables.published import published
from services.lab.tables.report_dimee import dimee_1, dimee_costs, dimee_pools
from services.lab.tables.report_hu import hu_1, hu_parts, hu_pruned


def markdown(report: dict[str, Any]) -> str:
    """The whole report."""
    tables = report["tables"]
    made = [part for table in tables.values() for part in table.values()]
    links, hardware = (", ".join(sorted({part["made"][key] for part in made})) for key in ("links", "hardware"))
    notes = sorted({note for part in made for note in part["made"].get("notes", [])})
    head = [
        "# The papers' tables, made again",
        "",
        f"Made by `tierwise tables` from recorded texts; {hardware}, no GPU; links {links}. **Times are modelled**: "
        "per-layer tables measured on this machine plus the links' profiles, no waiting. Brackets are 95 % intervals: "
        "Wilson's for an accuracy, paired bootstrap for a difference; p is McNemar's; many comparisons are made, none "
        "corrected for. Texts that occur in train are left out. The papers used BERT and other machines: compare "
        "shapes, not milliseconds." + "".join(f" Note: {note}." for note in notes),
        "",
        "## What was found",
        "",
        *(f"- {line}" for line in findings(report)),
        "",
    ]
    body = [line for name, write in SECTIONS.items() if name in tables for line in (*write(tables[name]), "")]
    return "\n".join([*head, *body, *_provenance(tables), ""])


SECTIONS: dict[str, Callable[[dict[str, Any]], list[str]]] = {
    "hu-1": hu_1,
    "hu-parts": hu_parts,
    "hu-pruned": hu_pruned,
    "dimee-1": dimee_1,
    "dimee-costs": dimee_costs,
    "dimee-pools": dimee_pools,
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
            made["made"]["hardware"],
            f"`{made['made']['data_sha256'][:12]}`",
            f"`{made['made']['card_sha256'][:12]}`",
        ]
        for name, own in tables.items()
        for part, made in own.items()
    ]
    columns = ["table", "bundle", "split", "n", "seed", "links", "threads", "hardware", "data sha256", "card sha256"]
    return [
        "## Made of",
        "",
        *table(columns, rows),
        "",
        *(f"Paper: {published(t)['source']}." for t in ("hu-1", "dimee-1")),
    ]
