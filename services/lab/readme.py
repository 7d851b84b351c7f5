"""The README's figures and tables, from the files that the measuring commands wrote: `make readme`.

A block in the README is everything between `<!-- made: NAME -->` and `<!-- end -->`; prose stands outside of blocks.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from services.lab.check_times import off
from services.lab.config import rows
from services.lab.policies import shown
from services.lab.tables.findings import findings, planned
from shared.bundle import MODELS
from shared.errors import BadSetting
from shared.policies import POLICIES
from shared.settings import PREFIX

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results"
PRUNED = "collaborative:pruning_coefficient=1"
_BLOCK = re.compile(r"(<!-- made: ([a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def _read(path: Path) -> Any:
    return json.loads(path.read_text())


def _points(estimate: list[float]) -> str:
    value, low, high = (100 * part for part in estimate)
    return f"{value:+.1f} [{low:+.1f}, {high:+.1f}]"


def _table(head: str, lines: list[str]) -> str:
    columns = head.count("|") - 1
    return "\n".join([head, "|" + "---|" * columns, *lines])


def bench() -> str:
    """Every policy of the committed bench: one row each."""
    return _bench(_read(RESULTS / "bench.json"))


def _bench(report: dict[str, Any]) -> str:
    hardware = report["hardware"]
    links = sorted({link for figures in report["policies"].values() for link in figures["links"]})
    lines = []
    for policy, f in report["policies"].items():
        low, high = f["accuracy_ci95"]
        ran = ", ".join(f"{tier} {share:.0%}" for tier, share in f["ran_by_tier"].items())
        latency = " | ".join(f"{f['latency_ms'][key]:.0f}" for key in ("mean", "p50", "p95", "p99"))
        lines.append(
            f"| `{policy}` | {f['accuracy']:.3f} [{low:.3f}, {high:.3f}] | {_points(f['accuracy_minus_first'])} | "
            f"{latency} | {ran} | {f['bytes_per_request']['up']:.0f} | {f['stages_ms']['infer']:.0f} | "
            f"{f['stages_ms']['link']:.0f} |"
        )
    head = (
        "| policy | accuracy [95 %] | against the first, points [95 %] | mean ms | p50 | p95 | p99 | tiers that ran |"
    )
    return (
        f"n = {report['n']}, {report['loop']}, policies interleaved and paired; {hardware['cpu']}, "
        f"{hardware['cores']} cores, {hardware['device']}; links: {', '.join(links)}.\n\n"
        + _table(f"{head} bytes up | infer ms | link ms |", lines)
    )


def parts() -> str:
    """What each part of the default policy gains or costs, from the same run."""
    p = _read(RESULTS / "bench.json")["policies"]
    report = _read(MODELS / "collaborative" / "card.json")["report"]
    own, tabi, cloud, edge, pruned = (p[n] for n in ("collaborative", "tabi", "cloud-only", "edge-only", PRUNED))
    mean, p95 = (lambda f: f["latency_ms"]["mean"]), (lambda f: f["latency_ms"]["p95"])
    slower, faster = tabi["latency_minus_first_ms"], pruned["latency_minus_first_ms"]
    by = report["pruning"]["by"]
    why = report["operating_point"]["why_this_weighting"]
    return "\n".join(
        [
            f"- *Offloading*: {1 - mean(own) / mean(cloud):.0%} less mean latency than cloud-only, which is "
            f"{_points(cloud['accuracy_minus_first'])} points better; {own['answered_by_tier']['end']:.0%} of the "
            "texts never left the device.",
            f"- *Early exit*: without it (tabi) a request takes "
            f"{slower[0]:+.0f} ms [{slower[1]:+.0f}, {slower[2]:+.0f}] and accuracy is "
            f"{_points(tabi['accuracy_minus_first'])} points; early exit saves "
            f"{1 - mean(own) / mean(tabi):.0%} of the mean.",
            f"- *Pruning* at 1.0: {pruned['words_kept_of_words_at_pruning']:.0%} of the words are sent, "
            f"{pruned['bytes_per_request']['up']:.0f} instead of {own['bytes_per_request']['up']:.0f} bytes a request, "
            f"latency {faster[0]:+.0f} ms [{faster[1]:+.0f}, {faster[2]:+.0f}], accuracy "
            f"{_points(pruned['accuracy_minus_first'])} points. On the {report['pruning']['n']} validation texts that "
            f"the end is least sure of, the edge has {by[0]['accuracy']:.3f} on whole texts and "
            + ", ".join(f"{row['accuracy']:.3f} at {row['coefficient']}" for row in by[1:])
            + f"; calibration chose {report['pruning']['chosen']}.",
            f"- *Ensemble* against the deepest tier's answer alone: {_points(own['ensemble_minus_last_tier'])} points. "
            "Expected NLL on validation: "
            + ", ".join(f"{name} {row['nll']:.4f}" for name, row in why.items())
            + f"; calibration chose {report['operating_point']['weighting']}.",
            f"- *The tail pays*: a text that is sent on is computed up to three times; p95 is {p95(own):.0f} ms, "
            f"cloud-only's {p95(cloud):.0f}, edge-only's {p95(edge):.0f} (at a mean of {mean(edge):.0f} and "
            f"{_points(edge['accuracy_minus_first'])} points).",
        ]
    )


def exits() -> str:
    """The trained exits on test texts, from the model card."""
    test = _read(MODELS / "collaborative" / "card.json")["report"]["test"]
    lines, worse = [], []
    for tier, measured in test["tiers"].items():
        every, last = measured["exits"], measured["exits"][-1]
        low, high = last["ci95"]
        curve = " ".join(f"{e['accuracy']:.3f}"[1:] for e in every)
        worse += [f"{tier} exit {e['exit']}" for e in every if e["worse_than_the_exit_before"]]
        lines.append(
            f"| {tier} ({measured['max_tokens']} tokens) | {last['accuracy']:.3f} [{low:.3f}, {high:.3f}] | "
            f"{last['ece']:.3f} | {curve} |"
        )
    head = f"| tier, n = {test['n']} | final exit: accuracy [95 %] | ECE | accuracy of every exit |"
    return _table(head, lines) + f"\n\nWorse than the exit before it: {', '.join(worse) or 'none'}."


def speed() -> str:
    """`make bench`: our encoder against transformers' own, and what a tier adds to its model."""
    measured = _read(RESULTS / "speed.json")
    models = [
        f"| {row['base'].partition('/')[2]} | {row['tokens']} | {row['batch']} | {row['transformers_ms']:.0f} | "
        f"{row['plain']:.3f} | {row['importance']:.3f} |"
        for row in measured["encoders"]
    ]
    tiers = [
        f"| {row['tier']} | {row['client_ms']:.1f} | {row['server_ms']:.1f} | {row['resident_mb'][0]:.0f} | "
        f"{row['resident_mb'][1]:.0f} |"
        for row in measured["tiers"]
    ]
    head = "| base | tokens | batch | transformers ms | ours / transformers | with importance / transformers |"
    half, whole = measured["requests"] // 2, measured["requests"]
    tier_head = f"| tier | client less model, p50 ms | server less model, p50 ms | MB after {half} | after {whole} |"
    return (
        f"{measured['hardware']}; {measured['threads']} thread, median of {measured['pairs']} pairs.\n\n"
        f"{_table(head, models)}\n\n{_table(tier_head, tiers)}"
    )


def links() -> str:
    """Simulated links against netem (`tierwise link compare`)."""
    report = _read(RESULTS / "links.json")
    lines = []
    for row in report["profiles"]:
        low, high = row["difference_ci95"]
        sides = " | ".join(
            f"{row[side][key]:.1f}" for side in ("netem_ms", "simulated_ms") for key in ("p50", "mean", "p95")
        )
        lines.append(f"| `{row['profile']}` | {sides} | {row['difference']:+.0%} [{low:+.0%}, {high:+.0%}] |")
    head = "| profile | netem: p50 ms | mean | p95 | simulated: p50 ms | mean | p95 | p50 differs by [95 %] |"
    return f"{report['link']}, n = {report['n']} a cell, one request at a time; {report['cpu']}.\n\n" + _table(
        head, lines
    )


def cells() -> str:
    """The bench over netem links (`tierwise bench --cell`): a row per policy, three columns per pair of links."""
    reports = {path.stem.removeprefix("netem-"): _read(path) for path in sorted(RESULTS.glob("netem-*.json"))}
    first = next(iter(reports.values()))
    lines = []
    for policy, f in first["policies"].items():
        low, high = f["accuracy_ci95"]
        ms = [report["policies"][policy]["latency_ms"] for report in reports.values()]
        cells = " | ".join(f"{own[key]:.0f}" for own in ms for key in ("p50", "mean", "p95"))
        lines.append(f"| `{policy}` | {f['accuracy']:.3f} [{low:.3f}, {high:.3f}] | {cells} |")
    head = "| policy | accuracy [95 %] | " + " | ".join(f"{name}: p50 ms | mean | p95" for name in reports) + " |"
    hardware = f"{first['hardware']['cpu']}, {first['hardware']['cores']} core"
    return f"n = {first['n']}, one at a time, interleaved; {hardware}.\n\n" + _table(head, lines)


def replay() -> str:
    """Every policy on every bundle (`tierwise replay`): score / modelled mean ms; * runs in replay only."""
    report = _read(RESULTS / "replay.json")
    bundles = report["bundles"]
    lines = []
    for policy in dict.fromkeys(name for own in bundles.values() for name in own["policies"]):
        cells = []
        for own in bundles.values():
            f = own["policies"].get(policy)
            star = "\\*" if f and f["replay_only"] else ""
            cells.append(f"{f[own['metric']]:.3f} / {f['modelled_ms']['mean']:.0f}{star}" if f else "-")
        lines.append(f"| `{policy}` | {' | '.join(cells)} |")
    hardware = report["hardware"]
    head = " | ".join(f"{name}: {own['metric']}, n = {own['n']}" for name, own in bundles.items())
    notes = "".join(f" {note[0].upper()}{note[1:]}." for note in report["notes"])
    return (
        f"Links {report['links']}; modelled for {hardware['cpu']}, {hardware['cores']} cores.{notes} Made in "
        f"{report['took_s']:.0f} s, with {report['texts_run']} passes that were not in the cache."
        f"\n\n{_table(f'| policy | {head} |', lines)}"
    )


def modelled() -> str:
    """Modelled times beside live ones (`tierwise check-times`): a row per stack and policy."""
    lines = []
    for path in sorted(RESULTS.glob("modelled-*.json")):
        said, where = _read(path), path.stem.removeprefix("modelled-")
        for policy, own in said["policies"].items():
            pairs = " | ".join(
                f"{own['live_ms'][part]:.0f} | {own['modelled_ms'][part]:.0f}" for part in ("total", "compute", "link")
            )
            lines.append(f"| {where}, {said['rounds']} x {said['n']} | `{shown(policy)}` | {off(own)} | {pairs} |")
    head = "| stack, rounds x texts | policy | off [95 %] | live mean ms | modelled | compute: live | modelled "
    return _table(f"{head}| link: live | modelled |", lines)


def settings() -> str:
    """Every setting of the first tier, as it is where the environment names none."""
    named = {name: os.environ.pop(name) for name in [*os.environ] if name.startswith(PREFIX)}
    try:
        lines = [
            f"| `{row.variable}` | {f'`{row.value}`' if row.value else 'none'} | {row.meaning} |" for row in rows("end")
        ]
    finally:
        os.environ.update(named)
    return _table("| variable | default (end tier) | meaning |", lines)


def parameters() -> str:
    """Every parameter of every policy; policies that share one stand in a row."""
    merged: dict[tuple[str, str], dict[str, str]] = {}
    for name, policy in POLICIES.items():
        for own, field in policy.model_fields.items():
            default = "null" if field.default is None else str(field.default)
            merged.setdefault((field.alias or own, field.description or ""), {})[name] = default
    lines = []
    for (parameter, meaning), by_policy in merged.items():
        values = set(by_policy.values())
        shown = values.pop() if len(values) == 1 else ", ".join(f"{p} {v}" for p, v in by_policy.items())
        lines.append(f"| `{parameter}` | {', '.join(by_policy)} | {shown} | {meaning} |")
    return _table("| parameter | of | default without a card | meaning |", lines)


def bundles() -> str:
    """The last exit of every tier on unseen texts, for each committed bundle."""
    lines = []
    for path in sorted(MODELS.glob("*/card.json")):
        bundle, test = _read(path.parent / "bundle.json"), _read(path)["report"].get("test")
        metric = bundle.get("metric", "accuracy")
        if test is None:
            continue
        cells = []
        for tier, measured in test["tiers"].items():
            last = measured["exits"][-1]
            low, high = last["ci95" if metric == "accuracy" else f"{metric}_ci95"]
            cells.append(f"{tier} ({len(measured['exits'])}) {last[metric]:.3f} [{low:.3f}, {high:.3f}]")
        lines.append(f"| `{path.parent.name}` | {metric} | {test['n']} | {'; '.join(cells)} |")
    return _table("| bundle | metric | n | tier (layers): its last exit [95 %] |", lines)


def routing() -> str:
    """How well a text's pool can be told before any layer runs, on validation data."""
    ways = ("mean_word", "layernorm_mean", "token_norms", "length_quantile", "known_pools")
    lines = []
    for path in sorted(MODELS.glob("*/card.json")):
        report = _read(path)["report"]
        by = report.get("pools", {}).get("routing")
        if by is None:
            continue
        cells = [
            f"{by[way]['accuracy']:.3f} ({100 * (by[way]['accuracy'] - by[way]['accuracy_at_random']):+.1f})"
            for way in ways
        ]
        alpha = report["pools"]["chosen"]["alpha"]
        sizes = "/".join(map(str, by["known_pools"]["sent_to"]))
        lines.append(
            f"| `{path.parent.name}` | {report['validation']['n']} | {alpha:.2f}: {sizes} | {' | '.join(cells)} |"
        )
    head = (
        "| bundle | n | alpha: its pools | mean_word | layernorm_mean | token_norms | length-quantile | pools known |"
    )
    return _table(head, lines)


def found() -> str:
    """What the papers' tables, made again, and the planner say."""
    lines = [*findings(_read(RESULTS / "report.json")), planned(_read(RESULTS / "plan.json"))]
    return "\n".join(f"- {line}" for line in lines)


def load() -> str:
    """`make load`: goodput and latency at rest, at half and at five times saturation; what must hold."""
    report = _read(RESULTS / "load.json")
    lines = []
    for p in (p for p in report["phases"] if p["name"] != "ladder"):
        times = [p["p50"], p["p99"], *([p["refused_p95"]] if p["refused"] else [])]
        lines.append(
            f"| {p['name']} | {p['rate']:.1f} | {p['n']} | {p['goodput']:.1f} | {p['degraded']:.0%} | {p['refused']} | "
            f"{p['errors']} | {' | '.join(f'{ms:.0f}' for ms in times)}{'' if p['refused'] else ' | -'} |"
        )
    head = "| load | offered/s | n | answers/s | degraded | refused | errors | p50 ms | p99 ms | refusals p95 ms |"
    missed = [f"{v['what']} {v['measured']:.2f} (limit {v['limit']:g})" for v in report["verdict"] if not v["holds"]]
    where = f"`{report['bundle']}`, {report['hardware']}, {report['cores']} core(s) for the tiers and the load"
    return f"{where}.\n\n{_table(head, lines)}\n\nMissed: {'; '.join(missed) or 'nothing'}."


BLOCKS: dict[str, Callable[[], str]] = {
    "bench": bench,
    "parts": parts,
    "exits": exits,
    "speed": speed,
    "links": links,
    "cells": cells,
    "replay": replay,
    "modelled": modelled,
    "settings": settings,
    "parameters": parameters,
    "bundles": bundles,
    "routing": routing,
    "found": found,
    "load": load,
}


def filled(text: str) -> str:
    """The README with every block made anew.

    Raises:
        BadSetting: a block that nothing here makes.
    """

    def made(block: re.Match[str]) -> str:
        if block[2] not in BLOCKS:
            raise BadSetting(f"README.md has a block {block[2]!r}; there are {', '.join(BLOCKS)}")
        return f"{block[1]}{BLOCKS[block[2]]()}\n{block[3]}"

    return _BLOCK.sub(made, text)


def main() -> None:
    """Write the README's blocks."""
    path = ROOT / "README.md"
    path.write_text(filled(path.read_text()))
    sys.stdout.write("README.md: tables written\n")


if __name__ == "__main__":
    main()
