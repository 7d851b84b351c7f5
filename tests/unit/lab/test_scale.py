"""Replicas in simulated time: the autoscaler's formula by hand, queues by hand, and what the commands say."""

import json
import random
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from lab.cli.main import app
from lab.events import Events
from lab.scale.demand import Demand, Stop, measured, policies
from lab.scale.hpa import Autoscaler, Rule, Spec, Way, desired
from lab.scale.simulate import Cell, Outcome, Replica, simulate
from lab.scale.size import hours, show_hours, sized, used
from lab.scale.step import READS, react, reaction, reversals
from shared.errors import BadSetting

ROOT = Path(__file__).resolve().parents[3]
BENCH = ROOT / "docs/results/bench.json"
AUTOSCALER = ROOT / "deploy/kubernetes/tier/autoscaler.yaml"
AT_ONCE = Way(0, (Rule(False, 100, 60),))
SPEC = Spec(target=100.0, least=1, most=10, up=AT_ONCE, down=AT_ONCE)


def spec(**changes):
    return Spec(**{**vars(SPEC), **changes})


@pytest.mark.parametrize(
    ("current", "values", "missing", "expected"),
    [
        (1, [200], 0, 2),  # the documentation's own: twice the target doubles, half of it halves
        (2, [50, 50], 0, 1),
        (3, [109, 109, 109], 0, 3),  # within a tenth
        (3, [111, 111, 111], 0, 4),
        (3, [91, 91, 91], 0, 3),
        (2, [300, 0], 0, 3),  # the mean of all pods counts
        (2, [], 2, 2),  # nothing is known
        (2, [150], 1, 2),  # the pod without a value counts as 0, which turns the ratio: no change
        (2, [300], 1, 3),  # 300 / 2 pods
        (2, [20], 1, 2),  # on the way down it counts as the target: ceil(2 * 0.6)
        (4, [20, 20], 2, 3),  # ceil(4 * 0.6)
    ],
)
def test_the_formula(current, values, missing, expected):
    assert desired(current, values, missing, SPEC) == expected


def test_the_way_down_waits_for_the_window_and_takes_its_highest():
    scaler = Autoscaler(spec(down=Way(300, (Rule(False, 100, 60),))))
    assert scaler.step(0, 4, [100] * 4) == 4
    assert scaler.step(15, 4, [10] * 4) == 4
    assert scaler.step(285, 4, [60] * 4) == 4
    assert scaler.step(310, 4, [10] * 4) == 3  # 4 was said at 0; the highest since is 3, at 285
    assert scaler.step(600, 3, [10] * 3) == 1


def test_the_way_up_takes_the_lowest_of_its_window():
    scaler = Autoscaler(spec(up=Way(30, (Rule(False, 100, 60),))))
    assert scaler.step(0, 2, [100] * 2) == 2
    assert scaler.step(15, 2, [500] * 2) == 2
    assert scaler.step(31, 2, [400] * 2) == 8


def test_a_rule_bounds_what_is_added_in_its_period():
    scaler = Autoscaler(spec(up=Way(0, (Rule(True, 100, 15),))))
    assert scaler.step(0, 2, [1000] * 2) == 4
    assert scaler.step(10, 4, [1000] * 4) == 4  # 2 were added in the last 15 s: twice 2
    assert scaler.step(16, 4, [1000] * 4) == 8


def test_a_rule_bounds_what_is_removed_and_the_bounds_hold():
    scaler = Autoscaler(spec(least=2, down=Way(0, (Rule(True, 50, 60),))))
    assert scaler.step(0, 7, [1] * 7) == 3  # half of 7, without the fraction
    assert scaler.step(30, 3, [1] * 3) == 3
    assert scaler.step(61, 3, [1] * 3) == 2
    assert scaler.step(130, 2, [10_000] * 2) == 10


def test_of_several_rules_the_one_that_lets_most_through_counts():
    scaler = Autoscaler(spec(up=Way(0, (Rule(True, 100, 15), Rule(False, 4, 15)))))
    assert scaler.step(0, 1, [1000]) == 5


def test_what_the_manifest_says():
    found = Spec.read(AUTOSCALER)
    assert (found.target, found.least, found.most) == (0.05, 2, 10)
    assert found.up == Way(0, (Rule(True, 100, 15),))
    assert found.down == Way(300, (Rule(True, 50, 60),))
    assert found.within(1, 4, 0.7) == Spec(0.7, 1, 4, found.up, found.down)


def test_what_comes_at_one_time_happens_in_the_order_in_which_it_was_put():
    events, seen = Events(), []
    events.at(2.0, seen.append, "c")
    events.at(1.0, seen.append, "a")
    events.at(1.0, lambda: events.at(1.0, seen.append, "b"))
    events.at(5.0, seen.append, "late")
    events.run(until=5.0)
    assert (seen, events.now) == (["a", "b", "c"], 2.0)


def test_a_replica_serves_one_after_the_other_and_refuses_as_a_tier_does():
    replica = Replica(0.0)
    assert replica.put(0.0, 2.0, wait_s=3.0, limit=9) == 2.0
    assert replica.put(1.0, 2.0, wait_s=3.0, limit=9) == 4.0
    assert replica.waits(1.0) == 2
    assert replica.value("wait", 1.0, 15) == 0.0  # nothing is done yet, so nothing is known
    assert replica.waits(2.0) == 1
    assert replica.value("wait", 2.0, 15) == 2.0
    assert replica.put(2.0, 2.0, wait_s=3.0, limit=9) == 6.0
    assert replica.put(2.0, 2.0, wait_s=3.0, limit=9) == 8.0  # one waits, for 2 s
    assert replica.put(2.0, 2.0, wait_s=3.0, limit=9) is None  # two wait, for 4 s
    assert replica.put(2.0, 2.0, wait_s=99, limit=2) is None
    assert replica.value("cpu", 5.0, 10) == 0.5  # 5 s of the 10 before
    assert replica.value("cpu", 15.0, 10) == pytest.approx(0.3)


def demand(*stops, call_bytes=(0.0, 0.0)):
    return Demand("some", stops, call_bytes)


def test_texts_go_as_far_as_they_were_measured_to():
    drawn = demand(Stop("end", 1.0, 1.0, (1.0,), (1,)), Stop("cloud", 0.25, 0.25, (2.0, 4.0), (3, 1)))
    chance = random.Random(0)
    texts = [drawn.draw(chance) for _ in range(4000)]
    far = [text[1] for text in texts if len(text) == 2]
    assert len(far) / 4000 == pytest.approx(0.25, abs=0.03)
    assert far.count(4.0) / len(far) == pytest.approx(0.25, abs=0.05)
    assert drawn.stops[1].mean_s == 2.5
    assert drawn.alone("cloud").stops == (Stop("cloud", 1.0, 1.0, (2.0, 4.0), (3, 1)),)
    with pytest.raises(BadSetting, match="no text of some comes to 'edge': end, cloud"):
        drawn.alone("edge")


def test_a_queue_waits_as_long_as_the_theory_says():
    """M/D/1: at a load of 1/2 the mean wait is half of a service time."""
    out = simulate(Cell(demand(Stop("end", 1.0, 1.0, (0.01,), (1,))), ((2000.0, 50.0),), (1,), wait_s=1e9, limit=10**9))
    assert len(out.answered) == pytest.approx(100_000, rel=0.02)
    assert sum(latency for _, latency in out.answered) / len(out.answered) == pytest.approx(0.015, rel=0.03)


def test_what_a_deeper_tier_refuses_is_degraded_and_what_the_first_refuses_is_refused():
    slow = demand(Stop("end", 1.0, 1.0, (0.001,), (1,)), Stop("cloud", 1.0, 1.0, (1.0,), (1,)))
    out = simulate(Cell(slow, ((20.0, 10.0),), (1, 1)))
    assert out.refused == []
    assert out.degraded == pytest.approx(len(out.answered) * 0.9, rel=0.05)
    out = simulate(Cell(slow.alone("cloud"), ((20.0, 10.0),), (1,)))
    assert out.degraded == 0
    assert len(out.refused) > len(out.answered)


def test_the_same_seed_gives_the_same_run():
    cell = Cell(measured(BENCH, "collaborative"), ((5.0, 50.0),), (1, 1, 1), seed=3)
    assert simulate(cell) == simulate(cell)


def test_the_measured_demand_is_the_measured_one():
    found, raw = measured(BENCH, "collaborative"), json.loads(BENCH.read_text())["policies"]
    assert [stop.tier for stop in found.stops] == ["end", "edge", "cloud"]
    assert {stop.tier: stop.share for stop in found.stops} == raw["collaborative"]["ran_by_tier"]
    alone = measured(BENCH, "cloud-only").stops[0]
    assert alone.mean_s * 1e3 == pytest.approx(
        raw["cloud-only"]["stages_ms"]["infer"] + raw["cloud-only"]["stages_ms"]["tokenize"]
    )
    whole = sum(stop.share * stop.mean_s for stop in found.stops) * 1e3
    spent = raw["collaborative"]["stages_ms"]
    assert whole == pytest.approx(spent["infer"] + spent["tokenize"], rel=0.1)  # 22 % of the texts run layers 2 to 6
    assert "whole cloud-only (OpenVINO int8)" not in policies(BENCH)
    with pytest.raises(BadSetting, match="did you mean collaborative"):
        measured(BENCH, "colaborative")


def test_sizes_costs_and_links_by_hand():
    stops = (Stop("end", 1.0, 1.0, (0.01,), (1,)), Stop("edge", 0.5, 0.5, (0.02,), (1,)))
    some = demand(*stops, call_bytes=(1000.0, 100.0))
    found = sized(some, 100.0, load=0.5, texts=500, wait_s=1e9)
    assert found["replicas"] == {"end": 2, "edge": 2}
    assert hours(some) == pytest.approx({"end": 1e4 / 3600, "edge": 1e4 / 3600})
    assert used(some, 100.0) == pytest.approx({"end-edge 5g-nsa": 8 * 1000 * 50 / 67e6})


def test_the_manual_s_costs_are_those_of_the_measurement_that_is_there():
    written = json.loads((ROOT / "docs/results/scale-size.json").read_text())["hours_a_million"]
    assert written == {name: hours(measured(BENCH, name)) for name in policies(BENCH)}, (
        "run `tierwise scale size docs/results/bench.json --out docs/results/scale-size.json`, and `step` likewise"
    )


def test_reversals_and_the_goal_by_hand():
    assert reversals([3, 3, 3]) == 0
    out = Outcome(
        answered=[(1.0, 0.1), (500.0, 0.2)],
        refused=[310.0, 1.0],
        replicas=[(0.0, 1, 1), (320.0, 2, 1), (340.0, 3, 2), (360.0, 3, 3), (700.0, 2, 2)],
    )
    found = reaction(out)
    assert (found.reached_s, found.reversals, found.refused) == (40.0, 1, 0.5)
    assert found.p99_ms == pytest.approx((100.0, 200.0))
    assert found.held
    assert found.replica_hours * 3600 == pytest.approx(320 + 2 * 20 + 3 * 360 + 2 * 200)
    assert found.replicas[0] == (0.0, 1, 1)


def test_an_autoscaler_follows_a_step_of_load():
    some = demand(Stop("cloud", 1.0, 1.0, (0.04,), (1,)))
    scaler = Spec.read(AUTOSCALER).within(1, 4)
    found = react(some, scaler, READS[0], 15.0, 4.0, runs=1, start_s=5.0)[0]
    assert found.reached_s is not None
    assert all(1 <= wanted <= 4 for _, wanted, _ in found.replicas)
    fixed = react(some, scaler.within(1, 1), READS[0], 15.0, 4.0, runs=1)[0]
    assert fixed.reached_s is None
    assert not fixed.held
    assert fixed.refused > 0.3 > found.refused


def test_the_commands_print_and_write_what_they_simulated(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the manifest is found from anywhere
    run = CliRunner().invoke
    out = tmp_path / "step.json"
    done = run(app, ["scale", "step", str(BENCH), "--runs", "1", "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert "Simulated" in done.output
    written = json.loads(out.read_text())
    assert written["simulated"] is True
    assert [row["signal"] for row in written["signals"]] == [str(read) for read in READS]
    out = tmp_path / "size.json"
    words = [
        "scale",
        "size",
        str(BENCH),
        "--rates",
        "10,100",
        "--texts",
        "300",
        "--price",
        "cloud=2",
        "--out",
        str(out),
    ]
    done = run(app, words)
    assert done.exit_code == 0, done.output
    written = json.loads(out.read_text())
    assert [row["rate"] for row in written["rows"]] == [10, 100]
    assert written["hours_a_million"]["cloud-only"].keys() == {"cloud"}
    assert f"{2 * written['hours_a_million']['cloud-only']['cloud']:.2f}" in done.output


def test_what_has_no_price_costs_nobody_knows_what():
    console = Console(width=100, record=True)
    show_hours({"near": {"end": 2.0}, "far": {"end": 1.0, "cloud": 3.0}}, {"end": 0.5}, console)
    near, far = (line.split() for line in console.export_text().splitlines() if "ar " in line)
    assert (near[-1], far[-1]) == ("1.00", "-")


@pytest.mark.parametrize(
    "words",
    [
        ["--rates", "ten"],
        ["--rates", "0"],
        ["--price", "cloud=much"],
        ["--price", "cloud=1,nope=1"],
        ["--price", "1"],
        ["--policy", "no"],
    ],
)
def test_a_bad_word_is_told(words):
    done = CliRunner().invoke(app, ["scale", "size", str(BENCH), *words])
    assert done.exit_code != 0


@pytest.mark.parametrize("written", ["{}", "[]", "no JSON", '{"policies": {"collaborative": {}}}'])
@pytest.mark.parametrize("command", ["step", "size"])
def test_a_file_that_no_bench_wrote_is_refused_by_its_name(tmp_path, command, written):
    path = tmp_path / "card.json"
    path.write_text(written)
    with pytest.raises(BadSetting, match=r"card\.json: expected what `tierwise bench` wrote"):
        CliRunner().invoke(app, ["scale", command, str(path)], catch_exceptions=False)


@pytest.mark.parametrize("written", ["", "kind: Deployment", "a: [", "spec: {metrics: []}"])
def test_a_manifest_of_another_kind_is_refused_by_its_name(tmp_path, written):
    path = tmp_path / "other.yaml"
    path.write_text(written)
    with pytest.raises(BadSetting, match=r"other\.yaml: expected a HorizontalPodAutoscaler") as refused:
        Spec.read(path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("option", ["--load", "--times", "--start-s", "--queue-wait-ms"])
@pytest.mark.parametrize("value", ["nan", "inf"])
def test_no_option_takes_what_is_no_number(option, value):
    done = CliRunner().invoke(app, ["scale", "step", str(BENCH), option, value])
    assert done.exit_code == 2
    assert "finite" in done.output


@pytest.mark.parametrize("words", [["--times", "101"], ["--runs", "1001"], ["--most", "1001"]])
def test_a_step_that_would_take_for_ever_is_refused(words):
    assert CliRunner().invoke(app, ["scale", "step", str(BENCH), *words]).exit_code == 2
