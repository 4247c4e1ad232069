"""What a fork of the zygote does to be like a kernel process that was started by a command."""

from __future__ import annotations

import gc
import importlib
import os
import signal
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass

from .lifetime import die_with_writer


@dataclass
class KernelRequest:
    """The kernel that a fork shall become."""

    argv: list[str]
    env: dict[str, str]
    cwd: str
    # Reading end of the pipe that the gateway holds open while it lives.
    lifeline: int
    # Writing end of a pipe: closed when the process is ready to run the kernel, a sentence before it when it can't.
    settled: int = -1


def become_kernel_process(request: KernelRequest, set_by_imports: Mapping[str, str]) -> None:
    """Gives this process a session, environment, directory and random state of its own.

    `set_by_imports` are variables that the request's environment may lack. Ends the process when anything fails; the
    zygote is told why.
    """
    try:
        os.setsid()
        die_with_writer(request.lifeline)
        _close_stdin()
        os.chdir(request.cwd)
    except OSError as error:
        os.write(request.settled, f"the new process could not be set up: {error}".encode())
        os._exit(1)
    os.close(request.settled)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as kernels inherit it from the gateway
    os.environ.clear()
    os.environ.update({**set_by_imports, **request.env})
    time.tzset()
    tempfile.tempdir = None
    from . import kernel

    sys.argv = [kernel.__file__, *request.argv]
    sys.orig_argv = [sys.executable, "-m", kernel.__name__, *request.argv]
    # Where `python -m` puts it.
    sys.path.insert(0, os.getcwd())
    importlib.invalidate_caches()
    _fresh_random_state()
    gc.enable()


def _close_stdin() -> None:
    """The end of a pipe that nobody writes to, as kernels that are started by a command have it."""
    reader, writer = os.pipe()
    os.dup2(reader, 0)
    os.close(reader)
    os.close(writer)


def _fresh_random_state() -> None:
    # Python seeds its own generators after a fork: `random`, uuid, secrets and tempfile need nothing.
    if numpy_random := sys.modules.get("numpy.random"):
        numpy_random.seed()
