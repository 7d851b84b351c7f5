"""The tree of errors: its docstring is a table, and the classes say the same."""

import re

from prometheus_client import generate_latest

from shared import errors
from shared.errors import BadInput, QueueFull, TierwiseError, UnknownPolicy, tree
from shared.telemetry import Telemetry
from shared.web.problems import document


def row(error):
    depth = len(error.__mro__) - len(TierwiseError.__mro__)
    facts = (error.status, error.kind, error.title, error.rejection or "")
    return depth, error.__name__, *map(str, facts)


def test_the_docstring_lists_every_error_in_order_with_what_a_caller_reads():
    lines = errors.__doc__.split("rejection\n", 1)[1].rstrip().splitlines()
    cells = [re.split(r" {2,}", line.strip()) for line in lines]
    depths = [(len(line) - len(line.lstrip()) - 4) // 2 for line in lines]
    table = []
    for depth, (name, *rest) in zip(depths, cells, strict=True):
        status, kind, title, *rejection = rest
        table.append((depth, name, status, kind, title, *(rejection or [""])))
    ours = [error for error in tree() if error.__module__ == errors.__name__]
    assert table == [row(error) for error in ours]


def test_every_rejection_is_counted_from_zero():
    telemetry = Telemetry(tier="end", tiers=["end"], policies=[], layers=1, labels=[], upstreams=[])
    counted = re.findall(r'rejected_total\{reason="(\w+)"', generate_latest(telemetry.registry).decode())
    assert set(counted) == {error.rejection for error in tree() if error.rejection}


def test_an_error_carries_its_headers_and_a_subclass_inherits_the_facts():
    assert document(QueueFull("full", retry_after_s=2.2), "r", {}).headers["retry-after"] == "3"
    assert (UnknownPolicy.status, UnknownPolicy.kind) == (BadInput.status, BadInput.kind)
    assert b'"urn:tierwise:bad-input"' in document(UnknownPolicy("no"), "r", {}).body
