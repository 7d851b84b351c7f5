"""What pytest does besides: the faults' table is printed at the end.

A machine's proxies are taken out of the environment: the tests' own clients ask this machine alone.
"""

import os

from tests.faults import stream

for _name in [name for name in os.environ if name.lower().endswith("_proxy")]:
    del os.environ[_name]


def pytest_terminal_summary(terminalreporter):
    if stream.TABLE:
        terminalreporter.section("faults", sep="-")
        for line in (stream.HEAD, *stream.TABLE):
            terminalreporter.write_line(line)
