"""The least that a gateway can be: the messages of one kernel over one Unix socket, both ways, and nothing else.

Prints {"socket": path} when the kernel is ready, takes one connection there and ends with it. A message on it is its
length, and then each frame behind its own length: numbers of four bytes, big-endian, none of which counts itself. What
comes in is header, parent header, metadata and content of a request on the shell channel, signed here; what goes out is
all that the kernel sent, as it was. The kernel's command, with {connection_file} in it, is the first argument (JSON).
"""

import json
import os
import signal
import socket
import struct
import sys

import zmq
from jupyter_client.session import DELIM

from zeromq_kernel import Kernel

ACCEPT_DEADLINE_S = 30
# How often a quiet gateway looks whether the kernel still lives.
ALIVE_POLL_MS = 1000
READ_BYTES = 64 * 1024


def pass_on(kernel: Kernel, connection: socket.socket) -> None:
    """Until the other side closes the connection."""
    poller = zmq.Poller()
    for source in (kernel.shell, kernel.iopub, connection):
        poller.register(source, zmq.POLLIN)
    unread = bytearray()
    held = b""
    while True:
        events = poller.poll(ALIVE_POLL_MS)
        if not events and kernel.process.poll() is not None:
            raise RuntimeError(f"the kernel ended with status {kernel.process.returncode}")
        for source, _ in events:
            if source is kernel.shell or source is kernel.iopub:
                frames = source.recv_multipart()
                held += encode(frames)
                if not only_begins(frames):
                    connection.sendall(held)
                    held = b""
                continue
            received = connection.recv(READ_BYTES)
            if not received:
                return
            unread += received
            for frames in take_messages(unread):
                kernel.shell.send_multipart([DELIM, kernel.session.sign(frames), *frames])


def only_begins(frames: list[bytes]) -> bool:
    """Whether nobody acts upon it. Each write wakes everyone on the way, so it leaves with what comes next."""
    header, content = frames[-4], frames[-1]
    return b'"execute_input"' in header or (b'"status"' in header and b'"busy"' in content)


def encode(frames: list[bytes]) -> bytes:
    body = b"".join(struct.pack(">I", len(frame)) + frame for frame in frames)
    return struct.pack(">I", len(body)) + body


def take_messages(unread: bytearray):
    """Yields the frames of each message that is there as a whole, and takes it out."""
    while len(unread) >= 4:
        end = 4 + int.from_bytes(unread[:4], "big")
        if len(unread) < end:
            return
        frames, at = [], 4
        while at < end:
            length = int.from_bytes(unread[at : at + 4], "big")
            frames.append(bytes(unread[at + 4 : at + 4 + length]))
            at += 4 + length
        del unread[:end]
        yield frames


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # by way of `finally`: the kernel must not stay behind
    kernel = Kernel(json.loads(sys.argv[1]), zmq.Context())
    try:
        path = os.path.join(kernel.directory.name, "gateway.sock")
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)
            listener.listen()
            listener.settimeout(ACCEPT_DEADLINE_S)
            print(json.dumps({"socket": path}), flush=True)
            connection, _ = listener.accept()
        with connection:
            connection.setblocking(True)
            pass_on(kernel, connection)
    except ConnectionError:
        pass  # it was cut off instead of closed: an end like the other
    finally:
        kernel.close()


if __name__ == "__main__":
    main()
