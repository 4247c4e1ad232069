"""The kernel's IOPub channel, with back-pressure: what nobody reads yet stops its writer instead of filling memory."""

from __future__ import annotations

import threading
from typing import Any

import zmq
from ipykernel.iostream import IOPubThread

# Messages that ZeroMQ holds for a reader that is slow; of at most 1 MiB each as far as streams go.
SEND_QUEUE_MESSAGES = 64
# Bytes on their way to the sending thread at which a thread that sends more waits for them.
PENDING_BYTES = 4 * 1024 * 1024
# How often a waiting thread looks whether the sending one still lives.
_ALIVE_POLL_SECONDS = 1.0


def bind_iopub(socket: zmq.Socket[Any]) -> None:
    """To be called before the socket is bound."""
    socket.setsockopt(zmq.SNDHWM, SEND_QUEUE_MESSAGES)
    # A full queue makes `send` wait. Without it ZeroMQ drops what does not fit.
    socket.setsockopt(zmq.XPUB_NODROP, 1)


class CellboxIOPubThread(IOPubThread):
    """The thread that sends; every other thread may have to wait for it, as it would for a pipe that is full.

    An interrupt ends the waiting. It has no other end than the reader's: reading on, or closing the connection.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._pending_bytes = 0
        self._pending_lock = threading.Lock()
        super().__init__(*args, **kwargs)

    def send_multipart(self, msg: list[Any], *args: Any, **kwargs: Any) -> None:
        if not self._is_master_process():  # a fork of the kernel: its messages go through the kernel's own thread
            super().send_multipart(msg, *args, **kwargs)
            return
        if threading.get_ident() == self.thread.ident:
            # Streams flush in this thread: what `flush()` has waited for is sent then, not one turn of the loop later,
            # which C code that holds Python's lock would put off until it is done.
            self._really_send(msg, *args, **kwargs)
            return
        size = sum(memoryview(part).nbytes for part in msg)
        with self._pending_lock:
            self._pending_bytes += size
            full = self._pending_bytes > PENDING_BYTES

        def send() -> None:
            with self._pending_lock:
                self._pending_bytes -= size
            self._really_send(msg, *args, **kwargs)

        self.schedule(send)
        if full:
            self.wait_for_scheduled()

    def wait_for_scheduled(self) -> None:
        """Returns when everything scheduled so far is done; at once in the thread itself, or when it does not run."""
        if threading.current_thread() is self.thread or not self.thread.is_alive():
            return
        done = threading.Event()
        self.schedule(done.set)
        while not done.wait(_ALIVE_POLL_SECONDS):
            if not self.thread.is_alive():
                return
