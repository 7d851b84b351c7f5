"""What pytest does besides: time is not judged on a busy host, and the faults' table is printed at the end.

A machine's proxies are taken out of the environment: the tests' own clients ask this machine alone.

`@pytest.mark.timing` marks what measures time: it may run three times. `timing(raises=Late)`: only that is about time.
"""

import os
import time

import pytest

from tests.faults import ledger

for _name in [name for name in os.environ if name.lower().endswith("_proxy")]:
    del os.environ[_name]
BUSY = 0.25  # of the processor's time


def _lost(seconds=2.0):
    """The share of a time that something else had this processor."""
    lost, started = 0.0, time.perf_counter()
    before = started
    while before < started + seconds:
        now = time.perf_counter()
        lost += now - before if now - before > 0.002 else 0.0
        before = now
    return lost / seconds


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """What measures time on a host that is measurably too busy has shown nothing: it counts as not run."""
    report = yield
    mark = item.get_closest_marker("timing")
    if mark and report.when == "call" and report.failed:
        about_time = call.excinfo.errisinstance(mark.kwargs.get("raises", BaseException))
        if about_time and (lost := _lost()) > BUSY:
            why = f"the host is too busy to measure time: {lost:.0%} of it goes to others; {report.longreprtext[-300:]}"
            report.outcome, report.longrepr = "skipped", (str(item.path), item.location[1], f"Skipped: {why}")
    return report


def pytest_collection_modifyitems(items):
    for item in items:
        if mark := item.get_closest_marker("timing"):
            only = {"only_rerun": [mark.kwargs["raises"].__name__]} if "raises" in mark.kwargs else {}
            item.add_marker(pytest.mark.flaky(reruns=2, **only))


def pytest_terminal_summary(terminalreporter):
    if ledger.TABLE:
        terminalreporter.section("faults", sep="-")
        for line in (ledger.HEAD, *ledger.TABLE):
            terminalreporter.write_line(line)
