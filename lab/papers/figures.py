"""The figures of the report, from its JSON alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lab.papers.published import published

Axes = Any  # matplotlib has no types
COLOURS = {0.9: "tab:blue", 0.8: "tab:orange", 0.7: "tab:green"}


def draw(tables: dict[str, Any], out: Path) -> None:
    """Every figure whose table is there: OUT/NAME.png."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    for name, (rows, columns, paint) in FIGURES.items():
        if name not in tables:
            continue
        parts = list(tables[name].items())
        height, width = (rows, columns) if rows else (len(parts), columns)
        figure, axes = plt.subplots(
            height, width, figsize=(5.5 * width, 4 * height), layout="constrained", squeeze=False
        )
        if rows:
            paint(axes[0], parts[0][1])
        else:
            for line, (part, made) in zip(axes, parts, strict=True):
                paint(line, made)
                line[0].set_title(f"{part}, n = {made['made']['n']}", fontsize=9, loc="left")
        figure.savefig(out / f"{name}.png", dpi=110)
        plt.close(figure)


def _hu_1(axes: list[Axes], made: dict[str, Any]) -> None:
    """Accuracy and time by theta (after the paper's figures 9 and 8), and the points."""
    paper = published("hu-1")["rows"]
    ours = [(r["spec"]["offload_threshold"], r["spec"]["theta"], r) for r in made["table"]["rows"]]
    thetas = sorted({theta for _, theta, _ in ours})
    at = {theta: position for position, theta in enumerate(thetas)}
    first_ms = {"paper": paper[0][2], "ours": ours[0][2]["modelled_ms"]["mean"]}
    for tau, colour in COLOURS.items():
        printed = sorted((at[theta], ms, acc) for t, theta, ms, acc in paper if t == tau)
        own = sorted((at[theta], r["modelled_ms"]["mean"], r["accuracy"]) for t, theta, r in ours if t == tau)
        for rows, style, who in ((own, "o-", "ours"), (printed, "x--", "paper")):
            axes[0].plot([r[0] for r in rows], [100 * r[2] for r in rows], style, color=colour, label=f"{tau} {who}")
            axes[1].plot([r[0] for r in rows], [100 * r[1] / first_ms[who] for r in rows], style, color=colour)
    axes[0].set(xlabel="theta", ylabel="accuracy (%)", title="after figure 9: accuracy by theta")
    axes[1].set(xlabel="theta", ylabel="mean time, % of threshold 0.9, theta 0", title="after figure 8 (ours modelled)")
    for one in axes[:2]:
        one.set_xticks(range(len(thetas)), [f"{theta:g}" for theta in thetas])
    axes[0].legend(fontsize=7)
    without = [(r["modelled_ms"]["mean"], 100 * r["accuracy"]) for r in made["points"]["without_exit"]]
    axes[2].plot(*zip(*without, strict=True), ".-", color="grey", label="theta 0, thresholds .55 to .9")
    for r in made["points"]["rows"]:
        (low, high), x, y = r["accuracy_ci95"], r["modelled_ms"]["mean"], r["accuracy"]
        colour = COLOURS[r["spec"]["offload_threshold"]]
        axes[2].errorbar(
            x,
            100 * y,
            [[100 * (y - low)], [100 * (high - y)]],
            fmt="D" if r["rule"] == "ours" else "v",
            color=colour,
            capsize=3,
        )
    axes[2].set(xlabel="modelled mean ms", ylabel="accuracy (%)", title="our points (diamonds), eq. 13-14 alone (v)")
    axes[2].legend(fontsize=7)


def _hu_parts(axes: list[Axes], made: dict[str, Any]) -> None:
    """What each change does to accuracy and time, with paired 95 % intervals."""
    names = list(made["rows"])
    for one, key, factor, label in (
        (axes[0], "accuracy", 100, "accuracy, points"),
        (axes[1], "modelled_ms", 1, "modelled mean ms"),
    ):
        for position, name in enumerate(reversed(names)):
            value, low, high = (factor * v for v in made["rows"][name]["paired"][key])
            one.errorbar(value, position, xerr=[[value - low], [high - value]], fmt="o", color="tab:blue", capsize=3)
        one.axvline(0, color="grey", linewidth=0.8)
        one.set_yticks(range(len(names)), list(reversed(names)) if one is axes[0] else [""] * len(names), fontsize=8)
        one.set(xlabel=f"{label}, less the card's operating point")


def _hu_pruned(axes: list[Axes], made: dict[str, Any]) -> None:
    """Accuracy against the coefficient, for both networks, and the words that are left."""
    at = [row["pruning_coefficient"] for row in made["rows"]]
    for key, label in (("trained_on_whole", "trained on whole texts"), ("trained_on_pruned_too", "on pruned ones too")):
        values = [100 * row[key]["accuracy"] for row in made["rows"]]
        ends = [[100 * end for end in row[key]["accuracy_ci95"]] for row in made["rows"]]
        below, above = zip(*((v - low, high - v) for v, (low, high) in zip(values, ends, strict=True)), strict=True)
        axes[0].errorbar(at, values, [below, above], fmt="o-", capsize=3, label=label)
    axes[0].set(xlabel="pruning coefficient", ylabel="accuracy (%)")
    axes[0].legend(fontsize=7)
    axes[1].plot(at, [100 * row["words_kept"] for row in made["rows"]], "o-", color="tab:grey")
    axes[1].set(xlabel="pruning coefficient", ylabel="words kept (%)", ylim=(0, 105))


def _dimee_1(axes: list[Axes], made: dict[str, Any]) -> None:
    """Each device alone, and on what DIMEE sends it; and the rows of the table."""
    metric = made["made"]["metric"]
    for at, own in enumerate(made["devices"].values()):
        for shift, (key, colour) in enumerate(
            (("alone", "tab:grey"), ("alone_on_what_dimee_sends", "tab:blue"), ("dimee_on_what_it_sends", "tab:orange"))
        ):
            value, (low, high) = own[key].get(metric, 0), own[key].get(f"{metric}_ci95", (0, 0))
            error = [[100 * max(0, value - low)], [100 * max(0, high - value)]]
            label = key.replace("_", " ") if at == 0 else None
            axes[0].bar(at + 0.25 * (shift - 1), 100 * value, 0.25, yerr=error, capsize=2, color=colour, label=label)
    shares = [
        f"{tier}\n{own['share_of_texts']:.0%} of texts\nalone: cost {own['cost_against_cloud']:+.0%} / cloud"
        for tier, own in made["devices"].items()
    ]
    axes[0].set_xticks(range(len(shares)), shares, fontsize=8)
    axes[0].set(ylabel=f"{metric} (x 100)")
    axes[0].legend(fontsize=7, loc="lower right")
    for name, row in made["rows"].items():
        low, high = row[f"{metric}_ci95"]
        x, y = 100 * row["unit_cost"]["against_whole_model_on_device"], 100 * row[metric]
        axes[1].errorbar(x, y, [[max(0, y - 100 * low)], [max(0, 100 * high - y)]], fmt="o", capsize=2, alpha=0.7)
        axes[1].annotate(name, (x, y), xytext=(4, 4), textcoords="offset points", fontsize=7)
    axes[1].set(xlabel="unit cost against the whole model on the device (%)", ylabel=f"{metric} (x 100)")


def _dimee_costs(axes: list[Axes], made: dict[str, Any]) -> None:
    for name, points in made["score_against_cost"].items():
        axes[0].plot([100 * p["cost"] for p in points], [100 * p["score"] for p in points], "o-", ms=3, label=name)
    axes[0].set(
        xlabel="unit cost against the whole model on the device (%)", ylabel=f"{made['made']['metric']} (x 100)"
    )
    for name, points in made["cost_variation"]["rows"].items():
        factors = [p["factor"] for p in points]
        axes[1].plot(factors, [100 * p["score"] for p in points], "o-", ms=3, label=name)
        axes[2].plot(factors, [p["units"] for p in points], "o-", ms=3, label=name)
    axes[1].set(ylabel=f"DIMEE-F, {made['made']['metric']} (x 100)")
    axes[2].set(ylabel="DIMEE-F, mean cost (units)")
    for one in axes[1:]:
        one.set(xlabel="a unit cost, times the fitted one", xscale="log")
        one.set_xticks(factors, [f"{factor:g}" for factor in factors], minor=False)
        one.minorticks_off()
    for one in axes:
        one.legend(fontsize=7)


def _dimee_pools(axes: list[Axes], made: dict[str, Any]) -> None:
    for one, key, title in (
        (axes[0], "true", "coloured by the pool that the exits say"),
        (axes[1], "assigned", "coloured by the nearest pool mean"),
    ):
        for pool in sorted(set(made[key])):
            rows = [xy for xy, own in zip(made["xy"], made[key], strict=True) if own == pool]
            one.plot([x for x, _ in rows], [y for _, y in rows], ".", ms=4, label=f"pool {pool + 1}")
        one.set(xticks=[], yticks=[], xlabel=title)
        one.legend(fontsize=7)


# rows of panels (0: one per data set), columns, and who paints them
FIGURES: dict[str, tuple[int, int, Callable[[list[Axes], dict[str, Any]], None]]] = {
    "hu-1": (1, 3, _hu_1),
    "hu-parts": (1, 2, _hu_parts),
    "hu-pruned": (1, 2, _hu_pruned),
    "dimee-1": (0, 2, _dimee_1),
    "dimee-costs": (0, 3, _dimee_costs),
    "dimee-pools": (0, 2, _dimee_pools),
}
