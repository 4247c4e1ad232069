"""Connections to kernels that are slow, deaf, dying or being replaced."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import websocket
from gateway_client import Gateway, Kernel

# Far below the minute after which a kernel is given up.
SOON_SECONDS = 15

# Answers what its kernelspec says: the control channel's requests are written to a file, the first requests to the
# shell can be left unanswered, and each start can be told to die at once or to wait for a fifo.
STUB_KERNEL = """
import os, sys

connection_file, folder, deaf_to, ending = sys.argv[1:5]
start = len(os.listdir(os.path.join(folder, "starts")))
open(os.path.join(folder, "starts", str(start)), "w").write(str(os.getpid()))
# Only now: these take a while, and one that is killed meanwhile has started all the same.
import json, zmq
from jupyter_client.session import Session

if ending == "dies":
    sys.exit(1)
if ending == "waits":
    open(os.path.join(folder, "gate")).close()
connection = json.load(open(connection_file))
context = zmq.Context()
session = Session(key=connection["key"].encode())
sockets = {}
for channel, kind in {"shell": zmq.ROUTER, "control": zmq.ROUTER, "stdin": zmq.ROUTER, "iopub": zmq.PUB}.items():
    sockets[channel] = context.socket(kind)
    sockets[channel].bind(f"tcp://127.0.0.1:{connection[channel + '_port']}")
poller = zmq.Poller()
for channel in ("shell", "control"):
    poller.register(sockets[channel], zmq.POLLIN)
seen = 0
while True:
    for socket, _ in poller.poll():
        identities, request = session.recv(socket, mode=0)
        msg_type = request["header"]["msg_type"]
        if socket is sockets["control"]:
            open(os.path.join(folder, "control"), "a").write(msg_type + chr(10))
            if msg_type == "shutdown_request":
                sys.exit(0)
        seen += socket is sockets["shell"]
        if seen <= int(deaf_to):
            continue
        session.send(sockets["iopub"], "status", {"execution_state": "busy"}, parent=request)
        if msg_type == "execute_request":
            session.send(sockets["iopub"], "stream", {"name": "stdout", "text": str(start)}, parent=request)
        content = {"status": "ok", "protocol_version": "5.3", "execution_count": 1}
        session.send(socket, msg_type.replace("request", "reply"), content, parent=request, ident=identities)
        session.send(sockets["iopub"], "status", {"execution_state": "idle"}, parent=request)
"""

# The gateway, made to tell on SIGUSR1 how many kernels its connections are waiting for.
TELLING_GATEWAY = """
import gc, signal
from cellbox_kernel import gateway
from cellbox_kernel.nudge import Nudge
from tornado.ioloop import IOLoop

def tell():
    print(sum(isinstance(each, Nudge) and not each._closed for each in gc.get_objects()), flush=True)

signal.signal(signal.SIGUSR1, lambda *_: IOLoop.current().add_callback_from_signal(tell))
gateway.main()
"""


class Stubs:
    """A gateway of its own with one kind of stub kernel, named `stub`, and what the stubs leave in their folder."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        (folder / "starts").mkdir()
        os.mkfifo(folder / "gate")
        self.log = open(folder / "gateway.log", "w+")
        real_popen, program = subprocess.Popen, [sys.executable, "-c", TELLING_GATEWAY]
        with monkeypatch.context() as patch:
            patch.setattr(subprocess, "Popen", lambda _, **options: real_popen(program, **options))
            env = {"JUPYTER_PATH": str(folder), "CELLBOX_ZYGOTE_IMPORTS": ""}
            self.gateway = Gateway(str(folder), env, stderr=self.log)

    def define(self, deaf_to: int = 0, ending: str = "lives", argv: list[str] | None = None) -> None:
        """How the next starts behave."""
        spec = self.folder / "kernels" / "stub" / "kernel.json"
        spec.parent.mkdir(parents=True, exist_ok=True)
        (self.folder / "stub.py").write_text(STUB_KERNEL)
        stub = [sys.executable, str(self.folder / "stub.py"), "{connection_file}", str(self.folder)]
        spec.write_text(
            json.dumps(
                {"argv": argv or [*stub, str(deaf_to), ending], "display_name": "Stub", "language": "none"}
                | {"interrupt_mode": "message"}
            )
        )

    def start(self, **options: object) -> Kernel:
        self.define(**options)
        return self.gateway.start_kernel(name="stub")

    def open_gate(self) -> None:
        """Lets one stub pass that waits; waits for it."""
        open(self.folder / "gate", "w").close()

    def pids(self) -> list[int]:
        starts = sorted((self.folder / "starts").iterdir(), key=lambda each: int(each.name))
        return [int(each.read_text()) for each in starts if each.read_text()]

    def waiting(self) -> int:
        self.gateway.process.send_signal(signal.SIGUSR1)
        return int(self.gateway.process.stdout.readline())

    def close(self) -> str:
        """Ends the gateway; what it logged."""
        self.gateway.close()
        self.log.seek(0)
        return self.log.read()


@pytest.fixture
def stubs(tmp_path, monkeypatch):
    stubs = Stubs(tmp_path, monkeypatch)
    yield stubs
    if stubs.gateway.process.poll() is None:
        stubs.close()
    stubs.log.close()


def wait_until(condition):
    deadline = time.monotonic() + SOON_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def kill(stubs):
    os.kill(stubs.pids()[-1], signal.SIGKILL)


def test_a_kernel_that_loses_its_first_requests_is_asked_again(stubs):
    started = time.monotonic()
    kernel = stubs.start(deaf_to=2)
    assert kernel.run("").stdout == ["0"]
    assert time.monotonic() - started < SOON_SECONDS
    kernel.close()


def test_a_kernel_that_starts_slowly_gets_the_requests_of_its_whole_start(stubs):
    kernel = stubs.start(ending="waits")
    kernel.socket.settimeout(SOON_SECONDS)
    waiting = {kernel.send_code("") for _ in range(3)}
    wait_until(lambda: stubs.waiting() == 1)
    stubs.open_gate()
    while waiting:
        channel, message = kernel.receive()
        if channel == "shell":
            waiting.remove(message["parent_header"]["msg_id"])
    kernel.close()


def test_the_control_channel_is_left_alone_while_a_connection_is_made(stubs):
    kernel = stubs.start(deaf_to=1)
    kernel.run("")
    kernel.close()
    assert (stubs.folder / "control").read_text().split() == ["interrupt_request", "shutdown_request"]


def test_a_client_that_leaves_while_its_kernel_starts_is_noticed_at_once(stubs):
    kernel = stubs.start(ending="waits")
    wait_until(lambda: stubs.waiting() == 1)
    kernel.socket.close()
    wait_until(lambda: stubs.waiting() == 0)
    # And may come back.
    kernel.connect()
    stubs.open_gate()
    assert kernel.run("").stdout == ["0"]
    kernel.close()


def test_a_client_that_comes_back_before_its_leaving_was_noticed_is_served(stubs):
    kernel = stubs.start()
    kernel.run("")
    for _ in range(5):
        lost = kernel.socket
        kernel.connect()
        assert kernel.run("").stdout == ["0"]
        lost.shutdown()
    assert stubs.gateway.request("GET", f"/api/kernels/{kernel.id}")[1]["connections"] == 1
    kernel.close()


def test_a_restart_while_a_connection_is_made_does_not_hold_it_up(stubs):
    kernel = stubs.start(ending="waits")
    wait_until(lambda: stubs.waiting() == 1)
    wait_until(lambda: len(stubs.pids()) == 1)
    stubs.define()
    # The stub that waits hears no polite request.
    assert stubs.gateway.request("POST", f"/api/kernels/{kernel.id}/restart")[0] == 200
    kernel.socket.settimeout(SOON_SECONDS)
    with open(stubs.folder / "gate", "w"):  # kernelspecs are read once; the new process waits as the old one did
        assert kernel.run("").stdout == ["1"]
    assert stubs.waiting() == 0
    kernel.close()


def test_a_kernel_that_dies_again_and_again_is_waited_for_once_at_a_time(stubs):
    kernel = stubs.start(ending="waits")
    kernel.socket.settimeout(SOON_SECONDS)
    for death in range(3):
        wait_until(lambda: len(stubs.pids()) == death + 1)
        kill(stubs)
        kernel.wait_for_status("restarting")
        assert stubs.waiting() == 1
    wait_until(lambda: len(stubs.pids()) == 4)
    msg_id = kernel.send_code("")
    stubs.open_gate()
    assert kernel.collect(msg_id).stdout == ["3"]
    kernel.close()


def test_a_client_hears_of_a_kernel_that_dies_during_each_start_and_of_its_end(stubs):
    stubs.define(ending="dies")
    status, model = stubs.gateway.request("POST", "/api/kernels", {"name": "stub"})
    assert status == 201
    try:
        kernel = Kernel(stubs.gateway, model["id"])
        kernel.socket.settimeout(SOON_SECONDS)
        kernel.wait_for_status("dead")
        assert stubs.waiting() == 0
        kernel.socket.close()
    except websocket.WebSocketBadStatusException as refused:  # it never lived long enough to be connected to
        assert refused.status_code == 404
    assert stubs.gateway.request("GET", f"/api/kernels/{model['id']}")[0] == 404
    assert "Traceback" not in stubs.close()


@pytest.mark.parametrize("asked_for", [False, True])
def test_a_kernel_whose_program_is_gone_at_a_restart_is_given_up_with_one_line_in_the_log(stubs, asked_for):
    program = stubs.folder / "program"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    program.chmod(0o755)
    argv = [str(program), str(stubs.folder / "stub.py"), "{connection_file}", str(stubs.folder), "0", "lives"]
    kernel = stubs.start(argv=argv)
    kernel.run("")
    program.unlink()
    if asked_for:
        status, answer = stubs.gateway.request("POST", f"/api/kernels/{kernel.id}/restart")
        assert status == 500 and answer["message"].startswith("The kernel could not be started again: ")
    else:
        kill(stubs)
    kernel.socket.settimeout(SOON_SECONDS)
    kernel.wait_for_status("dead")
    assert stubs.waiting() == 0
    assert stubs.gateway.request("GET", f"/api/kernels/{kernel.id}")[0] == 404
    assert stubs.gateway.request("POST", "/api/kernels", {"name": "stub"})[0] == 500
    kernel.socket.close()
    log = stubs.close()
    assert "Traceback" not in log
    assert log.count("A kernel could not be started: ") == 2


def test_a_restart_that_is_asked_for_during_one_of_the_gateways_own_comes_after_it(stubs):
    kernel = stubs.start()
    kernel.run("")
    kill(stubs)
    kernel.wait_for_status("restarting")
    assert stubs.gateway.request("POST", f"/api/kernels/{kernel.id}/restart")[0] == 200
    assert kernel.run("").stdout == ["2"]
    kernel.close()
    assert "Traceback" not in stubs.close()


def test_restarts_asked_for_at_the_same_time_follow_one_another(stubs):
    kernel = stubs.start()
    kernel.run("")
    answers = []
    path = f"/api/kernels/{kernel.id}/restart"

    def restart():
        answers.append(stubs.gateway.request("POST", path)[0])

    threads = [threading.Thread(target=restart) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SOON_SECONDS)
    assert answers == [200] * 3
    assert kernel.run("").stdout == ["3"]
    kernel.close()
    assert "Traceback" not in stubs.close()


@pytest.mark.parametrize(("method", "action"), [("POST", "/interrupt"), ("DELETE", "")])
def test_a_kernel_that_is_just_being_restarted_can_be_interrupted_and_ended(stubs, method, action):
    kernel = stubs.start()
    kernel.run("")
    kill(stubs)
    kernel.wait_for_status("restarting")
    assert stubs.gateway.request(method, f"/api/kernels/{kernel.id}{action}")[0] == 204
    assert stubs.gateway.request("GET", f"/api/kernels/{kernel.id}")[0] == (404 if method == "DELETE" else 200)
    kernel.close()
    assert "Traceback" not in stubs.close()
