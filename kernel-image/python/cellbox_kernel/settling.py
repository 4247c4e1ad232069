"""Waits for kernels whose process is just being replaced."""

from __future__ import annotations

import asyncio
import time
from typing import Any


async def is_settled(kernel: Any, deadline: float) -> bool:
    """Waits until nobody is starting, restarting or ending the kernel's process; False at the deadline.

    `deadline` is of `time.monotonic()`. Settled is not the same as alive: the last attempt may have failed.
    """
    # Anew each time: the two halves of a restart, and two restarts in a row, have a future each.
    while not kernel.ready.done():
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            return False
        await asyncio.wait([asyncio.wrap_future(kernel.ready)], timeout=remaining)
    return True
