"""Logs: everything a process says is a JSON line, repeated ones are limited, and no line holds or fails who logs."""

import io
import json
import logging
import os
import subprocess
import sys
import threading

import pytest
import structlog

from shared.background import Background
from shared.logs import LIMIT, WINDOW_S, Lines, Repeats, configure_logs


@pytest.fixture
def said():
    """(what was logged so far, a clock to move)."""
    out, now = io.StringIO(), [0.0]
    configure_logs("info", out, Repeats(lambda: now[0]))
    yield lambda: [json.loads(line) for line in out.getvalue().splitlines()], now
    structlog.reset_defaults()


def test_the_same_message_is_limited_and_then_counted(said):
    read, now = said
    for number in range(1000):
        logging.getLogger("asyncio").error("socket.accept() out of system resource\nsocket: %s", number)
        structlog.get_logger().error("ledger_lost", path="x", lines=number)
    assert len(read()) == 2 * LIMIT
    now[0] = WINDOW_S
    structlog.get_logger().info("ready")
    *_, one, other, last = read()
    assert {line["event"] for line in (one, other)} == {"repeated"}
    assert {(line["source"], line["left_out"]) for line in (one, other)} == {("asyncio", 980), ("tierwise", 980)}
    assert last["event"] == "ready"


@pytest.mark.parametrize("message", ["port {0} is taken", "<Task at 0x7f{0}>", "fd {0}: gone\nline {0}"])
def test_numbers_and_addresses_do_not_make_a_message_another_one(said, message):
    for number in range(50):
        logging.getLogger("other").warning(message.format(number))
    assert len(said[0]()) == LIMIT


def test_messages_that_all_differ_are_limited_too(said):
    for number in range(5000):
        letters = "".join(chr(ord("a") + int(digit)) for digit in str(number))
        logging.getLogger("other").warning(letters)
    assert len(said[0]()) < 250


def test_requests_are_never_left_out(said):
    for _ in range(200):
        structlog.get_logger().info("request", path="/v1/classify")
    assert len(said[0]()) == 200


class Unshowable:
    def __repr__(self):
        raise RuntimeError("no")


def test_what_cannot_be_shown_does_not_fail_who_logs_it(said):
    loop = []
    loop.append(loop)
    for value in ({(1, 2): 3}, loop, Unshowable(), float("nan"), "\ud800"):
        structlog.get_logger().info("odd", value=value)
    assert [line["event"].strip("'") for line in said[0]()] == ["odd"] * 5


# -- writing ---------------------------------------------------------------------------------------------------------


def test_a_line_that_cannot_be_written_is_counted(tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    full = os.open("/dev/full", os.O_WRONLY) if os.path.exists("/dev/full") else writer
    closed = os.dup(writer)
    os.close(closed)
    for fd in (writer, full, closed, None):
        lines = Lines(fd)
        lines.write("{}\n")
        lines.finish(5)
        assert lines.counted == {"kept": 0, "lost": 1, "repeated": 0}
    os.close(writer)


@pytest.mark.parametrize("blocking", [True, False])
def test_a_pipe_that_nobody_reads_holds_nobody_and_its_lines_stay_whole(blocking):
    reader, writer = os.pipe()
    os.set_blocking(writer, blocking)
    lines = Lines(writer, limit=100_000)
    line = json.dumps({"event": "x" * 1000}) + "\n"
    for _ in range(1000):
        lines.write(line)
    lines.finish(0.1)  # the thread hangs: it is let go
    assert lines.counted["lost"] >= 800
    os.set_blocking(reader, True)
    with os.fdopen(reader) as read:
        rest = [read.readline() for _ in range(1000 - lines.counted["lost"])]
    assert set(rest) == {line}
    os.close(writer)


def test_a_job_that_fails_or_hangs_keeps_nobody_else_from_anything():
    done, go = [], threading.Event()
    worker = Background("test", limit=3)
    assert worker.put(lambda: 1 / 0)
    assert worker.put(lambda: done.append(1))
    assert worker.close(5)
    assert done == [1]
    hung = Background("test", limit=2)
    assert [hung.put(go.wait) for _ in range(3)] == [True, True, False]
    assert not hung.close(0.05)
    assert not hung.put(go.wait)
    go.set()


# -- a process -------------------------------------------------------------------------------------------------------

TALK = """
import logging, sys, threading, warnings
from shared.logs import standard_error, take_over
lines = standard_error()
take_over("info", lines)
logging.getLogger("a.package").error("it %s", "failed")
warnings.warn("old")
print("out"); print("half", end=""); print(" a line", file=sys.stderr)
sys.stderr.write("two\\nlines\\rand more\\n")
def broken(): raise ValueError("in a thread")
thread = threading.Thread(target=broken); thread.start(); thread.join()
class Bad:
    def __del__(self): raise ValueError("in a finalizer")
bad = Bad(); del bad
lines.finish(5)
"""


def test_whatever_a_process_says_is_json():
    child = subprocess.run([sys.executable, "-c", TALK], capture_output=True, text=True, timeout=60)
    lines = [json.loads(line) for line in child.stderr.splitlines()]
    events = [line["event"].strip() for line in lines]
    assert (child.returncode, child.stdout) == (0, "")
    assert [event for event in events if "UserWarning" not in event] == [
        *("it failed", "out", "a line", "two", "lines", "and more", "uncaught", "uncaught")
    ]
    assert any("UserWarning: old" in event for event in events)
    assert [line["exception"].rsplit("\n")[-1] for line in lines[-2:]] == [
        "ValueError: in a thread",
        "ValueError: in a finalizer",
    ]
