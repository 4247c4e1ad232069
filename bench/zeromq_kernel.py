"""A kernel process, and a client's sockets to it with nothing between."""

import os
import subprocess
import tempfile
import time

import zmq
from jupyter_client.connect import write_connection_file
from jupyter_client.session import Session

START_DEADLINE_S = 60


class Kernel:
    """A kernel process and our sockets to it. `close` ends both."""

    def __init__(self, argv: list[str], zmq_context: zmq.Context) -> None:
        self.directory = tempfile.TemporaryDirectory(prefix="cellbox-bench-")
        file, info = write_connection_file(os.path.join(self.directory.name, "kernel.json"))
        self.session = Session(key=info["key"] if isinstance(info["key"], bytes) else info["key"].encode())
        self.process = subprocess.Popen(
            [part.replace("{connection_file}", file) for part in argv],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self.shell = zmq_context.socket(zmq.DEALER)
        self.iopub = zmq_context.socket(zmq.SUB)
        self.iopub.set(zmq.RCVHWM, 0)
        self.iopub.subscribe(b"")
        for name in ("shell", "iopub"):
            getattr(self, name).connect(f"tcp://127.0.0.1:{info[name + '_port']}")
        self.poller = zmq.Poller()
        self.poller.register(self.shell, zmq.POLLIN)
        self.poller.register(self.iopub, zmq.POLLIN)
        try:
            self._wait_until_ready()
        except BaseException:
            self.close()
            raise

    def _wait_until_ready(self) -> None:
        """Until a request comes back on both channels: a subscription takes effect some time after connecting."""
        deadline = time.monotonic() + START_DEADLINE_S
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError(f"the kernel ended with status {self.process.returncode}")
            request = self.session.send(self.shell, "kernel_info_request", {})
            seen = set()
            until = time.monotonic() + 0.5
            while len(seen) < 2 and time.monotonic() < until:
                for name, message in self.receive(50):
                    if message["parent_header"].get("msg_id") == request["header"]["msg_id"]:
                        seen.add(name)
            if len(seen) == 2:
                return
        raise RuntimeError("the kernel did not answer in time")

    def receive(self, timeout_ms: float):
        """What has arrived by then: pairs of a channel's name and a message."""
        for socket, _ in self.poller.poll(timeout_ms):
            _, message = self.session.recv(socket, zmq.NOBLOCK)
            if message is not None:
                yield ("shell" if socket is self.shell else "iopub"), message

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.shell.close(0)
        self.iopub.close(0)
        self.directory.cleanup()
