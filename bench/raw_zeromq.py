"""The floor: one kernel over bare ZeroMQ sockets, driven by one JSON line a request on standard input.

Requests: {"op": "run", "code": …} and {"op": "new_context", "code": …} (start a second kernel, run the code in it, end it).
Answers, one line each: {"ms": …, "stdout": …, "types": [MIME types of all results]} or {"error": …}. Time is taken here, so that talking
to this program costs the floor nothing. The kernel's command, with {connection_file} in it, is the first argument (JSON).
"""

import json
import signal
import sys
import time

import zmq

from zeromq_kernel import Kernel

RUN_DEADLINE_S = 300


def run(kernel: Kernel, code: str) -> dict:
    """Until reply and idle are both there, as every other side of the comparison waits for both."""
    content = {"code": code, "silent": False, "store_history": True, "user_expressions": {}, "allow_stdin": False}
    out, types, error = [], [], None
    replied = idle = False
    started = time.perf_counter()
    request = kernel.session.send(kernel.shell, "execute_request", {**content, "stop_on_error": True})
    deadline = time.monotonic() + RUN_DEADLINE_S
    while not (replied and idle):
        if time.monotonic() > deadline:
            raise RuntimeError("the execution did not end in time")
        for name, message in kernel.receive(1000):
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
                    answer = run(kernel, request["code"])
                else:
                    started = time.perf_counter()
                    second = Kernel(argv, zmq_context)
                    try:
                        answer = run(second, request["code"])
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
