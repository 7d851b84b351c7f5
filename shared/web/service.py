"""Run one tier as a process: settings from the environment, JSON logs, one server, a clean stop on SIGTERM.
SIGHUP loads the policy again (`reload.py`).

`services/end`, `edge` and `cloud` serve their roles with it; run as a module, it serves tiers of other names.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
from importlib import import_module

import structlog

from shared.errors import TierwiseError
from shared.logs import Lines, standard_error, take_over
from shared.web.machine import check_working_directory
from shared.web.parent import end_with_parent, has_parent
from shared.web.settings import Role, Settings, load_settings, unread_env_file

log = structlog.get_logger()
FLUSH_S = 1.0  # for the last log lines


def serve(role: Role | None = None, kind: type[Settings] = Settings, maker: str = "shared.web.app") -> None:
    """Serve a tier until SIGTERM: the one of this role, or the one that `TIERWISE_TIER` names.

    A bad setting is one line, exit status 2. Other services have settings of their own `kind`, and a module `maker`
    whose `create_app` takes them.
    """
    role = role or Role(os.environ.get("TIERWISE_TIER", ""))
    lines = standard_error()
    for stop in (signal.SIGTERM, signal.SIGINT):  # until the server takes them over there is nothing to drain
        signal.signal(stop, lambda *_: sys.exit(0))
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nothing is loaded yet that could be loaded again
    end_with_parent()
    try:
        status = _serve(role, kind, maker, lines)
    except SystemExit as stopped:
        status = stopped.code if isinstance(stopped.code, int) else 0
    except Exception:
        log.exception("crashed")
        status = 1
    for stop in (signal.SIGTERM, signal.SIGINT):
        signal.signal(stop, signal.SIG_IGN)
    lines.finish(FLUSH_S)
    os._exit(status)  # the interpreter would wait for threads that hang in a lookup, or export spans


def _serve(role: Role, kind: type[Settings], maker: str, lines: Lines) -> int:
    gc.disable()  # imports make a million objects that stay: to look for garbage among them takes a third longer
    try:
        check_working_directory()
        settings = load_settings(role, kind)
        repeats = take_over(settings.log_level, lines)
        if not has_parent() and (unread := unread_env_file()):  # a parent of ours has said it
            log.warning("env_file_not_read", tier=role.tier, detail=unread)
        from shared.web.server import Server

        app = import_module(maker).create_app(settings)
    except (TierwiseError, OSError) as error:
        lines.write(f"tierwise {role.tier}: {error}\n")  # for a person: no JSON
        return 2
    app.state.telemetry.log_lines = lambda: lines.counted
    gc.freeze()
    gc.enable()
    server = Server(app, host=settings.host, port=settings.port, drain_s=settings.drain_s)
    signal.signal(signal.SIGHUP, lambda *_: server.reload())
    server.run()
    repeats.roll(now=True)
    return 0 if server.started else 3


if __name__ == "__main__":
    serve()
