"""One client's WebSocket to one kernel: lean, without rate limits, without Nagle's delay, bounded in memory."""

from __future__ import annotations

import asyncio
from typing import Any

from jupyter_server.services.kernels.connection.base import serialize_msg_to_ws_v1
from jupyter_server.services.kernels.connection.channels import ZMQChannelsWebsocketConnection
from tornado.websocket import WebSocketClosedError

V1_PROTOCOL = "v1.kernel.websocket.jupyter.org"

# Unsent bytes at which we stop reading from the kernel, and at which we read on. Output that a slow client has not
# taken waits in the kernel's own process, so a sandbox pays for its own flood.
HIGH_WATER_BYTES = 16 * 1024 * 1024
LOW_WATER_BYTES = 4 * 1024 * 1024


class CellboxWebsocketConnection(ZMQChannelsWebsocketConnection):
    """The gateway's connection class.

    Differs from the stock one:
    - TCP_NODELAY. Without it Nagle's algorithm meets the client's delayed ACK: 40 ms on every small execution.
    - No limit on message or data rate; output is never dropped.
    - Memory is bounded when the client reads slowly.
    - When the kernel process is replaced, requests that the old one never answered are dropped, and later ones wait
      until the new one's output is known to arrive here.
    """

    limit_rate = False

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # Requests that arrived while the kernel was being replaced; None when they pass straight through.
        self._held: list[Any] | None = None
        self._unsent_bytes = 0
        self._paused = False

    @classmethod
    def kernel_replaced(cls, kernel_id: str) -> None:
        """Tells every open connection of a kernel that another process now answers at its ports."""
        for connection in list(cls._open_sockets):
            if isinstance(connection, cls) and connection.kernel_id == kernel_id:
                connection._renew_channels()

    def connect(self) -> asyncio.Future[None] | None:
        self.websocket_handler.set_nodelay(True)
        return super().connect()

    def on_kernel_restarted(self) -> None:
        """The kernel died and is about to be started again: says so, and forgets what it was asked."""
        super().on_kernel_restarted()
        self.kernel_manager.execution_state = "starting"
        self._renew_channels()

    def handle_incoming_message(self, incoming_msg: Any) -> None:
        if self._held is not None:
            self._held.append(incoming_msg)
            return
        super().handle_incoming_message(incoming_msg)

    def handle_outgoing_message(self, stream: Any, outgoing_msg: list[Any]) -> None:
        if self.subprotocol != V1_PROTOCOL or not self.multi_kernel_manager.allow_tracebacks:
            super().handle_outgoing_message(stream, outgoing_msg)
            return
        # The parts pass through as bytes: nothing here needs to know what they say.
        if isinstance(stream, str):  # replayed from the buffer of a lost connection
            stream = self.channels[stream]
        _, parts = self.session.feed_identities(outgoing_msg)
        self._send(serialize_msg_to_ws_v1(parts[1:], stream.channel))

    def _send(self, message: bytes) -> None:
        try:
            sent = self.write_message(message, binary=True)
        except WebSocketClosedError:
            return  # the close event follows and tears this connection down
        socket_stream = self.websocket_handler.ws_connection.stream
        if not socket_stream.writing():
            return  # the socket took it all: the usual case, not worth accounting for
        size = len(message)
        self._unsent_bytes += size
        sent.add_done_callback(lambda future: self._on_sent(future, size))
        if self._unsent_bytes > HIGH_WATER_BYTES and not self._paused:
            self._paused = True
            # Replies wait too, or one would overtake the output that belongs before it.
            for channel in self.channels.values():
                channel.stop_on_recv()

    def _on_sent(self, future: asyncio.Future[None], size: int) -> None:
        future.exception()  # a closed socket; retrieved so that asyncio does not complain
        self._unsent_bytes -= size
        if self._paused and self._unsent_bytes < LOW_WATER_BYTES:
            self._paused = False
            # After a disconnect the channels belong to the offline buffer, which reads them itself.
            if self in self._open_sockets:
                self._listen()

    def _listen(self) -> None:
        for stream in self.channels.values():
            if not stream.closed():
                stream.on_recv_stream(self.handle_outgoing_message)

    def _renew_channels(self) -> None:
        """Replaces the ZeroMQ sockets and holds requests until the new kernel answers on them.

        Fresh sockets drop requests queued for the dead process, which the new one would otherwise run as ghosts; and
        a request sent before our IOPub subscription is in place would run with its output lost.
        """
        if self not in self._open_sockets:
            return
        for stream in self.channels.values():
            if not stream.closed():
                stream.on_recv(None)
                stream.close(linger=0)
        self.channels = {}
        self.create_stream()
        channels = self.channels
        self._held = self._held or []

        def resume(_: Any) -> None:
            if self.channels is not channels or self not in self._open_sockets:
                return  # replaced again, or closed, meanwhile
            if not self._paused:
                self._listen()
            held, self._held = self._held or [], None
            for message in held:
                self.handle_incoming_message(message)

        self.nudge().add_done_callback(resume)
