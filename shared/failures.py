"""Unexpected exceptions, bugs of ours or of a user's policy, in words for the log.

None of it goes to a caller: paths and messages may say more than they should.
"""

from __future__ import annotations

import sysconfig
import traceback
from pathlib import Path
from typing import Any

_OURS = str(Path(__file__).parent)
_LIBRARIES = ("<", *{sysconfig.get_path(kind) for kind in ("stdlib", "platstdlib", "purelib", "platlib")})
_MOST_LINES, _MOST_CHARACTERS = 60, 500


def in_short(error: BaseException) -> str:
    """Its type, message and place on one line: `ZeroDivisionError: division by zero (short.py, line 7)`."""
    file, _, line = place(error).rpartition(":")
    return f"{_message(error)} ({Path(file).name}, line {line})" if file else _message(error)


def place(error: BaseException) -> str:
    """`file:line` of the innermost call that no library made; empty where there is none."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if frame.filename.startswith(_OURS) or not frame.filename.startswith(_LIBRARIES)]
    return f"{ours[-1].filename}:{ours[-1].lineno}" if ours else ""


def account(error: BaseException) -> dict[str, Any]:
    """What a log line says about it; the traceback is a list of lines, which can be read in JSON."""
    lines = [line for part in traceback.format_exception(error) for line in part.rstrip().splitlines()]
    return {"error": _message(error), "at": place(error), "traceback": lines[-_MOST_LINES:]}


def _message(error: BaseException) -> str:
    return " ".join(traceback.format_exception_only(error)[-1].split())[:_MOST_CHARACTERS]
