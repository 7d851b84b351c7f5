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
    targets = {name: value for name, value in said["targets"].items() if value is not None and name != "objective"}
    asked, alone = ", ".join(f"{name} {value}" for name, value in targets.items()), said["deepest_tier_alone"]
    found = "a setting found" if said["feasible"] else "no setting proves it; the nearest"
    live = said["live"]
    beside = f" Live mean {live['live_ms']:.0f} ms (n = {live['n']}), modelled {live['off_by']:+.0%}." if live else ""
    return (
        f"The planner, asked for {asked} ({said['settings']} settings, {said['validation']['n']} validation texts): "
        f"{found} has accuracy {unseen['accuracy']:.3f} and modelled {unseen['mean_ms']:.0f} ms on {unseen['n']} "
        f"unseen texts, where the target holds in {unseen['holds_of_100_resamplings']} of 100 resamplings. Planned "
        f"again from 100 resampled validation sets: {again['feasible']} find a setting, {again['hold']} of those hold. "
        f"(The deepest tier alone: {alone['validation']:.3f} on validation, {alone['unseen']:.3f} on unseen texts.)"
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
    equal = [r["at_equal_time"]["paired"]["accuracy"] for r in ours]
    own = "; ".join(
        f"threshold {r['spec']['offload_threshold']}: {r['paired']['time_saved'][0]:.0%} less modelled time for "
        f"{points(r['paired']['accuracy'])} points"
        for r in ours
    )
    printed = 100 * (paper[0][3] - paper[2][3])
    return [
        f"Zhang et al., Table I (n = {n}), *not reproduced*: theta of 1e-5 and 1e-4 save 5 to 17 % of the time there, "
        f"and cost 3 to 15 points. Neighbouring exits hardly ever agree that closely: here {-saved:.1%} more time at "
        f"best (exit heads cost time), {100 * largest:.1f} points. Their text has a smaller theta faster, their table "
        f"a larger one. Here a larger one is faster (1e-2 saves {most:.1%}). Accuracy: theirs .9685, ours at most "
        f"{best:.3f}.",
        f'"Up to 17% without sacrificing the inference accuracy" costs {printed:.1f} points in their own table. Ours, '
        f"with theta > 0 against theta = 0: {own}. At least 17 % for at most 0.5 points holds at 95 % for "
        f"{sum(h['at_95'] for h in held)} of {len(held)} (by the estimates {sum(h['here'] for h in held)}); with eq. "
        f"13-14 alone for {sum(h['at_95'] for h in plain)} ({sum(h['here'] for h in plain)}). Chosen on "
        f"{chosen_on['n']} other texts. Against theta = 0 at the lower threshold that takes as long, ours is "
        f"{', '.join(points(e) for e in equal)} points: better at 95 % for {sum(e[1] > 0 for e in equal)}. theta "
        f"itself hardly matters beside the confidence that leaving needs: at theta 1 accuracy moves by "
        f"{100 * max(abs(r['theta_1']['paired']['accuracy'][0]) for r in ours):.1f} points at most.",
    ]


def _hu_parts(made: dict[str, Any]) -> list[str]:
    rows = made["rows"]

    def gain(name: str) -> str:
        row = rows[name]["paired"]
        value, low, high = row["modelled_ms"]
        return f"{points(row['accuracy'])} points, {value:+.0f} [{low:+.0f}, {high:+.0f}] ms"

    names = {
        "no early exit": "no early exit",
        "hard cut for the S curve": "hard cut, as many sent",
        "no calibration": "no calibration",
        **{f"pruning at {value}": f"pruning at {value}" for value in (0.75, 0.9, 1.0)},
    }
    return [
        f"What changing one part does (n = {made['made']['n']}): "
        + "; ".join(f"{told} {gain(name)}" for told, name in names.items() if name in rows)
        + "."
    ]


def _hu_pruned(made: dict[str, Any]) -> str:
    gains = [row["gain_over_unpruned"] for row in made["rows"][1:]]
    shown = sum(low > 0 for _, low, _ in gains)
    whole = points(made["rows"][0]["paired"]["accuracy"])
    return (
        f"Training on pruned texts too (n = {made['made']['n']}, one run each): {whole} points on *whole* texts; on "
        f"pruned ones {points(min(gains))} to {points(max(gains))} more, above 0 at 95 % for {shown} of {len(gains)} "
        "coefficients."
    )


def _dimee(parts: dict[str, Any]) -> list[str]:
    rows = {name: (made["rows"]["dimee-f"], made["made"]["metric"]) for name, made in parts.items()}
    rivals: dict[str, list[dict[str, Any]]] = {}
    for name, made in parts.items():
        for rival, other in made["against_dimee"].items():
            rivals.setdefault(rival, []).append({"name": name, "gain": other["paired"][made["made"]["metric"]]})
    device, cloud = (
        _range([row["unit_cost"][f"against_{whole}"] for row, _ in rows.values()])
        for whole in ("whole_model_on_device", "cloud_only")
    )
    lost = [row["paired"][metric] for row, metric in rows.values()]
    return [
        f"DIMEE-F changes the cost (its units, fitted to its Table I) by {device} against the whole model on the "
        f"device, {cloud} against the cloud, for {points(max(lost))} to {points(min(lost))} points. They: 42 to 62 % "
        "less than the device for at most 0.6 points, over 43 % less than the cloud for under 0.3. The cost comes "
        "near, the accuracy does not.",
        f"Better and cheaper than DIMEE-F at once, both at 95 %: plain early exit of the whole network on the device "
        f"on {_beats('early-exit', parts)} of {len(parts)} data sets, random on {_beats('random', parts)}. I-SplitEE, "
        f"which the paper has at 39 to 58 % less, costs more than the whole model on {_dearer('i-splitee', parts)}: "
        "what it offloads is paid for twice.",
        "Does DIMEE-F beat, at its cost: "
        + "; ".join(f"{rival.split(',')[0]}? {_verdict(gains)}" for rival, gains in rivals.items())
        + ".",
    ]


def _range(values: list[float]) -> str:
    return f"{max(values):+.0%} to {min(values):+.0%}"


def _verdict(gains: list[dict[str, Any]]) -> str:
    """On how many data sets a rival is better and worse than DIMEE-F, by its interval, and by how many points."""
    better = [own for own in gains if own["gain"][1] > 0]
    worse = [own for own in gains if own["gain"][2] < 0]
    told = "; ".join(f"{own['name']} {points(own['gain'])}" for own in [*worse, *better])
    return f"yes on {len(worse)} of {len(gains)} data sets, no on {len(better)}, undecided on the others" + (
        f" ({told}, rival less DIMEE-F)" if told else ""
    )


def _beats(name: str, parts: dict[str, Any]) -> int:
    """On how many data sets a row has a better score than DIMEE-F's at a lower cost, both by their intervals."""
    less = [(made["less_dimee"].get(name), made["made"]["metric"]) for made in parts.values()]
    return sum(own is not None and own[metric][1] > 0 and own["unit_cost"][2] < 0 for own, metric in less)


def _dearer(name: str, parts: dict[str, Any]) -> int:
    """On how many data sets a row costs more than the whole model on the device."""
    return sum(
        row["unit_cost"]["against_whole_model_on_device"] > 0
        for made in parts.values()
        if (row := made["rows"].get(name))
    )


def _prices(parts: dict[str, Any]) -> str:
    """Whether DIMEE's score withstands other prices, and moves as the paper says."""
    moves = [
        row["less_unchanged"]
        for made in parts.values()
        for prices in made["cost_variation"]["rows"].values()
        for row in prices
    ]
    dearest = {
        name: [made["cost_variation"]["rows"][name][-1]["less_unchanged"] for made in parts.values()]
        for name in ("lambda1", "lambda2", "o2", "gamma")
    }
    lowered = {name: sum(move[2] < 0 for move in own) for name, own in dearest.items()}
    raised = {name: sum(move[1] > 0 for move in own) for name, own in dearest.items()}
    return (
        f"A unit cost a quarter to four times as high, alpha chosen again, moves DIMEE-F by {points(min(moves))} to "
        f"{points(max(moves))} points. They: dearer layers raise the score a little (x 4 at 95 % on "
        f"{raised['lambda1']} and {raised['lambda2']} of {len(parts)} data sets, device and edge), a dearer cloud "
        f"lowers it (o2 x 4 on {lowered['o2']}, gamma x 4 on {lowered['gamma']}). Pools vary with the held-out texts "
        "too, which no interval holds."
    )


def _pools(parts: dict[str, Any]) -> str:
    by_eye = [made["agree"] - made["agree_by_chance"] for made in parts.values()]
    agree = sorted(made["agree"] for made in parts.values())
    return (
        f"An embedding hardly tells the pool that a text's exits say: {agree[0]:.0%} to {agree[-1]:.0%} of texts, "
        f"{100 * min(by_eye):.0f} to {100 * max(by_eye):.0f} points more than by chance."
    )
