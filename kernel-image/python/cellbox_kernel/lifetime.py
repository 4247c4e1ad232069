"""How the processes that the gateway starts end with it, however it ends. Linux only; elsewhere nothing is armed."""

from __future__ import annotations

import ctypes
import os
import select
import signal
import sys
from collections.abc import Callable

_PR_SET_PDEATHSIG = 1
# Linux's number, which the fcntl module does not name.
_F_SETSIG = 10


def die_with_gateway() -> Callable[[], None] | None:
    """For Popen's `preexec_fn`: the process is killed when the gateway dies, however it dies."""
    if not sys.platform.startswith("linux"):
        return None  # ipykernel polls its parent there
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    gateway = os.getpid()

    def arm() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != gateway:  # it died before the line above
            os._exit(1)

    return arm


def die_with_writer(lifeline: int) -> None:
    """Kills this process when the last writer of the pipe `lifeline` is gone.

    For a process whose parent is not the gateway. As with the parent-death signal the kernel does it, so a process that
    is busy in C code dies too. Nothing is ever written to the pipe, and each process has one of its own: the owner of
    the signal belongs to the open pipe.
    """
    import fcntl

    fcntl.fcntl(lifeline, _F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(lifeline, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)
    gone = select.poll()
    gone.register(lifeline, 0)
    if gone.poll(0):  # it died before the lines above
        os._exit(1)
