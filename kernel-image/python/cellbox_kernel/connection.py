"""One client's WebSocket to one kernel: lean, without rate limits, without Nagle's delay, bounded in memory."""

from __future__ import annotations

import asyncio
import json
import struct
import time
from typing import Any

import zmq
from jupyter_client.jsonutil import json_default
from jupyter_client.session import DELIM
from jupyter_server.services.kernels.connection.base import serialize_msg_to_ws_v1
from jupyter_server.services.kernels.connection.channels import ZMQChannelsWebsocketConnection
from tornado import web
from tornado.iostream import StreamClosedError
from tornado.websocket import WebSocketClosedError

from .nudge import Nudge
from .sent_messages import SentMessages
from .settling import is_settled

V1_PROTOCOL = "v1.kernel.websocket.jupyter.org"

# Unsent bytes at which we stop reading from the kernel, and at which we read on. Output that a slow client has not
# taken waits in the kernel's own process, so a sandbox pays for its own flood.
HIGH_WATER_BYTES = 4 * 1024 * 1024
LOW_WATER_BYTES = 1024 * 1024

# Messages that have arrived together leave together, up to about so many bytes.
TURN_BYTES = 1024 * 1024
# What only says that a cell has begun waits so long for what the cell does.
BEGINNING_SECONDS = 0.02
# First byte of a WebSocket frame: a whole binary message.
_FINAL_BINARY = 0x82

# A kernel that has no process for longer does not get one any more.
START_SECONDS = 60.0
ALIVE_POLL_SECONDS = 0.05


class CellboxWebsocketConnection(ZMQChannelsWebsocketConnection):
    """The gateway's connection class.

    Differs from the stock one:
    - TCP_NODELAY. Without it Nagle's algorithm meets the client's delayed ACK: 40 ms on every small execution.
    - No limit on message or data rate; output is never dropped.
    - Messages that arrive in one turn of the loop leave in one write, and those that only say that a cell has begun
      with the first that says more: a small execution causes five, and each write wakes everyone on the way to the
      client.
    - Memory is bounded when the client reads slowly.
    - Requests wait until the kernel's output is known to arrive here, when the client connects as well as when the
      kernel process is replaced. In the second case those that the old process never answered are dropped.
    - The client's leaving is noticed at any time: the socket is open, and read from, while the kernel still starts.
    - What a lost connection left unsent goes to the next one, also when that is lost before the kernel answered it.
    - What was on its way when a connection was lost is sent again: a client that gives itself a name and says how many
      messages it has got (`client` and `received` in the query) gets those after them.
    - A client with a name connects anew for each process of its kernel. What it says on an older connection was meant
      for a process that died, which it has not heard yet, and is dropped: it counts as lost there.
    """

    limit_rate = False

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # The process that the client speaks to is dead.
        self._outlived = False
        # Requests that wait for the kernel; None when they pass straight through.
        self._held: list[Any] | None = None
        # Finds out whether the kernel is there; None when it is.
        self._nudge: Nudge | None = None
        # What the last connection of this session could not deliver: channel and parts.
        self._replay: list[tuple[str, list[bytes]]] = []
        self._sent = SentMessages("")
        # Sent already, to a connection that was lost before it arrived.
        self._resend: list[bytes] = []
        # What leaves soon: channel and parts.
        self._outgoing: list[tuple[str, list[bytes]]] = []
        self._outgoing_bytes = 0
        # When it does.
        self._leaving: asyncio.Handle | None = None
        self._unsent_bytes = 0
        self._paused = False

    @classmethod
    def kernel_replaced(cls, kernel_id: str) -> None:
        """Tells every open connection of a kernel that another process now answers at its ports."""
        for connection in list(cls._open_sockets):
            if isinstance(connection, cls) and connection.kernel_id == kernel_id:
                connection._renew_channels()

    async def prepare(self) -> None:
        """Waits until the kernel has a process. Whether that speaks is the open connection's business."""
        await self._register_session()
        deadline = time.monotonic() + START_SECONDS
        while self.kernel_id in self.multi_kernel_manager:
            if await is_settled(self.kernel_manager, deadline) and await self.kernel_manager.is_alive():
                self.session.key = self.kernel_manager.session.key
                return
            if time.monotonic() > deadline:
                raise web.HTTPError(504, "The kernel did not start in time")
            await asyncio.sleep(ALIVE_POLL_SECONDS)
        raise web.HTTPError(404, f"Kernel does not exist: {self.kernel_id}")

    def connect(self) -> asyncio.Future[None]:
        """Takes the session up; the future is done, as nobody needs to wait."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        done.set_result(None)
        manager = self.multi_kernel_manager
        self.websocket_handler.set_nodelay(True)
        for other in list(self._open_sockets):
            if other.session_key == self.session_key:
                other.disconnect()  # the client lost it, which we have not noticed yet
        if self.kernel_id not in manager:  # given up since `prepare`
            self.websocket_handler.close(1011, "The kernel died")
            return done
        manager.notify_connect(self.kernel_id)
        manager.add_restart_callback(self.kernel_id, self.on_kernel_restarted)
        manager.add_restart_callback(self.kernel_id, self.on_restart_failed, "dead")
        self._open_sockets.add(self)
        self._resend = self._take_up_sent()
        buffer = manager.get_buffer(self.kernel_id, self.session_key)
        if buffer:
            self.channels, self._replay = buffer["channels"], buffer["buffer"]
        else:
            self.create_stream()
        self._held = []
        if self.kernel_manager.execution_state == "busy":
            self._go_live([])  # it would answer after its cell, whose output the client wants now
        else:
            self._start_nudge()
        return done

    def disconnect(self) -> None:
        """Lets go of the kernel's channels, or leaves them to the offline buffer. Idempotent."""
        if self not in self._open_sockets:
            return
        nudge, self._nudge = self._nudge, None
        if nudge is not None:
            nudge.close()
            self._replay += [("iopub", parts) for parts in nudge.heard]
        self._replay += self._outgoing
        self._outgoing, self._outgoing_bytes = [], 0
        super().disconnect()
        # It goes on hearing the kernel, whose state it tells: a new subscription would miss what is said meanwhile.
        self.multi_kernel_manager.keep_first(self.kernel_id, self.channels, self._replay)

    def _take_up_sent(self) -> list[bytes]:
        """What the client has not got of what was sent to it; counts on from what it has."""
        handler, manager = self.websocket_handler, self.kernel_manager
        client = handler.get_query_argument("client", "")
        received = handler.get_query_argument("received", "")
        if manager.sent is None or manager.sent.client != client or not received.isdecimal():
            manager.sent = SentMessages(client)
        self._sent = manager.sent
        missing, lost = self._sent.rewind(int(received) if received.isdecimal() else 0)
        if lost > 0:
            self.log.warning("Kernel %s: %d messages on their way were lost", self.kernel_id, lost)
        return missing

    def on_kernel_restarted(self) -> None:
        """The kernel died and is about to be started again: says so, and forgets what it was asked."""
        self.log.warning("Kernel %s died and is started again", self.kernel_id)
        self._outlived = self._sent.client != ""
        self._tell("restarting")
        self.kernel_manager.execution_state = "starting"
        self._renew_channels()

    def on_restart_failed(self) -> None:
        """The kernel is given up: says so. Nothing more will come of it."""
        self.log.warning("Kernel %s died and is given up", self.kernel_id)
        if self._nudge is not None:
            self._nudge.close()
        self._tell("dead")

    def _tell(self, status: str) -> None:
        iopub = self.channels.get("iopub")
        if iopub is not None and not iopub.closed():
            iopub.flush()  # what the process itself said comes first
        self._write_outgoing()
        message = self.session.msg("status", {"execution_state": status})
        # The stock message can't carry it.
        message["metadata"] = {"cellbox": self.kernel_manager.last_ending or {}}
        try:
            if self.subprotocol == V1_PROTOCOL:
                self._write([serialize_msg_to_ws_v1(message, "iopub", self.session.pack)])
            else:
                self.write_message(json.dumps(message | {"channel": "iopub"}, default=json_default))
        except WebSocketClosedError:
            pass  # the close event follows

    def handle_incoming_message(self, incoming_msg: Any) -> None:
        if self._outlived:
            return
        if self._held is not None:
            self._held.append(incoming_msg)
            return
        super().handle_incoming_message(incoming_msg)

    def handle_outgoing_message(self, stream: Any, outgoing_msg: list[Any]) -> None:
        if self.subprotocol != V1_PROTOCOL or not self.multi_kernel_manager.allow_tracebacks:
            super().handle_outgoing_message(stream, outgoing_msg)
            return
        self._outgoing.append((stream.channel, outgoing_msg))
        self._outgoing_bytes += sum(map(len, outgoing_msg))
        if self._outgoing_bytes > TURN_BYTES:
            self._write_outgoing()
        else:
            self._leave(soon=not only_begins(outgoing_msg))

    def _leave(self, soon: bool) -> None:
        if self._leaving is not None:
            if not soon or not isinstance(self._leaving, asyncio.TimerHandle):
                return  # it has been arranged
            self._leaving.cancel()
        loop = asyncio.get_running_loop()
        if soon:
            self._leaving = loop.call_soon(self._write_outgoing)
        else:
            self._leaving = loop.call_later(BEGINNING_SECONDS, self._write_outgoing)

    def _receive(self, stream: Any, message: list[bytes]) -> None:
        """One message, and those that have arrived behind it."""
        try:
            while True:
                if stream.channel == "iopub":
                    self.kernel_manager.activity.tell(message)
                self.handle_outgoing_message(stream, message)
                if not self._outgoing or stream.closed():
                    return  # after a write the stream comes back for the rest: others get their turn
                message = stream.socket.recv_multipart(zmq.NOBLOCK)
        except zmq.Again:
            pass

    def _write_outgoing(self) -> None:
        if self._leaving is not None:
            self._leaving.cancel()
            self._leaving = None
        messages, self._outgoing, self._outgoing_bytes = self._outgoing, [], 0
        # The parts pass through as bytes: nothing here needs to know what they say.
        self._write(
            [
                serialize_msg_to_ws_v1(self.session.feed_identities(parts)[1][1:], channel)
                for channel, parts in messages
            ]
        )

    def _write(self, messages: list[bytes]) -> None:
        self._sent.add(messages)
        connection = self.websocket_handler.ws_connection
        if not messages or connection is None:
            return
        data = b"".join(part for message in messages for part in (frame_head(len(message)), message))
        try:
            written = connection.stream.write(data)
        except StreamClosedError:
            return  # the close event follows and tears this connection down
        if not connection.stream.writing():
            return  # the socket took it all: the usual case, not worth accounting for
        size = len(data)
        self._unsent_bytes += size
        written.add_done_callback(lambda future: self._on_sent(future, size))
        if self._unsent_bytes > HIGH_WATER_BYTES and not self._paused:
            self._paused = True
            # Replies wait too, or one would overtake the output that belongs before it.
            for stream in self.channels.values():
                stream.stop_on_recv()

    def _on_sent(self, future: asyncio.Future[None], size: int) -> None:
        future.exception()  # a closed socket; retrieved so that asyncio does not complain
        self._unsent_bytes -= size
        if self._paused and self._unsent_bytes < LOW_WATER_BYTES:
            self._paused = False
            # After a disconnect the channels are the offline buffer's, and until the kernel has answered the nudge's.
            if self in self._open_sockets and self._nudge is None:
                self._listen()

    def _listen(self) -> None:
        for stream in self.channels.values():
            if not stream.closed():
                stream.on_recv_stream(self._receive)

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
        self._held = self._held or []
        self._start_nudge()

    def _start_nudge(self) -> None:
        self.kernel_manager.activity.listen()
        if self._nudge is not None:
            self._nudge.close()
        self._nudge = nudge = Nudge(
            self.kernel_manager,
            self.channels["iopub"],
            lambda: self.kernel_id in self.multi_kernel_manager,
            lambda reached: self._go_live(nudge.heard) if reached else self._give_up(),
        )

    def _go_live(self, heard: list[list[bytes]]) -> None:
        """Lets messages pass in both directions, what has waited first."""
        self._nudge = None
        resend, self._resend = self._resend, []
        self._write(resend)
        replay, self._replay = self._replay, []
        for channel, parts in [*replay, *(("iopub", parts) for parts in heard)]:
            self.handle_outgoing_message(self.channels[channel], parts)
        if not self._paused:
            self._listen()
        held, self._held = self._held or [], None
        try:
            for message in held:
                self.handle_incoming_message(message)
        except Exception as error:  # what Tornado does with a message that is none
            self.log.warning("Kernel %s: malformed message: %s", self.kernel_id, error)
            self.websocket_handler.close(1007, "Malformed message")

    def _give_up(self) -> None:
        self.log.warning("Kernel %s does not answer; its connection is closed", self.kernel_id)
        self._nudge = None
        self.websocket_handler.close(1011, "The kernel does not answer")


def only_begins(parts: list[bytes]) -> bool:
    """Whether a message tells that a cell has begun, and nothing of what comes of it."""
    header, _, _, content = parts[parts.index(DELIM) + 2 :][:4]
    return b'"execute_input"' in header or (b'"status"' in header and b'"busy"' in content)


def frame_head(size: int) -> bytes:
    """What precedes a binary message of so many bytes in a server's WebSocket frame. Source: RFC 6455 §5.2."""
    if size < 126:
        return bytes((_FINAL_BINARY, size))
    if size < 65_536:
        return struct.pack("!BBH", _FINAL_BINARY, 126, size)
    return struct.pack("!BBQ", _FINAL_BINARY, 127, size)
