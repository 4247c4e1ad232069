"""The floor: one kernel over bare ZeroMQ sockets, driven by one JSON line a request on standard input.

Requests: {"op": "run", "code": …} and {"op": "new_context", "code": …} (start a second kernel, run the code in it, end it).
Answers, one line each: {"ms": …, "stdout": …, "types": [MIME types of all results]} or {"error": …}. Time is taken here, so that talking
to this program costs the floor nothing. The kernel's command, with {connection_file} in it, is the first argument (JSON).
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time

import zmq
from jupyter_client.connect import write_connection_file
from jupyter_client.session import Session

START_DEADLINE_S = 60
RUN_DEADLINE_S = 300


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
                for name, message in self._receive(50):
                    if message["parent_header"].get("msg_id") == request["header"]["msg_id"]:
                        seen.add(name)
            if len(seen) == 2:
                return
        raise RuntimeError("the kernel did not answer in time")

    def _receive(self, timeout_ms: float):
        for socket, _ in self.poller.poll(timeout_ms):
            _, message = self.session.recv(socket, zmq.NOBLOCK)
            if message is not None:
                yield ("shell" if socket is self.shell else "iopub"), message

    def run(self, code: str) -> dict:
        """Until reply and idle are both there, as every other side of the comparison waits for both."""
        content = {"code": code, "silent": False, "store_history": True, "user_expressions": {}, "allow_stdin": False}
        out, types, error = [], [], None
        replied = idle = False
        started = time.perf_counter()
        request = self.session.send(self.shell, "execute_request", {**content, "stop_on_error": True})
        deadline = time.monotonic() + RUN_DEADLINE_S
        while not (replied and idle):
            if time.monotonic() > deadline:
                raise RuntimeError("the execution did not end in time")
            for name, message in self._receive(1000):
                if message["parent_header"].get("msg_id") != request["header"]["msg_id"]:
                    continue
                kind, content = message["msg_type"], message["content"]
                if name == "shell":
                    replied = True
                elif kind == "stream" and content["name"] == "stdout":
                    out.append(content["text"])
                elif kind in ("execute_result", "display_data"):
                    types.extend(content["data"])
                elif kind == "error":
                    error = f"{content['ename']}: {content['evalue']}"
                elif kind == "status" and content["execution_state"] == "idle":
                    idle = True
        elapsed = (time.perf_counter() - started) * 1000
        if error is not None:
            raise RuntimeError(error)
        return {"ms": elapsed, "stdout": "".join(out), "types": types}

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.shell.close(0)
        self.iopub.close(0)
        self.directory.cleanup()


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # by way of `finally`: kernels must not stay behind
    argv = json.loads(sys.argv[1])
    zmq_context = zmq.Context()
    kernel = Kernel(argv, zmq_context)
    print(json.dumps({"ready": True}), flush=True)
    try:
        for line in sys.stdin:
            request = json.loads(line)
            try:
                if request["op"] == "run":
                    answer = kernel.run(request["code"])
                else:
                    started = time.perf_counter()
                    second = Kernel(argv, zmq_context)
                    try:
                        answer = second.run(request["code"])
                        answer["ms"] = (time.perf_counter() - started) * 1000
                    finally:
                        second.close()
            except Exception as error:  # told to the caller, who decides whether to go on
                answer = {"error": str(error)}
            print(json.dumps(answer), flush=True)
    finally:
        kernel.close()


if __name__ == "__main__":
    main()
