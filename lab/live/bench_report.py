"""What a bench run says: figures per policy, a table, and accuracy against latency as a picture."""

from __future__ import annotations

import os
import platform
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from lab.beside import beside, beside_whom, verdict
from lab.beside import table as table_beside
from lab.console import sheet
from lab.data.examples import digest
from lab.live.bench import Done, Plan, Sample
from lab.outputs import REPLACED, write_json
from lab.picture import BLUE, GREEN, GREY, INTERVALS, ORANGE, Dot, note, percent, picture, scatter
from lab.policies import parse_policy, shown
from lab.records import Crossed, Record, write_records
from lab.stats import accuracy_of, paired_difference, paired_p95, spread_of
from shared.contracts import HOP_STAGES


def report(plan: Plan, done: Done) -> dict[str, Any]:
    """Figures per policy, with what they were measured on."""
    info, samples = done.info, done.samples
    by_policy = {p: sorted((s for s in samples if s.policy == p), key=lambda s: s.row) for p in plan.rows}
    first = by_policy[plan.policies[0]]
    return {
        "n": len(plan.examples),
        "split": plan.split,
        "data_sha256": digest(plan.examples),
        "left_out": done.left_out.report(),
        "loop": plan.loop,
        "seed": plan.seed,
        "hardware": {"machine": platform.machine(), "cpu": cpu(), "cores": os.cpu_count(), "device": info["device"]},
        "first_tier": info,
        "policies": {
            policy: {"asked": parse_policy(policy) if policy in plan.policies else None, **_summary(rows, first)}
            for policy, rows in by_policy.items()
        },
        **({"wholes": {whole.built.name: whole.about for whole in plan.wholes}} if plan.wholes else {}),
        **_beside(plan, by_policy, f"{info['tiers'][-1]['name']}-only"),
    }


def _beside(plan: Plan, by_policy: Mapping[str, list[Sample]], deepest: str) -> dict[str, Any]:
    """Every policy beside the deepest tier alone, `tabi` and each whole model, where the run has them."""
    arrays = {
        name: (np.array([s.seconds * 1e3 for s in samples]), np.array([s.right for s in samples]))
        for name, samples in by_policy.items()
    }
    if plan.trace:
        return _over_trace(plan, arrays)
    policy, others = beside_whom(plan.policies, deepest, *(whole.built.name for whole in plan.wholes))
    rows: dict[str, dict[str, Any]] = {
        other: {
            name: beside(arrays[name][0], arrays[other][0], arrays[name][1], arrays[other][1])
            for name in plan.policies
            if name != other
        }
        for other in others
        if other in arrays
    }
    return {"beside": rows, "verdict": verdict(policy, {other: row[policy] for other, row in rows.items()})}


def _over_trace(plan: Plan, arrays: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> dict[str, Any]:
    """Every policy beside each but the first, with the difference of their p95; the verdict is the first one's."""
    first, *others = plan.policies
    rows: dict[str, dict[str, Any]] = {other: {} for other in others}
    for other, by_policy in rows.items():
        for name in plan.policies:
            if name != other:
                (ms, right), (other_ms, other_right) = arrays[name], arrays[other]
                p95 = {"p95_ms": list(paired_p95(ms, other_ms))}
                by_policy[name] = beside(ms, other_ms, right, other_right) | p95
    tails = [
        "{:+.0f} [{:+.0f}, {:+.0f}] ms".format(*row[first]["p95_ms"]) + f" beside {shown(other)}"
        for other, row in rows.items()
    ]
    told = verdict(first, {other: row[first] for other, row in rows.items()})
    return {"beside": rows, "trace": plan.trace, "verdict": f"{told} Its p95: {'; '.join(tails)}." if tails else told}


def _summary(samples: list[Sample], reference: list[Sample]) -> dict[str, Any]:
    """One policy's figures; differences are against the first policy, over the same texts."""
    n = len(samples)
    ms = np.array([s.seconds * 1e3 for s in samples])
    right = np.array([s.right for s in samples], float)
    hops = [hop for s in samples for hop in s.result.hops]
    links = [hop.link for hop in hops if hop.link]
    sent = [(hop.words_kept, hop.words_in) for hop in hops if hop.words_kept is not None]
    stages: dict[str, float] = {stage: sum(hop.timings_ms[stage] for hop in hops) / n for stage in HOP_STAGES}
    return {
        **accuracy_of(right),
        "accuracy_minus_first": paired_difference(right, np.array([s.right for s in reference], float)),
        "ensemble_minus_last_tier": paired_difference(right, np.array([s.last_right for s in samples], float)),
        "latency_ms": spread_of(ms),
        "latency_minus_first_ms": paired_difference(ms, np.array([s.seconds * 1e3 for s in reference])),
        "answered_by_tier": _shares(Counter(s.result.tier for s in samples), n),
        "exits": {
            tier: dict(sorted(Counter(h.exit_layer for h in hops if h.tier == tier).items()))
            for tier in sorted({h.tier for h in hops})
        },
        "ran_by_tier": _shares(Counter(hop.tier for hop in hops), n),
        "words_kept_of_words_at_pruning": sum(k for k, _ in sent) / max(1, sum(w for _, w in sent)),
        "bytes_per_request": {
            "up": sum(link.request_bytes for link in links) / n,
            "down": sum(link.response_bytes for link in links) / n,
        },
        "stages_ms": {**stages, "link": sum(link.ms for link in links) / n},
        "links": sorted({f"{link.source}-{link.target} {link.profile} ({link.backend})" for link in links}),
        "degraded": dict(Counter(s.result.degraded for s in samples if s.result.degraded)),
        "truncated": sum(s.result.truncated for s in samples) / n,
    }


def _shares(counts: Counter[str], n: int) -> dict[str, float]:
    return {name: count / n for name, count in counts.most_common()}


def cpu() -> str:
    """The processor's own name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def write(plan: Plan, done: Done, out: Path, console: Console, **more: Any) -> None:
    """Write OUT.json (with `more`), OUT.parquet and OUT.png; then print the table."""
    figures = report(plan, done) | more
    written, texts, drawn = (out.with_name(f"{out.name}.{ending}") for ending in ("json", "parquet", "png"))
    replaced = write_json(written, figures)
    write_records(texts, [_record(plan, done, sample) for sample in done.samples])
    draw(figures, drawn)
    console.print(table(figures))
    console.print(table_beside(figures["beside"]))
    console.print(f"written: {written}, {texts}, {drawn}{REPLACED if replaced else ''}")
    console.print(figures["verdict"], soft_wrap=True)


def _record(plan: Plan, done: Done, sample: Sample) -> Record:
    example, result = plan.examples[sample.row], sample.result
    return Record(
        bundle=done.info["bundle"],
        row=sample.row,
        example=example,
        policy=sample.policy,
        label=done.info["labels"][example.label],
        predicted=result.label,
        confidence=result.confidence,
        tier=result.tier,
        exit_layer=result.exit_layer,
        ms=sample.seconds * 1e3,
        crossed=[
            Crossed(f"{hop.link.source}-{hop.link.target}", hop.link.request_bytes, hop.link.response_bytes)
            for hop in result.hops
            if hop.link
        ],
        degraded=result.degraded,
        words_in=result.words_in,
        words_kept=next((hop.words_kept for hop in reversed(result.hops) if hop.words_kept is not None), None),
    )


def answered(report: dict[str, Any]) -> int:
    """Texts behind the figures."""
    return int(report["n"]) - int(report.get("left_out", {}).get("n", 0))


def table(report: dict[str, Any]) -> Table:
    """One row per policy."""
    hardware = report["hardware"]
    links = sorted({link for figures in report["policies"].values() for link in figures["links"]})
    title = (
        f"{answered(report)} texts, {report['loop']}; {hardware['cpu']}, {hardware['cores']} cores, "
        f"{hardware['device']}; links: {', '.join(links) or 'none used'}"
    )
    columns = ("policy", "accuracy [95 %]", "vs first, points [95 %]", "mean ms", "p50", "p95", "p99")
    more = ("ran at", "words kept", "bytes up", "infer ms", "link ms", "degraded")
    out = sheet(title, *columns, *more, words=("policy", "ran at"))
    for policy, f in report["policies"].items():
        low, high = f["accuracy_ci95"]
        gain, gain_low, gain_high = (100 * value for value in f["accuracy_minus_first"])
        out.add_row(
            shown(policy),
            f"{f['accuracy']:.3f} [{low:.3f} {high:.3f}]",
            f"{gain:+.1f} [{gain_low:+.1f} {gain_high:+.1f}]",
            *(f"{f['latency_ms'][key]:.0f}" for key in ("mean", "p50", "p95", "p99")),
            " ".join(f"{tier} {share:.0%}" for tier, share in sorted(f["ran_by_tier"].items(), key=lambda x: -x[1])),
            f"{f['words_kept_of_words_at_pruning']:.0%}" if f["words_kept_of_words_at_pruning"] else "-",
            f"{f['bytes_per_request']['up']:.0f}",
            f"{f['stages_ms']['infer']:.0f}",
            f"{f['stages_ms']['link']:.0f}",
            str(sum(f["degraded"].values())),
        )
    return out


KINDS = "blue: ours; green: one tier alone; orange: whole models instead of tiers; grey: other policies"


def _colour(asked: str | dict[str, Any] | None) -> str:
    """What kind of row it is, as a colour of `KINDS`; a whole model is no policy that was asked."""
    if asked is None:
        return ORANGE
    name = asked if isinstance(asked, str) else str(asked["name"])
    if name in ("collaborative", "path-gates", "network-aware"):
        return BLUE
    return GREEN if name.endswith("-only") else GREY


def draw(report: dict[str, Any], path: Path, title: str | None = None) -> None:
    """The frontier: accuracy against mean latency, one point per policy, with 95 % intervals."""
    hardware, first = report["hardware"], report["first_tier"]
    links = sorted({link for figures in report["policies"].values() for link in figures["links"]})
    made = note(
        f"{report['split']} split" if "split" in report else None,
        f"n = {answered(report):,}, {report['loop']}",
        f"{hardware['cpu']}, {hardware['cores']} cores",
        f"links {', '.join(links)}" if links else None,
        INTERVALS,
        KINDS,
    )
    title = title or f"{first['bundle']}: accuracy against latency"
    with picture(path, title, made) as (axes,):
        scatter(
            axes,
            [
                Dot(
                    shown(policy),
                    f["latency_ms"]["mean"],
                    100 * f["accuracy"],
                    percent(f["accuracy_ci95"]),
                    colour=_colour(f["asked"]),
                )
                for policy, f in report["policies"].items()
            ],
        )
        axes.set(xlabel="mean latency seen by the client (ms)", ylabel="accuracy (%)")
