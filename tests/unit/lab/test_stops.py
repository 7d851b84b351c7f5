"""A HUP to a command that keeps tiers up."""

import os
import signal

import pytest

from lab.stops import hang_ups


@pytest.fixture
def terminal(monkeypatch):
    """Whether standard input is a terminal that is open."""
    state = {"open": True}
    monkeypatch.setattr(os, "isatty", lambda _: state["open"])
    return state


@pytest.mark.parametrize("at_first", [True, False])
def test_a_hang_up_is_told_once_and_stops_nothing(terminal, at_first):
    terminal["open"] = at_first
    before = signal.getsignal(signal.SIGHUP)
    with hang_ups() as hung_up:
        assert not hung_up()
        signal.raise_signal(signal.SIGHUP)
        assert hung_up()
        assert not hung_up()
    assert signal.getsignal(signal.SIGHUP) == before


def test_a_hang_up_of_a_terminal_that_was_closed_stops_the_command(terminal):
    with hang_ups():
        terminal["open"] = False
        with pytest.raises(SystemExit) as stopped:
            signal.raise_signal(signal.SIGHUP)
    assert stopped.value.code == 128 + signal.SIGHUP
