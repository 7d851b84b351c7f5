"""Traces: both formats into steps, wrap-around, and errors that name file and line."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import BadSetting
from shared.links.profile import PROFILES, Profile
from shared.links.trace import PACKET_BITS, TRACES, Step, Trace, known_trace, parse, trace_names, unpack

BASE = Profile("x", rate_up_bps=1e6, rate_down_bps=2e6, rtt_s=0.02, jitter_s=0.002, loss_ratio=0.003)


def test_a_csv_row_holds_until_the_next_and_the_last_as_long_as_the_one_before():
    trace = parse("t", "seconds,bits_per_second,rtt_ms,loss\n# made up\n10,8e6,40,1\n12,0\n15,4e6,,0\n")
    assert trace.steps == (Step(0, 8e6, 0.04, 0.01), Step(2, 0), Step(5, 4e6, None, 0))
    assert trace.duration_s == 8
    assert [trace.at(second).rate_bps for second in (0, 1.99, 2, 5, 7.9, 8, 18.5)] == [8e6, 8e6, 0, 4e6, 4e6, 8e6, 0]


def test_a_single_row_holds_for_ever():
    trace = parse("t", "0,5000000")
    assert (trace.duration_s, trace.at(1e9).rate_bps) == (math.inf, 5e6)


def test_a_step_changes_what_it_names_and_rate_0_is_an_outage():
    assert Step(0, 5e6).on(BASE) == Profile("x", 5e6, 5e6, 0.02, 0.002, 0.003)
    assert Step(0, 5e6, rtt_s=0.1, loss_ratio=0.0).on(BASE) == Profile("x", 5e6, 5e6, 0.1, 0.002, 0.0)
    assert Step(0, 0.0).on(BASE).loss_ratio == 1


def test_mahimahi_lines_are_packets_of_1500_bytes():
    trace = parse("t.up", "\n".join(str(ms) for ms in range(10, 1001, 10)))  # one packet every 10 ms: 1.2 Mbit/s
    assert trace.duration_s == 1
    assert {round(step.rate_bps) for step in trace.steps[:-1]} <= {1_080_000, 1_200_000}


def test_a_slow_mahimahi_trace_is_slow_and_only_a_second_of_silence_is_an_outage():
    trace = parse("t.up", "200\n400\n600\n3000\n")  # a packet every 200 ms, then 2.4 s of nothing
    assert [(round(step.start_s, 1), round(step.rate_bps)) for step in trace.steps] == [
        (0.0, 40_000),
        (0.3, 60_000),
        (0.5, 60_000),
        (0.7, 0),
        (2.9, 120_000),
    ]


@given(st.lists(st.integers(0, 5000), min_size=1, max_size=300).filter(any))
def test_a_mahimahi_trace_keeps_its_packets_and_its_length(times):
    trace = parse("t", "\n".join(map(str, sorted(times))))
    ends = [step.start_s for step in trace.steps[1:]] + [trace.duration_s]
    bits = sum(step.rate_bps * (end - step.start_s) for step, end in zip(trace.steps, ends, strict=True))
    assert bits == pytest.approx(len(times) * PACKET_BITS)
    assert trace.duration_s == max(times) / 1e3
    assert trace.steps[0].start_s == 0


@given(
    st.lists(st.tuples(st.integers(1, 5000), st.integers(0, 10**9)), min_size=1, max_size=50),
    st.floats(0, 1e4),
)
def test_packing_loses_nothing(rows, seconds):
    at, lines = 0, []
    for step, rate in rows:
        lines.append(f"{at / 1e3},{rate},{step},{rate % 101}")
        at += step
    trace = parse("t", "\n".join(lines))
    again = unpack("t", trace.pack())
    assert again.duration_s == pytest.approx(trace.duration_s)
    assert [(step.start_s, step.rate_bps) for step in again.steps] == [
        (step.start_s, step.rate_bps) for step in trace.steps
    ]
    assert again.steps[-1].rtt_s == pytest.approx(trace.steps[-1].rtt_s)
    assert again.at(seconds) in again.steps


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "no data"),
        ("seconds,bits_per_second\n", "no data"),
        ("0,1e6\n1,fast\n", "line 2: expected a number from 0 on, got 'fast'"),
        ("0,1e6\n0,2e6\n", "line 2: 0 s does not come after"),
        ("0,1e6\n1,-5\n", "line 2: expected a number from 0 on, got '-5'"),
        ("0,nan\n", "line 1: expected a number"),
        ("0,1e6,20,101\n", "line 1: a loss of 101 % is over 100"),
        ("0,1,2,3,4\n", "line 1: expected seconds,bits_per_second"),
        ("5\n3\n", "line 2: 3 ms comes before"),
        ("5\n3.5\n", "line 2: expected a time in milliseconds, got '3.5'"),
        ("0\n0\n", "ends at 0 ms"),
    ],
)
def test_a_bad_trace_is_refused_by_file_and_line(text, complaint):
    with pytest.raises(BadSetting, match=f"trace my.csv.*{complaint}"):
        parse("my.csv", text)


def test_a_word_that_is_no_packed_trace_is_refused():
    for word in ("%%%", "AAAA"):
        with pytest.raises(BadSetting, match="not a packed trace"):
            unpack("t", word)


def test_our_traces_are_what_their_generator_writes_and_driving_has_its_outage(tmp_path):
    import importlib.util

    spec = importlib.util.spec_from_file_location("make_traces", PROFILES.parent / "make_traces.py")
    make = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make)
    seconds = {"walking": 120, "driving": 180, "handover": 60, "stepdown": 120}
    for name in ("walking", "driving", "handover", "stepdown"):
        text = (TRACES / f"{name}.csv").read_text()
        assert text == make.HEADER + getattr(make, name)()
        assert parse(name, text).duration_s == seconds[name]
    driving = parse("driving", (TRACES / "driving.csv").read_text())
    assert [second for second in range(180) if not driving.at(second).rate_bps] == list(range(80, 100))
    assert trace_names() == sorted(seconds)
    assert known_trace("driving") == driving
    with pytest.raises(BadSetting, match="trace 'dirving': choose from driving, handover, stepdown, walking"):
        known_trace("dirving")


def test_an_outage_ends_where_the_link_carries_something_again():
    trace = Trace("t", (Step(0, 0.0), Step(1, 5e6), Step(3, 0.0)), duration_s=4)
    for second, left_s in ((0.25, 0.75), (1.0, 0), (2.9, 0), (3.5, 1.5), (4.0, 1.0), (7.5, 1.5)):
        assert trace.out_for_s(second) == left_s
    assert Trace("t", (Step(0, 0.0),), duration_s=math.inf).out_for_s(3) == math.inf
