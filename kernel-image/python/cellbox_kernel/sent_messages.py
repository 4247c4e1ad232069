"""What was sent to one client last, for when its connection is lost with messages on their way."""

from __future__ import annotations

from collections import deque

# As much as can be on its way: what waits in the gateway, and what the buffers between there and the client hold.
KEPT_BYTES = 12 * 1024 * 1024


class SentMessages:
    """Numbered from the first one on. Memory: `KEPT_BYTES` and one message."""

    def __init__(self, client: str) -> None:
        self.client = client
        self._kept: deque[bytes] = deque()
        self._kept_bytes = 0
        self._count = 0

    def add(self, messages: list[bytes]) -> None:
        self._count += len(messages)
        for message in messages:
            self._kept.append(message)
            self._kept_bytes += len(message)
        while self._kept_bytes > KEPT_BYTES and len(self._kept) > 1:
            self._kept_bytes -= len(self._kept.popleft())

    def rewind(self, received: int) -> tuple[list[bytes], int]:
        """The messages after so many, which are to be sent, and so added, again; and how many of them are no more."""
        missing = min(max(self._count - received, 0), len(self._kept))
        lost = max(self._count - received, 0) - missing
        messages = list(self._kept)[len(self._kept) - missing :]
        self._count = received
        self._kept.clear()
        self._kept_bytes = 0
        return messages, lost
