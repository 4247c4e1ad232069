"""The WebSocket between a client and a kernel."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import websocket
from gateway_client import DEADLINE_SECONDS, Gateway, resident_bytes, wait_while_growing

# The gateway, made to tell on SIGUSR1 what its open sockets are set to.
TELLING_GATEWAY = """
import json, signal, socket
from cellbox_kernel import gateway
from cellbox_kernel.connection import CellboxWebsocketConnection

def tell(*_):
    sockets = [c.websocket_handler.ws_connection.stream.socket for c in CellboxWebsocketConnection._open_sockets]
    print(json.dumps([s.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) for s in sockets]), flush=True)

signal.signal(signal.SIGUSR1, tell)
gateway.main()
"""


def test_the_gateways_side_of_every_connection_has_tcp_nodelay(tmp_path, monkeypatch):
    real_popen = subprocess.Popen
    program = [sys.executable, "-c", TELLING_GATEWAY]
    monkeypatch.setattr(subprocess, "Popen", lambda _, **options: real_popen(program, **options))
    gateway = Gateway(str(tmp_path))
    try:
        kernel = gateway.start_kernel(name="python")
        assert kernel.run("1").text == "1"
        gateway.process.send_signal(signal.SIGUSR1)
        assert json.loads(gateway.process.stdout.readline()) == [1]
        kernel.close()
    finally:
        gateway.close()


def test_many_messages_arrive_complete_and_in_order(kernel):
    execution = kernel.run("import sys\nfor i in range(20000): print(i, flush=i % 4 == 0)")
    assert "".join(execution.stdout) == "".join(f"{i}\n" for i in range(20000))
    assert execution.stderr == []


def test_a_client_that_reads_slowly_loses_nothing_and_gateway_and_kernel_stay_small(gateway):
    kernel = gateway.start_kernel(name="python")
    messages, length = 3000, 100_000
    pid = int(kernel.run("import os; os.getpid()").text)
    before = resident_bytes(pid)
    msg_id = kernel.send_code(f"for i in range({messages}): print(f'{{i:0{length}d}}', flush=True)")
    # The kernel waits for its reader, and neither process takes in the whole.
    assert wait_while_growing(pid, before + 1024 * 1024) < before + 150 * 1024 * 1024
    resident = resident_bytes(gateway.process.pid)
    execution = kernel.collect(msg_id)
    assert "".join(execution.stdout) == "".join(f"{i:0{length}d}\n" for i in range(messages))
    assert resident < 150 * 1024 * 1024
    kernel.close()


def test_stream_text_is_split_below_one_mebibyte_and_never_inside_a_character(kernel):
    execution = kernel.run("print('ä€😀' * 400_000)")
    assert "".join(execution.stdout) == "ä€😀" * 400_000 + "\n"
    assert len(execution.stdout) > 1
    assert all(len(text.encode()) <= 1024 * 1024 for text in execution.stdout)


def test_a_request_of_eight_megabytes_is_accepted(kernel):
    assert kernel.run("len('" + "x" * 8_000_000 + "')").text == "8000000"


def test_output_of_a_lost_connection_is_replayed_to_the_same_session(gateway, tmp_path):
    kernel = gateway.start_kernel(name="python")
    kernel.run("import os, time")
    wait = f"while not os.path.exists({str(tmp_path / 'back')!r}): time.sleep(0.01)"
    msg_id = kernel.send_code(f"print('before', flush=True)\n{wait}\nprint('after')")
    while kernel.receive()[1]["header"]["msg_type"] != "stream":
        pass
    kernel.socket.shutdown()
    kernel.connect()
    (tmp_path / "back").touch()
    assert "".join(kernel.collect(msg_id).stdout) == "after\n"
    kernel.close()


def test_a_cell_that_says_nothing_is_told_to_have_begun(gateway, tmp_path):
    kernel = gateway.start_kernel(name="python")
    kernel.run("import os, time")
    kernel.socket.settimeout(5)
    msg_id = kernel.send_code(f"while not os.path.exists({str(tmp_path / 'done')!r}): time.sleep(0.01)")
    kinds = [kernel.receive()[1]["header"]["msg_type"] for _ in range(2)]
    assert kinds == ["status", "execute_input"]
    (tmp_path / "done").touch()
    assert kernel.collect(msg_id).reply["status"] == "ok"
    kernel.close()


def test_what_was_on_its_way_to_a_lost_connection_arrives_on_the_next(gateway):
    kernel = gateway.start_kernel(name="python")
    kernel.socket.close()
    kernel.connect("&client=a&received=0")
    msg_id = kernel.send_code("for i in range(3000): print(i, flush=True)")
    texts, received = [], 0
    for until in (5, 400, 10_000):
        while received < until:
            _, message = kernel.receive()
            received += 1
            if message["parent_header"].get("msg_id") == msg_id:
                texts.append(message["content"].get("text", ""))
                if message["content"].get("execution_state") == "idle":
                    break
        else:
            # Far more than was read is on its way, or waits.
            while gateway.request("GET", f"/api/kernels/{kernel.id}")[1]["execution_state"] != "idle":
                time.sleep(0.02)
            kernel.socket.shutdown()
            kernel.connect(f"&client=a&received={received}")
    assert "".join(texts) == "".join(f"{i}\n" for i in range(3000))
    kernel.close()


def test_a_killed_kernel_is_announced_quickly_and_what_it_left_unanswered_never_runs(gateway):
    kernel = gateway.start_kernel(name="python")
    os.kill(int(kernel.run("import os; os.getpid()").text), signal.SIGKILL)
    # Requests of the whole time in which nobody has noticed yet, each after the gateway has taken in the one before.
    sent = taken_in = 0
    announced = False
    kernel.socket.settimeout(0.02)
    while not announced:
        if taken_in == sent:
            kernel.send_code(f"open('ghost-{sent}', 'w').close()")
            kernel.socket.ping()
            sent += 1
        with contextlib.suppress(websocket.WebSocketTimeoutException):
            while not announced:
                opcode, frame = kernel.socket.recv_data_frame(control_frame=True)
                taken_in += opcode == websocket.ABNF.OPCODE_PONG
                announced = b'"restarting"' in frame.data
    # 1.5 seconds of 20 ms each, not counting those in which the gateway or this process could not run.
    assert sent <= 75
    kernel.socket.settimeout(DEADLINE_SECONDS)
    # Sent at once, while the new process is still starting: nothing of it is lost.
    execution = kernel.run("import glob\nprint('new')\nset(glob.glob('ghost-*'))")
    assert execution.stdout == ["new\n"]
    # The last one may have crossed the announcement on its way.
    assert execution.text == "set()" or (taken_in < sent and execution.text == f"{{'ghost-{sent - 1}'}}")
    assert execution.reply["execution_count"] == (1 if execution.text == "set()" else 2)
    kernel.close()


def test_what_a_client_with_a_name_says_before_it_heard_of_a_death_never_runs(gateway):
    kernel = gateway.start_kernel(name="python")
    kernel.socket.close()
    kernel.connect("&client=a&received=0")
    os.kill(int(kernel.run("import os; os.getpid()").text), signal.SIGKILL)
    model = f"/api/kernels/{kernel.id}"
    while gateway.request("GET", model)[1]["last_ending"] is None:
        time.sleep(0.02)
    kernel.send_code("open('ghost', 'w').close()")  # the announcement has arrived, and was not read
    while gateway.request("GET", model)[1]["execution_state"] != "idle":
        time.sleep(0.02)
    kernel.connect("&client=b&received=0")
    assert kernel.run("import os; os.path.exists('ghost')").text == "False"
    kernel.close()


def test_an_open_connection_follows_a_restart_through_the_api(gateway):
    kernel = gateway.start_kernel(name="python")
    kernel.run("x = 1")
    assert gateway.request("POST", f"/api/kernels/{kernel.id}/restart")[0] == 200
    execution = kernel.run("print('again')\nx")
    assert (execution.stdout, execution.error) == (["again\n"], ("NameError", "name 'x' is not defined"))
    kernel.close()


@pytest.mark.parametrize("leave", ["exit()", "quit()"])
def test_exit_ends_its_cell_normally_and_then_the_kernel(gateway, leave):
    kernel = gateway.start_kernel(name="python")
    assert kernel.run(leave).reply["status"] == "ok"
    assert kernel.wait_for_status("restarting") < 5
    kernel.close()


def test_an_interrupt_keeps_the_state(gateway):
    kernel = gateway.start_kernel(name="python")
    kernel.run("kept = 41")
    msg_id = kernel.send_code("import time\nprint('sleeping', flush=True)\ntime.sleep(300)")
    while kernel.receive()[1]["header"]["msg_type"] != "stream":
        pass
    started = time.monotonic()
    assert gateway.request("POST", f"/api/kernels/{kernel.id}/interrupt")[0] == 204
    assert kernel.collect(msg_id).error == ("KeyboardInterrupt", "")
    assert kernel.run("kept + 1").text == "42"
    assert time.monotonic() - started < 5
    kernel.close()
