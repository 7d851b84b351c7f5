"""`python -m services.shaper` shapes this namespace's links until SIGTERM; with `--check` it only says if it could.

Exit status 0 after SIGTERM or a passed check, 2 for a bad setting or a kernel that cannot shape, with one line why.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys

from services.shaper.config import Config, load_config
from services.shaper.netlink import Kernel
from shared.errors import TierwiseError


async def _run(config: Config, kernel: Kernel) -> None:
    from services.shaper.daemon import Shaper

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, os._exit, 0)  # at once: threads may be in a lookup, and files are written whole
    await Shaper(config, kernel).run()


def main() -> None:
    """Check, then shape."""
    try:
        config = None if "--check" in sys.argv[1:] else load_config(os.environ)
        kernel = Kernel()
        if config is None or config.links:
            kernel.check()
        if config:
            asyncio.run(_run(config, kernel))
    except* (TierwiseError, OSError) as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        print(f"shaper: {error}", file=sys.stderr, flush=True)
        os._exit(2)


if __name__ == "__main__":
    main()
