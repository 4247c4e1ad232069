"""A debugger that is imported when it is asked for, by a client that sets a breakpoint."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from gateway_client import Gateway, Kernel

LOADED = "import sys; [name for name in ('debugpy', 'ipykernel.debugger') if name in sys.modules]"


class DebuggedKernel:
    """The client's half of the Debug Adapter Protocol over Jupyter's control channel."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self._numbers = itertools.count(1)

    def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        """The body of the answer to one request."""
        content = {"type": "request", "seq": next(self._numbers), "command": command, "arguments": arguments}
        msg_id = self.kernel.send("debug_request", content, channel="control")
        answer = self.receive(lambda message: message["parent_header"].get("msg_id") == msg_id, "debug_reply")
        assert answer["success"], answer
        return answer.get("body") or {}

    def receive(self, accepts: Callable[[dict[str, Any]], bool], msg_type: str) -> dict[str, Any]:
        while True:
            _, message = self.kernel.receive()
            if message["header"]["msg_type"] == msg_type and accepts(message):
                return message["content"]


@pytest.fixture(params=["forked", "started by itself"])
def debugged(gateway: Gateway, request: pytest.FixtureRequest) -> Iterator[DebuggedKernel]:
    env = {"PYTHONHASHSEED": "5"} if request.param == "started by itself" else {}
    kernel = gateway.start_kernel(env=env)
    yield DebuggedKernel(kernel)
    kernel.close()


def test_a_breakpoint_stops_a_cell_and_shows_its_variables(debugged):
    kernel = debugged.kernel
    assert kernel.run(LOADED).text == "[]"
    assert debugged.ask("debugInfo")["isStarted"] is False
    debugged.ask("initialize", clientID="test", adapterID="", pathFormat="path", linesStartAt1=True)
    debugged.ask("attach")
    code = "def double(n):\n    m = n * 2\n    return m\n\ndouble(21)"
    path = debugged.ask("dumpCell", code=code)["sourcePath"]
    placed = debugged.ask("setBreakpoints", source={"path": path}, breakpoints=[{"line": 3}], sourceModified=False)
    assert [point["verified"] for point in placed["breakpoints"]] == [True]
    debugged.ask("configurationDone")

    msg_id = kernel.send_code(code)
    stopped = debugged.receive(lambda message: message["content"]["event"] == "stopped", "debug_event")["body"]
    assert stopped["reason"] == "breakpoint"
    # Answered from what the kernel's own wait for stops has noted.
    assert stopped["threadId"] in debugged.ask("debugInfo")["stoppedThreads"]
    frames = debugged.ask("stackTrace", threadId=stopped["threadId"])["stackFrames"]
    assert (frames[0]["name"], frames[0]["line"]) == ("double", 3)
    local, *_ = debugged.ask("scopes", frameId=frames[0]["id"])["scopes"]
    variables = debugged.ask("variables", variablesReference=local["variablesReference"])["variables"]
    assert {variable["name"]: variable["value"] for variable in variables} == {"m": "42", "n": "21"}
    # Not answered by `ask`, which would read the cell's own messages away.
    kernel.send(
        "debug_request",
        {"type": "request", "seq": 99, "command": "continue", "arguments": {"threadId": stopped["threadId"]}},
        channel="control",
    )
    assert kernel.collect(msg_id).text == "42"
