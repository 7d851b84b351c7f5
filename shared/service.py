"""Run one tier as a process: settings from the environment, JSON logs, one uvicorn worker, a clean stop on SIGTERM."""

from __future__ import annotations

import logging
import math
import os
import sys

import structlog
import uvicorn

from shared.errors import TierwiseError
from shared.settings import load_settings


def configure_logs(level: str) -> None:
    """One JSON object a line on standard error; never a request's text."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


def serve(tier: str | None = None) -> None:
    """Serve `tier` (or the one that `TIERWISE_TIER` names) until SIGTERM; a bad setting is one line, exit status 2."""
    tier = tier or os.environ.get("TIERWISE_TIER", "")
    try:
        settings = load_settings(tier)
        configure_logs(settings.log_level)
        from shared.web import create_app

        app = create_app(settings)
    except TierwiseError as error:
        sys.exit(_complain(tier, error))
    uvicorn.run(
        app,
        host=settings.host,
        port=settings.port,
        log_level="warning",
        timeout_keep_alive=75,  # longer than the callers' pool keeps a connection: they, not we, close idle ones
        timeout_graceful_shutdown=math.ceil(settings.drain_s),
        server_header=False,
    )


def _complain(tier: str, error: TierwiseError) -> int:
    print(f"tierwise {tier}: {error}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    serve()
