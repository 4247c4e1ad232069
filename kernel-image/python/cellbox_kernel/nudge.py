"""Finds out whether a kernel answers, and whether its output is heard here."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

# Until a kernel that has not answered is asked again, the first time and later. Requests pile up in one that is still
# starting and are all answered before its first cell.
FIRST_RETRY_SECONDS = 0.5
RETRY_SECONDS = 1.0
# The same, once it has answered and only its output is missing: the subscription to it came too late.
UNHEARD_RETRY_SECONDS = 0.05
# What tells the kernel's state is another subscription to the same output; it may lag behind by a moment.
STATE_POLL_SECONDS = 0.02
DEADLINE_SECONDS = 60.0


class Nudge:
    """Asks a kernel for its `kernel_info` until it has answered and something has arrived on `iopub`.

    Takes the place of the stock nudge, and differs from it:
    - Only the shell channel is asked. A kernel may share state between its channels: in the Java kernel a control
      request that arrives during a cell makes the cell's reply and output bear the request's name.
    - What arrives on `iopub` meanwhile is kept in `heard`, not lost.
    - It ends at once when closed.

    Calls `on_end` once, unless closed before: with True when both have happened, with False when the deadline has
    passed or the kernel has been given up. Reads from `iopub` until then. Ends by itself; `close` is idempotent.
    """

    def __init__(
        self, kernel: Any, iopub: Any, is_kept: Callable[[], bool], on_end: Callable[[bool], None]
    ) -> None:
        self.heard: list[list[bytes]] = []
        self._kernel = kernel
        self._iopub = iopub
        self._is_kept = is_kept
        self._on_end = on_end
        self._answered = False
        self._closed = False
        self._retry_seconds = FIRST_RETRY_SECONDS
        self._loop = asyncio.get_running_loop()
        self._deadline = self._loop.call_later(DEADLINE_SECONDS, self._end, False)
        self._state_poll: asyncio.TimerHandle | None = None
        # Of our own: nobody else wants to see the answers.
        self._shell = kernel.connect_shell()
        self._shell.on_recv(self._on_answer)
        iopub.on_recv(self._on_output)
        self._retry = self._loop.call_soon(self._ask)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        for timer in (self._deadline, self._retry, self._state_poll):
            if timer is not None:
                timer.cancel()
        self._shell.close(linger=0)
        if not self._iopub.closed():
            self._iopub.stop_on_recv()

    def _ask(self) -> None:
        if not self._is_kept():
            self._end(False)
            return
        self._kernel.session.send(self._shell, "kernel_info_request")
        self._ask_again_after(self._retry_seconds)
        self._retry_seconds = RETRY_SECONDS
        self._check()

    def _ask_again_after(self, seconds: float) -> None:
        self._retry.cancel()
        self._retry = self._loop.call_later(seconds, self._ask)

    def _on_answer(self, _: list[bytes]) -> None:
        self._answered = True
        if not self.heard:
            self._ask_again_after(UNHEARD_RETRY_SECONDS)
        self._check()

    def _on_output(self, parts: list[bytes]) -> None:
        self.heard.append(parts)
        self._iopub.stop_on_recv()  # what follows waits in the kernel
        self._check()

    def _check(self) -> None:
        if self._closed or not self.heard:
            return
        state = self._kernel.execution_state
        # A busy kernel answers after its cell, which may take hours, and somebody should hear it.
        if not self._answered and state != "busy":
            return
        if state == "starting":
            self._state_poll = self._loop.call_later(STATE_POLL_SECONDS, self._check)
        else:
            self._end(True)

    def _end(self, reached: bool) -> None:
        if not self._closed:
            self.close()
            self._on_end(reached)
