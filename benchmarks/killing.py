"""Work in a process of its own that is killed after a while."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable


def run_killed(work: Callable[[], object], after_s: float | None) -> bool:
    """Do the work in a process of its own, killed after so many seconds; return whether it had ended by itself."""
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        try:
            work()
        finally:
            os._exit(0)
    deadline = time.monotonic() + (after_s if after_s is not None else 3600)
    while time.monotonic() < deadline:
        if os.waitpid(child, os.WNOHANG)[0]:
            return True
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False
