"""A child process that ends with its parent, however the parent ends: SIGKILL, SIGQUIT, memory.

The child's standard input is a pipe whose other end only the parent holds: the kernel closes it with the parent. Works
wherever there are pipes (PR_SET_PDEATHSIG is Linux's, and fires when the parent's *thread* ends).
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

FLAG = "--end-with-parent"  # the child's argument: its standard input is such a pipe
LAST_S = 30.0  # for what it has accepted; then it is killed, as the parent would have done


def has_parent() -> bool:
    """Whether one of our own processes started this one."""
    return FLAG in sys.argv[1:]


def end_with_parent() -> None:
    """A SIGTERM to this process once its parent is gone, if it has one of ours."""
    if has_parent():
        threading.Thread(target=_watch, name="parent", daemon=True).start()


def _watch() -> None:
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(LAST_S)
    os.kill(os.getpid(), signal.SIGKILL)
