"""Knows whether a kernel is at work, from what it says."""

from __future__ import annotations

import time
from typing import Any

from jupyter_client.session import DELIM


class Activity:
    """Keeps a kernel's `execution_state`, and when it last said something.

    Listens itself only while nobody else does: a message wakes each of its subscribers, and is taken in by each.
    """

    def __init__(self, kernel: Any) -> None:
        self._kernel = kernel
        self._stream: Any = None
        # Seconds since the epoch.
        self.last = time.time()
        self._listens = False

    def start(self, stream: Any) -> None:
        """Listens on a stream that subscribes to everything. Its owner closes it when the kernel ends."""
        self._stream = stream
        self._listens = True
        stream.on_recv(self._note)

    def tell(self, frames: list[bytes]) -> None:
        """One message, from somebody who hears everything that follows it, and will tell it."""
        if self._listens and not self._stream.closed():
            self._listens = False
            self._stream.socket.unsubscribe(b"")
            # What has arrived already is older than what we are told.
            self._stream.on_recv(lambda _: None)
        self._note(frames)

    def listen(self) -> None:
        """Nobody tells us any more."""
        if self._stream is not None and not self._listens and not self._stream.closed():
            self._listens = True
            self._stream.socket.subscribe(b"")
            self._stream.on_recv(self._note)

    def _note(self, frames: list[bytes]) -> None:
        # Without verifying and parsing the message to learn three words of it.
        header, parent, _, content = frames[frames.index(DELIM) + 2 :][:4]
        self.last = time.time()
        if b'"status"' not in header:
            return
        kernel = self._kernel
        if b'"execute_request"' in parent:
            kernel.execution_state = "busy" if b'"busy"' in content else "idle"
        elif kernel.execution_state == "starting" and b'"starting"' not in content:
            kernel.execution_state = "idle"
