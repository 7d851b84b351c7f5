"""The `tierwise` command in this process, by its entry point: one of its own takes seconds to import torch."""

import contextlib
import io
import os
import signal
import sys
from types import SimpleNamespace
from unittest import mock

from lab.cli.main import main

CLEAN = {key: value for key, value in os.environ.items() if not key.startswith("TIERWISE_")}


def tierwise(*arguments, stdin="", **environment):
    """Its exit status and what it said; `environment` comes on top of this process's own, less Tierwise's settings."""
    stops = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    out, err, status = io.StringIO(), io.StringIO(), 0
    with (
        mock.patch.dict(os.environ, {**CLEAN, **environment}, clear=True),
        mock.patch.object(sys, "argv", ["tierwise", *arguments]),
        mock.patch.object(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode()), "utf-8")),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as stopped:
            status = stopped.code or 0
        finally:
            for number, handler in stops.items():
                signal.signal(number, handler)
    return SimpleNamespace(returncode=status, stdout=out.getvalue(), stderr=err.getvalue())
