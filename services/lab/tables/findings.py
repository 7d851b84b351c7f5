"""What was found, in sentences made from the report's numbers; the README shows the same ones."""

from __future__ import annotations

from typing import Any

from services.lab.tables.hu import beats
from services.lab.tables.published import published


def findings(report: dict[str, Any]) -> list[str]:
    """At most ten lines."""
    tables = report["tables"]
    out: list[str] = []
    if "hu-1" in tables:
        out += _hu_1(tables["hu-1"]["imdb"])
    if "hu-parts" in tables:
        out += _hu_parts(tables["hu-parts"]["imdb"])
    if "hu-pruned" in tables:
        out.append(_hu_pruned(tables["hu-pruned"]["imdb"]))
    if "dimee-1" in tables:
        out += _dimee(tables["dimee-1"])
    if "dimee-costs" in tables:
        out.append(_prices(tables["dimee-costs"]))
    if "dimee-pools" in tables:
        out.append(_pools(tables["dimee-pools"]))
    return out


def planned(said: dict[str, Any]) -> str:
    """The planner's line, from the JSON of a plan."""
    unseen, again = said["unseen"], said["unseen"]["replanned"]
    asked = ", ".join(f"{name} {value}" for name, value in said["targets"].items() if value and name != "objective")
    found = "a setting found" if said["feasible"] else "no setting proves it; the nearest"
    live = said["live"]
    beside = f" Live mean {live['live_ms']:.0f} ms (n = {live['n']}), modelled {live['off_by']:+.0%}." if live else ""
    return (
        f"The planner, asked for {asked} ({said['settings']} settings, {said['validation']['n']} validation texts): "
        f"{found} has accuracy {unseen['accuracy']:.3f} and modelled {unseen['mean_ms']:.0f} ms on {unseen['n']} "
        f"unseen texts, where the target holds in {unseen['holds_of_100_resamplings']} of 100 resamplings. Planned "
        f"again from 100 resampled validation sets: {again['feasible']} find a setting, {again['hold']} of those hold."
        f"{beside}"
    )


def points(estimate: list[float]) -> str:
    """A difference of shares in points, with its interval."""
    value, low, high = (100 * part for part in estimate)
    return f"{value:+.1f} [{low:+.1f}, {high:+.1f}]"


def _hu_1(made: dict[str, Any]) -> list[str]:
    paper = published("hu-1")["rows"]
    n, chosen_on = made["made"]["n"], made["points"]["chosen_on"]
    rows = made["table"]["rows"]
    small = [r for r in rows if 0 < r["spec"]["theta"] < 1e-3]
    largest = max(abs(r["paired"]["accuracy"][0]) for r in small)
    saved = max(r["paired"]["time_saved"][0] for r in small)
    most = max(r["paired"]["time_saved"][0] for r in rows)
    best = max(r["accuracy"] for r in rows)
    ours = [r for r in made["points"]["rows"] if r["rule"] == "ours"]
    plain = [beats(r) for r in made["points"]["rows"] if r["rule"] != "ours"]
    held = [beats(r) for r in ours]
    own = "; ".join(
        f"threshold {r['spec']['offload_threshold']}: {r['paired']['time_saved'][0]:.0%} less time for "
        f"{points(r['paired']['accuracy'])} points"
        for r in ours
    )
    printed = 100 * (paper[0][3] - paper[2][3])
    return [
        f"Zhang et al., Table I (n = {n}): *not reproduced* is that theta of 1e-5 and 1e-4 save 5 to 17 % of the time "
        f"and cost 3 to 15 points. Neighbouring exits hardly ever agree that closely: these rows take "
        f"{-saved:.1%} more time at best (exit heads cost time too) and change accuracy by {100 * largest:.1f} points. "
        "Their text says that a smaller theta is faster, their table the opposite; here too: theta 1e-2 saves "
        f"{most:.1%}. Their accuracy of .9685 is above our twelve rows (best {best:.3f}).",
        f'"Up to 17% without sacrificing the inference accuracy" costs {printed:.1f} points in their own table. Ours: '
        f"{own}. At least 17 % for at most 0.5 points: {sum(h['here'] for h in held)} of {len(held)} on these texts, "
        f"{sum(h['at_95'] for h in held)} at 95 %; with eq. 13-14 alone {sum(h['here'] for h in plain)} and "
        f"{sum(h['at_95'] for h in plain)}. Chosen on {chosen_on['n']} other texts ({chosen_on['split']}). A lower "
        f"threshold without early exit is as accurate in no more time for {_outdone(made, ours)} of the {len(ours)}.",
    ]


def _outdone(made: dict[str, Any], ours: list[dict[str, Any]]) -> int:
    """Of our points, those to which theta = 0 at some threshold is at least equal in accuracy and time."""
    return sum(
        any(
            other["accuracy"] >= row["accuracy"] and other["modelled_ms"]["mean"] <= row["modelled_ms"]["mean"]
            for other in made["points"]["without_exit"]
        )
        for row in ours
    )


def _hu_parts(made: dict[str, Any]) -> list[str]:
    rows = made["rows"]

    def gain(name: str) -> str:
        row = rows[name]["paired"]
        value, low, high = row["modelled_ms"]
        return f"{points(row['accuracy'])} points, {value:+.0f} [{low:+.0f}, {high:+.0f}] ms"

    pruned = [name for name in rows if name.startswith("pruning")]
    names = ("no early exit", "hard cut, as many sent", "no calibration", *pruned)
    return [
        f"Parts, changed one at a time (n = {made['made']['n']}): "
        + "; ".join(f"{name} {gain(name)}" for name in names if name in rows)
        + "."
    ]


def _hu_pruned(made: dict[str, Any]) -> str:
    gains = [
        f"{row['pruning_coefficient']:g} ({row['words_kept']:.0%} of the words) {points(row['gain_over_unpruned'])}"
        for row in made["rows"][1:]
    ]
    whole = points(made["rows"][0]["paired"]["accuracy"])
    return (
        f"A small network trained on pruned texts too (n = {made['made']['n']}) is {whole} points better on *whole* "
        f"texts; what it gains on pruned ones besides, by coefficient: {'; '.join(gains)}. One training run each, "
        "whose noise no interval holds: a gain from pruned training is not shown."
    )


def _dimee(parts: dict[str, Any]) -> list[str]:
    saved: list[str] = []
    rivals: dict[str, list[dict[str, Any]]] = {}
    for name, made in parts.items():
        metric, row = made["made"]["metric"], made["rows"].get("dimee-f")
        if row is None:
            continue
        device, cloud = (row["unit_cost"][f"against_{whole}"] for whole in ("whole_model_on_device", "cloud_only"))
        saved.append(f"{name} {device:+.0%} / {cloud:+.0%} for {points(row['paired'][metric])}")
        for rival, other in made["against_dimee"].items():
            rivals.setdefault(rival, []).append({"name": name, "gain": other["paired"][metric]})
    return [
        "DIMEE-F, cost against the whole model on the device / in the cloud, in its own units (reconstructed, fitted "
        "to its Table I), for points: "
        + "; ".join(saved)
        + ". Their abstract: over 43 % less than the cloud for under "
        "0.3 points; their Table I: 42 to 62 % less than the device for at most 0.6 (QNLI's 82.1 taken for a misprint "
        "of 92.1). Against the cloud the cost comes near, the accuracy does not.",
        f"Better and cheaper than DIMEE-F at once: plain early exit on {_beats('early-exit', parts)} of {len(parts)} "
        f"data sets, random on {_beats('random', parts)}. I-SplitEE, which the paper has at 39 to 58 % less, costs "
        f"more than the whole model on {_dearer('i-splitee', parts)}: what it offloads pays the device's layers and "
        "the cloud's.",
        "Does DIMEE-F beat, at its cost (rivals set on the judged texts, as nearly as they come): "
        + "; ".join(f"{rival}? {_verdict(gains)}" for rival, gains in rivals.items())
        + ".",
    ]


def _verdict(gains: list[dict[str, Any]]) -> str:
    """On how many data sets a rival is better and worse than DIMEE-F, by its interval, and by how many points."""
    better = [own for own in gains if own["gain"][1] > 0]
    worse = [own for own in gains if own["gain"][2] < 0]
    told = "; ".join(f"{own['name']} {points(own['gain'])}" for own in [*worse, *better])
    return f"yes on {len(worse)} of {len(gains)} data sets, no on {len(better)}, undecided on the others" + (
        f" ({told}, rival less DIMEE-F)" if told else ""
    )


def _beats(name: str, parts: dict[str, Any]) -> int:
    """On how many data sets a row has a better score than DIMEE-F's at a lower cost."""
    won = 0
    for made in parts.values():
        metric, row, ours = made["made"]["metric"], made["rows"].get(name), made["rows"].get("dimee-f")
        won += bool(
            row and ours and row[metric] > ours[metric] and row["unit_cost"]["mean"] < ours["unit_cost"]["mean"]
        )
    return won


def _dearer(name: str, parts: dict[str, Any]) -> int:
    """On how many data sets a row costs more than the whole model on the device."""
    return sum(
        row["unit_cost"]["against_whole_model_on_device"] > 0
        for made in parts.values()
        if (row := made["rows"].get(name))
    )


def _prices(parts: dict[str, Any]) -> str:
    """Whether DIMEE's score withstands other prices, and moves as the paper says."""
    told = []
    for name, made in parts.items():
        moves = [row["less_unchanged"] for points in made["cost_variation"]["rows"].values() for row in points]
        told.append(f"{name} {points(min(moves))} to {points(max(moves))}")
    dearer_cloud = [made["cost_variation"]["rows"]["o2"][-1]["less_unchanged"] for made in parts.values()]
    return (
        "\"Robust to changes in costs\": DIMEE-F's score when one unit cost is a quarter to four times as high and "
        f"alpha is chosen again, least to most, in points: {'; '.join(told)}. A dearer way to the cloud (o2 x 4) lowers"
        f" it, as they say, on {sum(move[2] < 0 for move in dearer_cloud)} of {len(parts)} data sets at 95 %."
    )


def _pools(parts: dict[str, Any]) -> str:
    told = "; ".join(
        f"{name} {made['agree']:.0%} of texts, {made['agree_by_chance']:.0%} by chance" for name, made in parts.items()
    )
    return f"An embedding puts into the pool that a text's exits say: {told}."
