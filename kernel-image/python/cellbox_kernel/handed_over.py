"""Takes connections that the agent has accepted and gives away, so that nobody passes their bytes on."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable

_BACKLOG = 64
# The agent sends with the connection, or never.
_SEND_SECONDS = 1.0


class HandedOver:
    """Listens on a Unix socket at `path`; each packet brings one connection's descriptor.

    `on_connection` owns the socket that it is called with. Whoever may connect here may as well connect to the
    gateway's port: what a connection is allowed to do shows in its requests. `close` is idempotent.
    """

    def __init__(self, path: str, on_connection: Callable[[socket.socket], None]) -> None:
        self.path = path
        self._on_connection = on_connection
        self._loop: asyncio.AbstractEventLoop | None = None
        # Those that are being received; asyncio itself would let them be collected.
        self._receiving: set[asyncio.Task[None]] = set()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.setblocking(False)
        self._listener.bind(path)
        self._listener.listen(_BACKLOG)

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._listener, self._accept)

    def close(self) -> None:
        if self._loop is not None and self._listener.fileno() != -1:
            self._loop.remove_reader(self._listener)
        for task in self._receiving:
            task.cancel()
        self._listener.close()

    def _accept(self) -> None:
        try:
            channel, _ = self._listener.accept()
        except OSError:
            return  # it is gone again
        task = asyncio.ensure_future(self._receive(channel))
        self._receiving.add(task)
        task.add_done_callback(self._receiving.discard)

    async def _receive(self, channel: socket.socket) -> None:
        assert self._loop is not None
        with channel:
            channel.setblocking(False)
            readable = asyncio.Event()
            self._loop.add_reader(channel, readable.set)
            try:
                await asyncio.wait_for(readable.wait(), _SEND_SECONDS)
                _, descriptors, _, _ = socket.recv_fds(channel, 1, 1)
            except (TimeoutError, OSError):
                return
            finally:
                self._loop.remove_reader(channel)
        for descriptor in descriptors:
            try:
                connection = socket.socket(fileno=descriptor)
            except OSError:  # not a socket
                os.close(descriptor)
                continue
            connection.setblocking(False)
            self._on_connection(connection)
