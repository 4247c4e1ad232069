"""What the gateway says a kernel is at, whoever listens to it."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from gateway_client import DEADLINE_SECONDS, Gateway, Kernel

# Ends when the file is there.
WAIT = "import os, time\nwhile not os.path.exists({!r}): time.sleep(0.01)"


def state_of(gateway: Gateway, kernel: Kernel) -> str:
    return gateway.request("GET", f"/api/kernels/{kernel.id}")[1]["execution_state"]


def wait_for_state(gateway: Gateway, kernel: Kernel, state: str) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while (last := state_of(gateway, kernel)) != state:
        assert time.monotonic() < deadline, last
        time.sleep(0.01)


def run_until(gateway: Gateway, kernel: Kernel, file: Path) -> None:
    """A cell that lasts until the file is there, which is once it is known to run."""
    msg_id = kernel.send_code(WAIT.format(str(file)))
    wait_for_state(gateway, kernel, "busy")
    file.touch()
    kernel.collect(msg_id)
    assert state_of(gateway, kernel) == "idle"


@pytest.fixture
def kernel(gateway):
    kernel = gateway.start_kernel(name="python")
    assert kernel.run("1").text == "1"
    yield kernel
    kernel.socket.shutdown()


def test_a_connected_kernel_is_busy_during_a_cell_and_idle_after_it(gateway, kernel, tmp_path):
    for name in ("one", "two"):
        run_until(gateway, kernel, tmp_path / name)


def test_its_state_is_known_while_its_client_is_away_and_after_another_has_come(gateway, kernel, tmp_path):
    kernel.send_code(WAIT.format(str(tmp_path / "done")))
    wait_for_state(gateway, kernel, "busy")
    kernel.socket.shutdown()  # its output is kept for this session
    (tmp_path / "done").touch()
    wait_for_state(gateway, kernel, "idle")
    other = Kernel(gateway, kernel.id)  # and dropped for another one
    assert other.run("2").text == "2"
    run_until(gateway, other, tmp_path / "again")
    other.socket.shutdown()


def test_one_of_two_clients_that_leaves_takes_nothing_along(gateway, kernel, tmp_path):
    other = Kernel(gateway, kernel.id)
    assert other.run("2").text == "2"
    kernel.socket.shutdown()
    run_until(gateway, other, tmp_path / "done")
    other.socket.shutdown()


def test_a_kernel_that_dies_in_a_cell_is_idle_when_it_is_back(gateway, kernel, tmp_path):
    pid = int(kernel.run("import os; os.getpid()").text)
    kernel.send_code(WAIT.format(str(tmp_path / "never")))
    wait_for_state(gateway, kernel, "busy")
    os.kill(pid, signal.SIGKILL)
    kernel.wait_for_status("restarting")
    assert kernel.run("3").text == "3"
    assert state_of(gateway, kernel) == "idle"


def test_activity_is_noted_at_each_cell(gateway, kernel):
    times = []
    for _ in range(2):
        kernel.run("1")
        times.append(gateway.request("GET", f"/api/kernels/{kernel.id}")[1]["last_activity"])
    assert times[0] < times[1]
