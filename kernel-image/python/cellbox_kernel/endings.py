"""How a kernel process ended that nobody of the gateway's clients had asked to end.

Told in two places, as one and the same object:

- `metadata.cellbox` of the `status` message on IOPub, `restarting` or `dead`, that announces the death on every open
  connection. It comes after everything that the process itself had sent.
- `last_ending` of the kernel's model (`GET /api/kernels/<id>`) until it ends again, for a client that was not connected
  then; null before the first time.

| field | type | |
| --- | --- | --- |
| `ending` | integer | 1 for the kernel's first such ending, 2 for its second … |
| `at` | integer | when it was noticed, in milliseconds since the epoch |
| `exit_code` | integer | when the process ended by itself: `exit()` in a cell is 0, `os._exit(3)` is 3 |
| `signal` | string | when a signal ended it: `SIGKILL`, `SIGSEGV` …, `signal 40` for one without a name |
| `oom` | boolean | it was killed because memory had run out |
| `memory_peak_bytes` | integer | the most memory that the sandbox's processes ever used together |
| `memory_limit_bytes` | integer | what they may use together |

Neither `exit_code` nor `signal` is there when nobody can say how the process ended. The memory figures are missing
where they can't be read; the limit also where there is none.

An exit that a cell asks for by `exit()` or `quit()` is known earlier: the `execute_reply` of that cell is `ok` and its
`payload` holds `{"source": "ask_exit", "keepkernel": false}`; the death is announced within a second after it.
`exit(x)` with anything true keeps the kernel (IPython's meaning of that argument) and says `"keepkernel": x`.
`sys.exit()` in a cell is an error of that cell, `SystemExit`, and ends nothing.
"""

from __future__ import annotations

import signal
import time
from collections import deque
from typing import Any

from .memory_cgroup import MemoryCgroup

# A process is found alive for a moment after it was killed for memory, and where memory is short, moments are long.
DYING_S = 2.0


class CountBeforeDeath:
    """The cgroup's count of kills for memory, as it was before a process was killed that has died since."""

    def __init__(self, at_start: int | None) -> None:
        # By the monotonic clock, oldest first; only the first can be older than `DYING_S`.
        self._counts = deque([(time.monotonic(), at_start)])

    def seen_alive(self, count: int | None) -> None:
        """The process was there after this had been counted."""
        now = time.monotonic()
        self._counts.append((now, count))
        while self._counts[1][0] <= now - DYING_S:
            self._counts.popleft()

    @property
    def before(self) -> int | None:
        return self._counts[0][1]


def describe_ending(
    number: int, status: int | None, oom_kills_before: int | None, memory: MemoryCgroup
) -> dict[str, Any]:
    """`status` is Popen's: an exit code, or minus a signal; None when it is not known.

    `oom_kills_before` is the cgroup's count from a moment when nothing had killed the process (`CountBeforeDeath`).
    """
    ending: dict[str, Any] = {"ending": number}
    if status is not None and status >= 0:
        ending["exit_code"] = status
    elif status is not None:
        ending["signal"] = signal_name(-status)
    peak, limit, oom_kills = memory.peak_bytes(), memory.limit_bytes(), memory.oom_kills()
    # Memory's end is always a SIGKILL, but not every SIGKILL is memory's.
    killed = status is None or status == -signal.SIGKILL
    if oom_kills is not None and oom_kills_before is not None:
        ending["oom"] = killed and oom_kills > oom_kills_before
    else:
        ending["oom"] = status == -signal.SIGKILL and None not in (peak, limit) and peak >= limit
    if ending["oom"] and peak is None:
        peak = limit
    if peak is not None:
        ending["memory_peak_bytes"] = peak
    if limit is not None:
        ending["memory_limit_bytes"] = limit
    return ending


def signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
