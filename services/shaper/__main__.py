"""`python -m services.shaper` shapes this namespace's links until SIGTERM; with `--check` it only tests if it could.

Exit status: 0 after SIGTERM or a passed check; 2 for a bad setting or a kernel that cannot shape, with a line why.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys

from services.shaper.config import Config, load_config
from services.shaper.netlink import Kernel
from shared.errors import TierwiseError
from shared.logs import Lines, standard_error, take_over

FLUSH_S = 0.5  # for the last log lines


async def _run(config: Config, kernel: Kernel, lines: Lines) -> None:
    from services.shaper.daemon import Shaper

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _leave, 0, lines)
    await Shaper(config, kernel).run()


def _leave(status: int, lines: Lines) -> None:
    """End at once: a thread may hang in a name lookup, and no file is ever half written."""
    lines.finish(FLUSH_S)
    os._exit(status)


def main() -> None:
    """Check, then shape."""
    lines = standard_error()
    try:
        config = None if "--check" in sys.argv[1:] else load_config(os.environ)
        kernel = Kernel()
        if config is None or config.links:
            kernel.check()
        if config:
            take_over("info", lines)
            asyncio.run(_run(config, kernel, lines))
    except* (TierwiseError, OSError) as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        lines.write(f"shaper: {error}\n")  # for a person: no JSON
        _leave(2, lines)


if __name__ == "__main__":
    main()
