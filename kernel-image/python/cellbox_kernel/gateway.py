"""`python -m cellbox_kernel.gateway`: the sandbox's Jupyter kernel gateway.

Reads `CELLBOX_GATEWAY_PORT` (0: any free port) and `CELLBOX_GATEWAY_TOKEN`, listens on 127.0.0.1 only, prints two
lines, `cellbox gateway takes connections at <path>` (see `handed_over`; absent where that is not possible) and
`cellbox gateway listening on 127.0.0.1:<port>`, and runs until SIGTERM, SIGINT or the death of its parent. All
kernels end with it. `CELLBOX_ZYGOTE_IMPORTS`, modules separated by commas, replaces what Python kernels find imported.
"""

from __future__ import annotations

import ctypes
import os
import sys
from types import ModuleType

from .environment import home_directory, kernel_environment
from .zygote_client import ZygoteClient

# Imported once for all Python kernels when nothing else is asked for.
ZYGOTE_IMPORTS = ("numpy", "pandas", "matplotlib.pyplot", "matplotlib.backends.backend_agg", "e2b_charts")

# `jsonschema` would use it to check texts called "iri", which nothing here has. Its import compiles a grammar: of the
# gateway's start that was 1.3 of 1.7 s of processor time, and 15 MB.
_LEFT_OUT = "rfc3987_syntax"

_PR_SET_DUMPABLE = 4


def main() -> None:
    port, token = _take_settings()
    _hide_from_other_processes()
    home = home_directory(os.environ)
    os.chdir(home)
    zygote = ZygoteClient(kernel_environment(os.environ, {}, home), _zygote_imports())
    if _has_two_cpus():
        # Now: the gateway's own imports take about a second, and the zygote's run beside them.
        zygote.start()
    gateway_app = _import_application()
    gateway_app.run(port, token, zygote)


def _import_application() -> ModuleType:
    sys.modules.setdefault(_LEFT_OUT, None)  # type: ignore[arg-type]  # its import fails, as if it were not installed
    from . import gateway_app

    return gateway_app


def _zygote_imports() -> list[str]:
    given = os.environ.get("CELLBOX_ZYGOTE_IMPORTS")
    if given is None:
        return list(ZYGOTE_IMPORTS)
    return [name.strip() for name in given.split(",") if name.strip()]


def _has_two_cpus() -> bool:
    """Whether two processes can start at once without slowing each other down."""
    if hasattr(os, "sched_getaffinity") and len(os.sched_getaffinity(0)) < 2:
        return False
    try:
        quota, period = _read_words("/sys/fs/cgroup/cpu.max")
    except (OSError, ValueError):
        try:  # version 1 of the control groups
            (quota,), (period,) = (_read_words(f"/sys/fs/cgroup/cpu/cpu.cfs_{name}_us") for name in ("quota", "period"))
        except (OSError, ValueError):
            return True  # nobody set a limit that could be read here
    return not quota.isdigit() or int(quota) >= 2 * int(period)


def _read_words(path: str) -> list[str]:
    with open(path) as file:
        return file.read().split()


def _take_settings() -> tuple[int, str]:
    """Reads our two settings and removes them, so that no kernel can inherit them."""
    port = os.environ.pop("CELLBOX_GATEWAY_PORT", "")
    token = os.environ.pop("CELLBOX_GATEWAY_TOKEN", "")
    if not port.isdigit() or int(port) > 65535:
        sys.exit("cellbox gateway: CELLBOX_GATEWAY_PORT must be a port number (0: any free port)")
    if not token:
        sys.exit("cellbox gateway: CELLBOX_GATEWAY_TOKEN is not set")
    return int(port), token


def _hide_from_other_processes() -> None:
    """Closes /proc/<pid>/environ and memory to the kernels, which run as the same user and would find the token."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


if __name__ == "__main__":
    main()
