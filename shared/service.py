"""Run one tier as a process: settings from the environment, JSON logs, one server, a clean stop on SIGTERM."""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
from typing import TextIO

import structlog

from shared.errors import TierwiseError
from shared.parent import end_with_parent, has_parent
from shared.settings import load_settings, unread_env_file


def configure_logs(level: str, out: TextIO | None = None) -> None:
    """One JSON object a line on standard error (or `out`); never a request's text."""
    common: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,  # request_id, trace_id
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[*common, structlog.processors.JSONRenderer()],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.WriteLoggerFactory(out or sys.stderr),
    )
    server = logging.StreamHandler(out or sys.stderr)  # what the HTTP server says
    server.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=common,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(),
            ],
        )
    )
    logging.getLogger("uvicorn").handlers = [server]


def serve(tier: str | None = None) -> None:
    """Serve `tier` (or the one that `TIERWISE_TIER` names) until SIGTERM; a bad setting is one line, exit status 2."""
    tier = tier or os.environ.get("TIERWISE_TIER", "")
    for stop in (signal.SIGTERM, signal.SIGINT):  # until the server takes them over there is nothing to drain
        signal.signal(stop, lambda *_: sys.exit(0))
    end_with_parent()
    gc.disable()  # imports make a million objects that stay: to look for garbage among them takes a third longer
    try:
        settings = load_settings(tier)
        configure_logs(settings.log_level)
        if not has_parent() and (unread := unread_env_file()):  # a parent of ours has said it
            structlog.get_logger().warning("env_file_not_read", tier=tier, detail=unread)
        from shared.server import Server
        from shared.web import create_app

        app = create_app(settings)
    except TierwiseError as error:
        sys.exit(_complain(tier, error))
    gc.freeze()
    gc.enable()
    server = Server(app, host=settings.host, port=settings.port, drain_s=settings.drain_s)
    server.run()
    if not server.started:
        sys.exit(3)


def _complain(tier: str, error: TierwiseError) -> int:
    print(f"tierwise {tier}: {error}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    serve()
