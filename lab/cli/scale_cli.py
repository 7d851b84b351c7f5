"""`tierwise scale ...`: how many replicas, in simulated time, or as processes whose time is slept."""

from __future__ import annotations

from collections.abc import Set
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument, Option

from lab.cli import options
from lab.console import aside, screen
from lab.outputs import REPLACED, write_json

app = typer.Typer(no_args_is_help=True)
console = screen()
AUTOSCALER = Path(__file__).resolve().parents[2] / "deploy" / "kubernetes" / "tier" / "autoscaler.yaml"

Measured = Annotated[
    Path, Argument(exists=True, dir_okay=False, help="What `tierwise bench` wrote, with TIER-only of every tier.")
]
Wait = Annotated[options.Finite, Option("--queue-wait-ms", min=0.001, help="`TIERWISE_QUEUE_WAIT_MS` of every tier.")]
Out = Annotated[Path | None, Option(help="JSON file; of a live run also a .png beside it.", show_default="none")]


def _write(out: Path | None, value: object) -> None:
    if out is not None:
        aside().print(f"wrote {out}{REPLACED if write_json(options.output(out), value) else ''}")


@app.command()
def step(
    measured: Measured,
    policy: Annotated[str, Option(help="A policy of that file.")] = "collaborative",
    tier: Annotated[str, Option(help="The tier that is scaled, alone.")] = "cloud",
    autoscaler: Annotated[
        Path,
        Option(
            exists=True,
            dir_okay=False,
            help="Manifest of a HorizontalPodAutoscaler: target and behaviour.",
            show_default="deploy/kubernetes/tier/autoscaler.yaml",
        ),
    ] = AUTOSCALER,
    most: Annotated[int, Option(min=1, max=1000, help="Most replicas; the least is 1.")] = 4,
    load: Annotated[options.Finite, Option(min=0.01, max=1, help="Load at rest, of one replica's capacity.")] = 0.7,
    times: Annotated[options.Finite, Option(min=1, max=100, help="The step: times the load at rest.")] = 3.0,
    start_s: Annotated[options.Finite, Option(min=0, help="Seconds until a new replica is ready.")] = 20.0,
    queue_wait_ms: Wait = 100.0,
    runs: Annotated[int, Option(min=1, max=1000, help="Runs with other draws.")] = 20,
    live: Annotated[bool, Option("--live", help="Scale processes whose time is slept, in one run.")] = False,
    minutes: Annotated[options.Finite, Option(min=0.1, max=600, help="With --live: from the step on.")] = 10.0,
    rest_s: Annotated[options.Finite, Option(min=5, max=3600, help="With --live: seconds at rest, before.")] = 120.0,
    out: Out = None,
) -> None:
    """Simulate the autoscaler after a step of load: by the work that waits, and by CPU."""
    from lab.scale.demand import measured as demand_of
    from lab.scale.hpa import Spec
    from lab.scale.step import READS, react, show, summary

    demand = demand_of(measured, policy).alone(tier)
    spec = Spec.read(autoscaler).within(1, most)
    rate = load / demand.stops[0].mean_s
    given: dict[str, Any] = {"measured": measured.name, "policy": policy, "tier": tier, "rate": rate, "times": times}
    if live:
        from lab.scale.live import Step
        from lab.scale.live import react as react_live
        from lab.scale.report import draw, show_live
        from lab.scale.slept import Plan

        steps = Step(rate, times, rest_s, 60 * minutes)
        found = react_live(Plan(measured, policy, tier, most, queue_wait_ms), spec, steps)
        show_live(found["signals"], console)
        limits = {"rest_s": rest_s, "step_s": 60 * minutes, "wait_s": queue_wait_ms / 1e3}
        told = {"slept": True, "given": {**given, "most": most, **limits}, **found}
        _write(out, told)
        if out is not None:
            draw(told, out.with_suffix(".png"))
        return
    limits = {"start_s": start_s, "wait_s": queue_wait_ms / 1e3}
    rows = [summary(read, react(demand, spec, read, rate, times, runs=runs, **limits)) for read in READS]
    show(rows, console)
    _write(out, {"simulated": True, "given": {**given, "most": most, **limits}, "signals": rows})


@app.command()
def replicas(
    measured: Measured,
    policy: Annotated[str, Option(help="A policy of that file: what its texts take.")] = "cloud-only",
    tier: Annotated[str, Option(help="The tier that has replicas.")] = "cloud",
    counts: Annotated[str, Option(help="Numbers of replicas: 1,A,B,... rising.")] = "1,2,4",
    seconds: Annotated[options.Finite, Option(min=10, max=3600, help="Seconds for each number.")] = 60.0,
    rounds: Annotated[int, Option(min=1, max=100, help="Turns of each number, which share its seconds.")] = 2,
    out: Out = None,
) -> None:
    """Measure what replicas answer in a second behind one tier, in a closed loop: processes whose time is slept."""
    from lab.scale.slept import Plan
    from lab.scale.throughput import WINDOW_S, show, throughput

    numbers = [int(number) for number in _numbers("--counts", counts)]
    if numbers[0] != 1 or sorted(set(numbers)) != numbers or numbers[-1] > 64:
        raise typer.BadParameter("expected 1,A,B,... rising, up to 64", param_hint="--counts")
    if seconds / rounds < WINDOW_S:
        raise typer.BadParameter(f"a turn is shorter than a window of {WINDOW_S:g} s", param_hint="--rounds")
    plan = Plan(measured, policy, tier, numbers[-1], queue_wait_ms=60_000)
    found = throughput(plan, numbers, seconds=seconds, rounds=rounds)
    show(found, console)
    given = {"measured": measured.name, "policy": policy, "tier": tier, "seconds": seconds, "rounds": rounds}
    _write(out, {"slept": True, "given": given, **found})


@app.command()
def size(
    measured: Measured,
    policy: Annotated[str, Option(help="A policy of that file.")] = "collaborative",
    rates: Annotated[str, Option(help="Texts a second: A,B,...")] = "10,100,1000,10000",
    load: Annotated[options.Finite, Option(min=0.01, max=0.99, help="Load of every replica, of its capacity.")] = 0.6,
    texts: Annotated[int, Option(min=100, help="Texts that are simulated at each rate.")] = 100_000,
    price: Annotated[str, Option(help="Price of an hour of a processor: TIER=PRICE,...", show_default="none")] = "",
    queue_wait_ms: Wait = 100.0,
    out: Out = None,
) -> None:
    """Simulate as many replicas as a rate needs: latency, refusals, links; and what a million texts cost by policy."""
    from lab.scale.demand import measured as demand_of
    from lab.scale.demand import policies
    from lab.scale.size import hours, show, show_hours, sized

    wanted, demand = _numbers("--rates", rates), demand_of(measured, policy)
    costs = {name: hours(demand_of(measured, name)) for name in policies(measured)}
    prices = _prices(price, {tier for spent in costs.values() for tier in spent})
    rows = [sized(demand, rate, load=load, texts=texts, wait_s=queue_wait_ms / 1e3) for rate in wanted]
    show(rows, console)
    show_hours(costs, prices, console)
    _write(
        out,
        {
            "simulated": True,
            "measured": measured.name,
            "load": load,
            "rows": rows,
            "hours_a_million": costs,
            "prices": prices,
        },
    )


def _numbers(option: str, given: str, form: str = "A,B,...") -> list[float]:
    try:
        numbers = [float(part) for part in given.split(",")]
    except ValueError:
        numbers = []
    if not numbers or not all(0 < number < 1e9 for number in numbers):
        raise typer.BadParameter(f"expected numbers above 0: {form}", param_hint=option)
    return numbers


def _prices(given: str, tiers: Set[str]) -> dict[str, float]:
    pairs = [part.partition("=") for part in given.split(",") if part]
    for tier, _, _ in pairs:
        if tier not in tiers:
            there = ", ".join(sorted(tiers))
            raise typer.BadParameter(f"no tier {tier!r}; the measurement has {there}", param_hint="--price")
    if len({tier for tier, _, _ in pairs}) < len(pairs):
        raise typer.BadParameter("a tier is named twice", param_hint="--price")
    numbers = _numbers("--price", ",".join(price for _, _, price in pairs), "TIER=PRICE,...") if pairs else []
    return {tier: number for (tier, _, _), number in zip(pairs, numbers, strict=True)}
