"""What a cell cost this process."""

from __future__ import annotations

import re
import resource
import time
from typing import Any

_STATUS, _CLEAR_REFS = "/proc/self/status", "/proc/self/clear_refs"
# Sets the peak of this process's resident memory back to what is resident now. Touches nothing else.
_RESET_PEAK = b"5"
_SIZES = re.compile(rb"^Vm(HWM|RSS):\s+(\d+) kB$", re.MULTILINE)


class CellCost:
    """Begins to count when it is made.

    - CPU time: of all threads of this process, plus that of child processes that were waited for meanwhile.
    - Memory: the most that was resident in this process, children not included. Where the peak can't be reset for the
      cell, it is the process's own peak when the cell raised that, and else what is resident at the end.
    """

    def __init__(self) -> None:
        self._peak_is_of_cell = _reset_peak()
        self._peak_before = _resident()[0] if not self._peak_is_of_cell else 0
        self._cpu_before = _cpu_seconds()

    def figures(self) -> dict[str, Any]:
        """`cpu_ms`, and `memory_peak_bytes` where the system tells it."""
        cost: dict[str, Any] = {"cpu_ms": round((_cpu_seconds() - self._cpu_before) * 1000, 3)}
        peak, now = _resident()
        if not self._peak_is_of_cell and peak <= self._peak_before:
            peak = now
        if peak:
            cost["memory_peak_bytes"] = peak
        return cost


def _cpu_seconds() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def _reset_peak() -> bool:
    try:
        with open(_CLEAR_REFS, "wb", buffering=0) as file:
            file.write(_RESET_PEAK)
        return True
    except OSError:  # not Linux, or not allowed here
        return False


def _resident() -> tuple[int, int]:
    """Bytes: the peak, and now. Zeroes where the system doesn't tell."""
    try:
        with open(_STATUS, "rb", buffering=0) as file:
            sizes = {name: int(size) * 1024 for name, size in _SIZES.findall(file.read(8192))}
    except OSError:
        return 0, 0
    return sizes.get(b"HWM", 0), sizes.get(b"RSS", 0)
