"""A small blocking client of the gateway, for tests."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import websocket
from jupyter_server.services.kernels.connection.base import deserialize_msg_from_ws_v1, serialize_msg_to_ws_v1

TOKEN = "test-token"
DEADLINE_SECONDS = 60


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


def wait_while_growing(pid: int, at_least: int) -> int:
    """Waits until a process has this much resident memory and does not get more of it; how much it was at most."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    sizes = [0]
    while True:
        assert time.monotonic() < deadline, sizes
        time.sleep(0.3)
        sizes.append(resident_bytes(pid))
        if sizes[-1] == sizes[-2] >= at_least:
            return max(sizes)


@dataclass
class Execution:
    """Everything one execution caused."""

    messages: list[dict[str, Any]] = field(default_factory=list)
    reply: dict[str, Any] | None = None
    reply_metadata: dict[str, Any] = field(default_factory=dict)

    def of_type(self, *types: str) -> list[dict[str, Any]]:
        return [message["content"] for message in self.messages if message["header"]["msg_type"] in types]

    @property
    def stdout(self) -> list[str]:
        return [content["text"] for content in self.of_type("stream") if content["name"] == "stdout"]

    @property
    def stderr(self) -> list[str]:
        return [content["text"] for content in self.of_type("stream") if content["name"] == "stderr"]

    @property
    def results(self) -> list[dict[str, Any]]:
        return self.of_type("execute_result", "display_data")

    @property
    def bundle(self) -> dict[str, Any]:
        assert len(self.results) == 1, self.messages
        return self.results[0]["data"]

    @property
    def text(self) -> str:
        return self.bundle["text/plain"]

    @property
    def error(self) -> tuple[str, str] | None:
        errors = self.of_type("error")
        return (errors[0]["ename"], errors[0]["evalue"]) if errors else None


class Gateway:
    """A gateway process of its own on a free port."""

    def __init__(self, home: str, env: dict[str, str] | None = None, stderr: Any = None) -> None:
        # ipykernel leaves the file descriptors alone when it finds itself under pytest; here it is not.
        inherited = {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "cellbox_kernel.gateway"],
            env={
                **inherited,
                "HOME": home,
                "TMPDIR": home,  # a gateway that a test kills leaves its files there
                "CELLBOX_GATEWAY_PORT": "0",
                "CELLBOX_GATEWAY_TOKEN": TOKEN,
                "CELLBOX_OTHER_SECRET": "hidden",
                "INHERITED": "yes",
                **(env or {}),
            },
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
        line = self.process.stdout.readline()
        assert line.startswith("cellbox gateway takes connections at "), line
        self.connections = line.split(" at ", 1)[1].strip()
        line = self.process.stdout.readline()
        assert line.startswith("cellbox gateway listening on 127.0.0.1:"), line
        self.port = int(line.rsplit(":", 1)[1])

    def request(self, method: str, path: str, body: Any = None, token: str = TOKEN) -> tuple[int, Any]:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}",
            method=method,
            data=None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode(),
            headers={"Authorization": f"token {token}"},
        )
        try:
            with urllib.request.urlopen(request, timeout=DEADLINE_SECONDS) as response:
                text = response.read()
                return response.status, json.loads(text) if text else None
        except urllib.error.HTTPError as error:
            text = error.read()
            return error.code, json.loads(text) if text else None

    def start_kernel(self, **body: Any) -> Kernel:
        status, model = self.request("POST", "/api/kernels", body)
        assert status == 201, model
        return Kernel(self, model["id"])

    def close(self) -> int:
        """Asks the gateway to stop and waits for it; its exit code."""
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(DEADLINE_SECONDS)
        self.process.stdout.close()
        return code


class Kernel:
    """A connection to one kernel."""

    def __init__(self, gateway: Gateway, kernel_id: str) -> None:
        self.gateway = gateway
        self.id = kernel_id
        self.session = uuid.uuid4().hex
        self.socket: websocket.WebSocket | None = None
        self.connect()

    def connect(self, query: str = "") -> None:
        self.socket = websocket.create_connection(
            f"ws://127.0.0.1:{self.gateway.port}/api/kernels/{self.id}/channels?session_id={self.session}{query}",
            header=[f"Authorization: token {TOKEN}"],
            subprotocols=["v1.kernel.websocket.jupyter.org"],
            timeout=DEADLINE_SECONDS,
        )

    def send(self, msg_type: str, content: dict[str, Any], channel: str = "shell", metadata: Any = None) -> str:
        header = {
            "msg_id": uuid.uuid4().hex,
            "session": self.session,
            "username": "test",
            "date": "2026-01-01T00:00:00Z",
            "msg_type": msg_type,
            "version": "5.3",
        }
        message = {"header": header, "parent_header": {}, "metadata": metadata or {}, "content": content}
        self.socket.send_binary(serialize_msg_to_ws_v1(message, channel, lambda part: json.dumps(part).encode()))
        return header["msg_id"]

    def receive(self) -> tuple[str, dict[str, Any]]:
        channel, parts = deserialize_msg_from_ws_v1(self.socket.recv())
        header, parent, metadata, content = (json.loads(bytes(part)) for part in parts[:4])
        return channel, {"header": header, "parent_header": parent, "metadata": metadata, "content": content}

    def send_code(self, code: Any, metadata: Any = None, silent: bool = False, **content: Any) -> str:
        return self.send(
            "execute_request",
            {"code": code, "silent": silent, "store_history": not silent, "user_expressions": {}}
            | {"allow_stdin": False, "stop_on_error": True}
            | content,
            metadata=metadata,
        )

    def collect(self, msg_id: str) -> Execution:
        """Reads until the reply and the idle status of a request have both arrived."""
        execution, idle = Execution(), False
        while not idle or execution.reply is None:
            channel, message = self.receive()
            if message["parent_header"].get("msg_id") != msg_id:
                continue
            if channel == "shell":
                execution.reply, execution.reply_metadata = message["content"], message["metadata"]
            else:
                execution.messages.append(message)
                idle = idle or message["content"].get("execution_state") == "idle"
        return execution

    def run(self, code: Any, env: dict[str, str] | None = None, **content: Any) -> Execution:
        return self.collect(self.send_code(code, {"cellbox": {"env": env}} if env is not None else None, **content))

    def wait_for_status(self, status: str) -> float:
        """Reads until the gateway announces a status; seconds that took."""
        started = time.monotonic()
        while True:
            _, message = self.receive()
            if message["header"]["msg_type"] == "status" and message["content"]["execution_state"] == status:
                return time.monotonic() - started

    def close(self) -> None:
        self.socket.close()
        self.gateway.request("DELETE", f"/api/kernels/{self.id}")
